"""Expectation-maximisation for any latent-variable model.

The driver knows no Gaussian: a model brings `expect` and `maximize`, and the driver adds up blocks of
rows, repeats the two steps, and decides when to stop. See MATH 2; Dempster, Laird and Rubin (1977);
Neal and Hinton (1998) for the view of both steps as ascent on one bound.

For every model, to rounding: ℓ(θ_{t+1}) ≥ ELBO(θ_{t+1}, q_t) ≥ ELBO(θ_t, q_t) = ℓ(θ_t).
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from gmmjax import acceleration
from gmmjax.blocks import Blocks, collect, split
from gmmjax.status import Status, worst
from gmmjax.typing import Array, ArrayLike, Float, Int, pytree

TRACE_LENGTH = 32


class LatentVariableModel(Protocol):
    """What a model brings. It is a pytree, and both methods are pure.

    It may also bring `prepare(self)`, whose result answers `expect` in its place: work that depends
    on the parameters alone and is then done once a step, not once a block, and which may have
    `collect(self, blocks)`, a way of its own to add `expect` up;
    `localize(self, data, weights, prior) -> (model, data, prior, restore)`, coordinates in which its
    sums do not cancel, and the way back for an `EMResult`; and `log_prior(self, prior)`, in nats, where it
    takes a prior. `elbo` needs `log_joint(self, data)`. A model whose M-step depends on the model
    itself, not on the moments alone, brings `coordinates(self)`, unconstrained, and `at(self, coordinates,
    moments, reg) -> model`, within the bounds of its M-step: acceleration then extrapolates these.
    """

    def expect(self, data: Any, weights: Float[Array, "n"], /) -> tuple[Any, Float[Array, ""]]:
        """Expected sufficient statistics of a block of rows, and its log-likelihood in nats.

        The statistics of two blocks are added with `+`, or leaf by leaf.
        """
        ...

    def maximize(
        self, moments: Any, /, *, prior: Any = None, reg: ArrayLike = 0.0
    ) -> tuple[Self, ArrayLike]:
        """The model that maximises the expected complete log-likelihood, and a `Status`.

        `Status.CONVERGED` says that nothing is amiss. From `NONFINITE_INPUT` on, the step is undone
        and the lane ends.
        """
        ...


Model = TypeVar("Model", bound=LatentVariableModel)


@pytree
class EMState(Generic[Model]):
    """One lane between two steps. `log_likelihood` and `moments` are those of `model`."""

    model: Model
    moments: Any
    log_likelihood: Float[Array, ""]  # nats, summed over samples with their weights
    objective: Float[Array, ""]  # log-likelihood plus the log-prior: what never falls
    change: Float[Array, ""]  # of the objective in the last step, nats per unit of weight
    trace: Float[Array, "t"]  # log-likelihoods of the last steps, the newest last; NaN before
    n_steps: Int[Array, ""]
    status: Int[Array, ""]  # a `Status`
    warning: Int[Array, ""]  # what the last M-step said: CONVERGED when nothing
    memory: Any = None  # an `acceleration.Memory`; None for plain EM


@pytree
class EMResult(Generic[Model]):
    """Where a lane ended. Holds no data."""

    model: Model
    log_likelihood: Float[Array, ""]  # of `model`; nats, summed over samples with their weights
    objective: Float[Array, ""]  # log-likelihood plus the log-prior
    trace: Float[Array, "t"]  # log-likelihoods of the last steps, the newest last; NaN before
    n_steps: Int[Array, ""]
    change: Float[Array, ""]  # of the objective in the last step, nats per unit of weight
    status: Int[Array, ""]  # a `Status`

    @classmethod
    def of(cls, state: EMState[Model]) -> "EMResult[Model]":
        """The result of a lane that has ended."""
        return cls(
            model=state.model,
            log_likelihood=state.log_likelihood,
            objective=state.objective,
            trace=state.trace,
            n_steps=state.n_steps,
            change=state.change,
            status=state.status,
        )

    @property
    def converged(self) -> Array:
        """Whether the last change was finite and at most `tol`, with nothing to warn of."""
        return self.status == Status.CONVERGED


def expect(model: Any, blocks: Blocks) -> tuple[Any, Float[Array, ""]]:
    """The E-step over all rows: the moments of the blocks, added up."""
    prepared = model.prepare() if hasattr(model, "prepare") else model
    if hasattr(prepared, "collect"):
        return prepared.collect(blocks)
    return collect(prepared.expect, blocks)


def blank(model: Model, blocks: Blocks, *, accelerate: bool = False) -> EMState[Model]:
    """A state before anything is known: to be entered with `fresh`."""
    shapes, log_likelihood = jax.eval_shape(expect, model, blocks)
    zero = jnp.zeros((), log_likelihood.dtype)
    moments = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return EMState(
        model=model,
        moments=moments,
        log_likelihood=zero,
        objective=zero,
        change=zero,
        trace=jnp.zeros(TRACE_LENGTH, zero.dtype),
        n_steps=jnp.asarray(0, jnp.int32),
        status=jnp.asarray(Status.CONVERGED, jnp.int32),
        warning=jnp.asarray(Status.CONVERGED, jnp.int32),
        memory=acceleration.blank(_iterate(model, moments), zero) if accelerate else None,
    )


def enter(
    state: EMState[Model],
    model: Model,
    warning: ArrayLike,
    fresh: ArrayLike,
    blocks: Blocks,
    *,
    prior: Any = None,
) -> EMState[Model]:
    """The E-step at a proposed model: where `fresh`, the start of a lane, else the end of a step.

    One function for both, so that a program of many lanes compiles the E-step once. A value that is
    not finite ends the lane with a status; a step is then undone. A lane that has ended stays so.
    """
    fresh = jnp.asarray(fresh)
    moments, log_likelihood = expect(model, blocks)
    objective = _objective(model, log_likelihood, prior)
    warning = jnp.where(fresh, Status.CONVERGED, jnp.asarray(warning, jnp.int32))
    refused = warning >= Status.NONFINITE_INPUT
    failed = refused | ~(jnp.isfinite(objective) & _all_finite(moments))
    failure = jnp.where(
        fresh, Status.NONFINITE_INPUT, jnp.where(refused, warning, Status.NONFINITE)
    )
    trace = jnp.where(fresh, jnp.nan, jnp.roll(state.trace, -1)).at[-1].set(log_likelihood)
    taken = EMState(
        model=model,
        moments=moments,
        log_likelihood=log_likelihood,
        objective=objective,
        change=jnp.where(fresh, jnp.inf, (objective - state.objective) / blocks.total_weight),
        trace=trace,
        n_steps=jnp.where(fresh, 0, state.n_steps + 1),
        status=jnp.asarray(Status.RUNNING, jnp.int32),
        warning=warning,
        memory=state.memory,
    )
    running = fresh | (state.status == Status.RUNNING)
    kept = _where(fresh | (running & ~failed), taken, state)
    return _end(kept, jnp.where(running & failed, failure, kept.status))


def init(model: Model, blocks: Blocks, *, prior: Any = None) -> EMState[Model]:
    """The E-step at the starting model."""
    return enter(blank(model, blocks), model, Status.CONVERGED, True, blocks, prior=prior)


def step(
    state: EMState[Model], blocks: Blocks, *, prior: Any = None, reg: ArrayLike = 0.0
) -> EMState[Model]:
    """One M-step, and the E-step at the new model.

    A value that is not finite ends the lane with a status and leaves the model as it was. A lane
    that has ended is returned as it is.
    """
    model, warning = state.model.maximize(state.moments, prior=prior, reg=reg)
    return enter(state, model, warning, False, blocks, prior=prior)


def terminate(
    state: EMState[Model], blocks: Blocks, *, tol: ArrayLike, max_steps: ArrayLike
) -> EMState[Model]:
    """Decide whether a running lane has ended.

    Converged: the change is finite and at most `tol` in size, or at most the rounding of the
    objective itself (a change below that cannot be seen); or that is so of the mean change over the
    whole trace, where no prior is (in float32 the sums behind the objective may round by many times
    its own last digit, and single changes then never get that small). With `tol` 0 no change is small
    enough: exactly `max_steps` are taken. A fall of more than that is no convergence. What the last
    M-step warned of becomes the lane's status if it is worse.
    """
    eps = jnp.finfo(state.objective.dtype).eps
    size = jnp.abs(state.objective) / blocks.total_weight
    threshold = jnp.where(jnp.asarray(tol) > 0, jnp.maximum(tol, 0.5 * eps * size), 0.0)
    drift = (state.trace[-1] - state.trace[0]) / (blocks.total_weight * (TRACE_LENGTH - 1))
    drift = jnp.where(
        state.objective == state.log_likelihood, drift, jnp.inf
    )  # NaN until it is full
    converged = (state.n_steps > 0) & (jnp.abs(state.change) < threshold)
    converged |= jnp.abs(drift) < threshold
    ended = worst(jnp.where(converged, Status.CONVERGED, Status.MAX_STEPS), state.warning)
    done = (state.status == Status.RUNNING) & (converged | (state.n_steps >= max_steps))
    return _end(state, jnp.where(done, ended, state.status))


Turn = Callable[[EMState[Model], Model, Array], EMState[Model]]
"""(state, start, whether to begin anew) → the state one turn later."""


def turn(
    blocks: Blocks,
    *,
    prior: Any = None,
    reg: ArrayLike = 0.0,
    tol: ArrayLike = 1e-6,
    max_steps: ArrayLike = 1000,
) -> Turn:
    """What a lane does again and again: begin from a start where told to, take a step otherwise.

    A state with a memory (`blank`) takes accelerated steps.
    """

    def maximized(state: EMState[Model], moments: Any) -> tuple[Model, ArrayLike]:
        return state.model.maximize(moments, prior=prior, reg=reg)

    def once(state: EMState[Model], start: Model, fresh: Array) -> EMState[Model]:
        trial = None
        if state.memory is None:
            model, warning = maximized(state, state.moments)
        elif _iterates_itself(state.model):
            model, warning = maximized(state, state.moments)
            own: Any = state.model
            at = partial(own.at, moments=state.moments, reg=reg)
            trial = acceleration.propose(state.memory, model, state.change, at)
            model = trial.point
        else:
            trial = acceleration.propose(state.memory, state.moments, state.change)
            model, warning = maximized(state, trial.point)
        after = enter(state, _where(fresh, start, model), warning, fresh, blocks, prior=prior)
        if trial is not None:
            after = _judged(state, after, trial, fresh, blocks)
        return terminate(after, blocks, tol=tol, max_steps=max_steps)

    return once


def _judged(
    state: EMState[Model],
    after: EMState[Model],
    trial: acceleration.Trial,
    fresh: Array,
    blocks: Blocks,
) -> EMState[Model]:
    """What is left of a turn: a trial that does not rise, or that warns of more, is undone.

    The change is that of two steps, so that one of them was long: EM's own step may be below `tol`
    where there is far to go.
    """
    sound = (after.objective >= state.objective) & (after.warning <= state.warning)
    kept = (after.status == Status.RUNNING) & sound
    tried = trial.extrapolated & ~fresh & (state.status == Status.RUNNING)
    refused = tried & ~kept
    undone = dataclasses.replace(state, n_steps=state.n_steps + 1)
    out = _where(refused, undone, after)
    memory = acceleration.learn(state.memory, trial, state.objective, refused, fresh)
    change = (after.objective - state.memory.before) / blocks.total_weight
    change = jnp.where(fresh | refused, out.change, change)
    return dataclasses.replace(out, change=change, memory=memory)


def run(
    model: Model,
    blocks: Blocks,
    *,
    prior: Any = None,
    reg: ArrayLike = 0.0,
    tol: ArrayLike = 1e-6,
    max_steps: ArrayLike = 1000,
    accelerate: bool = False,
) -> EMResult[Model]:
    """EM to convergence over data that are already in blocks, under `lax.while_loop`."""
    options = {"prior": prior, "reg": reg, "tol": tol, "max_steps": max_steps}
    return EMResult.of(run_to_end(model, blocks, accelerate=accelerate, **options))


def run_to_end(
    model: Model,
    blocks: Blocks,
    *,
    prior: Any = None,
    reg: ArrayLike = 0.0,
    tol: ArrayLike = 1e-6,
    max_steps: ArrayLike = 1000,
    accelerate: bool = False,
) -> EMState[Model]:
    """As `run`, and the last state with its moments."""
    once = turn(blocks, prior=prior, reg=reg, tol=tol, max_steps=max_steps)

    def body(carry: tuple[EMState[Model], Array]) -> tuple[EMState[Model], Array]:
        state, fresh = carry
        return once(state, model, fresh), jnp.zeros_like(fresh)

    def going(carry: tuple[EMState[Model], Array]) -> Array:
        return carry[1] | (carry[0].status == Status.RUNNING)

    empty = blank(model, blocks, accelerate=accelerate)
    return lax.while_loop(going, body, (empty, jnp.asarray(True)))[0]


def em(
    model: Model,
    data: Any,
    *,
    weights: Float[Array, "n"] | None = None,
    prior: Any = None,
    reg: ArrayLike = 0.0,
    tol: ArrayLike = 1e-6,
    max_steps: ArrayLike = 1000,
    block: int | None = None,
    accelerate: bool = False,
) -> EMResult[Model]:
    """Fit a latent-variable model by EM, from `model` as the start.

    Pure: `jit` it, `vmap` it over models, weights or data sets. `tol`, `reg` and `max_steps` are
    traced, so a new value compiles nothing.

    **Arguments**

    - `model`: a `LatentVariableModel`, e.g. a `GaussianMixture` or a model of your own.
    - `data`: a pytree of arrays whose leading axis is the n samples.
    - `weights`: how often each row counts, shape [n]; `None` for once. 0 is as if absent.
    - `prior`: passed to `maximize`; the mode of the posterior is sought (MAP-EM).
    - `reg`: passed to `maximize`.
    - `tol`: the change of the objective, in nats per unit of weight, that counts as none. With 0,
      exactly `max_steps` are taken.
    - `max_steps`: the most M-steps.
    - `block`: rows a block; memory grows with it, not with n. `None` chooses.
    - `accelerate`: larger steps where EM is slow (SQUAREM, see `acceleration`); the objective still never
      falls. The model's statistics must be such that a weighted mean of two is one too.

    **Returns** an `EMResult`. Nothing is raised for bad values inside the data: the status says so,
    and a NaN is never `CONVERGED`.

    >>> import jax.numpy as jnp, gmmjax
    >>> x = jnp.array([[0.0], [0.2], [4.0], [4.2]])
    >>> start = gmmjax.GaussianMixture.create([0.5, 0.5], [[1.0], [3.0]], [1.0, 1.0], "spherical")
    >>> result = gmmjax.em(start, x)
    >>> [round(float(m), 2) for m in result.model.means[:, 0]]
    [0.1, 4.1]
    """
    _check_dtypes(model, data)
    return _em(model, data, weights, prior, reg, tol, max_steps, block, accelerate, type(model))


def _check_dtypes(model: Any, data: Any) -> None:
    """A step gives parameters in the wider dtype of the two, and they must be those of the model."""

    def widest(tree: Any) -> jnp.dtype | None:
        floating = [
            jax.dtypes.canonicalize_dtype(a.dtype)
            for a in jax.tree.leaves(tree)
            if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating)
        ]
        return jnp.result_type(*floating) if floating else None

    own, given = widest(model), widest(data)
    if own is not None and given is not None and jnp.promote_types(own, given) != own:
        raise TypeError(
            f"data: expected dtype {own}, that of the model's parameters, or a narrower one; got "
            f"{given}. Convert the data, or create the model with {given} parameters."
        )


@partial(jax.jit, static_argnums=(7, 8, 9))
def _em(
    model: Model,
    data: Any,
    weights: Array | None,
    prior: Any,
    reg: ArrayLike,
    tol: ArrayLike,
    max_steps: ArrayLike,
    block: int | None,
    accelerate: bool,
    kind: type[Model],  # where a user's own class does not tell itself apart, see `typing.pytree`
) -> EMResult[Model]:
    restore = _same
    localize = getattr(model, "localize", None)
    if localize is not None:
        model, data, prior, restore = localize(data, weights, prior)
    blocks = split(data, weights, block)
    options = {"prior": prior, "reg": reg, "tol": tol, "max_steps": max_steps}
    return restore(run(model, blocks, accelerate=accelerate, **options))


def elbo(
    model: Any,
    data: Any,
    q: Float[Array, "n k"],
    weights: Float[Array, "n"] | None = None,
) -> Float[Array, ""]:
    """Σ_i w_i Σ_j q_ij (log p(x_i, z = j) − log q_ij) ≤ ℓ(θ), in nats; equal at the posterior.

    For models with a discrete latent variable, which bring `log_joint(data) -> [n, k]`. Rows of `q`
    are distributions: non-negative, sum 1. The gap is Σ_i KL(q_i ‖ p(z | x_i)) (MATH 2).
    """
    log_joint = model.log_joint(data)
    # 0·log 0 = 0, in value and in gradient: the inner `where` keeps log away from 0.
    log_q = jnp.log(jnp.where(q > 0, q, 1.0))
    terms = jnp.where(q > 0, q * (jnp.where(q > 0, log_joint, 0.0) - log_q), 0.0)
    rows = jnp.sum(terms, axis=-1)
    return jnp.sum(rows if weights is None else rows * weights)


def _same(result: EMResult[Model]) -> EMResult[Model]:
    return result


def _iterates_itself(model: Any) -> bool:
    return hasattr(model, "coordinates")


def _iterate(model: Any, moments: Any) -> Any:
    """What `acceleration` extrapolates."""
    return model if _iterates_itself(model) else moments


def _objective(model: Any, log_likelihood: Array, prior: Any) -> Array:
    return log_likelihood if prior is None else log_likelihood + model.log_prior(prior)


def _all_finite(tree: Any) -> Array:
    leaves = [jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(leaves)) if leaves else jnp.asarray(True)


def _where(pred: Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda u, v: jnp.where(pred, u, v), a, b)


def _end(state: EMState[Model], status: Array) -> EMState[Model]:
    return dataclasses.replace(state, status=status.astype(jnp.int32))

"""`fit`: a Gaussian mixture from data, by EM from many starts, the best kept."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import blocks as blocks_
from gmmjax import checks, families, initialization
from gmmjax import missing as missing_
from gmmjax.backend import Choice, choose, program
from gmmjax.blocks import Blocks
from gmmjax.em import blank, turn
from gmmjax.frame import Frame
from gmmjax.lanes import Lanes, default_restarts, one_by_one
from gmmjax.mixture import GaussianMixture
from gmmjax.priors import Prior
from gmmjax.rounding import resolution, too_narrow
from gmmjax.search import n_fresh, patience, search, wary
from gmmjax.status import Status, summarize
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree, static


@pytree
class FitResult:
    """The best lane of a fit. Holds no data."""

    model: GaussianMixture
    log_likelihood: Float[Array, ""]  # Σ_i w_i log p(x_i) in nats, at `model`
    converged: Array  # bool: the change fell to `tol`, and nothing is to warn of
    status: Int[Array, ""]  # a `Status`
    n_steps: Int[Array, ""]  # M-steps of the best lane
    best: Int[Array, ""]  # which lane it was
    lanes: Lanes  # how every lane ended
    choice: Choice = static(default=Choice())  # how it was computed

    @property
    def message(self) -> str:
        """The status in words, and how the lanes ended."""
        return f"{Status(int(self.status)).message} ({summarize(self.lanes.status)})"


def fit(
    key: Key[Array, ""],
    x: ArrayLike,
    n_components: int,
    *,
    family: str = "full",
    restarts: int | None = None,
    init: str | GaussianMixture | ArrayLike = "mixed",
    weights: ArrayLike | None = None,
    prior: Prior | None = None,
    reg: ArrayLike = 1e-7,
    tol: ArrayLike = 1e-8,
    max_steps: ArrayLike = 1000,
    block: int | None = None,
    restart_batch: int | None = None,
    accelerate: bool = True,
    missing: str = "refuse",
    kernel: str = "auto",
    precision: str = "high",
    throw: bool = True,
) -> FitResult:
    """Fit a Gaussian mixture by EM from many starts at once, and keep the best.

    **Arguments**

    - `key`: a `jax.random.key`. The same key gives the same result.
    - `x`: data [n, d], finite; or with NaN for missing values, see `missing`.
    - `n_components`: k ≥ 1, at most the number of rows.
    - `family`: "full", "tied", "diag" or "spherical" (`families.names()`).
    - `restarts`: how many starts; `None` for `lanes.default_restarts`: on small data 60 a component and
      more where there are many columns, on large data fewer. Given models or labels, as many as are given.
    - `init`: "mixed", "k-means", "k-means++", "random_points", "random_responsibilities"; a
      `GaussianMixture` of the same family, with a leading axis for several; or integer labels [n].
      "mixed" starts a sixth of the lanes (of fewer than 72 twelve, of fewer than 24 half) from k-means++
      seeds and random points, and the others, in rounds, from the best so far with one component moved
      to a row that it explains badly; lanes far behind the best of the rounds before are left
      (`Status.OVERTAKEN`). The other kinds run every start to its end.
    - `weights`: how often each row counts, [n]; weight 0 is as if the row were absent.
    - `prior`: a `Prior`, for the mode of the posterior (MAP-EM).
    - `reg`: the floor of the covariances, as a fraction of the variance of each column of x: Σ_j ⪰
      reg · diag(v). Free of units; 0 for none. Inactive in a sound fit; where it is active at the
      end, the status is `DEGENERATE`. Such lanes, and those where a component rests on very few rows
      (`SPURIOUS`), win only where no other lane is left: their likelihood can grow without bound.
    - `tol`: the change of the objective in one step, in nats per sample, at which a lane has
      converged. With 0, exactly `max_steps` are taken.
    - `max_steps`: the most M-steps of a lane.
    - `block`: rows a block. Memory is O(lanes in a batch · k · block), and does not grow with n.
    - `restart_batch`: slots, the lanes that step together. For both, `None` lets `backend` choose.
    - `accelerate`: larger steps where EM is slow, see `acceleration`; False for plain EM.
    - `missing`: "refuse" raises on NaN. "marginalize" takes it for a value missing at random and
      integrates it out; the log-likelihood is then that of the values that are known (see `incomplete`).
    - `kernel`: "auto", "xla", "native" (C++ for a CPU, compiled here at its first use, see `native`) or
      "pallas" (fused kernels for a GPU); `precision` of the matrix products
      in float32 on a GPU: "highest", "high" (as accurate, on the tensor cores) or "tf32" (within 1e-3
      nats a sample). Everywhere else products are at full precision. The result's `choice` says what
      was taken.
    - `throw`: raise `FitError` where no lane ends with a finite model; otherwise the status says so.

    Only `n_components`, `family`, `init`'s kind, `restarts`, and how it is computed (`block`,
    `restart_batch`, `kernel`, `precision`, `accelerate`) are structure: new values of anything else
    compile nothing. Under `jit` or `vmap` values cannot be looked at, nothing is raised for them, and the
    status tells.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError`.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_faithful().x
    >>> result = gmmjax.fit(jax.random.key(0), x, 2)
    >>> bool(result.converged), round(float(result.log_likelihood), 1)
    (True, -1130.3)
    """
    name = families.get(family).name
    if missing not in ("refuse", "marginalize"):
        raise ValueError(f"missing: expected 'refuse' or 'marginalize'; got {missing!r}.")
    x = checks.rows(x, finite=missing == "refuse")
    n, d = x.shape
    k = checks.count(n_components, "n_components")
    w = checks.weights(weights, n, x.dtype)
    checks.enough_rows(n, k, w)
    known = None
    if missing == "marginalize" and missing_.any_in(x):
        known = missing_.rows(x, w, k, name)
        x = missing_.mask(x).x
    checks.varying(x, w)
    for value, label in ((reg, "reg"), (tol, "tol"), (max_steps, "max_steps")):
        checks.nonnegative(value, label)
    work = n if known is None else n * d  # a step costs up to d times as much
    lanes = default_restarts(work, k, d) if restarts is None else checks.count(restarts, "restarts")
    _check_prior(prior, k, d)

    if isinstance(init, str):
        if init not in initialization.METHODS:
            raise ValueError(
                f"init: expected one of {', '.join(initialization.METHODS)}; got {init!r}."
            )
        start = None
    elif isinstance(init, GaussianMixture):
        start, lanes = stacked(init, k, d, name, x.dtype)
        init = "model"
    else:
        start, lanes = _labels(init, n, k), 1
        init = "labels"
    choice = choose(
        n, d, k, name, x.dtype, lanes, kernel=kernel, precision=precision,
        block=None if block is None else checks.count(block, "block"),
        batch=None if restart_batch is None else checks.count(restart_batch, "restart_batch"),
        rounds=_swaps(init, k),
    )  # fmt: skip

    x, w = blocks_.bucketed(x, w, choice.block)
    if init == "labels":
        assert isinstance(start, jax.Array)
        start = blocks_.filled(start, x.shape[0], -1)
    options = (
        jnp.asarray(reg, x.dtype),
        jnp.asarray(tol, x.dtype),
        jnp.asarray(max_steps, jnp.int32),
    )
    # Three programs: the memory of one is given back before the next, and `_lay`'s input, too.
    frame, data, seen, weight = _lay(x, w, known, choice=choice)
    del x, w, known
    structure = {"k": k, "family": name, "init": init, "lanes": lanes, "choice": choice}
    models = _starts(key, frame, data, start, prior, options[0], **structure)
    result = _search(
        key, frame, data, seen, weight, models, prior, *options,
        accelerate=bool(accelerate), **structure,
    )  # fmt: skip
    if throw:
        checks.ended(
            result.status,
            f"fit: none of {lanes} starts of {k} {name} components ended with a finite model",
            result.lanes.status,
        )
    return result


@program("choice")
def _lay(
    x: Array, w: Array, known: Blocks | None, *, choice: Choice
) -> tuple[Frame, Blocks, Blocks | None, Float[Array, ""]]:
    """The data's frame, the rows in it, what is known of them where that is less, and their weight."""
    frame = Frame.of(x, w)
    data = blocks_.split(frame.enter(x), w, choice.block, choice)
    if known is None:
        return frame, data, None, data.total_weight
    seen = Blocks(known.data.enter(frame), known.weights)
    return frame, data, seen, known.data.n_known(known.weights) / x.shape[1]


@program("k", "family", "init", "lanes", "choice")
def _starts(
    key: Array, frame: Frame, data: Blocks, start: GaussianMixture | Array | None,
    prior: Prior | None, reg: Array, *,
    k: int, family: str, init: str, lanes: int, choice: Choice,
) -> GaussianMixture:  # fmt: skip
    """The starts, in the frame, with a leading axis of lanes."""
    local = None if prior is None else prior.into(frame)
    if init == "model":
        assert isinstance(start, GaussianMixture)
        return start.into(frame)
    if init == "labels":
        assert isinstance(start, jax.Array)
        labels = blocks_.split(start, data.weights.reshape(-1), choice.block).data
        both = Blocks((data.data, labels), data.weights)
        model = initialization.labelled(both, k, family, local, reg)
        return jax.tree.map(lambda a: a[None], model)
    if _swaps(init, k):
        lanes = n_fresh(lanes)
    return initialization.starts(
        key, init, lanes, choice.batch, data, k, family, prior=local, reg=reg
    )


def _swaps(init: str, k: int) -> bool:
    """Whether most lanes start from the best so far with one component moved."""
    return init == "mixed" and k > 1


@program("k", "family", "init", "lanes", "choice", "accelerate")
def _search(*operands: Any, **structure: Any) -> FitResult:
    return one_by_one(partial(_best, **structure), *operands)


def _best(
    key: Array, frame: Frame, data: Blocks, known: Blocks | None, weight: Array,
    models: GaussianMixture, prior: Prior | None, reg: Array, tol: Array, max_steps: Array, *,
    k: int, family: str, init: str, lanes: int, choice: Choice, accelerate: bool,
) -> FitResult:  # fmt: skip
    # Starts are from filled rows, EM on what is known of them.
    seen = data if known is None else known
    local = None if prior is None else prior.into(frame)
    once = turn(seen, prior=local, reg=reg, tol=tol, max_steps=max_steps)
    own = families.get(family).rows_needed(data.data.shape[-1]) > 0
    if own and prior is None:  # a prior holds narrow components in place
        once = wary(once, partial(too_narrow, least=resolution(data)))
    empty = blank(jax.tree.map(lambda a: a[0], models), seen, accelerate=accelerate)

    def swap(key: Array, best: GaussianMixture) -> GaussianMixture:
        return initialization.swap(key, best, data)

    swaps = swap if _swaps(init, k) else None
    result, endings, best = search(
        key, once, models, swaps, empty, lanes, choice.batch, patience(tol, seen.total_weight)
    )
    result = frame.leave(result, weight)
    return FitResult(
        model=result.model,
        log_likelihood=result.log_likelihood,
        converged=result.converged,
        status=result.status,
        n_steps=result.n_steps,
        best=best,
        lanes=endings.where_best_is(best, result.log_likelihood),
        choice=choice,
    )


def stacked(
    model: GaussianMixture, k: int, d: int, family: str, dtype: jnp.dtype
) -> tuple[GaussianMixture, int]:
    """Given start models, with a leading axis of lanes."""
    if model.family != family:
        raise ValueError(
            f"init: expected a mixture of family {family!r}; got {model.family!r}. Pass "
            f"family={model.family!r}."
        )
    if model.means.shape[-2:] != (k, d) or model.means.ndim not in (2, 3):
        raise ValueError(
            f"init: expected means of shape [{k}, {d}], or [lanes, {k}, {d}]; got {model.means.shape}."
        )
    if checks.concrete(model) and not all(
        np.all(np.isfinite(np.asarray(a))) for a in jax.tree.leaves((model.means, model.factors))
    ):
        raise ValueError("init: expected finite means and covariances; got NaN or infinity.")
    model = jax.tree.map(lambda a: a.astype(dtype), model)
    if model.means.ndim == 2:
        model = jax.tree.map(lambda a: a[None], model)
    return model, model.means.shape[0]


def _labels(init: ArrayLike, n: int, k: int) -> Int[Array, "n"]:
    labels = init if isinstance(init, jax.Array) else np.asarray(init)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(
            "init: expected the name of a method, a GaussianMixture, or integer labels; got an array "
            f"of dtype {labels.dtype}."
        )
    if labels.shape != (n,):
        raise ValueError(
            f"init: expected labels of shape [{n}], one a row of x; got {labels.shape}."
        )
    if checks.concrete(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= k:
            raise ValueError(f"init: expected labels from 0 to {k - 1}; got {low} to {high}.")
        missing = sorted(set(range(k)) - set(np.asarray(labels).tolist()))
        if missing:
            raise ValueError(
                f"init: expected each of the {k} labels at least once; {missing} do not occur. Use "
                "a smaller n_components."
            )
    return checks.to_jax(labels, jnp.int32)


def _check_prior(prior: Prior | None, k: int, d: int) -> None:
    if prior is None:
        return
    if prior.mean.shape != (d,):
        raise ValueError(f"prior: expected a mean of shape [{d}], as x; got {prior.mean.shape}.")
    if prior.concentration.shape not in ((1,), (k,), ()):
        raise ValueError(
            f"prior: expected a concentration of shape [1] or [{k}]; got {prior.concentration.shape}."
        )

"""Training as pure functions: one step, one epoch as a scan over rows on the device, and its state.

The same program serves every stage: a plain VAE is a mixture prior of equal standard normals whose
update rates are 0, and joint training is another prior with other rates. `epochs` takes a leading
axis of seeds, so many models train in one program. Rates are traced: a new one compiles nothing.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from gmmjax.mixture import GaussianMixture
from gmmjax.moments import Moments
from gmmjax.priors import Prior
from gmmjax.typing import Array, Float, Int, Key, pytree
from gmmjax.vae import prior as prior_
from gmmjax.vae.evaluation import moments_of_codes
from gmmjax.vae.networks import Autoencoder
from gmmjax.vae.objectives import Objective, bound

PriorUpdate = Literal["online", "epoch", "gradient"]
PRIOR_UPDATES: tuple[PriorUpdate, ...] = ("online", "epoch", "gradient")

_ADAM = optax.scale_by_adam()

CALIBRATION = 0.02
"""Step size of the calibrated variance's average."""

LEAST_LOG_SCALE = -7.0
"""Floor of a calibrated log σ: rows that are reproduced exactly have a density without bound."""


@pytree
class Rates:
    """All numbers of a stage; every one is traced."""

    learning_rate: Float[Array, ""]  # of the networks (Adam)
    prior_rate: Float[Array, ""]  # of the prior: Adam's, or the step size of the moments' average
    clip: Float[Array, ""]  # largest norm of the networks' gradient
    beta: Float[Array, ""]  # of the KL term, once warm
    warm_up: Float[Array, ""]  # epochs in which beta rises from 0
    free_bits: Float[Array, ""]  # KL in nats a row below which it is not pressed down
    noise: Float[Array, ""]  # of q: 1 draws z, 0 takes its mean (an autoencoder)
    denoise: Float[Array, ""]  # share of the features hidden from the encoder
    shift: Float[Array, ""]  # largest shift of a picture, in pixels
    reg: Float[Array, ""]  # floor of the covariances, see `fit`
    decay_from: Float[Array, ""]  # epochs of this stage after which rates fall, to 0 at its end
    length: Float[Array, ""]  # epochs of this stage


@pytree
class TrainState:
    """Everything that one more epoch depends on."""

    network: Autoencoder
    prior: GaussianMixture
    optimizer: Any
    prior_optimizer: Any
    moments: Moments  # of the codes: the decaying average of online EM
    key: Key[Array, ""]
    epoch: Int[Array, ""]  # of this stage
    stopped: Array  # bool: nothing changes any more


@dataclass(frozen=True)
class Plan:
    """What of training is structure."""

    objective: Objective
    prior_update: PriorUpdate
    batch: int
    augment: bool  # shifts and denoising


def init(
    network: Autoencoder, prior: GaussianMixture, moments: Moments, key: Key[Array, ""]
) -> TrainState:
    """The state at the beginning of a stage."""
    return TrainState(
        network=network,
        prior=prior,
        optimizer=_optimizer(1.0).init((network.params, network.log_scale)),
        prior_optimizer=_ADAM.init(cast(Any, prior_.free(prior))),
        moments=moments,
        key=key,
        epoch=jnp.asarray(0, jnp.int32),
        stopped=jnp.asarray(False),
    )


def step(
    state: TrainState,
    key: Key[Array, ""],
    x: Float[Array, "b features"],
    evidence: Float[Array, "b k"] | None,
    conjugate: Prior,
    rates: Rates,
    plan: Plan,
    n: int,
) -> TrainState:
    """One step on a batch of the n rows: the networks by gradient, then the prior."""
    key_data, key_z, key_shift, key_hide = jax.random.split(key, 4)
    network = state.network
    if plan.augment and len(network.architecture.shape) > 1:
        x = shifted(key_shift, x, network.architecture.picture, rates.shift)
    x = seen = network.likelihood.present(key_data, x)
    if plan.augment:
        seen = jnp.where(jax.random.bernoulli(key_hide, rates.denoise, x.shape), 0.0, x)
    by_gradient = plan.prior_update == "gradient"

    def loss(params: Any, log_scale: Array, parameters: GaussianMixture) -> tuple[Array, Any]:
        moving = dataclasses.replace(network, params=params, log_scale=log_scale)
        prior = prior_.bound(parameters) if by_gradient else state.prior
        terms, codes = bound(plan.objective, moving, prior, key_z, x, seen, evidence, rates.noise)
        # Free bits on the mean of the batch: a draw's own KL is too noisy to be cut off.
        kl = jnp.maximum(jnp.mean(terms.kl), rates.free_bits)
        warm = jnp.minimum((state.epoch + 1) / jnp.maximum(rates.warm_up, 1.0), 1.0)
        return rates.beta * warm * kl - jnp.mean(terms.reconstruction), codes

    gradients, codes = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
        network.params, network.log_scale, prior_.free(state.prior)
    )
    pace = _pace(state, rates)
    state = _move_network(state, gradients[:2], pace, rates)
    if by_gradient:
        return _move_prior(state, gradients[2], pace, rates)
    if plan.prior_update == "online":

        def moved(state: TrainState) -> TrainState:
            weights = jnp.full(len(x), n / len(x), x.dtype)
            sums, _ = state.prior.prepare().expect(codes, weights, evidence)
            return _refit(state, sums, conjugate, pace * rates.prior_rate, rates.reg)

        # The rate has no axis of seeds, so that pretraining skips this under `vmap` as well.
        return lax.cond(rates.prior_rate > 0, moved, lambda state: state, state)
    return state


def _move_network(
    state: TrainState, gradients: tuple[Any, Array], pace: Array, rates: Rates
) -> TrainState:
    network = state.network
    by_params, by_scale = gradients
    # Where the scale is calibrated its gradient gives the estimate: ∂/∂log σ of the mean log-density is
    # Σ (error/σ² − 1), so σ² (1 + gradient per feature) is the mean squared error. A decaying average
    # of it, so that no row's density depends on the batch it came in.
    features = network.architecture.n_features // network.log_scale.shape[-1]
    error = 1 - by_scale / features
    if network.likelihood.scale == "calibrated":
        by_scale = jnp.zeros_like(by_scale)
    change, optimizer = _optimizer(rates.clip).update((by_params, by_scale), state.optimizer)
    params, log_scale = jax.tree.map(
        lambda p, c: p - pace * rates.learning_rate * c,
        (network.params, network.log_scale), change,
    )  # fmt: skip
    if network.likelihood.scale == "calibrated":
        log_scale = log_scale + 0.5 * jnp.log1p(CALIBRATION * (error - 1))
        log_scale = jnp.maximum(log_scale, LEAST_LOG_SCALE)
    network = dataclasses.replace(network, params=params, log_scale=log_scale)
    return dataclasses.replace(state, network=network, optimizer=optimizer)


def _move_prior(
    state: TrainState, gradient: GaussianMixture, pace: Array, rates: Rates
) -> TrainState:
    change, optimizer = _ADAM.update(cast(Any, gradient), state.prior_optimizer)
    parameters = jax.tree.map(
        lambda p, c: p - pace * rates.prior_rate * c, prior_.free(state.prior), change
    )
    moved = prior_.project(prior_.bound(parameters))
    prior = _where(rates.prior_rate > 0, moved, state.prior)
    return dataclasses.replace(state, prior=prior, prior_optimizer=optimizer)


def _refit(
    state: TrainState, sums: Moments, conjugate: Prior, rate: Array, reg: Array
) -> TrainState:
    sums = prior_.mix(state.moments, sums, rate)
    prior = _where(rate > 0, prior_.refit(state.prior, sums, conjugate, reg), state.prior)
    return dataclasses.replace(state, prior=prior, moments=sums)


def epoch(
    state: TrainState,
    x: Float[Array, "n features"],
    evidence: Float[Array, "n k"] | None,
    conjugate: Prior,
    rates: Rates,
    plan: Plan,
) -> TrainState:
    """One pass over the rows in a new order, as one program; a state that has stopped stays as it is.

    The rows that fill no batch are left out, other ones each time.
    """
    n = x.shape[0]
    count = n // plan.batch
    key, key_order, key_steps, key_codes = jax.random.split(state.key, 4)
    order = jax.random.permutation(key_order, n)[: count * plan.batch]

    def body(state: TrainState, at: tuple[Array, Array]) -> tuple[TrainState, None]:
        index, key = at
        known = None if evidence is None else evidence[index]
        return step(state, key, x[index], known, conjugate, rates, plan, n), None

    keys = jax.random.split(key_steps, count)
    new, _ = lax.scan(body, state, (order.reshape(count, plan.batch), keys))
    if plan.prior_update == "epoch":
        sums = moments_of_codes(new.network, new.prior, key_codes, x, evidence, plan.objective)
        new = _refit(new, sums, conjugate, rates.prior_rate, rates.reg)
    new = dataclasses.replace(new, key=key, epoch=state.epoch + 1)
    return _where(~state.stopped, new, state)


@partial(jax.jit, static_argnames="plan")
def epochs(
    states: TrainState,
    x: Float[Array, "n features"],
    evidence: Float[Array, "n k"] | None,
    conjugates: Prior,
    rates: Rates,
    plan: Plan,
) -> TrainState:
    """One epoch of every seed: `epoch`, over a leading axis of states and of conjugate priors."""
    one = lambda state, conjugate: epoch(state, x, evidence, conjugate, rates, plan)  # noqa: E731
    return jax.vmap(one)(states, conjugates)


def shifted(
    key: Key[Array, ""], x: Float[Array, "b features"], picture: tuple[int, int, int], by: Array
) -> Float[Array, "b features"]:
    """Pictures moved by up to `by` pixels each way, zeros where they came from."""
    h, w, c = picture
    pictures = x.reshape(-1, h, w, c)
    move = jnp.round(jax.random.uniform(key, (2, len(x)), x.dtype, -1, 1) * by).astype(jnp.int32)

    def along(axis: int, size: int, pictures: Array, move: Array) -> Array:
        at = jnp.arange(size) + move[:, None]
        inside = (at >= 0) & (at < size)
        shape = [len(x), 1, 1, 1]
        shape[axis] = size
        index = jnp.clip(at, 0, size - 1).reshape(shape)
        moved = jnp.take_along_axis(pictures, index, axis=axis)
        return jnp.where(inside.reshape(shape), moved, 0.0)

    return along(2, w, along(1, h, pictures, move[0]), move[1]).reshape(x.shape)


def _optimizer(clip: Any) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(clip), _ADAM)


def _pace(state: TrainState, rates: Rates) -> Array:
    """1, and from `decay_from` on half a cosine down to 0."""
    done = (state.epoch - rates.decay_from) / jnp.maximum(rates.length - rates.decay_from, 1.0)
    return 0.5 * (1 + jnp.cos(math.pi * jnp.clip(done, 0.0, 1.0)))


def _where(pred: Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda u, v: jnp.where(pred, u, v), a, b)

"""Fits of mixtures with a noise component: EM on `NoisyMixture` from many starts."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import blocks as blocks_
from gmmjax import checks, families, initialization
from gmmjax.backend import lanes_a_batch, searching
from gmmjax.blocks import Blocks
from gmmjax.em import blank, turn
from gmmjax.fit import stacked
from gmmjax.frame import Frame
from gmmjax.lanes import Lanes, default_restarts
from gmmjax.mixture import GaussianMixture
from gmmjax.models.noise import NOISE, NoisyMixture, check_log_volume, log_hypervolume
from gmmjax.priors import Prior
from gmmjax.search import n_fresh, patience, search
from gmmjax.status import Status, summarize
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree

SHARES = (0.1, 0.5, 0.8)
"""Shares of noise that the starts assume, in turn."""
WIDTHS = (1.0, 0.5, 0.25, 0.125)
"""Factors on the components' standard deviations at the start, in turn: a component must be narrow
beside the data to be told from noise."""


@pytree
class NoiseResult:
    """The best lane of a fit. Holds no data."""

    model: NoisyMixture
    log_likelihood: Float[Array, ""]  # Σ_i w_i log p(x_i) in nats, at `model`
    converged: Array  # bool
    status: Int[Array, ""]  # a `Status`
    n_steps: Int[Array, ""]
    best: Int[Array, ""]  # which lane it was
    lanes: Lanes  # how every lane ended

    @property
    def message(self) -> str:
        """The status in words, and how the lanes ended."""
        return f"{Status(int(self.status)).message} ({summarize(self.lanes.status)})"


def fit_noise(
    key: Key[Array, ""],
    x: ArrayLike,
    n_components: int,
    *,
    log_volume: ArrayLike | None = None,
    family: str = "full",
    restarts: int | None = None,
    init: NoisyMixture | ArrayLike | None = None,
    weights: ArrayLike | None = None,
    prior: Prior | None = None,
    reg: ArrayLike = 1e-7,
    tol: ArrayLike = 1e-8,
    max_steps: ArrayLike = 1000,
    block: int | None = None,
    restart_batch: int | None = None,
    accelerate: bool = True,
    throw: bool = True,
) -> NoiseResult:
    """Fit a mixture of k Gaussians and uniform noise by EM from many starts, and keep the best.

    **Arguments**

    - `key`: a `jax.random.key`; `x`: [n, d], finite.
    - `n_components`: k ≥ 1, noise not counted.
    - `log_volume`: log V, the volume in which noise may lie, in the units of x; by default that of the
      box about the data, `log_hypervolume(x)`. mclust's `Vinv` is exp(−log_volume).
    - `restarts`: how many starts. They vary the share of noise and how wide the components are;
      most of them, in rounds, move a component of the best so far to a row it explains badly.
    - `init`: a `NoisyMixture` to start from, with a leading axis for several (its volume is used), or
      integer labels [n], −1 for noise.
    - the others: as in `fit`. A prior is one of the Gaussians' parameters.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError`.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_faithful().x
    >>> result = gmmjax.models.fit_noise(jax.random.key(0), x, 2, restarts=6)
    >>> bool(0 <= result.model.noise_weight < 0.2), result.model.predict([[1.0, 99.0]]).tolist()
    (True, [-1])
    """
    name = families.get(family).name
    x = checks.rows(x)
    n, d = x.shape
    k = checks.count(n_components, "n_components")
    w = checks.weights(weights, n, x.dtype)
    checks.enough_rows(n, k, w)
    checks.varying(x, w)
    for value, label in ((reg, "reg"), (tol, "tol"), (max_steps, "max_steps")):
        checks.nonnegative(value, label)
    lanes = default_restarts(n, k, d) if restarts is None else checks.count(restarts, "restarts")
    block = blocks_.DEFAULT_BLOCK if block is None else checks.count(block, "block")
    start, lanes = _start(init, n, k, d, name, lanes, x.dtype)
    if log_volume is None:
        log_volume = log_hypervolume(x) if not isinstance(start, NoisyMixture) else 0.0
    elif isinstance(start, NoisyMixture):
        raise ValueError("log_volume: expected None with a model as init, which has its own.")
    check_log_volume(log_volume)
    if restart_batch is None:
        batch = lanes_a_batch(n, k, block, x.dtype)
        batch = searching(batch) if start is None else batch
    else:
        batch = checks.count(restart_batch, "restart_batch")
    batch = min(batch, lanes)

    x, w = blocks_.bucketed(x, w, block)
    if isinstance(start, jax.Array):
        start = blocks_.filled(start, x.shape[0], NOISE)
    result = _fit(
        key, x, w, start, jnp.asarray(log_volume, x.dtype), prior,
        jnp.asarray(reg, x.dtype), jnp.asarray(tol, x.dtype), jnp.asarray(max_steps, jnp.int32),
        k=k, family=name, lanes=lanes, block=min(block, x.shape[0]), batch=batch,
        accelerate=bool(accelerate),
    )  # fmt: skip
    if throw:
        checks.ended(
            result.status,
            f"fit_noise: none of {lanes} starts of {k} {name} components and noise ended with a finite "
            "model",
            result.lanes.status,
        )
    return result


@partial(jax.jit, static_argnames=("k", "family", "lanes", "block", "batch", "accelerate"))
def _fit(
    key: Array, x: Array, w: Array, start: NoisyMixture | Array | None, log_volume: Array,
    prior: Prior | None, reg: Array, tol: Array, max_steps: Array, *,
    k: int, family: str, lanes: int, block: int, batch: int, accelerate: bool,
) -> NoiseResult:  # fmt: skip
    frame = Frame.of(x, w)
    local = None if prior is None else prior.into(frame)
    data = blocks_.split(frame.enter(x), w, block)
    volume = log_volume - x.shape[1] * jnp.log(frame.unit)

    if isinstance(start, NoisyMixture):
        models = jax.vmap(lambda model: model.into(frame))(start)
    elif start is not None:
        labels = blocks_.split(start, w, block).data
        model = initialization.labelled(
            Blocks((data.data, labels), data.weights), k, family, local, reg
        )
        noise = jnp.sum(jnp.where(labels < 0, data.weights, 0.0))
        odds = jnp.log(noise) - jnp.log(data.total_weight - noise)
        models = jax.tree.map(lambda a: a[None], NoisyMixture(model, odds, volume))
    else:
        models = _starts(key, n_fresh(lanes), batch, data, k, family, local, reg, volume)
    once = turn(data, prior=local, reg=reg, tol=tol, max_steps=max_steps)
    empty = blank(jax.tree.map(lambda a: a[0], models), data, accelerate=accelerate)

    def swap(key: Array, best: NoisyMixture) -> NoisyMixture:
        return dataclasses.replace(best, mixture=initialization.swap(key, best.mixture, data))

    swaps = swap if start is None else None
    result, endings, best = search(
        key, once, models, swaps, empty, lanes, batch, patience(tol, data.total_weight)
    )
    result = frame.leave(result, data.total_weight)
    return NoiseResult(
        model=result.model,
        log_likelihood=result.log_likelihood,
        converged=result.converged,
        status=result.status,
        n_steps=result.n_steps,
        best=best,
        lanes=endings.where_best_is(best, result.log_likelihood),
    )


def _starts(
    key: Array, lanes: int, batch: int, data: Blocks, k: int, family: str,
    prior: Prior | None, reg: ArrayLike, log_volume: Array,
) -> NoisyMixture:  # fmt: skip
    """Starts of mixtures, their components narrowed and a share of the rows given to noise."""
    models = initialization.starts(
        key, "mixed", lanes, batch, data, k, family, prior=prior, reg=reg
    )
    lane = jnp.arange(lanes)
    width = jnp.asarray(WIDTHS, log_volume.dtype)[lane % len(WIDTHS)]
    odds = jnp.asarray([math.log(s / (1 - s)) for s in SHARES], log_volume.dtype)
    narrow = jax.tree.map(lambda a: a * width.reshape(-1, *[1] * (a.ndim - 1)), models.factors)
    models = dataclasses.replace(models, factors=narrow)
    return NoisyMixture(models, odds[lane % len(SHARES)], jnp.broadcast_to(log_volume, (lanes,)))


def _start(
    init: NoisyMixture | ArrayLike | None, n: int, k: int, d: int, family: str, lanes: int, dtype
) -> tuple[NoisyMixture | Array | None, int]:
    """What `init` says, with a leading axis of lanes for models, and how many lanes that makes."""
    if init is None:
        return None, lanes
    if isinstance(init, (GaussianMixture, str)):
        raise TypeError(
            f"init: expected a NoisyMixture, integer labels or None; got {type(init).__name__}. "
            "NoisyMixture.create adds noise to a mixture."
        )
    if isinstance(init, NoisyMixture):
        mixture, lanes = stacked(init.mixture, k, d, family, dtype)
        odds = jnp.broadcast_to(jnp.asarray(init.log_odds, dtype), (lanes,))
        volume = jnp.broadcast_to(jnp.asarray(init.log_volume, dtype), (lanes,))
        return NoisyMixture(mixture, odds, volume), lanes
    labels, _ = checks.labels(init, "init", k, n=n, least=NOISE)
    checks.every_class(labels, None, k, "init")
    if checks.concrete(labels) and not np.any(np.asarray(labels) == NOISE):
        raise ValueError("init: expected some row labelled -1, noise; got none.")
    return labels, 1

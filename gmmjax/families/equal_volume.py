"""Covariances of one volume: |Σ_j| the same for all components (mclust's EVI, diagonal, and EVV).

Everything else is each component's own, and the M-step is in closed form: Σ_j = λ W_j / |W_j|^{1/d} with
λ = Σ_j |W_j|^{1/d} / n (Celeux and Govaert 1995, models [λB_k] and [λC_k]).

A component that is flat in one direction has |W_j| = 0, and pays for it in the others. Under the
floor that is a problem of filling water, for each component up to the common level.
"""

import jax.numpy as jnp
from jax import lax

from gmmjax import linalg
from gmmjax.families.diag import Diag
from gmmjax.families.family import Family
from gmmjax.families.full import Full
from gmmjax.families.spectral import assemble, on_floor, principal_axes, share
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Float


def equal_determinants(
    spread: Float[Array, "k d"], count: Float[Array, "k"], floor: Float[Array, "#d"]
) -> Float[Array, "k d"]:
    """Variances of equal products that minimise Σ_jp [n_j log σ_jp + spread_jp / σ_jp], σ ≥ floor."""
    filled, _ = share(spread, count)
    mean = jnp.exp(jnp.mean(jnp.log(filled), axis=-1))
    volume = jnp.sum(jnp.where(count > 0, mean, 0.0)) / jnp.sum(count)
    variance = volume * filled / mean[:, None]
    bound = jnp.any(~(variance >= floor)) & jnp.all(floor > 0) & jnp.all(jnp.isfinite(spread))
    return linalg.when(bound, lambda: _water_fill(filled, count, floor), variance)


def _water_fill(spread: Array, count: Array, floor: Array) -> Array:
    """The same where the floor is active, by Newton's method on the common log-determinant.

    Given it, component j has σ_jp = max(floor_p, spread_jp / μ_j), with μ_j what one more nat of
    log-determinant would save; at the optimum Σ_j μ_j = n. The sum falls as the log-determinant
    grows, and its logarithm is convex, so that Newton's steps from the left do not overshoot.
    """
    k, d = spread.shape
    floor = jnp.broadcast_to(floor, (d,))
    used = count > 0
    n = jnp.sum(count)
    # A component on one point would be free to take any shape: it takes that of the floor.
    tiny = jnp.finfo(spread.dtype).eps * n * floor
    log_ratio = jnp.log(jnp.maximum(spread, tiny) / floor)
    ordered = jnp.sort(log_ratio, axis=-1)[:, ::-1]
    size = jnp.arange(1, d + 1)
    sums = jnp.cumsum(ordered, axis=-1)
    after = jnp.concatenate([ordered[:, 1:], jnp.full((k, 1), -jnp.inf, ordered.dtype)], axis=-1)

    def price(level: Array) -> tuple[Array, Array]:
        """log μ_j and the number of coordinates above the floor, `level` above log|diag(floor)|."""
        # If the m largest are above the floor, their logarithms sum to the level.
        candidates = (sums - level) / size
        m = jnp.argmax((candidates >= after), axis=-1)
        return jnp.take_along_axis(candidates, m[:, None], axis=-1)[:, 0], m + 1

    def turn(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, _, level = carry
        log_mu, m = price(level)
        mu = jnp.where(used, jnp.exp(log_mu), 0.0)
        # On log Σ μ, which is closer to a line than Σ μ.
        slope = jnp.sum(mu / m) / jnp.sum(mu)
        return i + 1, level, jnp.maximum(level + (jnp.log(jnp.sum(mu)) - jnp.log(n)) / slope, 0.0)

    def moving(carry: tuple[Array, Array, Array]) -> Array:
        i, before, level = carry
        return (i < 50) & (level > before + 4 * jnp.finfo(spread.dtype).eps * jnp.abs(level))

    zero = jnp.zeros((), spread.dtype)
    level = lax.while_loop(moving, turn, (jnp.asarray(0), zero - 1, zero))[2]
    log_mu, _ = price(level)
    variance = floor * jnp.exp(jnp.maximum(log_ratio - log_mu[:, None], 0.0))
    return variance.astype(spread.dtype)


def _maximize_evi(scatter: Array, count: Array, floor: Array, k: int) -> tuple[Diag, Array]:
    variance = equal_determinants(scatter, count, floor)
    return Diag(jnp.sqrt(variance)), on_floor(variance, floor)


def _maximize_evv(scatter: Array, count: Array, floor: Array, k: int) -> tuple[Full, Array]:
    filled, divisor = share(scatter, count)
    d = scatter.shape[-1]
    factor, own = linalg.floored_cholesky(filled / divisor[:, None, None], jnp.zeros_like(floor))
    volume = jnp.exp(2 * linalg.half_log_det(factor) / d)  # |W_j / n_j|^{1/d}
    common = jnp.sum(count * jnp.where(count > 0, volume, 0.0)) / jnp.sum(count)
    factor = factor * jnp.sqrt(common / volume)[:, None, None]
    covariance = linalg.dot(factor, jnp.swapaxes(factor, -1, -2))
    _, floored = linalg.floored_cholesky(covariance, floor)
    floored = floored | own
    bound = jnp.any(floored) & jnp.all(floor > 0) & jnp.all(jnp.isfinite(scatter))

    def repaired() -> Array:
        # In units of the floor the bound is one on eigenvalues, and the axes are those of W_j.
        unit = jnp.sqrt(jnp.where(floor > 0, floor, 1.0))
        values, axes = principal_axes(filled / (unit[:, None] * unit))
        variances = equal_determinants(values, count, jnp.ones((1,), values.dtype))
        return unit[:, None] * assemble(axes, variances).scale_tril

    return Full(linalg.when(bound, repaired, factor)), floored


def _count_evi(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # Summed over components in the volume: n + ν + 2.
    return weight if dof is None else weight + (dof + 2) / weight.shape[0]


def _count_evv(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # mclust has no prior here: the inverse Wishart of each Σ_j, as for the family without constraint.
    return weight if dof is None else weight + dof + d + 2


EVI = Family(
    name="EVI",
    mclust="EVI",
    summary="diagonal covariances of one volume, each component its own shape",
    second=Second.DIAG,
    covariance=Diag,
    maximize=_maximize_evi,
    count=_count_evi,
    n_parameters=lambda k, d: 1 + k * (d - 1),
    equivariance="diagonal",
    shared=True,
)

EVV = Family(
    name="EVV",
    mclust="EVV",
    summary="covariances of one volume, each component its own shape and orientation",
    second=Second.FULL,
    covariance=Full,
    maximize=_maximize_evv,
    count=_count_evv,
    n_parameters=lambda k, d: 1 + k * (d * (d + 1) // 2 - 1),
    equivariance="linear",
    shared=True,
)

"""Covariances equal up to their volumes: Σ_j = λ_j C (mclust's VEI, C diagonal, and VEE).

The M-step minimises Σ_j [n_j log|λ_j C| + tr(W_j C⁻¹)/λ_j]. Given C the volumes are in closed form,
and given the volumes so is C; the problem is convex along geodesics (for VEI in log λ and log C), so
that alternating the two (Celeux and Govaert 1995, algorithm VEE) reaches the one optimum from any
start. No half turn raises it, and the first starts from the volumes that the components had: so the
M-step never ends lower than it begins, and near the end of EM it takes a turn or two.
"""

import jax.numpy as jnp
from jax import lax

from gmmjax import linalg
from gmmjax.families.diag import Diag
from gmmjax.families.family import Covariance, Family
from gmmjax.families.full import Full
from gmmjax.families.spectral import on_floor
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Bool, Float

MAX_TURNS = 500
"""The rate is that of Sinkhorn's matrix scaling: 10 to 30 turns on data, more only on few points."""


def volumes_of(
    covariance: Covariance | None, count: Float[Array, "k"], d: int
) -> Float[Array, "k"]:
    """λ_j, the least of those that count made 1; all 1 where there is no covariance."""
    used = count > 0
    if covariance is None:
        return jnp.ones_like(count)
    log_volume = 2 / d * covariance.half_log_det()
    log_volume = log_volume - jnp.min(jnp.where(used, log_volume, jnp.inf))
    volume = jnp.where(used, jnp.exp(log_volume), 1.0)
    return jnp.where(jnp.all(jnp.isfinite(volume)), volume, 1.0)


def common_shape(
    spread: Float[Array, "k d"],
    count: Float[Array, "k"],
    floor: Float[Array, "#d"],
    start: Float[Array, "k"],
) -> Float[Array, "k d"]:
    """Variances λ_j a_p that minimise Σ_jp [n_j log(λ_j a_p) + spread_jp / (λ_j a_p)].

    The bound is λ_j a_p ≥ floor_p for all j. Each half turn is exact under it, and where neither can
    move, the conditions of Karush, Kuhn and Tucker hold: in logarithms the bound is a box, up to the
    one factor that λ and a may exchange. A component of count 0 gets the mean volume. `start` has
    volumes to begin from.
    """
    d = spread.shape[-1]
    n = jnp.sum(count)
    used = count > 0
    safe = jnp.where(used, count, 1.0)
    tol = 8 * jnp.finfo(spread.dtype).eps

    def volumes(shape: Array) -> Array:
        free = jnp.sum(spread / shape, axis=-1) / (d * safe)
        free = jnp.where(used, free, jnp.sum(count * free) / n)
        return jnp.maximum(free, jnp.max(floor / shape))

    def turn(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        volume, shape, _, i = carry
        shape = jnp.sum(spread / volume[:, None], axis=0) / n
        shape = jnp.maximum(shape, floor / jnp.min(volume))
        new = volumes(shape)
        return new, shape, jnp.max(jnp.abs(new - volume) / new), i + 1

    def going(carry: tuple[Array, Array, Array, Array]) -> Array:
        return (carry[2] > tol) & (carry[3] < MAX_TURNS)

    inf = jnp.asarray(jnp.inf, spread.dtype)
    first = (start, jnp.ones_like(spread[0]), inf, jnp.asarray(0))
    volume, shape, _, _ = lax.while_loop(going, turn, first)
    # Volumes last: given the shape they are the optimum, whatever the turn that the cap fell on.
    return volume[:, None] * shape


def common_matrix(
    scatter: Float[Array, "k d d"],
    count: Float[Array, "k"],
    floor: Float[Array, "d"],
    start: Float[Array, "k"],
) -> tuple[Float[Array, "k d d"], Bool[Array, ""]]:
    """Factors of λ_j C for free volumes and a common matrix, and whether C lies on its floor.

    `start` has volumes to begin from, the least of them 1.
    """
    d = scatter.shape[-1]
    n = jnp.sum(count)
    used = count > 0
    safe = jnp.where(used, count, 1.0)
    tol = 8 * d * jnp.finfo(scatter.dtype).eps

    def volumes(factor: Array) -> Array:
        inverse = linalg.inverse_lower(factor)
        # Sums of squares up to rounding: Σ_a (L⁻¹ W_j L⁻ᵀ)_aa.
        trace = linalg.einsum("ab,kbc,ac->k", inverse, scatter, inverse)
        free = jnp.maximum(trace, 0.0) / (d * safe)
        return jnp.where(used, free, jnp.sum(count * free) / n)

    def matrix(volume: Array) -> tuple[Array, Array]:
        pooled = jnp.sum(scatter / volume[:, None, None], axis=0) / n
        factor, floored = linalg.floored_cholesky(pooled[None], floor)
        return factor[0], floored[0]

    def bounded(factor: Array, floored: Array) -> tuple[Array, Array]:
        """Volumes of 1 or more, so that the floor of C is that of every λ_j C; and C's own factor.

        While C is above its floor, the smallest volume is made 1, which costs nothing. On the
        floor a volume below 1 would break it.
        """
        free = volumes(factor)
        # In steps, for a component on one point has the volume 0.
        unit = jnp.where(floored, 1.0, jnp.maximum(jnp.min(free), 0.01))
        return jnp.maximum(free / unit, 1.0), unit

    def turn(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        volume, moved, _, i = carry
        new, unit = bounded(*matrix(volume))
        change = jnp.max(jnp.abs(new - volume) / new) + jnp.abs(jnp.log(unit))
        return new, change, moved, i + 1

    def going(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, moved, before, i = carry
        # Where C is ill-conditioned, rounding ends the descent before `tol` does.
        stalled = (moved >= before) & (moved < jnp.sqrt(tol))
        return (moved > tol) & (i < MAX_TURNS) & ~stalled

    inf = jnp.asarray(jnp.inf, scatter.dtype)
    volume, _, _, _ = lax.while_loop(going, turn, (start, inf, inf, jnp.asarray(0)))
    factor, floored = matrix(volume)
    return jnp.sqrt(volume)[:, None, None] * factor, floored


def _maximize_vei(
    scatter: Array, count: Array, floor: Array, k: int, start: Diag | None = None
) -> tuple[Diag, Array]:
    variance = common_shape(scatter, count, floor, volumes_of(start, count, scatter.shape[-1]))
    return Diag(jnp.sqrt(variance)), on_floor(variance, floor)


def _maximize_vee(
    scatter: Array, count: Array, floor: Array, k: int, start: Full | None = None
) -> tuple[Full, Array]:
    factor, floored = common_matrix(
        scatter, count, floor, volumes_of(start, count, scatter.shape[-1])
    )
    return Full(factor), jnp.broadcast_to(floored, (k,))


def _count_vei(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # Times d in the volumes: n_j d + ν + 3.
    return weight if dof is None else weight + (dof + 3) / d


def _count_vee(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # mclust has no prior here: the inverse Wishart of each Σ_j, as for the family without constraint.
    return weight if dof is None else weight + dof + d + 2


VEI = Family(
    name="VEI",
    mclust="VEI",
    summary="diagonal covariances of one shape, each component its own volume",
    second=Second.DIAG,
    covariance=Diag,
    maximize=_maximize_vei,
    count=_count_vei,
    n_parameters=lambda k, d: k + d - 1,
    equivariance="diagonal",
    shared=True,
    iterative=True,
)

VEE = Family(
    name="VEE",
    mclust="VEE",
    summary="covariances of one shape and orientation, each component its own volume",
    second=Second.FULL,
    covariance=Full,
    maximize=_maximize_vee,
    count=_count_vee,
    n_parameters=lambda k, d: k + d * (d + 1) // 2 - 1,
    equivariance="linear",
    shared=True,
    iterative=True,
)

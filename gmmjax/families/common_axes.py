"""Covariances with the same principal axes: Σ_j = λ_j D A_j Dᵀ (mclust's EVE and VVE).

Given the axes D, each component's variances along them are in closed form: for VVE W_jpp / n_j, which makes
it Flury's common principal components (1984), for EVE those of one common product, as in EVI. Given
the variances, Σ_j tr(W_j D S_j⁻¹ Dᵀ) is lowered by plane rotations (`rotations`). Neither half ever
raises the M-step's objective, so the inner iteration is monotone.

**Where this differs from mclust** (6.0.0): its VVE turns the axes towards the minimum of
Σ_j tr(W_j D A_j⁻¹ Dᵀ), without the 1/λ_j that the objective has, so that its M-step is not an ascent where
volumes differ, and its log-likelihood falls along the way (iris from the class labels: −214.638
after 5 steps, −215.241 in the limit). Here it never falls, and ends higher.

The objective has several local optima in D where the components' own axes differ widely. The M-step
starts from the axes of the pooled scatter, from those of each component's and, in EM, from those that it
had, and keeps the best: so it never ends lower than it begins.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from gmmjax import linalg
from gmmjax.families.equal_volume import equal_determinants
from gmmjax.families.family import Family
from gmmjax.families.full import Full
from gmmjax.families.rotations import sweep
from gmmjax.families.spectral import along, assemble, on_floor, principal_axes, share, supported
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Float

TRIAL_SWEEPS = 8
"""After these, what is best so far decides when to end."""

MAX_SWEEPS = 300

Variances = Callable[[Array, Array, Array], Array]
"""(spread [k, d], count [k], floor [1]) → the best variances [k, d] for that spread along the axes."""


def free(spread: Array, count: Array, floor: Array) -> Array:
    """VVE: each component's variances are its own."""
    filled, divisor = share(spread, count)
    return jnp.maximum(filled / divisor[:, None], floor)


def common_axes(
    scatter: Float[Array, "k d d"],
    count: Float[Array, "k"],
    floor: Float[Array, "1"],
    variances: Variances,
    candidates: Float[Array, "c d d"],
) -> Float[Array, "d d"]:
    """The orthogonal D that, with the best variances along it, minimises the M-step's objective.

    Below every one of the candidates that it starts from, and stationary.
    """
    tol = 16 * jnp.finfo(scatter.dtype).eps * jnp.sum(count)
    used = (count > 0)[:, None]

    def valued(spread: Array) -> tuple[Array, Array]:
        s = variances(spread, count, floor)
        value = jnp.sum(jnp.where(used, count[:, None] * jnp.log(s) + spread / s, 0.0))
        return s, jnp.where(jnp.isnan(value), jnp.inf, value)

    def turn(axes: Array, turned: Array) -> tuple[Array, Array, Array, Array]:
        s, value = valued(jnp.maximum(jnp.diagonal(turned, axis1=-2, axis2=-1), 0.0))
        return *sweep(axes, turned, jnp.where(used, 1.0 / s, 0.0)), value

    def body(carry: tuple) -> tuple:
        axes, turned, slope, _, _, i = carry
        axes, turned, new, value = jax.vmap(turn)(axes, turned)
        return axes, turned, new, slope, value, i + 1

    def going(carry: tuple) -> Array:
        _, _, slopes, befores, values, i = carry
        best = jnp.argmin(values)
        slope, before = slopes[best], befores[best]
        # Near the end rounding keeps the slope from falling further.
        ended = (slope <= tol) | ((slope >= before) & (slope < 1e4 * tol))
        trying = (i < TRIAL_SWEEPS) & jnp.any(slopes > tol)
        return (i < MAX_SWEEPS) & (trying | ~ended)

    turned = linalg.einsum("cap,kab,cbq->ckpq", candidates, scatter, candidates)
    inf = jnp.full(candidates.shape[0], jnp.inf, scatter.dtype)
    start = (candidates, turned, inf, inf, inf, jnp.asarray(0))
    axes = lax.while_loop(going, body, start)[0]
    # From the scatter itself, and the last candidate as it came too: in float32 many turns leave
    # rounding in `turned` that decides which is best.
    ends = jnp.concatenate([_orthonormal(axes), candidates[-1:]])
    values = jax.vmap(lambda axes: valued(along(axes, scatter))[1])(ends)
    return ends[jnp.argmin(values)]


def candidate_axes(
    scatter: Float[Array, "k d d"], count: Float[Array, "k"], start: Full | None = None
) -> Float[Array, "c d d"]:
    """The principal axes of the pooled scatter, of each component's, and those of `start`."""
    filled, _ = share(jnp.where(jnp.isfinite(scatter), scatter, 0.0), count)
    pooled = jnp.sum(jnp.where((count > 0)[:, None, None], filled, 0.0), axis=0)
    given = jnp.concatenate([pooled[None], filled])
    if start is None:
        return principal_axes(given)[1]
    dense = linalg.dot(start.scale_tril, jnp.swapaxes(start.scale_tril, -1, -2))
    dense = dense / jnp.trace(dense, axis1=-2, axis2=-1)[:, None, None]
    dense = jnp.where(jnp.isfinite(dense), dense, 0.0)
    # Unequal weights, so that the sum has equal eigenvalues only where all the matrices do.
    weights = 1.0 + jnp.arange(len(dense), dtype=dense.dtype) * ((math.sqrt(5) - 1) / 2) % 1
    mixed = jnp.sum(weights[:, None, None] * dense, axis=0)
    axes = principal_axes(jnp.concatenate([given, mixed[None]]))[1]
    # Close eigenvalues of the sum leave axes to rounding that the matrices by themselves do not.
    turned = linalg.einsum("ap,kab,bq->kpq", axes[-1], dense, axes[-1])
    spread = jnp.diagonal(turned, axis1=-2, axis2=-1)
    polished = sweep(axes[-1], turned, 1.0 / jnp.maximum(spread, jnp.finfo(axes.dtype).tiny))[0]
    return jnp.concatenate([axes[:-1], polished[None]])


def _orthonormal(axes: Float[Array, "c d d"]) -> Float[Array, "c d d"]:
    """One step of Newton and Schulz, which takes back the rounding of many products."""
    gram = linalg.dot(jnp.swapaxes(axes, -1, -2), axes)
    return linalg.dot(axes, 1.5 * jnp.eye(axes.shape[-1], dtype=axes.dtype) - 0.5 * gram)


def _maximize(variances: Variances) -> Callable:
    def maximize(
        scatter: Array, count: Array, floor: Array, k: int, start: Full | None = None
    ) -> tuple[Full, Array]:
        lowest = jnp.mean(floor, keepdims=True)
        axes = common_axes(scatter, count, lowest, variances, candidate_axes(scatter, count, start))
        s = supported(variances(along(axes, scatter), count, lowest), lowest)
        return assemble(axes[None], s), on_floor(s, lowest)

    return maximize


def _count(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # mclust has no prior here: the inverse Wishart of each Σ_j, as for the family without constraint.
    return weight if dof is None else weight + dof + d + 2


EVE = Family(
    name="EVE",
    mclust="EVE",
    summary="covariances of one volume and orientation, each component its own shape",
    second=Second.FULL,
    covariance=Full,
    maximize=_maximize(equal_determinants),
    count=_count,
    n_parameters=lambda k, d: 1 + k * (d - 1) + d * (d - 1) // 2,
    equivariance="isotropic",
    shared=True,
    iterative=True,
)

VVE = Family(
    name="VVE",
    mclust="VVE",
    summary="covariances of one orientation, each component its own volume and shape",
    second=Second.FULL,
    covariance=Full,
    maximize=_maximize(free),
    count=_count,
    n_parameters=lambda k, d: k * d + d * (d - 1) // 2,
    equivariance="isotropic",
    shared=True,
    iterative=True,
)

"""Covariances that differ by a rotation: one shape, each component its own axes (mclust's EEV, VEV).

Σ_j = λ_j D_j A D_jᵀ. Given the eigenvalues, the best axes are those of each component's own scatter,
its largest variance along the largest of A (the trace inequality of von Neumann). What is left
concerns the sorted eigenvalues alone: pooled for EEV, and the problem of VEI for VEV (Celeux and Govaert
1995).
"""

import jax.numpy as jnp

from gmmjax.families.family import Family
from gmmjax.families.full import Full
from gmmjax.families.proportional import common_shape, volumes_of
from gmmjax.families.spectral import assemble, on_floor, principal_axes, share, supported
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike


def _maximize_eev(scatter: Array, count: Array, floor: Array, k: int) -> tuple[Full, Array]:
    filled, _ = share(scatter, count)
    values, axes = principal_axes(filled)
    spread = jnp.where((count > 0)[:, None], values, 0.0)
    lowest = jnp.mean(floor, keepdims=True)
    variances = jnp.maximum(jnp.sum(spread, axis=0) / jnp.sum(count), lowest)[None]
    variances = supported(variances, lowest)
    floored = on_floor(variances, lowest)
    return assemble(axes, jnp.broadcast_to(variances, values.shape)), floored


def _maximize_vev(
    scatter: Array, count: Array, floor: Array, k: int, start: Full | None = None
) -> tuple[Full, Array]:
    filled, _ = share(scatter, count)
    values, axes = principal_axes(filled)
    spread = jnp.where((count > 0)[:, None], values, 0.0)
    lowest = jnp.mean(floor, keepdims=True)
    begin = volumes_of(start, count, scatter.shape[-1])
    variances = supported(common_shape(spread, count, lowest, begin), lowest)
    return assemble(axes, variances), on_floor(variances, lowest)


def _count_eev(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # Summed over components in the volume: n + ν + d + 2.
    return weight if dof is None else weight + (dof + d + 2) / weight.shape[0]


def _count_vev(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    return weight


EEV = Family(
    name="EEV",
    mclust="EEV",
    summary="covariances of one volume and shape, each component its own orientation",
    second=Second.FULL,
    covariance=Full,
    maximize=_maximize_eev,
    count=_count_eev,
    n_parameters=lambda k, d: d + k * (d * (d - 1) // 2),
    equivariance="isotropic",
    shared=True,
)

VEV = Family(
    name="VEV",
    mclust="VEV",
    summary="covariances of one shape, each component its own volume and orientation",
    second=Second.FULL,
    covariance=Full,
    maximize=_maximize_vev,
    count=_count_vev,
    n_parameters=lambda k, d: k + d - 1 + k * (d * (d - 1) // 2),
    equivariance="isotropic",
    shared=True,
    iterative=True,
)

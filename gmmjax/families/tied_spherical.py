"""One variance for all components and directions (mclust's EII): K-means with soft boundaries."""

import jax.numpy as jnp

from gmmjax.families.family import Family
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Float, pytree, static


@pytree
class TiedSpherical:
    """Σ_j = s² I for every j. `n_features` is structure: the determinant needs it, no leaf does."""

    scale: Float[Array, ""]
    n_features: int = static()

    def half_log_det(self) -> Float[Array, "1"]:
        return self.n_features * jnp.log(self.scale)[None]

    def whiten(self, delta: Float[Array, "#k d n"]) -> Float[Array, "#k d n"]:
        return delta / self.scale

    def color(self, noise: Float[Array, "n d"], z: Array) -> Float[Array, "n d"]:
        return noise * self.scale

    def precision(self) -> Float[Array, "1"]:
        return 1.0 / self.scale[None] ** 2

    def precision_times(self, m: Float[Array, "k d"]) -> Float[Array, "k d"]:
        return m / self.scale**2

    def dense(self, k: int, d: int) -> Float[Array, "k d d"]:
        return jnp.broadcast_to(self.scale**2 * jnp.eye(d, dtype=self.scale.dtype), (k, d, d))

    def trace_solve(self, scale: Float[Array, ""]) -> Float[Array, "1"]:
        return (scale / self.scale**2)[None]

    @classmethod
    def from_dense(cls, covariances: Float[Array, "k d d"]) -> "TiedSpherical":
        variance = jnp.mean(jnp.diagonal(covariances, axis1=-2, axis2=-1))
        return cls(jnp.sqrt(variance), covariances.shape[-1])


def _maximize(scatter: Array, count: Array, floor: Array, k: int) -> tuple[TiedSpherical, Array]:
    variance = scatter / jnp.sum(count)
    lowest = jnp.mean(floor)
    scale = jnp.sqrt(jnp.maximum(variance, lowest))
    return TiedSpherical(scale, floor.shape[0]), ~(variance > lowest)[None]


def _count(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # Summed over components by `_maximize`: (n + k) d + ν + 2.
    return weight * d if dof is None else (weight + 1) * d + (dof + 2) / weight.shape[0]


TIED_SPHERICAL = Family(
    name="tied-spherical",
    mclust="EII",
    summary="one variance for all components, in all directions",
    second=Second.POOLED_TRACE,
    covariance=TiedSpherical,
    maximize=_maximize,
    count=_count,
    n_parameters=lambda k, d: 1,
    equivariance="isotropic",
    shared=True,
)

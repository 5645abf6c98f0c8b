"""Spherical covariances (mclust's VII): one variance a component."""

import jax.numpy as jnp

from gmmjax.families.family import Family
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Float, pytree, static


@pytree
class Spherical:
    """Σ_j = s_j² I. `n_features` is structure: the determinant needs it, no leaf carries it."""

    scale: Float[Array, "k"]
    n_features: int = static()

    def half_log_det(self) -> Float[Array, "k"]:
        return self.n_features * jnp.log(self.scale)

    def whiten(self, delta: Float[Array, "#k d n"]) -> Float[Array, "k d n"]:
        return delta / self.scale[:, None, None]

    def color(self, noise: Float[Array, "n d"], z: Array) -> Float[Array, "n d"]:
        return noise * self.scale[z][:, None]

    def precision(self) -> Float[Array, "k"]:
        return 1.0 / self.scale**2

    def precision_times(self, m: Float[Array, "k d"]) -> Float[Array, "k d"]:
        return m / self.scale[:, None] ** 2

    def dense(self, k: int, d: int) -> Float[Array, "k d d"]:
        return self.scale[:, None, None] ** 2 * jnp.eye(d, dtype=self.scale.dtype)

    def trace_solve(self, scale: Float[Array, ""]) -> Float[Array, "k"]:
        return scale / self.scale**2

    @classmethod
    def from_dense(cls, covariances: Float[Array, "k d d"]) -> "Spherical":
        variance = jnp.mean(jnp.diagonal(covariances, axis1=-2, axis2=-1), axis=-1)
        return cls(jnp.sqrt(variance), covariances.shape[-1])


def _maximize(scatter: Array, count: Array, floor: Array, k: int) -> tuple[Spherical, Array]:
    variance = scatter / count
    lowest = jnp.mean(floor)
    scale = jnp.sqrt(jnp.maximum(variance, lowest))
    return Spherical(scale, floor.shape[0]), ~(variance > lowest)


def _count(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    return weight * d if dof is None else (weight + 1) * d + dof + 2


SPHERICAL = Family(
    name="spherical",
    mclust="VII",
    summary="each component one variance in all directions",
    second=Second.TRACE,
    covariance=Spherical,
    maximize=_maximize,
    count=_count,
    n_parameters=lambda k, d: k,
    equivariance="isotropic",
)

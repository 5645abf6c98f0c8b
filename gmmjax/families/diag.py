"""Diagonal covariances (mclust's VVI): coordinates independent within a component."""

import jax
import jax.numpy as jnp

from gmmjax.families.family import Family
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Float, pytree


@pytree
class Diag:
    """Σ_j = diag(s_j²)."""

    scale: Float[Array, "k d"]

    def half_log_det(self) -> Float[Array, "k"]:
        return jnp.sum(jnp.log(self.scale), axis=-1)

    def whiten(self, delta: Float[Array, "#k d n"]) -> Float[Array, "k d n"]:
        return delta / self.scale[..., None]

    def color(self, noise: Float[Array, "n d"], z: Array) -> Float[Array, "n d"]:
        return noise * self.scale[z]

    def precision(self) -> Float[Array, "k d"]:
        return 1.0 / self.scale**2

    def precision_times(self, m: Float[Array, "k d"]) -> Float[Array, "k d"]:
        return m / self.scale**2

    def dense(self, k: int, d: int) -> Float[Array, "k d d"]:
        return jax.vmap(jnp.diag)(self.scale**2)

    def trace_solve(self, scale: Float[Array, "d"]) -> Float[Array, "k"]:
        return jnp.sum(scale / self.scale**2, axis=-1)

    @classmethod
    def from_dense(cls, covariances: Float[Array, "k d d"]) -> "Diag":
        return cls(jnp.sqrt(jnp.diagonal(covariances, axis1=-2, axis2=-1)))


def _maximize(scatter: Array, count: Array, floor: Array, k: int) -> tuple[Diag, Array]:
    variance = scatter / count[:, None]
    floored = jnp.any(~(variance > floor), axis=-1)
    return Diag(jnp.sqrt(jnp.maximum(variance, floor))), floored


def _count(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    return weight if dof is None else weight + dof + 3


DIAG = Family(
    name="diag",
    mclust="VVI",
    summary="each component its own diagonal covariance",
    second=Second.DIAG,
    covariance=Diag,
    maximize=_maximize,
    count=_count,
    n_parameters=lambda k, d: k * d,
    equivariance="diagonal",
)

"""Full covariances: each component its own matrix (mclust's VVV)."""

import jax.numpy as jnp

from gmmjax import linalg
from gmmjax.families.family import Family
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Float, pytree


@pytree
class Full:
    """Σ_j = L_j L_jᵀ."""

    scale_tril: Float[Array, "k d d"]

    def half_log_det(self) -> Float[Array, "k"]:
        return linalg.half_log_det(self.scale_tril)

    def whiten(self, delta: Float[Array, "#k d n"]) -> Float[Array, "k d n"]:
        return linalg.dot(linalg.inverse_lower(self.scale_tril), delta)

    def color(self, noise: Float[Array, "n d"], z: Array) -> Float[Array, "n d"]:
        return linalg.einsum("nab,nb->na", self.scale_tril[z], noise)

    def precision(self) -> Float[Array, "k d d"]:
        inverse = linalg.inverse_lower(self.scale_tril)
        return linalg.dot(jnp.swapaxes(inverse, -1, -2), inverse)

    def precision_times(self, m: Float[Array, "k d"]) -> Float[Array, "k d"]:
        inverse = linalg.inverse_lower(self.scale_tril)
        whitened = linalg.dot(inverse, m[..., None])
        return linalg.dot(jnp.swapaxes(inverse, -1, -2), whitened)[..., 0]

    def dense(self, k: int, d: int) -> Float[Array, "k d d"]:
        return linalg.dot(self.scale_tril, jnp.swapaxes(self.scale_tril, -1, -2))

    def trace_solve(self, scale: Float[Array, "d d"]) -> Float[Array, "k"]:
        return jnp.sum(self.precision() * scale, axis=(-2, -1))

    @classmethod
    def from_dense(cls, covariances: Float[Array, "k d d"]) -> "Full":
        return cls(linalg.cholesky(covariances))


def _maximize(scatter: Array, count: Array, floor: Array, k: int) -> tuple[Full, Array]:
    factor, floored = linalg.floored_cholesky(scatter / count[:, None, None], floor)
    return Full(factor), floored


def _count(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    return weight if dof is None else weight + dof + d + 2


FULL = Family(
    name="full",
    mclust="VVV",
    summary="each component its own covariance matrix",
    second=Second.FULL,
    covariance=Full,
    maximize=_maximize,
    count=_count,
    n_parameters=lambda k, d: k * d * (d + 1) // 2,
    equivariance="linear",
)

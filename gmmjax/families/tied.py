"""One covariance for all components (mclust's EEE): linear boundaries, as in LDA."""

import jax.numpy as jnp

from gmmjax import linalg
from gmmjax.families.family import Family
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Float, pytree


@pytree
class Tied:
    """Σ_j = L Lᵀ for every j."""

    scale_tril: Float[Array, "d d"]

    def half_log_det(self) -> Float[Array, "1"]:
        return linalg.half_log_det(self.scale_tril)[None]

    def whiten(self, delta: Float[Array, "#k d n"]) -> Float[Array, "#k d n"]:
        return linalg.dot(linalg.inverse_lower(self.scale_tril), delta)

    def color(self, noise: Float[Array, "n d"], z: Array) -> Float[Array, "n d"]:
        return linalg.dot(noise, self.scale_tril.T)

    def precision(self) -> Float[Array, "1 d d"]:
        inverse = linalg.inverse_lower(self.scale_tril)
        return linalg.dot(inverse.T, inverse)[None]

    def precision_times(self, m: Float[Array, "k d"]) -> Float[Array, "k d"]:
        inverse = linalg.inverse_lower(self.scale_tril)
        return linalg.dot(linalg.dot(m, inverse.T), inverse)

    def dense(self, k: int, d: int) -> Float[Array, "k d d"]:
        covariance = linalg.dot(self.scale_tril, self.scale_tril.T)
        return jnp.broadcast_to(covariance, (k, d, d))

    def trace_solve(self, scale: Float[Array, "d d"]) -> Float[Array, "1"]:
        return jnp.sum(self.precision() * scale, axis=(-2, -1))

    @classmethod
    def from_dense(cls, covariances: Float[Array, "k d d"]) -> "Tied":
        return cls(linalg.cholesky(jnp.mean(covariances, axis=0)))


def _maximize(scatter: Array, count: Array, floor: Array, k: int) -> tuple[Tied, Array]:
    total = jnp.sum(count)
    factor, floored = linalg.floored_cholesky((scatter / total)[None], floor)
    return Tied(factor[0]), floored


def _count(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # Summed over components by `_maximize`: n + ν + d + k + 1.
    return weight if dof is None else weight + 1 + (dof + d + 1) / weight.shape[0]


TIED = Family(
    name="tied",
    mclust="EEE",
    summary="one covariance matrix for all components",
    second=Second.POOLED_FULL,
    covariance=Tied,
    maximize=_maximize,
    count=_count,
    n_parameters=lambda k, d: d * (d + 1) // 2,
    equivariance="linear",
    shared=True,
)

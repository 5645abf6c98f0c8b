"""One diagonal covariance for all components (mclust's EEI)."""

import jax.numpy as jnp

from gmmjax.families.family import Family
from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Float, pytree


@pytree
class TiedDiag:
    """Σ_j = diag(s²) for every j."""

    scale: Float[Array, "d"]

    def half_log_det(self) -> Float[Array, "1"]:
        return jnp.sum(jnp.log(self.scale), axis=-1, keepdims=True)

    def whiten(self, delta: Float[Array, "#k d n"]) -> Float[Array, "#k d n"]:
        return delta / self.scale[:, None]

    def color(self, noise: Float[Array, "n d"], z: Array) -> Float[Array, "n d"]:
        return noise * self.scale

    def precision(self) -> Float[Array, "1 d"]:
        return 1.0 / self.scale[None] ** 2

    def precision_times(self, m: Float[Array, "k d"]) -> Float[Array, "k d"]:
        return m / self.scale**2

    def dense(self, k: int, d: int) -> Float[Array, "k d d"]:
        return jnp.broadcast_to(jnp.diag(self.scale**2), (k, d, d))

    def trace_solve(self, scale: Float[Array, "d"]) -> Float[Array, "1"]:
        return jnp.sum(scale / self.scale**2, axis=-1, keepdims=True)

    @classmethod
    def from_dense(cls, covariances: Float[Array, "k d d"]) -> "TiedDiag":
        variance = jnp.mean(jnp.diagonal(covariances, axis1=-2, axis2=-1), axis=0)
        return cls(jnp.sqrt(variance))


def _maximize(scatter: Array, count: Array, floor: Array, k: int) -> tuple[TiedDiag, Array]:
    variance = scatter / jnp.sum(count)
    floored = jnp.any(~(variance > floor), axis=-1, keepdims=True)
    return TiedDiag(jnp.sqrt(jnp.maximum(variance, floor))), floored


def _count(weight: Array, dof: ArrayLike | None, d: int) -> Array:
    # Summed over components by `_maximize`: n + ν + 2, as mclust has it. (The table has n + ν + k + 2.)
    return weight if dof is None else weight + (dof + 2) / weight.shape[0]


TIED_DIAG = Family(
    name="tied-diag",
    mclust="EEI",
    summary="one diagonal covariance for all components",
    second=Second.POOLED_DIAG,
    covariance=TiedDiag,
    maximize=_maximize,
    count=_count,
    n_parameters=lambda k, d: d,
    equivariance="diagonal",
    shared=True,
)

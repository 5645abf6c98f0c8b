"""What a covariance family is: a parametrisation, and the M-step under its constraint.

The two are separate because several constraints share a parametrisation (a common shape and free
volumes is still one factor a component), and the E-step sees only the parametrisation.
"""

from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax.numpy as jnp

from gmmjax.moments import Second
from gmmjax.typing import Array, ArrayLike, Bool, Float


class Covariance(Protocol):
    """Parameters of k covariance matrices, as factors: Σ_j = F_j F_jᵀ, F lower-triangular.

    Factors, not covariances: the log-determinant and the Mahalanobis distance come without a
    subtraction, and the range of the dtype is that of standard deviations.
    """

    def half_log_det(self) -> Float[Array, "#k"]:
        """½ log|Σ_j|."""
        ...

    def whiten(self, delta: Float[Array, "#k d n"]) -> Float[Array, "k d n"]:
        """F_j⁻¹ δ: differences in units of each component's own standard deviations."""
        ...

    def color(self, noise: Float[Array, "n d"], z: Array) -> Float[Array, "n d"]:
        """F_z ε: standard normal noise given the covariance of component z."""
        ...

    def precision(self) -> Float[Array, "#k ..."]:
        """Σ_j⁻¹ in the shape of the family's second moment."""
        ...

    def precision_times(self, m: Float[Array, "k d"]) -> Float[Array, "k d"]:
        """Σ_j⁻¹ m_j."""
        ...

    def dense(self, k: int, d: int) -> Float[Array, "k d d"]:
        """The covariance matrices themselves."""
        ...

    def trace_solve(self, scale: Array) -> Float[Array, "#k"]:
        """tr(Σ_j⁻¹ Ψ), Ψ in the shape of one component's second moment."""
        ...

    @classmethod
    def from_dense(cls, covariances: Float[Array, "k d d"]) -> Self:
        """The nearest member of the family, in the sense of the M-step with equal weights."""
        ...


class Maximize(Protocol):
    """The M-step under a family's constraint."""

    def __call__(
        self, scatter: Array, count: Array, floor: Float[Array, "d"], k: int
    ) -> tuple[Covariance, Bool[Array, "#k"]]: ...


class MaximizeFrom(Protocol):
    """The M-step of a family that iterates, from a covariance of that family."""

    def __call__(
        self, scatter: Array, count: Array, floor: Float[Array, "d"], k: int, start: Any = None
    ) -> tuple[Covariance, Bool[Array, "#k"]]: ...


class Count(Protocol):
    """The divisor of the scatter."""

    def __call__(self, weight: Array, dof: ArrayLike | None, d: int) -> Array: ...


class CountParameters(Protocol):
    """Free parameters of the covariances."""

    def __call__(self, k: int, d: int) -> int: ...


@dataclass(frozen=True)
class Family:
    """One covariance family, looked up by name."""

    name: str
    mclust: str
    """The three letters of mclust: volume, shape and orientation, each Equal, Varying or the Identity."""
    summary: str
    second: Second
    """The second moment that the M-step needs."""
    covariance: type
    """The parametrisation, a `Covariance`."""
    maximize: Maximize | MaximizeFrom
    """(scatter, count, floor, k) → (covariance, whether the floor was active). The maximiser of
    −count·log|Σ| − tr(Σ⁻¹ scatter) in the family, subject to Σ ⪰ diag(floor)."""
    count: Count
    """(N, prior degrees of freedom or None, d) → the divisor of the scatter. `dof` adds the powers
    of |Σ| that the conjugate prior carries (Fraley and Raftery 2007, table 3)."""
    n_parameters: CountParameters
    """(k, d) → free parameters of the covariances."""
    equivariance: str
    """The linear maps of the data under which it is closed: "linear", "diagonal", "isotropic"."""
    shared: bool = False
    """Whether components share parameters. `maximize` then gets the counts as they are, 0 for a
    component without weight, and gives that component a member of the family."""
    iterative: bool = False
    """Whether `maximize` iterates. It then takes `start`, a covariance of this family, and ends no
    lower than it, however soon the iteration has to end."""

    def from_dense(self, covariances: Float[Array, "k d d"]) -> Covariance:
        """The nearest member of the family, in the sense of the M-step with equal weights."""
        if self.second.pooled or not self.shared:
            return self.covariance.from_dense(covariances)
        k, d = covariances.shape[:2]
        scatter = covariances
        if self.second is Second.DIAG:
            scatter = jnp.diagonal(covariances, axis1=-2, axis2=-1)
        one, zero = jnp.ones(k, covariances.dtype), jnp.zeros(d, covariances.dtype)
        return self.maximize(scatter, one, zero, k)[0]

    def rows_needed(self, d: int) -> int:
        """The fewest rows that keep a component's covariance from collapsing onto them.

        With variances of its own along axes that may turn, a component needs rows that span the
        space; with a volume, or variances along the coordinates, two rows; and one that has only
        its axes to itself, or nothing, borrows the rest from the others.
        """
        volume, shape, orientation = self.mclust
        if shape == "V" and orientation != "I":
            return d + 1
        return 2 if "V" in volume + shape else 0

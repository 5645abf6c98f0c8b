"""Conjugate priors as pseudo-moments: MAP-EM by adding them before the M-step.

Dirichlet on the weights; normal–inverse-Wishart on each (μ_j, Σ_j), or normal–inverse-gamma for the
diagonal and spherical families. Conventions of Fraley and Raftery (2007), "Bayesian regularization
for normal mixture estimation", table 3.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gmmjax import families
from gmmjax.frame import Frame
from gmmjax.moments import Moments, Second, column_mean, outer
from gmmjax.typing import Array, ArrayLike, Float, pytree


@pytree
class Prior:
    """A conjugate prior; every field is traced.

    - `concentration`: Dirichlet α, one number or [k]. 1 is flat; the mode needs α ≥ 1.
    - `mean`: [d], the prior mean m₀ of every component.
    - `mean_precision`: κ, how many observations at m₀ the prior is worth. 0 leaves means free.
    - `dof`: ν of the inverse Wishart (or inverse gamma, ν/2).
    - `scale`: [d, d], Ψ of the inverse Wishart. The diagonal family takes its diagonal, the
      spherical one the mean of its diagonal, as ς² of the inverse gamma.
    """

    concentration: Float[Array, "#k"]
    mean: Float[Array, "d"]
    mean_precision: Float[Array, ""]
    dof: Float[Array, ""]
    scale: Float[Array, "d d"]

    @classmethod
    def create(
        cls,
        *,
        mean: ArrayLike,
        scale: ArrayLike,
        concentration: ArrayLike = 1.0,
        mean_precision: ArrayLike = 0.01,
        dof: ArrayLike | None = None,
    ) -> "Prior":
        """A prior from plain numbers. `dof` defaults to d + 2, `mean_precision` to 0.01 (mclust's)."""
        m = jnp.asarray(mean, float)
        psi = jnp.asarray(scale, float)
        if m.ndim != 1:
            raise ValueError(f"prior mean: expected shape [d]; got {m.shape}.")
        d = m.shape[0]
        if psi.shape != (d, d):
            raise ValueError(
                f"prior scale: expected shape [{d}, {d}] as the mean's; got {psi.shape}."
            )
        alpha = jnp.atleast_1d(jnp.asarray(concentration, float))
        kappa = jnp.asarray(mean_precision, float)
        nu = jnp.asarray(d + 2 if dof is None else dof, float)
        if not bool(jnp.all(alpha >= 1)):
            raise ValueError("prior concentration: expected at least 1; below it has no mode.")
        if not bool(kappa >= 0):
            raise ValueError(f"prior mean_precision: expected a number ≥ 0; got {kappa}.")
        if not bool(nu >= 0):
            raise ValueError(f"prior dof: expected a number ≥ 0; got {nu}.")
        if not bool(jnp.all(jnp.linalg.eigvalsh(psi) >= 0)):
            raise ValueError("prior scale: expected a positive semi-definite matrix.")
        return cls(alpha, m, kappa, nu, psi)

    @classmethod
    def default(cls, x: ArrayLike, n_components: int, family: str) -> "Prior":
        """The prior that mclust puts on data x [n, d] where it is asked for one.

        Fraley and Raftery (2007), 3.2: mean and covariance S of the data (divisor n − 1), κ = 0.01,
        ν = d + 2, and Ψ = S / k^{2/d}, so that the k components together are as wide as the data;
        for families of diagonal matrices the mean of its diagonal, times the identity.

        mclust leaves Ψ out for EII (`tied-spherical`), hence it is 0 there.

        >>> import gmmjax
        >>> x = gmmjax.datasets.load_iris().x
        >>> float(gmmjax.Prior.default(x, 3, "diag").scale[0, 0])
        0.660
        """
        mclust = families.get(family).mclust
        data = jnp.asarray(x, float)
        if data.ndim != 2:
            raise ValueError(f"x: expected data of shape [n, d]; got {data.shape}.")
        n, d = data.shape
        if n < 2:
            raise ValueError(f"x: expected at least 2 rows for a variance; got {n}.")
        mean = column_mean(data)
        centred = data - mean
        covariance = jnp.matmul(centred.T, centred, precision="highest") / (n - 1)
        if n <= d:
            covariance = jnp.diag(jnp.diagonal(covariance))
        if mclust.endswith("I"):
            covariance = jnp.mean(jnp.diagonal(covariance)) * jnp.eye(d, dtype=data.dtype)
        if mclust == "EII":
            covariance = jnp.zeros_like(covariance)
        scale = covariance / n_components ** (2 / d)
        return cls(
            concentration=jnp.ones(1, data.dtype),
            mean=mean,
            mean_precision=jnp.asarray(0.01, data.dtype),
            dof=jnp.asarray(d + 2, data.dtype),
            scale=scale,
        )

    def into(self, frame: Frame) -> "Prior":
        """This prior, of the parameters in the coordinates of a frame, and in its dtype."""
        own = jax.tree.map(lambda a: jnp.asarray(a, frame.centre.dtype), self)
        scale = own.scale / frame.unit**2
        return dataclasses.replace(own, mean=frame.enter(own.mean), scale=scale)

    def second(self, kind: Second) -> Array:
        """Ψ in the shape of one component's second moment."""
        diagonal = jnp.diagonal(self.scale)
        return {"full": self.scale, "diag": diagonal, "trace": jnp.mean(diagonal)}[kind.shape_kind]

    def moments(self, about: Float[Array, "k d"], kind: Second) -> Moments:
        """κ observations at m₀ and a scatter of Ψ for each component (once, where pooled)."""
        k = about.shape[0]
        delta = self.mean - about
        kappa = jnp.broadcast_to(self.mean_precision, (k,)).astype(about.dtype)
        first = kappa[:, None] * delta
        second = outer(delta, kappa, kind) + self.second(kind)
        return Moments(about, kappa, first, second, kind)

"""Pictures from mixtures: principal axes, and mixtures carried back to all pixels.

A full covariance of 784 pixels has 307,720 parameters, more than most classes have rows. In the first
m principal axes a full covariance is affordable, and what is left out is modelled by one variance in
all other directions, as in probabilistic PCA (Tipping and Bishop 1999). The result is a mixture of
the pixels like any other: it can be sampled, conditioned on some pixels, and asked for a density.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks, linalg
from gmmjax.conditioning import tril
from gmmjax.families import Full
from gmmjax.mixture import GaussianMixture
from gmmjax.models import FactorMixture
from gmmjax.typing import Array, ArrayLike, Float, pytree, static


@pytree
class PrincipalAxes:
    """An orthonormal frame of the features, by falling variance, of which the first m are kept."""

    mean: Float[Array, "d"]
    axes: Float[Array, "d d"]  # columns, orthonormal
    variances: Float[Array, "d"]  # of the data along each axis, falling
    n_kept: int = static()

    @classmethod
    def of(cls, x: ArrayLike, n_kept: int) -> "PrincipalAxes":
        """The principal axes of x [n, d], of which n_kept < d are kept.

        Raises `ValueError` for a wrong shape, values that are not finite, or n_kept out of range.
        """
        rows = checks.rows(x)
        n, d = rows.shape
        m = checks.count(n_kept, "n_kept")
        if m >= d:
            raise ValueError(
                f"n_kept: expected at most {d - 1}, one less than the features; got {m}."
            )
        mean = jnp.mean(rows, axis=0)
        # Of the triangular factor: the same axes and values, without the n × n matrix of the rows'.
        root = jnp.linalg.qr(rows - mean, mode="r")
        _, values, axes = jnp.linalg.svd(root, full_matrices=True)
        values = jnp.zeros(d, rows.dtype).at[: min(n, d)].set(values)
        return cls(mean, axes.T, values**2 / n, m)

    @property
    def residual_variance(self) -> Float[Array, ""]:
        """σ², the mean variance along the axes that are left out: its maximum-likelihood estimate."""
        return jnp.mean(self.variances[self.n_kept :])

    def encode(self, x: ArrayLike) -> Float[Array, "*batch m"]:
        """Coordinates along the axes kept, for x of shape [..., d]."""
        return linalg.dot(jnp.asarray(x) - self.mean, self.axes[:, : self.n_kept])

    def decode(self, z: ArrayLike) -> Float[Array, "*batch d"]:
        """The point in the features whose kept coordinates are z, the others 0."""
        return self.mean + linalg.dot(jnp.asarray(z), self.axes[:, : self.n_kept].T)

    def lift(self, mixture: GaussianMixture, floor: ArrayLike = 0.0) -> GaussianMixture:
        """The mixture of the features whose kept coordinates follow `mixture`, the rest N(0, σ²).

        σ² is the residual variance, or `floor` (a variance) where that is larger: without it the
        density of features that never vary, such as a corner of a picture, has no bound.

        >>> import jax, jax.numpy as jnp, gmmjax
        >>> from gmmjax.generation import PrincipalAxes
        >>> x = jax.random.normal(jax.random.key(0), (500, 3)) * jnp.array([3.0, 1.0, 0.1])
        >>> axes = PrincipalAxes.of(x, 2)
        >>> model = axes.lift(gmmjax.fit(jax.random.key(1), axes.encode(x), 1, restarts=1).model)
        >>> model.n_features, bool(jnp.allclose(model.covariances[0], jnp.cov(x.T), rtol=0.01))
        (3, True)
        """
        self._check(mixture)
        return _lift(self, mixture, jnp.asarray(floor, self.mean.dtype))

    def lift_factors(self, mixture: GaussianMixture, floor: ArrayLike = 0.0) -> FactorMixture:
        """The same as a mixture of factor analysers with spherical noise, of O(k d m) numbers.

        For many features: `lift` makes a matrix of d × d for each component. Noise of variance σ² lies
        in all directions here, so that a component which varies less than σ² along an axis that is kept
        is raised to it; where none does the two are the same distribution.
        """
        self._check(mixture)
        return _lift_factors(self, mixture, jnp.asarray(floor, self.mean.dtype))

    def _check(self, mixture: GaussianMixture) -> None:
        if mixture.n_features != self.n_kept:
            raise ValueError(
                f"mixture: expected {self.n_kept} features, as many as axes are kept; got "
                f"{mixture.n_features}."
            )


@jax.jit
def _lift_factors(frame: PrincipalAxes, mixture: GaussianMixture, floor: Array) -> FactorMixture:
    k, m = mixture.means.shape
    inner = jnp.broadcast_to(tril(mixture.factors, k, m), (k, m, m))
    variance = jnp.maximum(frame.residual_variance, floor)
    directions, deviations, _ = jnp.linalg.svd(inner)
    signal = jnp.sqrt(jnp.maximum(deviations**2 - variance, 0.0))
    loadings = linalg.einsum("da,kab,kb->kdb", frame.axes[:, :m], directions, signal)
    means = frame.decode(mixture.means)
    scale = jnp.full_like(means, jnp.sqrt(variance))
    return FactorMixture(mixture.log_weights, means, loadings, scale, noise="spherical")


@jax.jit
def _lift(frame: PrincipalAxes, mixture: GaussianMixture, floor: Array) -> GaussianMixture:
    k, m = mixture.means.shape
    d = frame.mean.shape[0]
    inner = jnp.broadcast_to(tril(mixture.factors, k, m), (k, m, m))
    deviation = jnp.sqrt(jnp.maximum(frame.residual_variance, floor))
    kept, rest = frame.axes[:, :m], frame.axes[:, m:]
    within = linalg.einsum("da,kab->kdb", kept, inner)
    across = jnp.broadcast_to(deviation * rest, (k, d, d - m))
    factors = Full(linalg.lower_factor(jnp.concatenate([within, across], axis=-1)))
    means = frame.decode(mixture.means)
    return GaussianMixture(mixture.log_weights, means, factors, "full")


def tile(pictures: ArrayLike, columns: int, *, shape: Sequence[int] | None = None) -> np.ndarray:
    """Pictures [n, h, w] (or [n, h·w] with their `shape`) side by side in one, a line between them.

    The result is a float array; the lines are NaN, which matplotlib leaves blank. The last row is filled
    with NaN.
    """
    array = np.asarray(pictures, float)
    if shape is not None:
        array = array.reshape(len(array), *shape)
    if array.ndim != 3 or len(array) == 0:
        raise ValueError(f"pictures: expected shape [n, h, w], n ≥ 1; got {array.shape}.")
    columns = checks.count(columns, "columns")
    n, h, w = array.shape
    rows = -(-n // columns)
    framed = np.full((rows * columns, h + 1, w + 1), np.nan)
    framed[:n, :h, :w] = array
    grid = framed.reshape(rows, columns, h + 1, w + 1).swapaxes(1, 2)
    return grid.reshape(rows * (h + 1), columns * (w + 1))[:-1, :-1]

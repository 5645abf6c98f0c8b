"""Marginals and conditionals of a mixture: p(a), p(b | a), and regression from the second.

For x = (a, b) the conditional p(b | a) is again a mixture (Bishop 2006, section 2.3.1): weights
∝ φ_j N(a; μ_ja, Σ_jaa), means μ_jb + Σ_jba Σ_jaa⁻¹ (a − μ_ja), covariances
Σ_jbb − Σ_jba Σ_jaa⁻¹ Σ_jab. All of it is read off one triangular factor. With Σ = L Lᵀ and the rows
of L in the order (a, b),

    L[(a, b), :] = [[T_aa, 0], [T_ba, T_bb]] Q,   Q orthogonal,

T_aa is the factor of the marginal, T_bb that of the conditional, and T_ba T_aa⁻¹ the gain. No
difference of matrices is formed, so a conditional covariance cannot lose its digits or its sign.
Within a component of an axis-aligned family coordinates are independent, and none of it is needed.
"""

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import ndtr, ndtri

from gmmjax import checks, families, linalg
from gmmjax.families import Covariance, Diag, Full, Spherical, Tied, TiedDiag, TiedSpherical
from gmmjax.typing import Array, ArrayLike, Float, pytree, static

if TYPE_CHECKING:
    from gmmjax.mixture import GaussianMixture


@pytree
class Regression:
    """p(b | a) for a batch of values a: a mixture of k normals in the t coordinates left."""

    log_weights: Float[Array, "*batch k"]  # log p(z = j | a)
    means: Float[Array, "*batch k t"]
    factors: Covariance  # of b given a and z = j; the same for all values, hence without batch
    family: str = static()

    @property
    def mean(self) -> Float[Array, "*batch t"]:
        """E[b | a], the least-squares prediction."""
        return linalg.einsum("...k,...kt->...t", jnp.exp(self.log_weights), self.means)

    @property
    def covariance(self) -> Float[Array, "*batch t t"]:
        """Cov[b | a]: within the components plus between their means."""
        k, t = self.means.shape[-2:]
        weights = jnp.exp(self.log_weights)
        delta = self.means - self.mean[..., None, :]
        within = linalg.einsum("...k,kab->...ab", weights, self.factors.dense(k, t))
        return within + linalg.einsum("...k,...ka,...kb->...ab", weights, delta, delta)

    def quantiles(self, p: ArrayLike) -> Float[Array, "..."]:
        """The p-quantiles of each coordinate of b given a, shape [..., *batch, t], p in [0, 1].

        The axes of `p` come first, as in `numpy.quantile`. There is no closed form: the
        distribution function Σ_j w_j Φ((y − μ_j)/s_j) is bisected between the least and the
        greatest quantile of the components, to the rounding of the dtype. Differentiable once
        (implicitly) in the model, in a and in p.
        """
        p = jnp.asarray(p, self.means.dtype)
        if checks.concrete(p) and not np.all((np.asarray(p) >= 0) & (np.asarray(p) <= 1)):
            raise ValueError(f"p: expected probabilities from 0 to 1; got {np.asarray(p)}.")
        k, t = self.means.shape[-2:]
        # The norm of a row of a factor: the standard deviation without a covariance matrix.
        deviation = jnp.linalg.norm(tril(self.factors, k, t), axis=-1)
        weights = jnp.exp(self.log_weights)[..., None]
        return _quantile(
            p.reshape(*p.shape, *[1] * (self.means.ndim - 1)), weights, self.means, deviation
        )


def marginal(mixture: "GaussianMixture", dims: checks.Dims) -> "GaussianMixture":
    """The mixture of the coordinates `dims` alone, in that order.

    The family stays what it is where it is closed under this: full, tied, diag, spherical, tied-diag
    and tied-spherical are. Of the others the axis-aligned become diag and the rest full. Raises
    `ValueError` where `dims` is empty, repeats itself or is out of range.

    >>> import gmmjax
    >>> m = gmmjax.GaussianMixture.create([1.0], [[0.0, 7.0]], [[[1.0, 0.5], [0.5, 4.0]]])
    >>> m.marginal([1]).means.tolist(), m.marginal([1]).covariances.tolist()
    ([[7.0]], [[[4.0]]])
    """
    return _marginal(mixture, tuple(checks.dims(dims, mixture.n_features).tolist()))


def condition(
    mixture: "GaussianMixture", dims: checks.Dims, values: ArrayLike
) -> "GaussianMixture":
    """p(b | a): the coordinates not in `dims`, in ascending order, given x[dims] = values.

    `values` has shape [..., m], m the length of `dims`, in their order; leading axes give a mixture
    with those leading axes on every leaf, to be used under `vmap`. The gains and the covariances do
    not depend on the values and are computed once. (For many values and many coordinates use
    `regress`, which does not repeat the covariances for each.)

    Raises `ValueError` where `dims` is empty, holds every coordinate, repeats itself or is out of
    range, and where `values` has another length or is not finite.

    >>> import gmmjax
    >>> m = gmmjax.GaussianMixture.create([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.5, 1.0]]])
    >>> given = m.condition([0], [2.0])
    >>> given.means.tolist(), given.covariances.tolist()
    ([[1.0]], [[[0.75]]])
    """
    given = regress(mixture, dims, values)
    batch = given.means.shape[:-2]
    factors = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (*batch, *leaf.shape)), given.factors
    )
    return dataclasses.replace(
        mixture,
        log_weights=given.log_weights,
        means=given.means,
        factors=factors,
        family=given.family,
    )


def regress(mixture: "GaussianMixture", dims: checks.Dims, x_given: ArrayLike) -> Regression:
    """The coordinates not in `dims`, in ascending order, given x[dims] = x_given: regression.

    `x_given` has shape [..., m] as the `values` of `condition`, and the same faults raise
    (Ghahramani and Jordan 1994, "Supervised learning from incomplete data via an EM approach").

    >>> import gmmjax
    >>> m = gmmjax.GaussianMixture.create(
    ...     [0.5, 0.5], [[0.0, 0.0], [5.0, 9.0]], [1.0, 1.0], "spherical"
    ... )
    >>> y = m.regress([0], [[0.0], [5.0]])
    >>> y.mean.round(2).tolist(), y.quantiles([0.25, 0.75]).round(2)[:, 1, 0].tolist()
    ([[0.0], [9.0]], [8.32..., 9.67...])
    """
    d = mixture.n_features
    a = checks.dims(dims, d)
    b = checks.other_dims(a, d)
    values = checks.given(x_given, a.size, mixture.means.dtype)
    return _regress(mixture, tuple(a.tolist()), tuple(b.tolist()), values)


@partial(jax.jit, static_argnames="dims")
def _marginal(mixture: "GaussianMixture", dims: tuple[int, ...]) -> "GaussianMixture":
    a = np.array(dims)
    k, d = mixture.means.shape
    match mixture.factors:
        case Tied(scale_tril):
            factors: Covariance = Tied(linalg.lower_factor(scale_tril[a, :]))
        case Spherical(scale, _):
            factors = Spherical(scale, a.size)
        case TiedDiag(scale):
            factors = TiedDiag(scale[a])
        case TiedSpherical(scale, _):
            factors = TiedSpherical(scale, a.size)
        case other if axis_aligned(mixture.family):
            factors = Diag(deviations(other, k, d)[:, a])
        case other:
            rows = jnp.broadcast_to(tril(other, k, d), (k, d, d))[:, a, :]
            factors = Full(linalg.lower_factor(rows))
    return dataclasses.replace(
        mixture, means=mixture.means[:, a], factors=factors, family=_family_of(factors)
    )


@partial(jax.jit, static_argnames=("given", "rest"))
def _regress(
    mixture: "GaussianMixture", given: tuple[int, ...], rest: tuple[int, ...], values: Array
) -> Regression:
    k, d = mixture.means.shape
    a, b = np.array(given), np.array(rest)
    mu_a, mu_b = mixture.means[:, a], mixture.means[:, b]
    batch, m = values.shape[:-1], a.size
    if axis_aligned(mixture.family):
        left = _marginal(mixture, rest)
        log_weights = jax.nn.log_softmax(_marginal(mixture, given).log_joint(values), axis=-1)
        means = jnp.broadcast_to(mu_b, (*batch, *mu_b.shape))
        return Regression(log_weights, means, left.factors, left.family)
    lower = linalg.lower_factor(tril(mixture.factors, k, d)[:, np.concatenate([a, b]), :])
    own, cross, left = lower[:, :m, :m], lower[:, m:, :m], lower[:, m:, m:]
    y = linalg.solve_lower(own, values.reshape(-1, m).T[None] - mu_a[:, :, None])
    # Up to a constant that is the same for all components.
    joint = (mixture.log_weights - linalg.half_log_det(own))[:, None] - 0.5 * jnp.sum(y * y, axis=1)
    log_weights = jax.nn.log_softmax(joint, axis=0).T.reshape(*batch, k)
    means = mu_b + jnp.moveaxis(linalg.dot(cross, y), -1, 0).reshape(*batch, k, b.size)
    factors = Tied(left[0]) if isinstance(mixture.factors, Tied) else Full(left)
    return Regression(log_weights, means, factors, _family_of(factors))


def axis_aligned(family: str) -> bool:
    """Whether the coordinates are independent within a component of this family."""
    return families.get(family).second.shape_kind != "full"


def deviations(factors: Covariance, k: int, d: int) -> Float[Array, "k d"]:
    """Standard deviations of an axis-aligned family: its (diagonal) factor applied to ones."""
    return factors.color(jnp.ones((k, d), _dtype(factors)), jnp.arange(k))


def tril(factors: Covariance, k: int, d: int) -> Float[Array, "#k d d"]:
    """The factors as dense matrices F, Σ = F Fᵀ; one where all components share it."""
    match factors:
        case Full(scale_tril):
            return scale_tril
        case Tied(scale_tril):
            return scale_tril[None]
    # Column b of F_j is the noise e_b coloured by component j.
    eye = jnp.tile(jnp.eye(d, dtype=_dtype(factors)), (k, 1))
    columns = factors.color(eye, jnp.repeat(jnp.arange(k), d))
    return jnp.swapaxes(columns.reshape(k, d, d), -1, -2)


def _dtype(factors: Covariance) -> jnp.dtype:
    return jnp.result_type(*jax.tree.leaves(factors))


def _family_of(factors: Covariance) -> str:
    names = {
        Full: "full",
        Tied: "tied",
        Diag: "diag",
        Spherical: "spherical",
        TiedDiag: "tied-diag",
        TiedSpherical: "tied-spherical",
    }
    return names[type(factors)]


@jax.jit
def _quantile(p: Array, weights: Array, means: Array, deviation: Array) -> Array:
    """y with Σ_j w_j Φ((y − μ_j)/s_j) = p; components lie on axis −2, the rest broadcasts."""
    y = _bisect(*lax.stop_gradient((p, weights, means, deviation)))
    # The implicit derivative dy = (dp − dF)/f. Nothing is added to the value: a Newton step in the
    # empty valley between two components, where f is next to 0, would throw it far off.
    z = (y[..., None, :] - means) / deviation
    terms = weights * jnp.exp(-0.5 * z * z) / (deviation * math.sqrt(2 * math.pi))
    density = lax.stop_gradient(jnp.sum(terms, axis=-2))
    change = _excess(y, p, weights, means, deviation) / jnp.where(density > 0, density, 1.0)
    finite = jnp.isfinite(y)
    change = jnp.where(finite, change, 0.0)
    return jnp.where(finite, y - (change - lax.stop_gradient(change)), y)


def _excess(y: Array, p: Array, weights: Array, means: Array, deviation: Array) -> Array:
    """F(y) − p; above the median by the survival function, as 1 − F loses the digits of a tail."""
    z = (y[..., None, :] - means) / deviation
    below = jnp.sum(weights * ndtr(z), axis=-2) - p
    above = (1 - p) - jnp.sum(weights * ndtr(-z), axis=-2)
    return jnp.where(p < 0.5, below, above)


def _bisect(p: Array, weights: Array, means: Array, deviation: Array) -> Array:
    """Between the components' own quantiles, where the mixture's must lie."""
    ends = means + deviation * ndtri(p)[..., None, :]

    def body(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = low + 0.5 * (high - low)
        left = _excess(middle, p, weights, means, deviation) < 0
        return jnp.where(left, middle, low), jnp.where(left, high, middle)

    # Each turn halves the bracket: one for each bit of the significand, and some more for a bracket
    # that is wide beside the solution.
    turns = jnp.finfo(means.dtype).nmant + 12
    bracket = jnp.min(ends, axis=-2), jnp.max(ends, axis=-2)
    low, high = lax.fori_loop(0, turns, body, bracket)
    return jnp.where(jnp.isinf(ends[..., 0, :]), ends[..., 0, :], low + 0.5 * (high - low))

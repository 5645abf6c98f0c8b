"""The Gaussian E-step: (mixture, block of rows) → (moments, log-likelihood), two ways.

*Features* (the default): with φ(x) = [1, x, x_a x_b], every component's log-density is linear in φ,
so the log-densities are one matrix product and the moments another, for all components of all
restarts: φ does not depend on the model. *Differences*: x − μ_j is formed first and then whitened. Two
to three times the arithmetic, but nothing cancels. Both are the same function; the second takes over
where the first would lose its digits, as it does on data far from the origin (`em` and `fit` centre
them first).

Inside, rows are the last, contiguous axis, so that the softmax over few components vectorises.
"""

import math
from functools import partial

import jax.numpy as jnp

from gmmjax import blocks as blocks_
from gmmjax import families, incomplete, linalg, moments
from gmmjax.blocks import Blocks
from gmmjax.incomplete import Incomplete
from gmmjax.moments import Moments
from gmmjax.typing import Array, Bool, Float, pytree, static
from gmmjax.uncertain import Uncertain

LOG_2PI = math.log(2 * math.pi)

CANCELLATION_LIMIT = 3e-4
"""Largest tolerated ε·d·κ, κ the mean-square size of the data in a component's standard deviations.

The expanded form −½xᵀAx + xᵀAμ − ½μᵀAμ leaves an error of about ε·d·κ in a log-density, against
ε·d for the differences."""


@pytree
class Prepared:
    """All that the E-step needs from a mixture, computed once a step and not once a block."""

    log_weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    factors: families.Covariance
    coefficients: Float[Array, "k p"]  # of log φ_j N(x; μ_j, Σ_j) on the features of x
    cancels: Bool[Array, ""]  # whether the features would lose too many digits
    family: str = static()

    def expect(
        self,
        x: Float[Array, "n d"] | Incomplete | Uncertain,
        weights: Float[Array, "n"],
        evidence: Float[Array, "n k"] | None = None,
        background: Float[Array, ""] | None = None,
    ) -> tuple[Moments, Float[Array, ""]]:
        """Moments and log-likelihood (nats, summed with `weights`) of a block of rows.

        `evidence` is what else is known of each row's component, log p(y_i | z_i = j): 0 and −inf
        where a label is certain, the log of a noise matrix where it is not. `background` is a constant
        b: rows then have the density p(x) + eᵇ, and what the second part takes of a row is not in the
        moments. (Not for incomplete rows: a constant has no marginal.)
        """
        if isinstance(x, Incomplete):
            return incomplete.expect(self, x, weights, evidence)
        if isinstance(x, Uncertain):
            return by_differences(self, x.x, weights, evidence, background, x.variance)
        return linalg.when(
            self.cancels,
            lambda: by_differences(self, x, weights, evidence, background),
            by_features(self, x, weights, evidence, background),
        )

    def collect(self, blocks: Blocks) -> tuple[Moments, Float[Array, ""]]:
        """The sum of `expect` over all blocks, faster: one choice of form for all of them, and sums of
        features that become moments once, at the end. `blocks.how` names the kernel and its precision.
        """
        if isinstance(blocks.data, Incomplete | Uncertain):
            return blocks_.collect(self.expect, blocks)
        precision = blocks.how.precision
        if blocks.how.kernel == "pallas":
            from gmmjax import kernels

            rows, weights = blocks.rows(), blocks.weights.reshape(-1)
            fast = kernels.expect(self, rows, weights, precision=precision)
        elif blocks.how.kernel == "native":
            fast = self._native(blocks.rows(), blocks.weights.reshape(-1))
        else:
            by_block = partial(feature_sums, self, precision=precision)
            sums, log_likelihood = blocks_.collect(by_block, blocks)
            fast = moments.from_features(*sums, families.get(self.family).second), log_likelihood
        return linalg.when(
            self.cancels, lambda: blocks_.collect(partial(by_differences, self), blocks), fast
        )

    def _native(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"]
    ) -> tuple[Moments, Float[Array, ""]]:
        """`by_features` of all rows, in C++."""
        from gmmjax import native

        kind, d = families.get(self.family).second, x.shape[1]
        white = jnp.zeros((0, d), x.dtype)
        if kind.pooled:
            white = self.factors.whiten(jnp.eye(d, dtype=x.dtype)[None])[0]
        sums, log_likelihood = native.feature_sums(self.coefficients, white, x, weights, kind)
        pooled = moments.pooled(x.T, weights, kind)
        return moments.from_features(sums, pooled, kind), log_likelihood


def prepare(
    log_weights: Float[Array, "k"],
    means: Float[Array, "k d"],
    factors: families.Covariance,
    family: str,
) -> Prepared:
    """Natural parameters, and the estimate of their cancellation."""
    kind = families.get(family).second
    k, d = means.shape
    linear = factors.precision_times(means)
    size = jnp.sum(means * linear, axis=1)
    constant = log_weights - 0.5 * d * LOG_2PI - factors.half_log_det() - 0.5 * size
    precision = factors.precision()
    coefficients = jnp.concatenate(
        [
            constant[:, None],
            linear,
            moments.quadratic_coefficients(
                jnp.broadcast_to(precision, (k, *precision.shape[1:])), kind
            ),
        ],
        axis=1,
    )
    cancels = _cancellation(log_weights, means, factors, precision) > CANCELLATION_LIMIT
    return Prepared(log_weights, means, factors, coefficients, cancels, family)


def _cancellation(
    log_weights: Array, means: Array, factors: families.Covariance, precision: Array
) -> Array:
    """ε·d·κ, κ = max_j mean_a (A_j)_aa v_a, v the model's own E[x_a²] in each column."""
    k, d = means.shape
    weights = jnp.exp(log_weights)
    within = weights @ jnp.diagonal(factors.dense(k, d), axis1=-2, axis2=-1)
    variance = within + weights @ means**2
    size = jnp.sum(_precision_diagonal(precision, d) * variance, axis=-1)
    used = weights > 0 if size.shape[0] == k else jnp.ones_like(size, bool)
    return jnp.finfo(means.dtype).eps * jnp.max(jnp.where(used, size, 0.0))


def _precision_diagonal(precision: Array, d: int) -> Float[Array, "#k d"]:
    """(Σ_j⁻¹)_aa, of a precision in the shape of the family's second moment."""
    if precision.ndim == 3:
        return jnp.diagonal(precision, axis1=-2, axis2=-1)
    if precision.ndim == 1:
        precision = precision[:, None]
    return jnp.broadcast_to(precision, (precision.shape[0], d))


def by_features(
    p: Prepared,
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    evidence: Float[Array, "n k"] | None = None,
    background: Float[Array, ""] | None = None,
) -> tuple[Moments, Float[Array, ""]]:
    """Two matrix products and a softmax."""
    sums, log_likelihood = feature_sums(p, x, weights, evidence, background)
    return moments.from_features(*sums, families.get(p.family).second), log_likelihood


def feature_sums(
    p: Prepared,
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    evidence: Float[Array, "n k"] | None = None,
    background: Float[Array, ""] | None = None,
    precision: str = "highest",
) -> tuple[tuple[Float[Array, "k p"], Array | None], Float[Array, ""]]:
    """What `moments.from_features` makes moments of, and the log-likelihood.

    The first product cancels, so "tf32" is for the second alone, where rounding averages out.
    """
    kind = families.get(p.family).second
    xt = x.T
    phi = moments.features(xt, kind)
    log_joint = linalg.dot(p.coefficients, phi, "high" if precision == "tf32" else precision)
    common = None
    if kind.pooled:
        # One precision for all components: −½ xᵀAx is common to them and leaves the softmax alone.
        y = p.factors.whiten(xt[None])
        common = -0.5 * jnp.sum(y * y, axis=(0, 1))
    other = background if background is None or common is None else background - common
    responsibilities, row_log_prob = _softmax(_with(log_joint, evidence), weights, other)
    row_log_prob = row_log_prob if common is None else row_log_prob + common
    counted = weights if background is None else jnp.sum(responsibilities, axis=0)
    sums = linalg.dot(responsibilities, phi.T, precision), moments.pooled(xt, counted, kind)
    return sums, jnp.sum(weights * row_log_prob)


def by_differences(
    p: Prepared,
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    evidence: Float[Array, "n k"] | None = None,
    background: Float[Array, ""] | None = None,
    variance: Float[Array, "n d"] | None = None,
) -> tuple[Moments, Float[Array, ""]]:
    """x − μ_j first: as accurate as the dtype, whatever the shift, scale and width.

    `variance` is that of rows known up to noise, see `uncertain`.
    """
    kind = families.get(p.family).second
    delta = x.T[None] - p.means[:, :, None]
    joint = _log_joint(p.log_weights, p.factors, delta, variance)
    responsibilities, row_log_prob = _softmax(_with(joint, evidence), weights, background)
    collected = moments.from_differences(delta, responsibilities, p.means, kind)
    if variance is not None:
        collected = collected + moments.noise(variance, responsibilities, p.means, kind)
    return collected, jnp.sum(weights * row_log_prob)


def log_joint(
    log_weights: Float[Array, "k"],
    means: Float[Array, "k d"],
    factors: families.Covariance,
    x: Float[Array, "n d"],
    variance: Float[Array, "n d"] | None = None,
) -> Float[Array, "k n"]:
    """log φ_j + log N(x_i; μ_j, Σ_j), by differences; its mean over the noise of rows with noise."""
    return _log_joint(log_weights, factors, x.T[None] - means[:, :, None], variance)


def _log_joint(
    log_weights: Array,
    factors: families.Covariance,
    delta: Float[Array, "k d n"],
    variance: Float[Array, "n d"] | None = None,
) -> Float[Array, "k n"]:
    y = factors.whiten(delta)
    norm = log_weights - 0.5 * delta.shape[1] * LOG_2PI - factors.half_log_det()
    joint = norm[:, None] - 0.5 * jnp.sum(y * y, axis=1)
    if variance is None:
        return joint
    precision = _precision_diagonal(factors.precision(), delta.shape[1])
    return joint - 0.5 * linalg.dot(precision, variance.T)


def _with(log_joint: Array, evidence: Array | None) -> Array:
    return log_joint if evidence is None else log_joint + evidence.T


def _softmax(
    log_joint: Float[Array, "k n"], weights: Float[Array, "n"], other: Array | None
) -> tuple[Float[Array, "k n"], Float[Array, "n"]]:
    """w_i r_ij and log Σ_j exp, sharing one exponential: the largest term is 1, so none overflows.

    `other` is the logarithm of a further term of the sum, a number or one a row.
    """
    largest = jnp.max(log_joint, axis=0)
    if other is not None:
        largest = jnp.maximum(largest, other)
    shifted = jnp.exp(log_joint - largest)
    total = jnp.sum(shifted, axis=0)
    if other is not None:
        total = total + jnp.exp(other - largest)
    return shifted * (weights / total), largest + jnp.log(total)

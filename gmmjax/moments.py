"""The additive statistics that carry the library: N_j, Σ r x, Σ r x xᵀ about a reference point.

All that an M-step needs from the data is a sum over samples (MATH 3, "expected sufficient
statistics"). Blocks of rows, devices, minibatches, labels and priors all meet here. `Second` says how
much of Σ r x xᵀ a covariance family needs, so that no more is computed.

Sums are taken about a point near the data: Σ r x xᵀ / N − μ μᵀ about the origin cancels, and at a
shift of 10³ standard deviations leaves no correct digit in float32.
"""

import math
from collections.abc import Callable
from enum import Enum
from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax import linalg
from gmmjax.typing import Array, Float, pytree, static

MANY = 2**14
"""Rows from which on sums over them go by chunks."""


class Second(Enum):
    """Which second moment a family needs; the pooled ones are summed over components too."""

    FULL = "full"  # [k, d, d]
    DIAG = "diag"  # [k, d]
    TRACE = "trace"  # [k]
    POOLED_FULL = "pooled-full"  # [d, d]
    POOLED_DIAG = "pooled-diag"  # [d]
    POOLED_TRACE = "pooled-trace"  # []

    @property
    def pooled(self) -> bool:
        return self.value.startswith("pooled")

    @property
    def shape_kind(self) -> str:
        """ "full", "diag" or "trace"."""
        return self.value.removeprefix("pooled-")


@pytree
class Moments:
    """Weighted sums over rows about reference points c_j. Those about the same points add up.

    For a pooled kind, `second` is Σ_j Σ_i r_ij (x_i − c_j)(x_i − c_j)ᵀ.
    """

    about: Float[Array, "k d"]  # the reference points c_j
    weight: Float[Array, "k"]  # N_j = Σ_i r_ij
    first: Float[Array, "k d"]  # Σ_i r_ij (x_i − c_j)
    second: Float[Array, "..."]  # Σ_i r_ij (x_i − c_j)(x_i − c_j)ᵀ, in the shape of `kind`
    kind: Second = static()

    def __add__(self, other: "Moments") -> "Moments":
        # The right-hand points, so that a tree of zeros is neutral on the left, as a scan starts.
        return Moments(
            other.about,
            self.weight + other.weight,
            self.first + other.first,
            self.second + other.second,
            self.kind,
        )

    def coordinates(self) -> tuple[Float[Array, "k"], Float[Array, "k d"], Float[Array, "..."]]:
        """Shares, means and covariances: the same content about no point, and all of one size."""
        central = centre(self)
        share = central.weight / jnp.sum(central.weight)
        return share, central.mean, central.scatter / _count(central.weight, self.kind)

    def at(self, coordinates: tuple[Array, Array, Array]) -> "Moments":
        """The moments of the same number of rows with other `coordinates`."""
        share, mean, covariance = coordinates
        weight = share * jnp.sum(self.weight)
        second = covariance * _count(weight, self.kind)
        return Moments(mean, weight, jnp.zeros_like(mean), second, self.kind)


def _count(weight: Float[Array, "k"], kind: Second) -> Array:
    """The divisor of a scatter, 1 for a component without weight."""
    if kind.pooled:
        return jnp.sum(weight)
    shape = {"full": (-1, 1, 1), "diag": (-1, 1), "trace": (-1,)}[kind.shape_kind]
    return jnp.where(weight > 0, weight, 1.0).reshape(shape)


@pytree
class Central:
    """The same statistics about each component's own new mean: what every M-step starts from."""

    weight: Float[Array, "k"]  # N_j
    mean: Float[Array, "k d"]  # x̄_j; the reference point where N_j is 0
    scatter: Float[Array, "..."]  # Σ r (x − x̄_j)(x − x̄_j)ᵀ, in the shape of `kind`
    kind: Second = static()


def zeros(about: Float[Array, "k d"], kind: Second) -> Moments:
    """The neutral element of the addition."""
    k, d = about.shape
    shape = {"full": (d, d), "diag": (d,), "trace": ()}[kind.shape_kind]
    shape = shape if kind.pooled else (k, *shape)
    z = jnp.zeros
    dtype = about.dtype
    return Moments(about, z(k, dtype), z((k, d), dtype), z(shape, dtype), kind)


def outer(first: Float[Array, "k d"], over: Float[Array, "k"], kind: Second) -> Array:
    """Σ over nothing but components: first_j first_jᵀ · over_j, in the shape of `kind`."""
    scaled = first * over[:, None]
    match kind:
        case Second.FULL:
            return scaled[:, :, None] * first[:, None, :]
        case Second.DIAG:
            return scaled * first
        case Second.TRACE:
            return jnp.sum(scaled * first, axis=-1)
        case Second.POOLED_FULL:
            return linalg.dot(scaled.T, first)
        case Second.POOLED_DIAG:
            return jnp.sum(scaled * first, axis=0)
        case Second.POOLED_TRACE:
            return jnp.sum(scaled * first)


def centre(moments: Moments) -> Central:
    """Move the reference to each component's mean: Σ r (x−x̄)(x−x̄)ᵀ = second − first firstᵀ / N."""
    safe = jnp.where(moments.weight > 0, moments.weight, 1.0)
    offset = moments.first / safe[:, None]
    scatter = moments.second - outer(moments.first, 1.0 / safe, moments.kind)
    if moments.kind.shape_kind != "full":
        scatter = jnp.maximum(scatter, 0.0)  # a sum of squares, negative only by rounding
    return Central(moments.weight, moments.about + offset, scatter, moments.kind)


def total_variance(central: Central) -> Float[Array, "d"]:
    """Variance of the data in each column, by the law of total variance: within + between.

    It does not depend on the responsibilities (they sum to 1), hence is the same at every step of
    a fit. For trace kinds it is the mean over columns, repeated.
    """
    d = central.mean.shape[-1]
    n = jnp.sum(central.weight)
    n = jnp.where(n > 0, n, 1.0)
    shift = central.mean - jnp.sum(central.weight[:, None] * central.mean, axis=0) / n
    between = jnp.sum(central.weight[:, None] * shift**2, axis=0)
    match central.kind:
        case Second.FULL:
            within = jnp.sum(jnp.diagonal(central.scatter, axis1=-2, axis2=-1), axis=0)
        case Second.DIAG:
            within = jnp.sum(central.scatter, axis=0)
        case Second.POOLED_FULL:
            within = jnp.diagonal(central.scatter)
        case Second.POOLED_DIAG:
            within = central.scatter
        case Second.TRACE | Second.POOLED_TRACE:
            mean = (jnp.sum(central.scatter) + jnp.sum(between)) / d
            return jnp.full((d,), mean / n)
    return (within + between) / n


def by_chunks(fn: Callable[..., Array], *rows: Array) -> Float[Array, "chunks ..."]:
    """fn of up to 16 equal parts of many rows, one after the other: what it makes on the way is small.

    One part where there are few rows, or their number does not divide.
    """
    n = rows[0].shape[0]
    count = math.gcd(n, 16) if n >= MANY else 1
    if count == 1:
        return fn(*rows)[None]
    return lax.map(lambda part: fn(*part), tuple(a.reshape(count, -1, *a.shape[1:]) for a in rows))


def column_mean(
    x: Float[Array, "n d"], weights: Float[Array, "n"] | None = None
) -> Float[Array, "d"]:
    """The (weighted) mean of each column, about the first row that counts: no cancellation at a shift."""
    if weights is None:
        return x[0] + jnp.mean(x - x[0], axis=0)
    first = x[jnp.argmax(weights > 0)]
    n = jnp.sum(weights)

    def one(x: Array, w: Array) -> Array:
        # An absent row is absent even where it is not finite.
        return jnp.sum(w[:, None] * jnp.where((w > 0)[:, None], x - first, 0.0), axis=0)

    return first + jnp.sum(by_chunks(one, x, weights), axis=0) / jnp.where(n > 0, n, 1.0)


def from_responsibilities(
    x: Float[Array, "n d"],
    responsibilities: Float[Array, "n k"],
    about: Float[Array, "k d"],
    kind: Second,
) -> Moments:
    """Moments of given (soft or one-hot) responsibilities, weights already multiplied in.

    The plain definition, by differences to each reference point: O(n k d) memory. It serves labels
    and starts, and is the yardstick that the fast accumulations are tested against.
    """
    delta = (
        x.T[None] - about[:, :, None]
    )  # k d n: rows contiguous, so that sums over them vectorise
    r = responsibilities.T
    return _accumulate(delta, r, about, kind)


def _accumulate(
    delta: Float[Array, "k d n"], r: Float[Array, "k n"], about: Array, kind: Second
) -> Moments:
    weighted = r[:, None, :] * delta
    match kind:
        case Second.FULL:
            second = linalg.einsum("kan,kbn->kab", weighted, delta)
        case Second.DIAG:
            second = jnp.sum(weighted * delta, axis=-1)
        case Second.TRACE:
            second = jnp.sum(weighted * delta, axis=(1, 2))
        case Second.POOLED_FULL:
            second = linalg.einsum("kan,kbn->ab", weighted, delta)
        case Second.POOLED_DIAG:
            second = jnp.sum(weighted * delta, axis=(0, 2))
        case Second.POOLED_TRACE:
            second = jnp.sum(weighted * delta)
    return Moments(about, jnp.sum(r, axis=-1), jnp.sum(weighted, axis=-1), second, kind)


from_differences = _accumulate


def noise(
    variance: Float[Array, "n d"], r: Float[Array, "k n"], about: Float[Array, "k d"], kind: Second
) -> Moments:
    """What rows of mean 0 and covariances diag(v_i) add to the second moment: Σ_i r_ij diag(v_i)."""
    total = linalg.dot(r, variance)
    match kind.shape_kind:
        case "full":
            second = total[:, :, None] * jnp.eye(total.shape[1], dtype=total.dtype)
        case "diag":
            second = total
        case _:
            second = jnp.sum(total, axis=1)
    second = jnp.sum(second, axis=0) if kind.pooled else second
    return Moments(about, jnp.zeros_like(r[:, 0]), jnp.zeros_like(about), second, kind)


def about_origin(moments: Moments) -> Moments:
    """The same sums about 0, so that those of different steps add up.

    For data near 0 in units of their own spread, as codes are; elsewhere it cancels.
    """
    c, n = moments.about, moments.weight
    # Σ r x xᵀ = second + first cᵀ + c firstᵀ + N c cᵀ, as squares so that `outer` serves every kind.
    mean = moments.first + n[:, None] * c
    safe = jnp.where(n > 0, 1.0 / jnp.where(n > 0, n, 1.0), 0.0)
    kind = moments.kind
    second = moments.second + outer(mean, safe, kind) - outer(moments.first, safe, kind)
    return Moments(jnp.zeros_like(c), n, mean, second, kind)


# --- quadratic features: one matrix product for all components -----------------------------------


@lru_cache
def _pairs(d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices a ≤ b of the upper triangle, and the place of each (a, b) in that list."""
    a, b = (i.astype(np.int32) for i in np.triu_indices(d))
    place = np.empty((d, d), np.int32)
    place[a, b] = place[b, a] = np.arange(a.size)
    return a, b, place


def features(x: Float[Array, "d n"], kind: Second) -> Float[Array, "p n"]:
    """φ(x) = [1, x, second-order terms] with rows contiguous: p = 1 + d + (d(d+1)/2 | d | 1 | 0).

    A component's log-density is linear in φ, and Σ r φ are its moments, so each of the E and M steps
    is one matrix product for all components of all restarts. Pooled kinds need no second-order term.
    """
    one = jnp.ones((1, x.shape[1]), x.dtype)
    match kind:
        case Second.FULL:
            a, b, _ = _pairs(x.shape[0])
            return jnp.concatenate([one, x, x[a] * x[b]])
        case Second.DIAG:
            return jnp.concatenate([one, x, x * x])
        case Second.TRACE:
            return jnp.concatenate([one, x, jnp.sum(x * x, axis=0, keepdims=True)])
        case _:
            return jnp.concatenate([one, x])


def quadratic_coefficients(precision: Float[Array, "k ..."], kind: Second) -> Float[Array, "k q"]:
    """Coefficients of the second-order features whose sum is −½ xᵀ A x."""
    match kind:
        case Second.FULL:
            a, b, _ = _pairs(precision.shape[-1])
            return precision[:, a, b] * jnp.where(jnp.asarray(a == b), -0.5, -1.0).astype(
                precision.dtype
            )
        case Second.DIAG:
            return -0.5 * precision
        case Second.TRACE:
            return -0.5 * precision[:, None]
        case _:
            return jnp.zeros((precision.shape[0], 0), precision.dtype)


def from_features(sums: Float[Array, "k p"], pooled_second: Array | None, kind: Second) -> Moments:
    """Moments about the origin, from Σ r φ(x); for a pooled kind, `pooled_second` is Σ_i w_i x xᵀ."""
    d = _n_features(sums.shape[1], kind)
    rest = sums[:, 1 + d :]
    match kind:
        case Second.FULL:
            second = rest[:, _pairs(d)[2]]
        case Second.DIAG:
            second = rest
        case Second.TRACE:
            second = rest[:, 0]
        case _:
            assert pooled_second is not None
            second = pooled_second
    return Moments(
        jnp.zeros((sums.shape[0], d), sums.dtype), sums[:, 0], sums[:, 1 : 1 + d], second, kind
    )


def _n_features(p: int, kind: Second) -> int:
    """The d whose features are p in number."""
    match kind:
        case Second.FULL:
            return (math.isqrt(8 * p + 1) - 3) // 2
        case Second.DIAG:
            return (p - 1) // 2
        case Second.TRACE:
            return p - 2
        case _:
            return p - 1


def pooled(x: Float[Array, "d n"], weights: Float[Array, "n"], kind: Second) -> Array | None:
    """Σ_i w_i x_i x_iᵀ in the shape of a pooled kind; None for the others."""
    weighted = x * weights
    match kind:
        case Second.POOLED_FULL:
            return linalg.dot(weighted, x.T)
        case Second.POOLED_DIAG:
            return jnp.sum(weighted * x, axis=1)
        case Second.POOLED_TRACE:
            return jnp.sum(weighted * x)
        case _:
            return None

"""A Gaussian mixture with a noise component: a uniform density over the volume of the data.

    p(x) = φ₀ / V + (1 − φ₀) Σ_j φ_j N(x; μ_j, Σ_j)

Rows that belong to no cluster go to the first part and leave the others' covariances alone (Banfield and
Raftery 1993; Fraley and Raftery 2002, section 5.2; `Vinv` in R's mclust is 1/V). The E-step is the
mixture's own with a constant added to the density of each row, and so is the M-step; only φ₀ is new.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks, expectation, moments
from gmmjax.frame import Frame
from gmmjax.mixture import GaussianMixture
from gmmjax.moments import Moments
from gmmjax.priors import Prior
from gmmjax.typing import Array, ArrayLike, Float, Int, pytree

NOISE = -1
"""The label of noise, in predictions and in starts."""


def log_hypervolume(x: ArrayLike) -> Float[Array, ""]:
    """log V of the box about data x [n, d]: along the coordinates or the principal axes, the smaller.

    mclust's `hypvol`, as a logarithm, which does not overflow in many dimensions. The box along the
    principal axes turns with the data, but neither is free of units: V is in those of the data.

    Raises `ValueError` where the rows do not span a box: a constant column, collinear columns, or at
    most d rows.

    >>> import gmmjax
    >>> square = [[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]]
    >>> round(float(gmmjax.models.log_hypervolume(square)), 4)  # log 4
    1.3863
    """
    x = checks.rows(x)
    out = _log_hypervolume(x)
    if checks.concrete(out) and not np.isfinite(out):
        raise ValueError(
            f"x: expected rows that span a box of {x.shape[1]} dimensions; got rows with a constant "
            "column, collinear columns, or no more rows than columns. Drop columns, or pass log_volume."
        )
    return out


@jax.jit
def _log_hypervolume(x: Float[Array, "n d"]) -> Float[Array, ""]:
    d = x.shape[1]
    frame = Frame.of(x, None)
    x = frame.enter(x)
    _, axes = jnp.linalg.eigh(jnp.matmul(x.T, x, precision="highest"))

    def log_volume(rows: Float[Array, "n d"]) -> Float[Array, ""]:
        sides = jnp.max(rows, axis=0) - jnp.min(rows, axis=0)
        # A side of rounding is none: the density of noise would be as high as rounding likes.
        none = sides <= 100 * d * jnp.finfo(x.dtype).eps * jnp.max(sides)
        return jnp.sum(jnp.log(jnp.where(none, 0.0, sides)))

    along_axes = log_volume(jnp.matmul(x, axes, precision="highest"))
    return jnp.minimum(log_volume(x), along_axes) + d * jnp.log(frame.unit)


@pytree
class NoiseMoments:
    """What the M-step needs: the mixture's own moments, and those of all rows."""

    own: Moments
    everything: Moments  # of all rows, noise or not; the diagonal kind, k = 1

    @property
    def noise(self) -> Float[Array, ""]:
        """N₀ = Σ_i w_i r_i0, how many rows are noise."""
        return jnp.maximum(self.everything.weight[0] - jnp.sum(self.own.weight), 0.0)

    def __add__(self, other: "NoiseMoments") -> "NoiseMoments":
        return NoiseMoments(self.own + other.own, self.everything + other.everything)

    def coordinates(self) -> tuple[Any, Float[Array, ""]]:
        """Those of the mixture's own moments, and the share of noise: for `acceleration`."""
        return self.own.coordinates(), self.noise / self.everything.weight[0]

    def at(self, coordinates: tuple[Any, Float[Array, ""]]) -> "NoiseMoments":
        """The moments with other `coordinates`.

        Neither noise nor the rest falls below a tenth of its share at once: from 0 none comes back.
        """
        inner, share = coordinates
        total = self.everything.weight[0]
        now = self.noise / total
        share = jnp.clip(share, 0.1 * now, 1 - 0.1 * (1 - now))
        own = self.own.at(inner)
        scaling = (1 - share) * total / jnp.sum(self.own.weight)
        own = dataclasses.replace(own, weight=scaling * own.weight, second=scaling * own.second)
        return NoiseMoments(own, self.everything)


@pytree
class NoisyMixture:
    """p(x) = φ₀ / V + (1 − φ₀) Σ_j φ_j N(x; μ_j, Σ_j), a model for `em`; `fit_noise` fits it.

    `mixture` is a distribution of its own, that of the rows which are not noise: its weights sum to 1.
    The density of noise is 1/V wherever it is asked for. Components are numbered from 0 and noise is
    −1; where columns stand for components, the last is noise.
    """

    mixture: GaussianMixture
    log_odds: Float[Array, ""]  # log φ₀ − log(1 − φ₀)
    log_volume: Float[Array, ""]  # log V, in the data's units

    @classmethod
    def create(
        cls, mixture: GaussianMixture, noise_weight: ArrayLike, log_volume: ArrayLike
    ) -> "NoisyMixture":
        """From the mixture of the rows that are not noise, φ₀ from 0 to 1 (excluded), and log V."""
        weight = np.asarray(noise_weight, float)
        if weight.shape != () or not 0 <= weight < 1:
            raise ValueError(
                f"noise_weight: expected one number from 0, and below 1; got {noise_weight}."
            )
        check_log_volume(log_volume)
        dtype = mixture.means.dtype
        odds = -math.inf if weight == 0 else math.log(weight) - math.log1p(-weight)
        return cls(mixture, jnp.asarray(odds, dtype), jnp.asarray(log_volume, dtype))

    # --- reading ----------------------------------------------------------------------------------

    @property
    def n_components(self) -> int:
        """k, noise not counted."""
        return self.mixture.n_components

    @property
    def n_features(self) -> int:
        return self.mixture.n_features

    @property
    def noise_weight(self) -> Float[Array, ""]:
        """φ₀."""
        return jax.nn.sigmoid(self.log_odds)

    @property
    def weights(self) -> Float[Array, "k+1"]:
        """(1 − φ₀) φ_j, and φ₀ last: they sum to 1."""
        own = jax.nn.sigmoid(-self.log_odds) * self.mixture.weights
        return jnp.append(own, self.noise_weight)

    def n_parameters(self) -> int:
        """The mixture's, φ₀ and V: mclust counts the volume, which is read off the data."""
        return self.mixture.n_parameters() + 2

    # --- density ----------------------------------------------------------------------------------

    def log_joint(self, x: ArrayLike) -> Float[Array, "*batch k+1"]:
        """log p(x, z = j) in nats, noise last, for x of shape [..., d]."""
        own = self.mixture.log_joint(x) + jax.nn.log_sigmoid(-self.log_odds)
        noise = jax.nn.log_sigmoid(self.log_odds) - self.log_volume
        noise = jnp.broadcast_to(noise, (*own.shape[:-1], 1))
        return jnp.concatenate([own, noise], axis=-1)

    def log_prob(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """log p(x) in nats, for x of shape [..., d]."""
        return jax.nn.logsumexp(self.log_joint(x), axis=-1)

    def log_likelihood(self, x: ArrayLike) -> Float[Array, ""]:
        """Σ_i log p(x_i), in nats."""
        return jnp.sum(self.log_prob(x))

    def responsibilities(self, x: ArrayLike) -> Float[Array, "*batch k+1"]:
        """p(z = j | x), noise last."""
        return jax.nn.softmax(self.log_joint(x), axis=-1)

    def predict(self, x: ArrayLike) -> Int[Array, "*batch"]:
        """The most probable component of each row, 0 … k − 1, and −1 where it is noise."""
        best = jnp.argmax(self.log_joint(x), axis=-1)
        return jnp.where(best == self.n_components, NOISE, best)

    def bic(self, x: ArrayLike) -> Float[Array, ""]:
        """−2 ℓ + p log n: smaller is better (mclust prints its negative)."""
        return -2 * self.log_likelihood(x) + self.n_parameters() * math.log(np.shape(x)[0])

    def aic(self, x: ArrayLike) -> Float[Array, ""]:
        """−2 ℓ + 2 p: smaller is better."""
        return -2 * self.log_likelihood(x) + 2 * self.n_parameters()

    # --- EM ---------------------------------------------------------------------------------------

    def affine(self, shift: Float[Array, "d"], unit: ArrayLike = 1.0) -> "NoisyMixture":
        """The distribution of shift + unit · x, for a positive number `unit`."""
        log_volume = self.log_volume + self.n_features * jnp.log(unit)
        return NoisyMixture(self.mixture.affine(shift, unit), self.log_odds, log_volume)

    def into(self, frame: Frame) -> "NoisyMixture":
        """This mixture in the coordinates of a frame."""
        return self.affine(-frame.centre / frame.unit, 1.0 / frame.unit)

    def localize(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"] | None, prior: Prior | None
    ) -> tuple["NoisyMixture", Array, Prior | None, Callable]:
        """Everything in the data's `Frame`, and the way back."""
        frame = Frame.of(x, weights)
        n = jnp.asarray(x.shape[0], x.dtype) if weights is None else jnp.sum(weights)
        local = None if prior is None else prior.into(frame)
        return self.into(frame), frame.enter(x), local, lambda result: frame.leave(result, n)

    def prepare(self) -> "_Prepared":
        """What the E-step needs, computed once a step."""
        return _Prepared(self.mixture.prepare(), self.log_odds, self.log_volume)

    def expect(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"]
    ) -> tuple[NoiseMoments, Float[Array, ""]]:
        """The E-step on a block of rows."""
        return self.prepare().expect(x, weights)

    def maximize(
        self, sums: NoiseMoments, *, prior: Prior | None = None, reg: ArrayLike = 0.0
    ) -> tuple["NoisyMixture", Int[Array, ""]]:
        """The mixture's M-step on what is not noise, and φ₀ = N₀ / n. V stays.

        The floor `reg` refers to the variance of all rows, noise included, so that it is the same at
        every step.
        """
        variance = moments.total_variance(moments.centre(sums.everything))
        mixture, status = self.mixture.maximize(sums.own, prior=prior, reg=reg, variance=variance)
        log_odds = jnp.log(sums.noise) - jnp.log(jnp.sum(sums.own.weight))
        # N₀ is a difference: where there is no noise its rounding would be taken for some.
        log_odds = jnp.where(self.log_odds == -jnp.inf, -jnp.inf, log_odds)
        return dataclasses.replace(self, mixture=mixture, log_odds=log_odds), status

    def log_prior(self, prior: Prior) -> Float[Array, ""]:
        """Log-density of the prior at the mixture's parameters, in nats, up to a constant."""
        return self.mixture.log_prior(prior)


@pytree
class _Prepared:
    mixture: expectation.Prepared
    log_odds: Float[Array, ""]
    log_volume: Float[Array, ""]

    def expect(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"]
    ) -> tuple[NoiseMoments, Float[Array, ""]]:
        """Moments and log-likelihood of a block: p(x) / (1 − φ₀) is the mixture's and a constant."""
        own, log_likelihood = self.mixture.expect(
            x, weights, background=self.log_odds - self.log_volume
        )
        origin = jnp.zeros((1, x.shape[1]), x.dtype)
        everything = moments.from_responsibilities(x, weights[:, None], origin, moments.Second.DIAG)
        log_rest = jax.nn.log_sigmoid(-self.log_odds)
        return NoiseMoments(own, everything), log_likelihood + jnp.sum(weights) * log_rest


def check_log_volume(value: ArrayLike) -> None:
    """One finite number."""
    if checks.concrete(value):
        number = np.asarray(value)
        if number.shape != () or not np.isfinite(number):
            raise ValueError(f"log_volume: expected one finite number, log V; got {value!r}.")

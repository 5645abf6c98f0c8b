"""p(x | z): what a decoder's output says of a row, as log-densities in nats.

Each is a small static object; the arrays, the decoder's output and the log of a scale, come as
arguments. No density is exponentiated before its logarithm. A scale is never fixed at 1: it is learned,
or calibrated, σ² = the mean squared error, which is the maximum-likelihood estimate and what makes the
reconstruction comparable with the KL term (Rybkin, Daniilidis and Levine 2021).
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks
from gmmjax.typing import Array, Float, Key

LOG_2PI = float(np.log(2 * np.pi))


class Likelihood(Protocol):
    """What the objective, the training and the sampling need."""

    @property
    def scale(self) -> Literal["none", "learned", "calibrated"]:
        """How `log_scale` moves: not at all, by gradient, or to its closed-form estimate."""
        ...

    def log_prob(
        self, out: Float[Array, "*b d"], log_scale: Float[Array, "#d"], x: Float[Array, "*b d"]
    ) -> Float[Array, "*b"]:
        """log p(x | z) in nats, summed over features."""
        ...

    def mean(self, out: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """E[x | z]."""
        ...

    def sample(
        self, key: Key[Array, ""], out: Float[Array, "*b d"], log_scale: Float[Array, "#d"]
    ) -> Float[Array, "*b d"]:
        """x ~ p(x | z)."""
        ...

    def present(self, key: Key[Array, ""], x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The rows as one step of training sees them."""
        ...

    def start(self, x: Float[Array, "n d"]) -> tuple[Float[Array, "d"], Float[Array, "#d"]]:
        """The output of a decoder that knows only the mean of x, and the log-scale that fits it."""
        ...

    def check(self, x: Array, name: str) -> None:
        """Raise `ValueError` for values that have no density."""
        ...


@dataclass(frozen=True)
class Bernoulli:
    """Pixels on or off; the output is a logit.

    Grey values from 0 to 1 are taken for probabilities, and drawn anew in each step ("dynamically
    binarised"): cross-entropy on the grey values themselves is not a log-likelihood.
    """

    scale: Literal["none"] = "none"

    def log_prob(self, out: Array, log_scale: Array, x: Array) -> Array:
        return jnp.sum(x * out - jax.nn.softplus(out), axis=-1)

    def mean(self, out: Array) -> Array:
        return jax.nn.sigmoid(out)

    def sample(self, key: Array, out: Array, log_scale: Array) -> Array:
        return jax.random.bernoulli(key, jax.nn.sigmoid(out)).astype(out.dtype)

    def present(self, key: Array, x: Array) -> Array:
        return jax.random.bernoulli(key, x).astype(x.dtype)

    def start(self, x: Array) -> tuple[Array, Array]:
        mean = jnp.clip(jnp.mean(x, axis=0), 0.01, 0.99)
        return jnp.log(mean) - jnp.log1p(-mean), jnp.zeros(1, x.dtype)

    def check(self, x: Array, name: str) -> None:
        _in_unit_interval(x, name, "Bernoulli")


@dataclass(frozen=True)
class Normal:
    """Real values, N(out, σ²): one σ for all features, or one a feature.

    - `scale`: "calibrated", the running mean squared error, or "learned" by gradient.
    - `per_feature`: for tables, whose columns differ; one σ is the better choice for pictures, where some
      pixels never vary.
    """

    scale: Literal["calibrated", "learned"] = "calibrated"
    per_feature: bool = False

    def log_prob(self, out: Array, log_scale: Array, x: Array) -> Array:
        y = (x - out) * jnp.exp(-log_scale)
        return jnp.sum(-0.5 * y * y - log_scale - 0.5 * LOG_2PI, axis=-1)

    def mean(self, out: Array) -> Array:
        return out

    def sample(self, key: Array, out: Array, log_scale: Array) -> Array:
        return out + jnp.exp(log_scale) * jax.random.normal(key, out.shape, out.dtype)

    def present(self, key: Array, x: Array) -> Array:
        return x

    def start(self, x: Array) -> tuple[Array, Array]:
        mean = jnp.mean(x, axis=0)
        return mean, 0.5 * jnp.log(self.error(mean, x) + 1e-6)

    def error(self, out: Array, x: Array) -> Float[Array, "#d"]:
        """The mean squared error: σ² at its maximum."""
        square = jnp.mean((x - out) ** 2, axis=tuple(range(x.ndim - 1)))
        return square if self.per_feature else jnp.mean(square, keepdims=True)

    def check(self, x: Array, name: str) -> None:
        """Any real number has a density."""


@dataclass(frozen=True)
class DiscretizedLogistic:
    """Grey values on a grid 0, 1/(levels − 1), …, 1: the mass of a logistic over each step.

    A proper probability of the integers, the ends taking the tails (Salimans et al. 2017).
    """

    levels: int = 256
    scale: Literal["learned"] = "learned"

    def log_prob(self, out: Array, log_scale: Array, x: Array) -> Array:
        half = 0.5 / (self.levels - 1)
        rate = jnp.exp(-log_scale)
        above, below = (x - out + half) * rate, (x - out - half) * rate
        # σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b − a}): no difference of nearly equal numbers.
        upper = jnp.where(x >= 1 - half, 0.0, jax.nn.log_sigmoid(above))
        lower = jnp.where(x <= half, 0.0, jax.nn.log_sigmoid(-below))
        inner = jnp.log(-jnp.expm1(-2 * half * rate))
        inside = (x < 1 - half) & (x > half)
        return jnp.sum(upper + lower + jnp.where(inside, inner, 0.0), axis=-1)

    def mean(self, out: Array) -> Array:
        return jnp.clip(out, 0.0, 1.0)

    def sample(self, key: Array, out: Array, log_scale: Array) -> Array:
        x = out + jnp.exp(log_scale) * jax.random.logistic(key, out.shape, out.dtype)
        steps = self.levels - 1
        return jnp.round(jnp.clip(x, 0.0, 1.0) * steps) / steps

    def present(self, key: Array, x: Array) -> Array:
        return x

    def start(self, x: Array) -> tuple[Array, Array]:
        mean = jnp.mean(x, axis=0)
        spread = jnp.sqrt(jnp.mean((x - mean) ** 2, keepdims=True)[0] + 1e-6)
        return mean, jnp.log(spread * np.sqrt(3) / np.pi)

    def check(self, x: Array, name: str) -> None:
        _in_unit_interval(x, name, "DiscretizedLogistic")
        if checks.concrete(x):
            steps = np.asarray(x, float) * (self.levels - 1)
            if np.max(np.abs(steps - np.round(steps))) > 1e-2:
                raise ValueError(
                    f"{name}: expected multiples of 1/{self.levels - 1}, the grey values of "
                    f"DiscretizedLogistic(levels={self.levels}); got others. Round them, give the right "
                    "levels, or use Normal()."
                )


def named(likelihood: "str | Likelihood") -> Likelihood:
    """A likelihood by its name: "bernoulli", "normal" or "logistic"; others pass through."""
    if not isinstance(likelihood, str):
        return likelihood
    table = {"bernoulli": Bernoulli, "normal": Normal, "logistic": DiscretizedLogistic}
    if likelihood not in table:
        raise ValueError(f"likelihood: expected one of {', '.join(table)}; got {likelihood!r}.")
    return table[likelihood]()


def _in_unit_interval(x: Array, name: str, likelihood: str) -> None:
    if checks.concrete(x):
        low, high = float(np.min(np.asarray(x))), float(np.max(np.asarray(x)))
        if low < 0 or high > 1:
            raise ValueError(
                f"{name}: expected values from 0 to 1 for {likelihood}; got {low:g} to {high:g}. Divide "
                "by the largest grey value, or use Normal()."
            )

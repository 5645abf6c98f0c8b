"""Encoders and decoders in Flax NNX, and the pytree that holds one pair of them.

A module is split into its graph, which is structure, and its arrays, so that training stays a pure
function of pytrees and many seeds are a leading axis. Nothing here looks at the rest of the batch (no
batch normalisation): a row's code is the same in any company.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gmmjax import checks
from gmmjax.typing import Array, ArrayLike, Float, Key, pytree, static
from gmmjax.uncertain import Uncertain
from gmmjax.vae.likelihoods import LOG_2PI, Likelihood

LOG_VARIANCE = (-14.0, 6.0)
"""The soft bounds of an encoder's log-variance: e^{raw/2} of an unbounded head overflows."""


QUIET = 0.01
"""Scale of a decoder's last weights at the start, in what would keep the variance of its input."""


@pytree
class Posterior:
    """q(z | x) = N(mean, diag(exp(log_variance)))."""

    mean: Float[Array, "*b d"]
    log_variance: Float[Array, "*b d"]

    def sample(self, key: Key[Array, ""], noise: ArrayLike = 1.0) -> Float[Array, "*b d"]:
        """One draw a row, its noise multiplied by `noise`."""
        draw = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + noise * jnp.exp(0.5 * self.log_variance) * draw

    def entropy(self) -> Float[Array, "*b"]:
        """H[q] in nats."""
        return 0.5 * jnp.sum(self.log_variance + 1 + LOG_2PI, axis=-1)

    def log_prob(self, z: Float[Array, "*b d"]) -> Float[Array, "*b"]:
        """log q(z | x) in nats."""
        square = (z - self.mean) ** 2 * jnp.exp(-self.log_variance)
        return -0.5 * jnp.sum(square + self.log_variance + LOG_2PI, axis=-1)

    def uncertain(self) -> Uncertain:
        """The same as rows known up to noise, which the mixture's E-step takes."""
        return Uncertain(self.mean, jnp.exp(self.log_variance))


@dataclass(frozen=True)
class Architecture:
    """The sizes of the two networks; all of it is structure.

    - `shape`: of one row: (d,) for tables; (height, width) or (height, width, channels) for pictures.
    - `latent`: dimension of z.
    - `hidden`: widths of the dense layers of the encoder; the decoder has them in reverse.
    - `channels`: of the strided convolutions before them, each of which halves the picture; () for none.
    - `n_clusters`: for the amortised objective, the number of clusters; 0 for none.
    """

    shape: tuple[int, ...]
    latent: int = 10
    hidden: tuple[int, ...] = (256, 256)
    channels: tuple[int, ...] = ()
    n_clusters: int = 0

    def __post_init__(self) -> None:
        for name in ("shape", "hidden", "channels"):
            sizes = tuple(checks.count(size, name) for size in getattr(self, name))
            object.__setattr__(self, name, sizes)
        checks.count(self.latent, "latent")
        if not self.shape:
            raise ValueError("shape: expected (d,), (height, width) or (height, width, channels).")
        if self.channels and len(self.shape) not in (2, 3):
            raise ValueError(
                f"channels: expected pictures, of shape (height, width) or (height, width, channels), "
                f"for convolutions; got rows of shape {self.shape}. Leave channels out, or give shape."
            )

    @property
    def n_features(self) -> int:
        return math.prod(self.shape)

    @property
    def picture(self) -> tuple[int, int, int]:
        """Height, width and channels."""
        return (*self.shape, 1, 1)[:3]  # type: ignore[return-value]

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width before the first and after each convolution."""
        out = [self.picture[:2]]
        for _ in self.channels:
            h, w = out[-1]
            out.append((-(-h // 2), -(-w // 2)))
        return out


def soft_clip(raw: Array, low: float, high: float) -> Array:
    """The identity between two bounds, which it never leaves; its gradient never vanishes at once."""
    return low + jax.nn.softplus(raw - low) - jax.nn.softplus(raw - high)


class Encoder(nnx.Module):
    """Rows [n, features] to a normal over codes, and log q(c | x) up to what the prior says."""

    def __init__(self, a: Architecture, rngs: nnx.Rngs) -> None:
        dtype = jnp.zeros(()).dtype
        self.architecture = a
        # What rows are measured from and in, so that what they have in common does not drown what
        # tells them apart; set once from the data and not trained.
        self.origin = nnx.Param(jnp.zeros(a.n_features, dtype))
        self.unit = nnx.Param(jnp.ones((), dtype))
        depth = a.picture[2]
        convolutions = []
        for width in a.channels:
            convolutions.append(
                nnx.Conv(depth, width, (3, 3), strides=2, param_dtype=dtype, rngs=rngs)
            )
            depth = width
        self.convolutions = nnx.List(convolutions)
        first = math.prod(a.sizes()[-1]) * depth if a.channels else a.n_features
        widths = (first, *a.hidden)
        self.layers = nnx.List(
            nnx.Linear(i, o, kernel_init=nnx.initializers.he_normal(), param_dtype=dtype, rngs=rngs)
            for i, o in pairwise(widths)
        )
        zeros = nnx.initializers.zeros_init()
        k = a.n_clusters
        self.mean = nnx.Linear(widths[-1], a.latent, param_dtype=dtype, rngs=rngs)
        # Zero to begin with: the noise starts at a variance that the bias alone sets.
        self.log_variance = nnx.Linear(
            widths[-1], a.latent, kernel_init=zeros, bias_init=nnx.initializers.constant(-2.0),
            param_dtype=dtype, rngs=rngs,
        )  # fmt: skip
        if k:
            self.clusters = nnx.Linear(
                widths[-1], k, kernel_init=zeros, param_dtype=dtype, rngs=rngs
            )
            self.offset = nnx.Param(jnp.zeros((k, 2, a.latent), dtype))

    def trunk(self, x: Float[Array, "n features"]) -> Float[Array, "n width"]:
        a = self.architecture
        x = (x - jax.lax.stop_gradient(self.origin[...])) / jax.lax.stop_gradient(self.unit[...])
        if a.channels:
            x = x.reshape(-1, *a.picture)
            for convolution in self.convolutions:
                x = nnx.relu(convolution(x))
            x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return x

    def __call__(self, x: Float[Array, "n features"]) -> Posterior:
        h = self.trunk(x)
        return Posterior(self.mean(h), soft_clip(self.log_variance(h), *LOG_VARIANCE))

    def by_cluster(
        self, x: Float[Array, "n features"]
    ) -> tuple[Float[Array, "n k"], Posterior, Posterior]:
        """What the network adds to log q(c | x), q(z | x, c) [n, k, d], and q(z | x) without c."""
        h = self.trunk(x)
        mean, raw = self.mean(h), self.log_variance(h)
        shift, stretch = self.offset[:, 0], self.offset[:, 1]
        each = Posterior(mean[:, None] + shift, soft_clip(raw[:, None] + stretch, *LOG_VARIANCE))
        return self.clusters(h), each, Posterior(mean, soft_clip(raw, *LOG_VARIANCE))


class Decoder(nnx.Module):
    """Codes [n, d] to what a likelihood reads, [n, features]."""

    def __init__(self, a: Architecture, rngs: nnx.Rngs) -> None:
        dtype = jnp.zeros(()).dtype
        self.architecture = a
        h, w = a.sizes()[-1]
        last = h * w * a.channels[-1] if a.channels else a.n_features
        widths = (a.latent, *reversed(a.hidden), last)
        # The output begins near the mean of the rows, which is the bias: a random picture many times as
        # strong as theirs is unlearnt by shutting off the units that carry the code.
        quiet = nnx.initializers.variance_scaling(QUIET**2, "fan_in", "normal")
        loud = nnx.initializers.he_normal()
        dense = len(widths) - 2 if not a.channels else len(widths) - 1
        self.layers = nnx.List(
            nnx.Linear(
                i, o, kernel_init=loud if at < dense else quiet, param_dtype=dtype, rngs=rngs
            )
            for at, (i, o) in enumerate(pairwise(widths))
        )
        depths = (*reversed(a.channels), a.picture[2])
        self.convolutions = nnx.List(
            nnx.ConvTranspose(
                i, o, (3, 3), strides=(2, 2), param_dtype=dtype, rngs=rngs,
                kernel_init=loud if at < len(depths) - 2 else quiet,
            )
            for at, (i, o) in enumerate(pairwise(depths))
        )  # fmt: skip
        self.bias = nnx.Param(jnp.zeros(a.n_features, dtype))
        self.unit = nnx.Param(jnp.ones(1, dtype))  # as the encoder's

    def __call__(self, z: Float[Array, "n d"]) -> Float[Array, "n features"]:
        a = self.architecture
        layers = list(self.layers)
        x = z
        for layer in layers[:-1]:
            x = nnx.relu(layer(x))
        x = layers[-1](x)
        if a.channels:
            sizes = a.sizes()[::-1]
            x = nnx.relu(x).reshape(-1, *sizes[0], a.channels[-1])
            for i, convolution in enumerate(self.convolutions):
                h, w = sizes[i + 1]
                x = convolution(x)[:, :h, :w]
                x = nnx.relu(x) if i + 1 < len(self.convolutions) else x
            x = x.reshape(len(x), -1)
        return x * jax.lax.stop_gradient(self.unit[...]) + self.bias


class _Pair(nnx.Module):
    def __init__(self, a: Architecture, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(a, rngs)
        self.decoder = Decoder(a, rngs)


@pytree
class Autoencoder:
    """An encoder and a decoder: arrays as leaves, the module's graph as structure."""

    params: Any  # the arrays of the two networks
    log_scale: Float[Array, "#features"]  # of the likelihood
    graph: Any = static()
    likelihood: Likelihood = static()
    architecture: Architecture = static()

    @classmethod
    def create(
        cls, key: Key[Array, ""], architecture: Architecture, likelihood: Likelihood, x: Array
    ) -> "Autoencoder":
        """Networks with random weights; the decoder's bias and the scale are those of the mean of x.

        The encoder measures rows from the mean in their root mean square distance a feature, and the
        decoder answers in units of the scale, so that the units of the rows do not matter.
        """
        pair = _Pair(architecture, nnx.Rngs(key))
        mean = jnp.mean(x, axis=0)
        unit = jnp.sqrt(jnp.mean((x - mean) ** 2))
        pair.encoder.origin = nnx.Param(mean)
        pair.encoder.unit = nnx.Param(jnp.where(unit > 0, unit, 1.0))
        bias, log_scale = likelihood.start(x)
        pair.decoder.bias = nnx.Param(bias)
        pair.decoder.unit = nnx.Param(jnp.exp(log_scale))
        graph, params = nnx.split(pair, nnx.Param)
        return cls(params, log_scale, graph, likelihood, architecture)

    def encode(self, x: Float[Array, "n features"]) -> Posterior:
        """q(z | x)."""
        return self._merged().encoder(x)

    def encode_by_cluster(self, x: Array) -> tuple[Array, Posterior, Posterior]:
        """See `Encoder.by_cluster`."""
        return self._merged().encoder.by_cluster(x)

    def decode(self, z: Float[Array, "*b d"]) -> Float[Array, "*b features"]:
        """The decoder's output, for codes of shape [..., d]."""
        out = self._merged().decoder(z.reshape(-1, z.shape[-1]))
        return out.reshape(*z.shape[:-1], -1)

    def log_prob(self, x: Float[Array, "*b features"], z: Float[Array, "*b d"]) -> Array:
        """log p(x | z) in nats."""
        return self.likelihood.log_prob(self.decode(z), self.log_scale, x)

    def n_parameters(self) -> int:
        """How many numbers the networks hold."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    def _merged(self) -> _Pair:
        return nnx.merge(self.graph, self.params)

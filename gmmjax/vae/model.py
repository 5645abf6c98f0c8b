"""`GMVAE`: a trained network with its mixture prior, and what one does with it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax import checks
from gmmjax.incomplete import by_blocks
from gmmjax.mixture import GaussianMixture
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree, static
from gmmjax.vae.networks import Autoencoder, Posterior
from gmmjax.vae.objectives import Objective, importance

_ROWS = 1024


@pytree
class GMVAE:
    """p(c) = φ_c, p(z | c) = N(μ_c, Σ_c), p(x | z) by the decoder; and q(z | x) by the encoder.

    `prior` is a `gmmjax.GaussianMixture` of the codes, with all its methods. Rows x have the shape that
    the networks were built for, [n, *shape], or are flat, [n, features].
    """

    network: Autoencoder
    prior: GaussianMixture
    objective: Objective = static(default="structured")

    @property
    def n_components(self) -> int:
        return self.prior.n_components

    # --- codes ------------------------------------------------------------------------------------

    def posterior(self, x: ArrayLike) -> Posterior:
        """q(z | x): means and log-variances, [n, latent] each."""
        return _blocked(_posterior, self, self._rows(x))

    def encode(self, x: ArrayLike) -> Float[Array, "n latent"]:
        """The mean code of each row."""
        return self.posterior(x).mean

    def decode(self, z: ArrayLike) -> Float[Array, "n *shape"]:
        """E[x | z], in the shape of a row."""
        z = jnp.asarray(z, self.prior.means.dtype)
        if z.ndim != 2 or z.shape[1] != self.prior.n_features:
            raise ValueError(
                f"z: expected codes of shape [n, {self.prior.n_features}]; got {z.shape}."
            )
        return self._shaped(_blocked(_decode, self, z))

    def reconstruct(self, x: ArrayLike) -> Float[Array, "n *shape"]:
        """E[x | z] at the mean code of each row."""
        return self.decode(self.encode(x))

    # --- clusters ---------------------------------------------------------------------------------

    def responsibilities(
        self, x: ArrayLike, key: Key[Array, ""] | None = None, n_draws: int = 32
    ) -> Float[Array, "n k"]:
        """q(c | x).

        Without a key in closed form, the best q(c | x) for a code known up to the encoder's noise (for
        a model trained by the amortised objective, the network's). With one, E_q[p(c | z)] by draws.
        """
        rows = self._rows(x)
        if key is None:
            return _blocked(_responsibilities, self, rows)
        keys = jax.random.split(key, checks.count(n_draws, "n_draws"))
        q = self.posterior(x)
        draws = lax.map(lambda one: self.prior.responsibilities(q.sample(one)), keys)
        return jnp.mean(draws, axis=0)

    def predict(self, x: ArrayLike) -> Int[Array, "n"]:
        """The most probable cluster of each row."""
        return jnp.argmax(self.responsibilities(x), axis=-1)

    def name_clusters(self, x: ArrayLike, y: ArrayLike) -> Int[Array, "k"]:
        """The commonest label among the rows of each cluster, weighed by q(c | x); −1 where none.

        `y` holds integer labels [n], and −1 for a row without.
        """
        labels, n_classes = checks.labels(y, "y", n=len(jnp.asarray(x)), least=-1)
        votes = self.responsibilities(x).T @ jax.nn.one_hot(labels, n_classes)
        return jnp.where(jnp.max(votes, axis=1) > 0.5, jnp.argmax(votes, axis=1), -1)

    # --- pictures ---------------------------------------------------------------------------------

    def sample(
        self, key: Key[Array, ""], n: int, *, mean: bool = False
    ) -> tuple[Float[Array, "n *shape"], Int[Array, "n"]]:
        """n draws (x, c) from the model; with `mean`, E[x | z] in the place of a draw of x."""
        return self._sample(key, self.prior, n, mean)

    def sample_component(
        self, key: Key[Array, ""], c: int, n: int, *, mean: bool = False
    ) -> Float[Array, "n *shape"]:
        """n draws of x from cluster c."""
        key_z, key_x = jax.random.split(key)
        z = self.prior.sample_component(key_z, c, checks.count(n, "n"))
        return self._draw(key_x, z, mean)

    def sample_class(
        self, key: Key[Array, ""], names: ArrayLike, label: int, n: int, *, mean: bool = False
    ) -> Float[Array, "n *shape"]:
        """n draws of x from the clusters that `names` (of `name_clusters`) gives this label."""
        chosen = np.asarray(names) == label
        if chosen.shape != (self.n_components,) or not chosen.any():
            raise ValueError(
                f"label: expected one that names a cluster; got {label!r}, and the clusters are named "
                f"{np.asarray(names).tolist()}. Use more components, or other labels."
            )
        log_weights = jax.nn.log_softmax(jnp.where(chosen, self.prior.log_weights, -jnp.inf))
        return self._sample(key, dataclasses.replace(self.prior, log_weights=log_weights), n, mean)[
            0
        ]

    def interpolate(self, a: int, b: int, n: int = 8) -> Float[Array, "n *shape"]:
        """E[x | z] on the straight line from the mean of cluster a to that of cluster b."""
        for name, c in (("a", a), ("b", b)):
            if not 0 <= checks.count(c, name, least=0) < self.n_components:
                raise ValueError(
                    f"{name}: expected a cluster from 0 to {self.n_components - 1}; got {c}."
                )
        t = jnp.linspace(0.0, 1.0, checks.count(n, "n"))[:, None]
        return self.decode((1 - t) * self.prior.means[a] + t * self.prior.means[b])

    # --- densities --------------------------------------------------------------------------------

    def log_likelihood(
        self, key: Key[Array, ""], x: ArrayLike, n_importance: int = 100
    ) -> Float[Array, "n"]:
        """log p(x) of each row in nats, by `n_importance` importance samples (Burda et al. 2016).

        A lower bound on average, and closer with more samples. With the Bernoulli likelihood rows are
        taken as they are, and have to be 0 or 1.
        """
        rows = self._rows(x)
        draws = checks.count(n_importance, "n_importance")
        number = jnp.arange(rows.shape[0])
        return _log_likelihood(key, self, rows, number, draws)

    # ----------------------------------------------------------------------------------------------

    def _rows(self, x: ArrayLike) -> Float[Array, "n features"]:
        return flat(x, self.network.architecture.shape)

    def _shaped(self, x: Float[Array, "n features"]) -> Float[Array, "n *shape"]:
        return x.reshape(-1, *self.network.architecture.shape)

    def _sample(
        self, key: Array, prior: GaussianMixture, n: int, mean: bool
    ) -> tuple[Array, Array]:
        key_z, key_x = jax.random.split(key)
        z, c = prior.sample(key_z, checks.count(n, "n"))
        return self._draw(key_x, z, mean), c

    def _draw(self, key: Array, z: Array, mean: bool) -> Array:
        network = self.network
        out = network.decode(z)
        if mean:
            return self._shaped(network.likelihood.mean(out))
        return self._shaped(network.likelihood.sample(key, out, network.log_scale))


def flat(x: ArrayLike, shape: tuple[int, ...], name: str = "x") -> Float[Array, "n features"]:
    """Rows [n, *shape] or [n, features] as the latter, finite."""
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    features = int(np.prod(shape))
    if array.ndim == 0 or array.shape[1:] not in (shape, (features,)):
        raise ValueError(
            f"{name}: expected shape [n, {', '.join(map(str, shape))}], as the networks were built for, or "
            f"[n, {features}]; got {array.shape}."
        )
    return checks.rows(array.reshape(len(array), features), name)


@partial(jax.jit, static_argnums=0)
def _blocked(fn: Callable[[GMVAE, Array], Any], model: GMVAE, rows: Array) -> Any:
    """fn(model, rows) in blocks, so that memory does not grow with n."""
    return by_blocks(lambda part: fn(model, part), rows, min(_ROWS, rows.shape[0]))


def _posterior(model: GMVAE, rows: Array) -> Posterior:
    return model.network.encode(rows)


def _decode(model: GMVAE, z: Array) -> Array:
    return model.network.likelihood.mean(model.network.decode(z))


def _responsibilities(model: GMVAE, rows: Array) -> Array:
    if model.objective != "amortised":
        return model.prior.responsibilities(model.network.encode(rows).uncertain())
    added, _, q = model.network.encode_by_cluster(rows)
    return jax.nn.softmax(model.prior.log_joint(q.uncertain()) + added, axis=-1)


@partial(jax.jit, static_argnames="draws")
def _log_likelihood(
    key: Array, model: GMVAE, rows: Array, number: Array, draws: int
) -> Float[Array, "n"]:
    def block(part: tuple[Array, Array]) -> Array:
        x, index = part
        keys = jax.random.split(jax.random.fold_in(key, index[0]), draws)
        # logsumexp as a running sum: memory does not grow with the number of draws.
        one = lambda at, k: (jnp.logaddexp(at, importance(model.network, model.prior, k, x)), None)  # noqa: E731
        start = jnp.full(x.shape[0], -jnp.inf, x.dtype)
        return lax.scan(one, start, keys)[0] - jnp.log(draws)

    return by_blocks(block, (rows, number), min(_ROWS, rows.shape[0]))

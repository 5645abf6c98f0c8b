"""A density for each class: p(x, y) = π_y p(x | y), to classify with and to generate from."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks
from gmmjax.mixture import GaussianMixture
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree


class Density(Protocol):
    """What stands for a class: a `GaussianMixture`, or any other pytree with these two methods."""

    def log_prob(self, x: Any) -> Float[Array, "*batch"]:
        """log p(x) in nats, for x of shape [..., d]."""
        ...

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n d"], Any]:
        """n draws, and what is hidden behind each."""
        ...


@pytree
class ClassConditionalMixture:
    """p(x) = Σ_y π_y p(x | y), with a density of its own for each class.

    The classes may differ in family and in number of components. Build one with `create`, or with
    `fit_discriminant`; the constructor checks nothing.
    """

    log_priors: Float[Array, "c"]  # log π
    densities: tuple[Any, ...]  # p(x | y), one a class

    @classmethod
    def create(
        cls, priors: ArrayLike, densities: "tuple[Density, ...] | list[Density]"
    ) -> "ClassConditionalMixture":
        """From the classes' probabilities [c], which sum to 1, and their densities.

        >>> import gmmjax
        >>> low = gmmjax.GaussianMixture.create([1.0], [[0.0]], [1.0], "spherical")
        >>> both = low, low.affine(4.0)
        >>> model = gmmjax.classification.ClassConditionalMixture.create([0.5, 0.5], both)
        >>> model.classify([[0.1], [3.9]]).tolist()
        [0, 1]
        """
        pi = np.asarray(priors, float)
        if pi.shape != (len(densities),) or len(densities) == 0:
            raise ValueError(
                f"priors: expected shape [{max(len(densities), 1)}], one a density; got {pi.shape}."
            )
        if not (np.all(pi >= 0) and abs(pi.sum() - 1) <= 1e-5):
            raise ValueError(f"priors: expected non-negative numbers of sum 1; got {pi.tolist()}.")
        widths = {getattr(density, "n_features", None) for density in densities}
        if len(widths) > 1:
            raise ValueError(
                f"densities: expected one number of features for all classes; got {widths}."
            )
        with np.errstate(divide="ignore"):
            return cls(jnp.asarray(np.log(pi / pi.sum()), float), tuple(densities))

    @property
    def n_classes(self) -> int:
        return len(self.densities)

    @property
    def n_features(self) -> int:
        return self.densities[0].n_features

    @property
    def priors(self) -> Float[Array, "c"]:
        """π."""
        return jnp.exp(self.log_priors)

    def n_parameters(self) -> int:
        """Free parameters: c − 1 priors, and those of the densities."""
        return self.n_classes - 1 + sum(density.n_parameters() for density in self.densities)

    # --- density and posterior --------------------------------------------------------------------

    def log_joint(self, x: ArrayLike) -> Float[Array, "*batch c"]:
        """log p(x, y) = log π_y + log p(x | y) for every class, in nats; x is [..., d].

        Raises `ValueError` on another number of features, and outside `jit` on NaN or infinity; so do
        all methods that take x.
        """
        return _log_densities(self.densities, self._points(x)) + self.log_priors

    def log_prob(self, x: ArrayLike, y: ArrayLike | None = None) -> Float[Array, "*batch"]:
        """log p(x | y) in nats for the class y of each row, or log p(x) without y.

        `y` is an integer, or integers of shape [...]. Raises `ValueError` for an unknown class.
        """
        if y is None:
            return jax.nn.logsumexp(self.log_joint(x), axis=-1)
        each = _log_densities(self.densities, self._points(x))
        y = jnp.broadcast_to(self._classes(y), each.shape[:-1])
        return jnp.take_along_axis(each, y[..., None], axis=-1)[..., 0]

    def log_posterior(self, x: ArrayLike) -> Float[Array, "*batch c"]:
        """log p(y | x), by Bayes' rule."""
        return jax.nn.log_softmax(self.log_joint(x), axis=-1)

    def posterior(self, x: ArrayLike) -> Float[Array, "*batch c"]:
        """p(y | x)."""
        return jax.nn.softmax(self.log_joint(x), axis=-1)

    def classify(self, x: ArrayLike) -> Int[Array, "*batch"]:
        """The most probable class of each row."""
        return jnp.argmax(self.log_joint(x), axis=-1)

    # --- sampling ---------------------------------------------------------------------------------

    def sample(self, key: Key[Array, ""], y: ArrayLike) -> Float[Array, "n d"]:
        """One draw of x | y for each class in `y`, integers [n].

        Every class draws n rows, of which those asked for are kept: the program does not depend on
        the values of y. Raises `ValueError` for an unknown class.
        """
        y = jnp.atleast_1d(self._classes(y))
        if y.ndim != 1:
            raise ValueError(f"y: expected shape [n], one class a draw; got {y.shape}.")
        return _sample(key, self.densities, y)

    def sample_joint(
        self, key: Key[Array, ""], n: int
    ) -> tuple[Float[Array, "n d"], Int[Array, "n"]]:
        """n draws (x, y): y ~ π, x ~ p(x | y)."""
        key_y, key_x = jax.random.split(key)
        y = jax.random.categorical(key_y, self.log_priors, shape=(n,))
        return self.sample(key_x, y), y

    def mixture(self) -> GaussianMixture:
        """p(x) as one mixture of full covariances, the components of class 0 first."""
        weights = [
            log_prior + density.log_weights
            for log_prior, density in zip(self.log_priors, self.densities, strict=True)
        ]
        return GaussianMixture.create(
            jnp.exp(jnp.concatenate(weights)),
            jnp.concatenate([density.means for density in self.densities]),
            jnp.concatenate([density.covariances for density in self.densities]),
            "full",
        )

    def _points(self, x: ArrayLike) -> Float[Array, "*batch d"]:
        d = getattr(self.densities[0], "n_features", np.shape(x)[-1])
        return checks.points(x, d, self.log_priors.dtype)

    def _classes(self, y: ArrayLike) -> Int[Array, "..."]:
        labels = y if isinstance(y, jax.Array) else np.asarray(y)
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"y: expected integer classes; got dtype {labels.dtype}.")
        if checks.concrete(labels) and labels.size:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.n_classes:
                raise ValueError(
                    f"y: expected classes from 0 to {self.n_classes - 1}; got {low} to {high}."
                )
        return jnp.asarray(labels, jnp.int32)


@jax.jit
def _log_densities(densities: tuple[Density, ...], x: Array) -> Float[Array, "*batch c"]:
    return jnp.stack([density.log_prob(x) for density in densities], axis=-1)


@jax.jit
def _sample(key: Array, densities: tuple[Density, ...], y: Int[Array, "n"]) -> Float[Array, "n d"]:
    keys = jax.random.split(key, len(densities))
    first, *rest = [
        density.sample(one, y.shape[0])[0] for one, density in zip(keys, densities, strict=True)
    ]
    for c, rows in enumerate(rest, start=1):
        first = jnp.where((y == c)[:, None], rows, first)
    return first

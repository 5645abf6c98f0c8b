"""Maximum likelihood in closed form, where nothing is hidden (MATH 1)."""

from functools import partial

import jax
import jax.numpy as jnp

from gmmjax import blocks as blocks_
from gmmjax import checks, families, initialization, moments
from gmmjax.frame import Frame
from gmmjax.mixture import GaussianMixture
from gmmjax.priors import Prior
from gmmjax.typing import Array, ArrayLike, Float


def categorical(
    y: ArrayLike, n_classes: int | None = None, weights: ArrayLike | None = None
) -> Float[Array, "k"]:
    """φ̂_j = Σ_i w_i 1{y_i = j} / Σ_i w_i.

    `y` holds integers 0 … k − 1, shape [n]; k is `n_classes`, or one more than the largest label.

    >>> import gmmjax
    >>> gmmjax.mle.categorical([0, 1, 1, 1]).tolist()
    [0.25, 0.75]
    """
    labels, k = checks.labels(y, "y", n_classes)
    dtype = jnp.zeros(()).dtype
    w = checks.weights(weights, labels.shape[0], dtype)
    counts = jnp.zeros(k, dtype).at[labels].add(jnp.ones(labels.shape, dtype) if w is None else w)
    return counts / jnp.sum(counts)


def normal(
    x: ArrayLike, weights: ArrayLike | None = None
) -> tuple[Float[Array, "d"], Float[Array, "d d"]]:
    """μ̂ = Σ w x / Σ w and Σ̂ = Σ w (x − μ̂)(x − μ̂)ᵀ / Σ w. The divisor is n, not n − 1.

    `x` has shape [n, d].

    >>> import gmmjax
    >>> mean, covariance = gmmjax.mle.normal([[0.0], [2.0]])
    >>> mean.tolist(), covariance.tolist()
    ([1.0], [[1.0]])
    """
    x = checks.rows(x)
    w = checks.weights(weights, x.shape[0], x.dtype)
    w = jnp.ones(x.shape[0], x.dtype) if w is None else w
    mean = moments.column_mean(x, w)
    sums = moments.from_responsibilities(x, w[:, None], mean[None], moments.Second.FULL)
    central = moments.centre(sums)
    return central.mean[0], central.scatter[0] / central.weight[0]


def mixture(
    x: ArrayLike,
    z: ArrayLike,
    n_components: int | None = None,
    *,
    family: str = "full",
    weights: ArrayLike | None = None,
    prior: Prior | None = None,
    reg: ArrayLike = 0.0,
) -> GaussianMixture:
    """The mixture of greatest likelihood where the components z are seen: one normal a class.

    The M-step with one-hot responsibilities. `family="tied"` is LDA's model, "full" QDA's, "diag"
    naive Bayes'. `x` is [n, d], `z` integers 0 … k − 1; `reg` as in `fit`.

    Raises `ValueError` where a class has no row, or a covariance is singular (a class of at most d
    rows, a constant column): set `reg`, pass a `prior`, or take a simpler family.
    """
    name = families.get(family).name
    x = checks.rows(x)
    labels, k = checks.labels(z, "z", n_components, n=x.shape[0])
    w = checks.weights(weights, x.shape[0], x.dtype)
    checks.every_class(labels, w, k, "z")
    model = _mixture(x, labels, w, prior, reg, k=k, family=name)
    if checks.concrete(model) and not bool(jnp.all(jnp.isfinite(model.factors.half_log_det()))):
        raise ValueError(
            f"x: the {name} covariance of some class is singular (at most d rows, a constant column, or "
            "collinear columns). Set reg above 0, pass a prior, or take a simpler family."
        )
    return model


# Compiled as one: its hundred small operations would each be, at every new shape.
@partial(jax.jit, static_argnames=("k", "family"))
def _mixture(
    x: Array, labels: Array, w: Array | None, prior: Prior | None, reg: ArrayLike, *,
    k: int, family: str,
) -> GaussianMixture:  # fmt: skip
    frame = Frame.of(x, w)
    data = blocks_.split((frame.enter(x), labels), w)
    local = None if prior is None else prior.into(frame)
    return initialization.labelled(data, k, family, local, reg).affine(frame.centre, frame.unit)

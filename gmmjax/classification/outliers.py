"""Outliers: rows whose density lies below a threshold with a chosen rate of false alarms.

The rate is the share of rows *of the model* that are called outliers. Two calibrations: on draws
from the model (exact to Monte Carlo error if the model is right), or on the data that it was fitted
to (which hold the rate on those data whatever the model, outliers among them included).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks
from gmmjax.typing import Array, ArrayLike, Bool, Float, Key


def sampled_threshold(
    key: Key[Array, ""], model: Any, rate: ArrayLike, *, n_draws: int = 2**17
) -> Float[Array, ""]:
    """The log-density (nats) that a share `rate` of the model's own draws falls below.

    `model` has `sample(key, n) -> (x, …)` and `log_prob(x)`. The standard error of the rate that is
    reached is √(rate · (1 − rate) / n_draws). For one normal −2 · (threshold − log p(μ)) is the
    1 − rate quantile of χ² with d degrees of freedom.

    Raises `ValueError` where the rate is not between 0 and 1, or too small for the draws.

    >>> import jax, gmmjax
    >>> model = gmmjax.GaussianMixture.create([1.0], [[0.0, 0.0]], [1.0], "spherical")
    >>> t = gmmjax.classification.sampled_threshold(jax.random.key(0), model, 0.01)
    >>> gmmjax.classification.is_outlier(model, [[0.0, 0.0], [3.5, 0.0]], t).tolist()
    [False, True]
    """
    draws = checks.count(n_draws, "n_draws")
    _check_rate(rate)
    if checks.concrete(rate) and draws * np.asarray(rate) < 10:
        raise ValueError(
            f"n_draws: expected at least 10 / rate = {10 / np.asarray(rate):.0f}, so that the rate "
            f"is met; got {draws}."
        )
    return _of_draws(key, model, rate, draws)


def empirical_threshold(
    model: Any, x: ArrayLike, rate: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    """The log-density (nats) that at most a share `rate` of the rows of x falls below.

    `x` is [n, d], best not the rows that the model was fitted to. `weights` count rows, [n].
    """
    x = checks.rows(x)
    w = checks.weights(weights, x.shape[0], x.dtype)
    _check_rate(rate)
    return _lower_quantile(model.log_prob(x), rate, w)


def is_outlier(model: Any, x: ArrayLike, threshold: ArrayLike) -> Bool[Array, "*batch"]:
    """Whether the density of each row lies below the threshold, in nats; x is [..., d]."""
    return model.log_prob(x) < threshold


@partial(jax.jit, static_argnums=3)
def _of_draws(key: Array, model: Any, rate: ArrayLike, n: int) -> Float[Array, ""]:
    return _lower_quantile(model.log_prob(model.sample(key, n)[0]), rate, None)


@jax.jit
def _lower_quantile(
    values: Float[Array, "n"], rate: ArrayLike, weights: Array | None
) -> Float[Array, ""]:
    """The largest value such that at most a share `rate` lies strictly below it."""
    w = jnp.ones_like(values) if weights is None else weights
    order = jnp.argsort(values)
    # Rows are counted up to the one before; a row of weight 0 is never the threshold.
    sorted_weights = w[order]
    total = jnp.sum(sorted_weights)
    before = jnp.cumsum(sorted_weights) - sorted_weights
    # A count to within half a row: a running sum in float32 is not exact.
    slack = 1e-6 * total
    fits = (before <= rate * total + slack) & (sorted_weights > 0)
    return jnp.max(jnp.where(fits, values[order], -jnp.inf))


def _check_rate(rate: ArrayLike) -> None:
    if checks.concrete(rate):
        number = np.asarray(rate)
        if number.shape != () or not 0 < number < 1:
            raise ValueError(f"rate: expected a number between 0 and 1; got {rate!r}.")

"""Scores of predicted classes and of predicted probabilities of classes.

Rows may be weighted; weight 0 is as if the row were absent, so that one compiled program serves
every fold of a cross-validation. A label out of range under `jit` makes the score NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks
from gmmjax.typing import Array, ArrayLike, Float, Int


def accuracy(
    labels_true: ArrayLike, labels_pred: ArrayLike, *, weights: ArrayLike | None = None
) -> Float[Array, ""]:
    """The share of rows whose predicted class is the true one. For clusters: `matched_accuracy`."""
    # Under a trace no number of classes is needed, so any will do.
    true, _ = checks.labels(labels_true, "labels_true", _any(labels_true))
    pred, _ = checks.labels(labels_pred, "labels_pred", _any(labels_pred), n=true.shape[0])
    return _mean((true == pred).astype(jnp.zeros(()).dtype), weights)


def log_loss(
    labels_true: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    log: bool = False,
) -> Float[Array, ""]:
    """−mean log p(y_i), in nats a row. Infinite where a true class had probability 0.

    `probabilities` is [n, c], rows that sum to 1; or their logarithms, with `log=True`, which keeps
    the digits of probabilities near 0. `labels_true` holds integers 0 … c − 1.
    """
    y, p = _scored(labels_true, probabilities, log)
    picked = jnp.take_along_axis(p, jnp.clip(y, 0, p.shape[1] - 1)[:, None], axis=1)[:, 0]
    loss = -(picked if log else jnp.log(picked))
    return _mean(jnp.where(_inside(y, p), loss, jnp.nan), weights)


def brier_score(
    labels_true: ArrayLike,
    probabilities: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    scale_by_half: bool = False,
) -> Float[Array, ""]:
    """Mean over rows of Σ_c (p_ic − 1{y_i = c})²: from 0 to 2, or to 1 with `scale_by_half`.

    Brier (1950). `probabilities` is [n, c]. scikit-learn halves it for two classes and not for
    more; mclust always does.
    """
    y, p = _scored(labels_true, probabilities, log=False)
    hot = jax.nn.one_hot(y, p.shape[1], dtype=p.dtype)
    rows = jnp.sum((p - hot) ** 2, axis=1)
    score = _mean(jnp.where(_inside(y, p), rows, jnp.nan), weights)
    return 0.5 * score if scale_by_half else score


def _scored(
    labels_true: ArrayLike, probabilities: ArrayLike, log: bool
) -> tuple[Int[Array, "n"], Float[Array, "n c"]]:
    p = checks.rows(probabilities, "probabilities", finite=not log)
    y, _ = checks.labels(labels_true, "labels_true", p.shape[1], n=p.shape[0])
    if checks.concrete(p):
        values = np.asarray(p, float)
        values = np.exp(values) if log else values
        off = np.max(np.abs(values.sum(axis=1) - 1))
        if np.isnan(off) or np.any(values < 0) or off > 1e-3:
            kind = "logarithms of probabilities" if log else "probabilities"
            raise ValueError(
                f"probabilities: expected {kind}, whose rows sum to 1; got rows that are off by up "
                f"to {off:.3g}, and a minimum of {values.min():.3g}. Pass log={not log} if they "
                f"are {'not ' if log else ''}logarithms."
            )
    return y, p


def _any(labels: ArrayLike) -> int | None:
    return None if checks.concrete(labels) else 1


def _inside(y: Array, p: Array) -> Array:
    return (y >= 0) & (y < p.shape[1])


def _mean(rows: Float[Array, "n"], weights: ArrayLike | None) -> Float[Array, ""]:
    w = checks.weights(weights, rows.shape[0], rows.dtype)
    if w is None:
        return jnp.mean(rows)
    return jnp.sum(w * jnp.where(w > 0, rows, 0.0)) / jnp.sum(w)

"""How often each class meets each cluster: all that a comparison of two labellings looks at.

Outside `jit` the table is NumPy's, exact, and what follows from it is computed in float64 whatever
JAX's mode; under `jit` and `vmap` it is JAX's, in JAX's default precision.
"""

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks
from gmmjax.typing import Array, ArrayLike, Float, Int

_LARGEST = 2**26


def contingency(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Int[Array, "c k"]:
    """n_ab: how many rows have label a in the first labelling and b in the second.

    Both are integers from 0, shape [n]. `n_classes` and `n_clusters` default to one more than the
    largest label; under `jit` and `vmap` they must be given, and a row with a label out of range is
    then left out of the table. For classes and predicted classes it is the confusion matrix.

    Raises `TypeError`, `ValueError` for labels that are not integers, negative, too large, empty or
    of different lengths.

    >>> from gmmjax import metrics
    >>> metrics.contingency([0, 0, 1, 1], [1, 1, 1, 0]).tolist()
    [[0, 2], [1, 1]]
    """
    true, c = checks.labels(labels_true, "labels_true", n_classes)
    pred, k = checks.labels(labels_pred, "labels_pred", n_clusters, n=true.shape[0])
    if c * k > _LARGEST:
        raise ValueError(
            f"labels: expected a table of at most {_LARGEST} cells; got {c} × {k} labels. Number "
            "the labels that occur from 0, with np.unique(labels, return_inverse=True)[1]."
        )
    if checks.concrete(true, pred):
        flat = np.asarray(true, np.int64) * k + np.asarray(pred)
        return np.bincount(flat, minlength=c * k).reshape(c, k)  # type: ignore[return-value]
    # A negative index would count from the end; past the end it is dropped.
    inside = (true >= 0) & (true < c) & (pred >= 0) & (pred < k)
    return jnp.zeros((c, k), jnp.int32).at[jnp.where(inside, true, c), pred].add(1, mode="drop")


def counts(
    labels_true: ArrayLike, labels_pred: ArrayLike, n_classes: int | None, n_clusters: int | None
) -> tuple[Float[Array, "c k"], ModuleType]:
    """The table as floating numbers, and the array library that it belongs to.

    All NaN where a label was out of range under a trace.
    """
    table = contingency(labels_true, labels_pred, n_classes=n_classes, n_clusters=n_clusters)
    if not isinstance(table, jax.Array):
        return table.astype(float), np
    complete = jnp.sum(table) == len(labels_true)  # type: ignore[arg-type]
    return jnp.where(complete, table.astype(float), jnp.nan), jnp

"""Clusters named after classes, one to one, so that the most rows agree (the Hungarian method).

Kuhn (1955); Crouse (2016) for the algorithm in SciPy. Outside `jit` SciPy solves the assignment
(the extra `sklearn` brings it), under `jit` and `vmap` Optax does (the extra `vae`): both are
exact. The conventions of the arguments are those of `adjusted_rand`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax._optional import optional_import
from gmmjax.metrics.contingency import contingency, counts
from gmmjax.typing import Array, ArrayLike, Float, Int


def matching(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Int[Array, "k"]:
    """The class that each cluster stands for under the best one-to-one matching, [k]; −1 for none.

    With more clusters than classes some clusters have none.

    >>> from gmmjax import metrics
    >>> metrics.matching([0, 0, 1, 1, 1], [2, 2, 0, 0, 1]).tolist()
    [1, -1, 0]
    """
    table = contingency(labels_true, labels_pred, n_classes=n_classes, n_clusters=n_clusters)
    c, k = table.shape
    found = _classes_of(table)[:k]
    return jnp.where(found < c, found, -1)


def matched_accuracy(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Float[Array, ""]:
    """The share of rows whose cluster is matched to their class; unmatched clusters are wrong.

    >>> from gmmjax import metrics
    >>> float(metrics.matched_accuracy([0, 0, 1, 1, 1], [2, 2, 0, 0, 1]))
    0.8
    """
    table, xp = counts(labels_true, labels_pred, n_classes, n_clusters)
    found = _classes_of(table)
    return xp.sum(_square(table)[found, xp.arange(len(found))]) / xp.sum(table)


def matched_confusion(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Int[Array, "c m"]:
    """The contingency table with its columns in the order of the classes they are matched to.

    [c, max(c, k)]: column a counts the rows of the cluster matched to class a, so the diagonal is
    what `matched_accuracy` counts. Classes without a cluster have a column of zeros; clusters
    without a class follow after column c − 1.
    """
    table = contingency(labels_true, labels_pred, n_classes=n_classes, n_clusters=n_clusters)
    return _square(table)[: table.shape[0], _classes_of(table).argsort()]


def _square(table: Array) -> Array:
    """Empty classes or clusters added, so that every cluster has a partner."""
    xp = jnp if isinstance(table, jax.Array) else np
    size = max(table.shape)
    return xp.pad(table, [(0, size - table.shape[0]), (0, size - table.shape[1])])


def _classes_of(table: Array) -> Int[Array, "m"]:
    """A permutation: the class of each cluster, numbers from c on for none; m = max(c, k)."""
    square = _square(table)
    if isinstance(square, jax.Array):
        with optional_import("vae"):
            from optax.assignment import hungarian_algorithm
        rows, columns = hungarian_algorithm(-jnp.nan_to_num(square).astype(float))
        return jnp.zeros_like(rows).at[columns].set(rows)
    with optional_import("sklearn"):
        from scipy.optimize import linear_sum_assignment
    rows, columns = linear_sum_assignment(square, maximize=True)
    return rows[np.argsort(columns)]

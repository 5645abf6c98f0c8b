"""The silhouette: how much nearer a row lies to its own cluster than to the next.

Rousseeuw (1987), "Silhouettes: a graphical aid". All pairs of rows are compared, a block of rows
with all others at a time, so memory is O(block · n) and not O(n²).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax import checks
from gmmjax.blocks import split
from gmmjax.typing import Array, ArrayLike, Float, Int

_CHUNK = 2**22
"""Distances held at once where the caller does not choose a block."""


def silhouette_samples(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    n_clusters: int | None = None,
    block: int | None = None,
) -> Float[Array, "n"]:
    """(b − a) / max(a, b) for each row; from −1 to 1.

    a is the mean Euclidean distance to the other rows of its cluster, b the least mean distance to
    the rows of another. A row that is alone in its cluster scores 0.

    - `x`: [n, d]; `labels`: integers 0 … n_clusters − 1, [n].
    - `block`: rows compared with all others at once; memory is O(block · n). By default about
      4 million distances. Time is O(n² d).

    Raises `ValueError` where fewer than 2 clusters, or one a row, are occupied.
    """
    x = checks.rows(x)
    n = x.shape[0]
    z, k = checks.labels(labels, "labels", n_clusters, n=n)
    if checks.concrete(z):
        occupied = len(np.unique(np.asarray(z)))
        if not 2 <= occupied < n:
            raise ValueError(
                f"labels: expected from 2 to n − 1 = {n - 1} clusters that occur; got {occupied}. "
                "With one cluster, or one a row, a silhouette is not defined."
            )
    block = max(1, _CHUNK // n) if block is None else checks.count(block, "block")
    return _silhouette(x, z, k, min(block, n))


def silhouette(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    n_clusters: int | None = None,
    block: int | None = None,
) -> Float[Array, ""]:
    """The mean of `silhouette_samples` over rows.

    >>> from gmmjax import metrics
    >>> round(float(metrics.silhouette([[0.0], [1.0], [10.0], [11.0]], [0, 0, 1, 1])), 4)
    0.8997
    """
    return jnp.mean(silhouette_samples(x, labels, n_clusters=n_clusters, block=block))


@partial(jax.jit, static_argnames=("k", "block"))
def _silhouette(x: Float[Array, "n d"], z: Int[Array, "n"], k: int, block: int) -> Array:
    n = x.shape[0]
    xt = x.T
    hot = jax.nn.one_hot(z, k, dtype=x.dtype)
    size = jnp.sum(hot, axis=0)

    def rows(part: tuple[Array, Array]) -> Array:
        own, label = part

        def add(total: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
            # By differences, a coordinate at a time: the expanded square loses the distance of near
            # rows far from 0, and all coordinates at once would hold block · n · d numbers.
            return total + jnp.square(column[0][:, None] - column[1]), None

        squares, _ = lax.scan(add, jnp.zeros((own.shape[0], n), x.dtype), (own.T, xt))
        sums = jnp.matmul(jnp.sqrt(squares), hot, precision=lax.Precision.HIGHEST)
        mine = label[:, None] == jnp.arange(k)
        others = size[label] - 1
        a = jnp.sum(jnp.where(mine, sums, 0.0), axis=1) / jnp.where(others > 0, others, 1.0)
        means = jnp.where(mine | (size == 0), jnp.inf, sums / jnp.where(size > 0, size, 1.0))
        b = jnp.min(means, axis=1)
        widest = jnp.maximum(a, b)
        score = (b - a) / jnp.where(widest > 0, widest, 1.0)
        return jnp.where(others > 0, score, 0.0)

    parts = split((x, z), block=block).data
    return lax.map(rows, parts).reshape(-1)[:n]

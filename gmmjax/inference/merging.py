"""Components merged into clusters: one cluster of the data may need several Gaussians.

From k components down to one, the two clusters are merged whose union is the least uncertain: those for
which the entropy −Σ_i Σ_j r_ij log r_ij of the responsibilities falls most (Baudry, Raftery, Celeux, Lo
and Gottardo 2010; mclust's `clustCombi`). The density stays that of the k components. Where the
entropy against the number of clusters has its elbow, further merging no longer makes the clusters
clearer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax import checks
from gmmjax.typing import Array, ArrayLike, Float, Int, pytree


@pytree
class Merging:
    """The whole sequence of mergers. Row c − 1 of an array is the solution of c clusters.

    Of two clusters that merge, the union takes the place of the one of smaller index, and those above
    the other move down.
    """

    entropy: Float[Array, "k"]  # of 1, 2, …, k clusters, nats
    clusters: Int[Array, "k k"]  # [c − 1, j]: the cluster of component j among c, from 0
    pairs: Int[Array, "k-1 2"]  # [c − 1]: which two of c + 1 clusters merge into c
    sizes: Float[Array, "k-1"]  # [c − 1]: how many rows (by weight) those two hold

    @property
    def n_components(self) -> int:
        return self.entropy.shape[-1]

    def responsibilities(self, responsibilities: ArrayLike, n_clusters: int) -> Float[Array, "n c"]:
        """Those of clusters, from those of components, [n, k]."""
        z, c = jnp.asarray(responsibilities), self._number(n_clusters)
        if z.ndim != 2 or z.shape[1] != self.n_components:
            raise ValueError(
                f"responsibilities: expected shape [n, {self.n_components}]; got {z.shape}."
            )
        hot = jax.nn.one_hot(self.clusters[c - 1], c, dtype=z.dtype)
        return jnp.matmul(z, hot, precision="highest")

    def labels(self, responsibilities: ArrayLike, n_clusters: int) -> Int[Array, "n"]:
        """The most probable of c clusters for each row, from the responsibilities [n, k]."""
        return jnp.argmax(self.responsibilities(responsibilities, n_clusters), axis=1)

    def elbow(self) -> int:
        """Where two straight lines that meet describe the entropy best, by least squares: a number of
        clusters from 2 to k − 1; k itself where k ≤ 2. Baudry et al., section 4.

        A proposal to look at beside the plot, not a test.
        """
        entropy = np.asarray(self.entropy, float)
        k = len(entropy)
        if k <= 2:
            return k
        number = np.arange(1, k + 1)

        def rest(part: slice) -> float:
            line = np.polynomial.Polynomial.fit(number[part], entropy[part], 1)
            return float(np.sum((line(number[part]) - entropy[part]) ** 2))

        errors = [rest(slice(0, c)) + rest(slice(c - 1, k)) for c in range(2, k)]
        return 2 + int(np.argmin(errors))

    def _number(self, n_clusters: int) -> int:
        c = checks.count(n_clusters, "n_clusters")
        if c > self.n_components:
            raise ValueError(
                f"n_clusters: expected at most the {self.n_components} components; got {c}."
            )
        return c


def merge_components(responsibilities: ArrayLike, weights: ArrayLike | None = None) -> Merging:
    """Merge components into clusters by entropy, from responsibilities [n, k], e.g. those of
    `model.responsibilities(x)`; `weights` [n] is how often each row counts.

    Time O(n k³), memory O(n k). Raises `TypeError`, `ValueError` for arguments that cannot be used.

    >>> import gmmjax
    >>> z = [[0.5, 0.0, 0.5], [0.4, 0.0, 0.6], [0.0, 1.0, 0.0]]
    >>> merging = gmmjax.inference.merge_components(z)
    >>> merging.pairs[1].tolist(), merging.labels(z, 2).tolist()
    ([0, 2], [0, 0, 1])
    """
    z = checks.rows(responsibilities, "responsibilities")
    w = checks.weights(weights, z.shape[0], z.dtype)
    if checks.concrete(z):
        values = np.asarray(z)
        if np.any(values < 0) or np.max(np.abs(values.sum(axis=1) - 1)) > 1e-4:
            raise ValueError(
                "responsibilities: expected rows of non-negative numbers that sum to 1; got a minimum "
                f"of {values.min():g} and sums from {values.sum(axis=1).min():g} to "
                f"{values.sum(axis=1).max():g}. Pass model.responsibilities(x)."
            )
    return _merge(z, jnp.ones(z.shape[0], z.dtype) if w is None else w)


@jax.jit
def _merge(z: Float[Array, "n k"], w: Float[Array, "n"]) -> Merging:
    k = z.shape[1]
    index = jnp.arange(k)
    upper = index[:, None] < index

    def gains(z: Float[Array, "k n"]) -> Float[Array, "k k"]:
        """By how much the entropy falls where clusters j and l merge."""
        alone = _xlogx(z) @ w

        def against(one: Float[Array, "n"]) -> Float[Array, "k"]:
            return _xlogx(one + z) @ w

        return lax.map(against, z) - alone[:, None] - alone

    def step(carry: tuple[Array, Array], count: Array) -> tuple[tuple[Array, Array], tuple]:
        z, clusters = carry
        pair_gains = jnp.where(upper & (index < count), gains(z), -jnp.inf)
        at = jnp.argmax(pair_gains)
        kept, gone = at // k, at % k
        size = jnp.sum((z[kept] + z[gone]) * w)
        z = z.at[kept].add(z[gone])
        # Those above move down; past the last there are clusters without rows.
        source = jnp.where(index >= gone, index + 1, index)
        z = jnp.where(source[:, None] < k, z[jnp.minimum(source, k - 1)], 0.0)
        clusters = jnp.where(clusters == gone, kept, clusters - (clusters > gone))
        entropy = -jnp.sum(_xlogx(z) @ w)
        return (z, clusters), (entropy, clusters, jnp.stack([kept, gone]), size)

    begin = (z.T, index)
    counts = jnp.arange(k, 1, -1)
    first = -jnp.sum(_xlogx(z.T) @ w)
    _, (entropy, clusters, pairs, sizes) = lax.scan(step, begin, counts)
    return Merging(
        entropy=jnp.append(entropy[::-1], first),
        clusters=jnp.concatenate([clusters[::-1], index[None]]),
        pairs=pairs[::-1],
        sizes=sizes[::-1],
    )


def _xlogx(a: Array) -> Array:
    """a log a, and 0 at 0."""
    return jnp.where(a > 0, a * jnp.log(jnp.where(a > 0, a, 1.0)), 0.0)

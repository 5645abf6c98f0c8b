"""Choosing k rows to start from: k-means++, greedily, or at random.

Arthur and Vassilvitskii (2007), "k-means++: the advantages of careful seeding", with several trials
a centre as in their implementation.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from gmmjax.blocks import Blocks, chunked
from gmmjax.typing import Array, Float, Int, Key


def kmeans_plus_plus(
    key: Key[Array, ""], blocks: Blocks, k: int, see: Callable[[Array], Array] | None = None
) -> Int[Array, "k"]:
    """Indices of k rows: each drawn ∝ w·D², D the distance to the nearest chosen before.

    Of 2 + ⌊log k⌋ draws the one that leaves the least Σ w D² is kept. Rows of weight 0 are never
    chosen. Where fewer than k distinct rows exist, the last ones are drawn ∝ w. Distances are between
    rows as `see` shows them; they are taken chunk by chunk, so that no second copy of the data is held.
    """
    trials = 2 + int(math.log(k))
    rows, weights = blocks.rows(), blocks.weights.reshape(-1)
    see = (lambda x: x) if see is None else see
    chunks = chunked(blocks)
    parts = jax.tree.map(lambda a: a.reshape(a.shape[0], -1, *a.shape[3:]), chunks.data)
    mass = chunks.weights.reshape(parts.shape[0], -1)
    if len(parts) == 1:  # small: seen once, and not once a centre
        parts, shown = see(parts), lambda x: x
    else:
        shown = see

    def left(
        nearest: Float[Array, "chunks r"], index: Int[Array, "t"]
    ) -> Float[Array, "chunks t r"]:
        """What each of the rows at `index` would leave of the squared distances."""
        points = see(rows[index])

        def one(part: tuple[Array, Array]) -> Float[Array, "t r"]:
            # By differences, a coordinate at a time: never negative, and no [t, d, r] array.
            xt, near = shown(part[0]).T, part[1]
            zero = jnp.zeros((len(index), len(near)), near.dtype)
            squares = (jnp.square(xt[a] - points[:, a, None]) for a in range(xt.shape[0]))
            return jnp.minimum(near, sum(squares, zero))

        return lax.map(one, (parts, nearest))

    u = jax.random.uniform(key, (k, trials), mass.dtype)  # all at once: each call compiles anew
    first = at_quantile(u[0, :1], weights)
    nearest = left(jnp.full_like(mass, jnp.inf), first)[:, 0]

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, nearest = carry
        potential = weights * nearest.reshape(-1)
        potential = jnp.where(jnp.sum(potential) > 0, potential, weights)
        candidates = at_quantile(u[i], potential)
        rest = left(nearest, candidates)
        best = jnp.argmin(jnp.einsum("ctr,cr->t", rest, mass))
        return chosen.at[i].set(candidates[best]), rest[:, best]

    chosen = jnp.zeros(k, jnp.int32).at[0].set(first[0])
    return lax.fori_loop(1, k, body, (chosen, nearest))[0]


def random_points(key: Key[Array, ""], weights: Float[Array, "n"], k: int) -> Int[Array, "k"]:
    """Indices of k different rows, drawn ∝ w without replacement."""
    noise = jax.random.gumbel(key, weights.shape, weights.dtype)
    score = jnp.where(weights > 0, jnp.log(jnp.where(weights > 0, weights, 1.0)) + noise, -jnp.inf)
    return lax.top_k(score, k)[1]


def at_quantile(u: Float[Array, "t"], mass: Float[Array, "n"]) -> Int[Array, "t"]:
    """The indices of the u-quantiles, 0 ≤ u < 1, of the distribution ∝ mass; never one of mass 0.

    By counting, one loop of t·n comparisons: a binary search compiles to a dozen loops.
    """
    running = jnp.cumsum(mass)
    last = jnp.argmax(running >= running[-1])
    below = running <= (u * running[-1])[:, None]
    return jnp.minimum(jnp.sum(below, axis=1, dtype=jnp.int32), last.astype(jnp.int32))

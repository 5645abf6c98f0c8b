"""Choosing k rows to start from: k-means++, greedily, or at random.

Arthur and Vassilvitskii (2007), "k-means++: the advantages of careful seeding", with several trials
a centre as in their implementation.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from gmmjax.typing import Array, Float, Int, Key


def kmeans_plus_plus(
    key: Key[Array, ""], x: Float[Array, "n d"], weights: Float[Array, "n"], k: int
) -> Int[Array, "k"]:
    """Indices of k rows: each drawn ∝ w·D², D the distance to the nearest chosen before.

    Of 2 + ⌊log k⌋ draws the one that leaves the least Σ w D² is kept. Rows of weight 0 are never
    chosen. Where fewer than k distinct rows exist, the last ones are drawn ∝ w.
    """
    trials = 2 + int(math.log(k))
    xt = x.T  # rows contiguous

    def distance(index: Int[Array, "t"]) -> Float[Array, "t n"]:
        # By differences, a coordinate at a time: never negative, and no [t, d, n] array.
        points = x[index]
        return sum(
            (jnp.square(xt[a] - points[:, a, None]) for a in range(x.shape[1])),
            jnp.zeros((index.shape[0], x.shape[0]), x.dtype),
        )

    u = jax.random.uniform(key, (k, trials), x.dtype)  # all at once: each call compiles anew
    first = at_quantile(u[0, :1], weights)
    nearest = distance(first)[0]

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        chosen, nearest = carry
        potential = weights * nearest
        potential = jnp.where(jnp.sum(potential) > 0, potential, weights)
        candidates = at_quantile(u[i], potential)
        left = jnp.minimum(nearest, distance(candidates))
        best = jnp.argmin(left @ weights)
        return chosen.at[i].set(candidates[best]), left[best]

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

"""Common axes by plane rotations: Jacobi's method for several matrices at once.

Minimises Σ_j Σ_p u_jp d_pᵀ W_j d_p over orthogonal D = [d_1 … d_d]. In one plane the minimum is in closed
form, so the sum never rises, unlike a gradient step; and planes that share no axis are turned
together, in d − 1 rounds a sweep (a round-robin tournament), so that a sweep is a few array
operations whatever d.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax.typing import Array, Float


@lru_cache
def _rounds(d: int) -> np.ndarray:
    """partner[r, p], the axis that p turns with in round r; its own where d is odd and p rests."""
    m = d + d % 2
    seats = list(range(m))
    table = np.empty((max(m - 1, 0), d), np.int32)
    for r in range(m - 1):
        for a, b in zip(seats[: m // 2], reversed(seats[m // 2 :]), strict=True):
            if a < d:
                table[r, a] = b if b < d else a
            if b < d:
                table[r, b] = a if a < d else b
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return table


def sweep(
    axes: Float[Array, "d d"],
    turned: Float[Array, "k d d"],
    weights: Float[Array, "k d"],
) -> tuple[Float[Array, "d d"], Float[Array, "k d d"], Float[Array, ""]]:
    """One turn in every plane, for fixed weights u_jp.

    `turned` is Dᵀ W_j D for the given axes D. Returns both after the sweep, and the largest
    derivative that a plane's angle had: 0 at a stationary point.
    """
    d = axes.shape[-1]
    index = np.arange(d)

    def one(carry: tuple[Array, Array, Array], partner: Array) -> tuple[tuple, None]:
        axes, turned, slope = carry
        sign = jnp.where(partner > index, 1.0, -1.0).astype(axes.dtype)
        diagonal = jnp.diagonal(turned, axis1=-2, axis2=-1)
        off = jnp.where(partner == index, 0.0, turned[:, index, partner])
        # In the plane (p, q) the sum is const + B cos 2θ + C sin 2θ.
        gap = weights - weights[:, partner]
        b = 0.5 * jnp.sum(gap * (diagonal - diagonal[:, partner]), axis=0)
        c = sign * jnp.sum(gap * off, axis=0)
        still = (c == 0) & (b <= 0)
        angle = 0.5 * jnp.arctan2(jnp.where(still, 0.0, -c), jnp.where(still, 1.0, -b))
        cos, sin = jnp.cos(angle), sign * jnp.sin(angle)
        turned = cos[:, None] * turned + sin[:, None] * turned[:, partner]
        turned = cos * turned + sin * turned[:, :, partner]
        axes = cos * axes + sin * axes[:, partner]
        slope = jnp.maximum(slope, jnp.max(jnp.abs(c) + jnp.maximum(b, 0.0)))
        return (axes, turned, slope), None

    table = jnp.asarray(_rounds(d))
    start = (axes, turned, jnp.zeros((), turned.dtype))
    return lax.scan(one, start, table)[0]

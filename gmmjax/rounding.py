"""What the digits of the data can tell: a density cannot be known finer than its columns were rounded.

Of waiting times in whole minutes some are equal, by the rounding alone, and a component may take a
handful of them for a line. Its likelihood then measures the rounding. Rounding to multiples of δ adds
δ²/12 to the variance of a column (Sheppard 1898): a component with less than that in all is narrower
than the data can show.

Where all components share one variance of a column none of them can be narrow by itself, and such
families (`rows_needed` 0) are not asked. Nor are columns that spread less than δ: they count categories.
"""

import jax.numpy as jnp

from gmmjax.blocks import Blocks
from gmmjax.conditioning import tril
from gmmjax.mixture import GaussianMixture
from gmmjax.typing import Array, Bool, Float

SAMPLE = 4096
"""Rows that are looked at. Where there are more, every so many are taken."""


def resolution(blocks: Blocks) -> Float[Array, "d"]:
    """The least gap between two values of a column; 0 where the column's deviation is less than that.

    Values that differ by a few units in the last place count as equal.
    """
    x, w = blocks.rows(), blocks.weights.reshape(-1)
    every = -(-x.shape[0] // SAMPLE)
    x, w = x[::every], w[::every]
    values = jnp.sort(jnp.where((w > 0)[:, None], x, jnp.inf), axis=0)
    gaps = jnp.diff(values, axis=0)
    largest = jnp.max(jnp.where(jnp.isfinite(values), jnp.abs(values), 0.0), axis=0)
    apart = jnp.isfinite(gaps) & (gaps > 16 * jnp.finfo(x.dtype).eps * largest)
    least = jnp.min(jnp.where(apart, gaps, jnp.inf), axis=0, initial=jnp.inf)
    spread = jnp.std(x, axis=0, where=(w > 0)[:, None])
    return jnp.where(spread > least, least, 0.0)


def too_narrow(model: GaussianMixture, least: Float[Array, "d"]) -> Bool[Array, ""]:
    """Whether a component varies less in some column than rounding to multiples of `least` makes it."""
    k, d = model.means.shape
    variances = jnp.sum(tril(model.factors, k, d) ** 2, axis=-1)
    used = (model.log_weights > -jnp.inf)[:, None]
    return jnp.any(used & (variances < least**2 / 12))

"""Coordinates in which sums over the data keep their digits: about the mean, in units of the spread.

Σ r x xᵀ − N μμᵀ cancels far from the origin, and a log-likelihood that carries n·d·log(scale) hides
the changes that decide convergence. The unit is a power of two, so that scaling rounds nothing.
"""

import dataclasses

import jax.numpy as jnp

from gmmjax.em import EMResult
from gmmjax.moments import by_chunks, column_mean
from gmmjax.typing import Array, Float, pytree


@pytree
class Frame:
    """x = centre + unit · (local x)."""

    centre: Float[Array, "d"]
    unit: Float[Array, ""]

    @classmethod
    def of(cls, x: Float[Array, "n d"], weights: Float[Array, "n"] | None) -> "Frame":
        """The frame of weighted rows: their mean, and the power of two nearest to their spread."""
        centre = column_mean(x, weights)
        w = jnp.ones(x.shape[0], x.dtype) if weights is None else weights

        def about(x: Array, w: Array) -> Array:
            return jnp.where((w > 0)[:, None], x - centre, 0.0)

        # The largest entry first: squares of 1e25 are beyond float32.
        largest = jnp.max(by_chunks(lambda x, w: jnp.max(jnp.abs(about(x, w))), x, w))
        safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
        squares = by_chunks(lambda x, w: jnp.sum((about(x, w) / safe) ** 2), x, w)
        spread = safe * jnp.sqrt(jnp.sum(squares) / x.size)
        spread = jnp.where((spread > 0) & jnp.isfinite(spread), spread, 1.0)
        return cls(centre, jnp.exp2(jnp.round(jnp.log2(spread))))

    def enter(self, x: Array) -> Array:
        """Local coordinates of data."""
        return (x - self.centre) / self.unit

    def leave(self, result: EMResult, total_weight: Float[Array, ""]) -> EMResult:
        """A mixture's result in the data's own coordinates, log-likelihoods included."""
        d = self.centre.shape[0]
        shift = total_weight * d * jnp.log(self.unit)
        return dataclasses.replace(
            result,
            model=result.model.affine(self.centre, self.unit),
            log_likelihood=result.log_likelihood - shift,
            objective=result.objective - shift,
            trace=result.trace - shift,
        )

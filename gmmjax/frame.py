"""Coordinates in which sums over the data keep their digits: about the mean, in units of the spread.

Σ r x xᵀ − N μμᵀ cancels far from the origin, and a log-likelihood that carries n·d·log(scale) hides
the changes that decide convergence. The unit is a power of two, so that scaling rounds nothing.
"""

import dataclasses

import jax.numpy as jnp

from gmmjax.em import EMResult
from gmmjax.moments import column_mean
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
        delta = x - centre
        if weights is not None:
            delta = jnp.where((weights > 0)[:, None], delta, 0.0)
        # The largest entry first: squares of 1e25 are beyond float32.
        largest = jnp.max(jnp.abs(delta))
        safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1.0)
        spread = safe * jnp.sqrt(jnp.mean((delta / safe) ** 2))
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

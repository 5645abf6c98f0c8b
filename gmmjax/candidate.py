"""A mixture whose number of components and covariance family are data, not structure.

One compiled program then fits a whole grid of both. Components from k on are masked: their weight is
0, so that they take part in nothing, and the M-step is a `lax.switch` among the families that store
their covariances alike (the 14 fall into 6 such groups). Separate from the mixture, because a mixture
that is handed out has exactly its own components.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from gmmjax import families
from gmmjax.expectation import Prepared
from gmmjax.mixture import GaussianMixture
from gmmjax.moments import Moments
from gmmjax.status import Status
from gmmjax.typing import Array, ArrayLike, Bool, Float, Int, pytree, static


@pytree
class Choice:
    """Which cell of a grid a program is to fit. It is passed to the M-step as a prior is."""

    n_components: Int[Array, ""]
    family: Int[Array, ""]  # an index into `Candidate.names`


@pytree
class Candidate:
    """A mixture of at most K components, of one of the families `names`."""

    mixture: GaussianMixture  # K components, those from k on of log-weight −∞
    names: tuple[str, ...] = static()

    def prepare(self) -> Prepared:
        """What the E-step needs: it does not depend on the family's constraint."""
        return self.mixture.prepare()

    def expect(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"]
    ) -> tuple[Moments, Float[Array, ""]]:
        """The mixture's E-step on a block of rows."""
        return self.mixture.expect(x, weights)

    def maximize(
        self, sums: Moments, *, prior: Choice, reg: ArrayLike = 0.0
    ) -> tuple["Candidate", Int[Array, ""]]:
        """The M-step of the family chosen; masked components do not count as emptied ones."""
        model, status = lax.switch(
            prior.family,
            [_step(name, self.names[0]) for name in self.names],
            self.mixture,
            sums,
            reg,
        )
        used = among(prior.n_components, self.mixture.n_components)
        empty = jnp.any(used & ~(sums.weight > jnp.finfo(sums.weight.dtype).tiny))
        masked = (status == Status.EMPTY_COMPONENT) & ~empty
        return Candidate(model, self.names), jnp.where(masked, Status.CONVERGED, status)

    def log_prior(self, prior: Choice) -> float:
        """A choice of cell is no prior."""
        return 0.0

    def affine(self, shift: Float[Array, "d"], unit: ArrayLike = 1.0) -> "Candidate":
        """The distribution of shift + unit · x."""
        return Candidate(self.mixture.affine(shift, unit), self.names)


Step = Callable[[GaussianMixture, Moments, ArrayLike], tuple[GaussianMixture, Array]]


def _step(name: str, stored: str) -> Step:
    def step(model: GaussianMixture, sums: Moments, reg: ArrayLike) -> tuple:
        model, status = dataclasses.replace(model, family=name).maximize(sums, reg=reg)
        return dataclasses.replace(model, family=stored), status

    return step


def among(n_components: ArrayLike, capacity: int) -> Bool[Array, "K"]:
    """Which of K components are used."""
    return jnp.arange(capacity) < n_components


def groups(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The families by how their covariances are stored and what moments they need: a program each."""
    found: dict[tuple, list[str]] = {}
    for name in names:
        family = families.get(name)
        found.setdefault((family.covariance, family.second), []).append(family.name)
    return [tuple(group) for group in found.values()]


def extract(model: GaussianMixture, n_components: int, name: str) -> GaussianMixture:
    """The mixture of a cell by itself: its own components, its own family."""
    k = n_components
    per_component = not families.get(name).second.pooled
    factors = model.factors
    if per_component:
        factors = jax.tree.map(lambda a: a[:k], factors)
    return GaussianMixture(model.log_weights[:k], model.means[:k], factors, families.get(name).name)

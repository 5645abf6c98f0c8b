"""The prior's two updates: a gradient step on free parameters, and the library's M-step.

Free parameters are unconstrained numbers: logits for the weights (a softmax keeps their sum at 1), logs of
standard deviations and of the diagonals of Cholesky factors, above a floor that keeps a component
from collapsing onto a point. A family with a further constraint (a common shape, say) is stepped in its
parametrisation and then brought back to its nearest member.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gmmjax import families, moments
from gmmjax.families import Covariance, Full, Tied
from gmmjax.mixture import GaussianMixture
from gmmjax.moments import Moments
from gmmjax.priors import Prior
from gmmjax.typing import Array, ArrayLike

FLOOR = 0.03
"""Least standard deviation under the gradient, in the units of codes that a standard normal held."""


def free(prior: GaussianMixture) -> GaussianMixture:
    """The same mixture in unconstrained numbers; not a mixture until `bound`."""
    return dataclasses.replace(prior, factors=_on_scales(prior.factors, _loosen))


def bound(parameters: GaussianMixture) -> GaussianMixture:
    """The mixture of free parameters."""
    return dataclasses.replace(
        parameters,
        log_weights=jax.nn.log_softmax(parameters.log_weights),
        factors=_on_scales(parameters.factors, _tighten),
    )


def project(prior: GaussianMixture) -> GaussianMixture:
    """The nearest mixture of its family; itself where the parametrisation is the family."""
    family = families.get(prior.family)
    if not family.shared or family.second.pooled:
        return prior
    return dataclasses.replace(prior, factors=family.from_dense(prior.covariances))


def standard(k: int, d: int, family: str) -> GaussianMixture:
    """N(0, I), as k equal components: the prior of a plain VAE, in the shape of the one to come."""
    f = families.get(family)
    eye = jnp.broadcast_to(jnp.eye(d), (k, d, d))
    zero = jnp.zeros(())
    return GaussianMixture(
        jnp.full(k, -jnp.log(k), zero.dtype), jnp.zeros((k, d)), f.from_dense(eye), f.name
    )


def mix(old: Moments, new: Moments, rate: ArrayLike) -> Moments:
    """(1 − rate) old + rate · new: the decaying average of online EM (Cappé and Moulines 2009)."""
    average = jax.tree.map(lambda a, b: a + rate * (b - a), old, moments.about_origin(new))
    return dataclasses.replace(average, about=old.about)


def refit(
    prior: GaussianMixture, sums: Moments, conjugate: Prior | None, reg: ArrayLike
) -> GaussianMixture:
    """The M-step on moments of the codes; the prior as it was where that is not finite."""
    model, _ = prior.maximize(sums, prior=conjugate, reg=reg)
    sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(model.factors)]))
    sound = sound & jnp.all(jnp.isfinite(model.means))
    return jax.tree.map(lambda new, old: jnp.where(sound, new, old), model, prior)


def _on_scales(factors: Covariance, fn: Callable[[Array], Array]) -> Covariance:
    """fn on standard deviations, or on the diagonals of triangular factors, whose upper part is 0."""
    if not isinstance(factors, (Full, Tied)):
        return jax.tree.map(fn, factors)
    lower = factors.scale_tril
    on_diagonal = jnp.eye(lower.shape[-1], dtype=bool)
    scale = jnp.where(on_diagonal, fn(jnp.where(on_diagonal, lower, 1.0)), jnp.tril(lower))
    return dataclasses.replace(factors, scale_tril=scale)


def _loosen(scale: Array) -> Array:
    return jnp.log(jnp.maximum(scale - FLOOR, 0.01 * FLOOR))


def _tighten(raw: Array) -> Array:
    return FLOOR + jnp.exp(raw)

"""Coordinates in which a mixture of any family has no constraints, and as many numbers as it is free.

A Hessian is taken in these. Weights are log-ratios; Σ_j = λ_j C_j with the volume λ_j as a logarithm
and |C_j| = 1, where C_j is by the family's letters the identity, a diagonal (logarithms that sum to 0), a
matrix (its Cholesky factor, the diagonal as logarithms that sum to 0), or D_j A_j D_jᵀ with one part
common: D_j then is the model's own axes turned by a Cayley rotation, a chart about the model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from gmmjax import families, linalg
from gmmjax.families import Decomposition
from gmmjax.mixture import GaussianMixture
from gmmjax.typing import Array, Float, pytree


@pytree
class Parameters:
    """What one reads of a mixture, or the standard errors of that."""

    weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    covariances: Float[Array, "k d d"]

    @classmethod
    def of(cls, model: GaussianMixture) -> "Parameters":
        """The weights, means and dense covariances of a mixture."""
        return cls(model.weights, model.means, model.covariances)


def coordinates(
    model: GaussianMixture,
) -> tuple[Float[Array, "p"], Callable[[Float[Array, "p"]], GaussianMixture]]:
    """θ [p] at the model, and the mixture at any θ; p is `model.n_parameters()`.

    The mixture comes back with full covariances, which have the family's constraint whatever θ.
    """
    parts = families.decompose(model)
    volume, shape, orientation = families.get(model.family).mclust
    d = model.n_features
    tree = {
        "log_ratios": model.log_weights[:-1] - model.log_weights[-1],
        "means": model.means,
        "log_volume": _own(jnp.log(parts.scale), volume == "V"),
        "form": _form(parts, shape, orientation),
    }
    theta, unravel = ravel_pytree(tree)

    def at(theta: Float[Array, "p"]) -> GaussianMixture:
        tree = unravel(theta)
        log_weights = jax.nn.log_softmax(jnp.append(tree["log_ratios"], 0.0))
        root = _root(tree["form"], parts, shape, orientation, d)
        root = jnp.exp(0.5 * tree["log_volume"])[:, None, None] * root
        root = jnp.broadcast_to(root, (model.n_components, d, d))
        if "turn" in tree["form"]:  # the only root that is not lower-triangular
            root = linalg.cholesky(linalg.dot(root, jnp.swapaxes(root, -1, -2)))
        return GaussianMixture(log_weights, tree["means"], families.Full(root), "full")

    return theta, at


def _own(a: Float[Array, "k ..."], own: bool) -> Float[Array, "#k ..."]:
    """Every component's, or where they are common the first one's."""
    return a if own else a[:1]


def _form(parts: Decomposition, shape: str, orientation: str) -> dict[str, Array]:
    """Coordinates of C_j."""
    d = parts.shape.shape[-1]
    if shape == "I":
        return {}
    log_shape = _own(jnp.log(parts.shape), shape == "V")[:, :-1]
    if orientation == "I":
        return {"log_shape": log_shape}
    if shape != orientation:
        turns = jnp.zeros((parts.scale.shape[0], d * (d - 1) // 2), log_shape.dtype)
        return {"log_shape": log_shape, "turn": _own(turns, orientation == "V")}
    form = linalg.einsum("kap,kp,kbp->kab", parts.orientation, parts.shape, parts.orientation)
    factor = linalg.cholesky(_own(form, shape == "V"))
    rows, columns = np.tril_indices(d, -1)
    log_diagonal = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1))
    return {"log_diagonal": log_diagonal[:, :-1], "below": factor[:, rows, columns]}


def _root(
    form: dict[str, Array], parts: Decomposition, shape: str, orientation: str, d: int
) -> Float[Array, "#k d d"]:
    """A square root of C_j at given coordinates."""
    if shape == "I":
        return jnp.eye(d, dtype=parts.scale.dtype)[None]
    if shape == orientation:
        diagonal = jnp.exp(_sum_zero(form["log_diagonal"]))
        rows, columns = np.tril_indices(d, -1)
        return jax.vmap(jnp.diag)(diagonal).at[:, rows, columns].set(form["below"])
    scale = jnp.exp(0.5 * _sum_zero(form["log_shape"]))
    if orientation == "I":
        return jax.vmap(jnp.diag)(scale)
    axes = _own(parts.orientation, orientation == "V")
    return linalg.dot(axes, _cayley(form["turn"], d)) * scale[:, None, :]


def _sum_zero(free: Float[Array, "k d-1"]) -> Float[Array, "k d"]:
    return jnp.concatenate([free, -jnp.sum(free, axis=-1, keepdims=True)], axis=-1)


def _cayley(turn: Float[Array, "k q"], d: int) -> Float[Array, "k d d"]:
    """(I − S/2)⁻¹ (I + S/2), S skew with `turn` below its diagonal: the identity at 0."""
    rows, columns = np.tril_indices(d, -1)
    half = jnp.zeros((turn.shape[0], d, d), turn.dtype).at[:, rows, columns].set(0.5 * turn)
    skew = half - jnp.swapaxes(half, -1, -2)
    eye = jnp.eye(d, dtype=turn.dtype)
    return jnp.linalg.solve(eye - skew, eye + skew)

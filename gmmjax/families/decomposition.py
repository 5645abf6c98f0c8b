"""Volume, shape and orientation, read from a mixture of any family.

Σ_j = λ_j D_j A_j D_jᵀ (Banfield and Raftery 1993, Celeux and Govaert 1995). A mixture holds factors of the
Σ_j, whatever its family; the parts, and which of them are common, follow from the family's letters.
"""

from typing import Protocol

import jax.numpy as jnp

from gmmjax import linalg
from gmmjax.families.common_axes import candidate_axes, common_axes, free
from gmmjax.families.registry import get
from gmmjax.families.spectral import along, principal_axes
from gmmjax.typing import Array, Float, pytree


class HasCovariances(Protocol):
    """What `decompose` reads: a `GaussianMixture`."""

    @property
    def family(self) -> str:
        """Its name."""
        ...

    @property
    def covariances(self) -> Float[Array, "k d d"]:
        """Σ_j, dense."""
        ...


@pytree
class Decomposition:
    """Σ_j = scale_j · orientation_j · diag(shape_j) · orientation_jᵀ.

    A part that the family makes common is the same for every component to the last bit. The axes
    are the columns of `orientation`; the entry of largest size in each is positive. Along the
    coordinates, for the families whose third letter is I, `orientation` is the identity and `shape`
    in the order of the columns; otherwise the axes of each component, or for a common orientation
    those of all components together, are in the order of falling variance.
    """

    scale: Float[Array, "k"]  # λ_j = |Σ_j|^{1/d}, the volume: squared units of the data
    shape: Float[Array, "k d"]  # the diagonal of A_j, product 1
    orientation: Float[Array, "k d d"]  # D_j, orthogonal

    @property
    def covariances(self) -> Float[Array, "k d d"]:
        """Σ_j, put together again."""
        variances = self.scale[:, None] * self.shape
        return linalg.einsum("kap,kp,kbp->kab", self.orientation, variances, self.orientation)


def decompose(model: HasCovariances) -> Decomposition:
    """The volume, shape and orientation of each component; see `Decomposition`.

    >>> import gmmjax
    >>> m = gmmjax.GaussianMixture.create([0.5, 0.5], [[0, 0], [4, 4]], [4.0, 9.0], "spherical")
    >>> gmmjax.families.decompose(m).scale.tolist()
    [4.0, 9.0]
    """
    volume, shape, orientation = get(model.family).mclust
    covariances = model.covariances
    k, d = covariances.shape[:2]
    eye = jnp.broadcast_to(jnp.eye(d, dtype=covariances.dtype), (k, d, d))
    if orientation == "I":
        axes, variances = eye, jnp.diagonal(covariances, axis1=-2, axis2=-1)
    elif orientation == "V":
        variances, axes = principal_axes(covariances)
    else:
        common = _common(covariances, shape)
        axes, variances = jnp.broadcast_to(common, (k, d, d)), along(common, covariances)
    logs = jnp.log(variances)
    log_scale = jnp.mean(logs, axis=-1)
    log_shape = logs - log_scale[:, None]
    if shape == "I":
        log_shape = jnp.zeros_like(log_shape)
    if shape == "E":
        log_shape = jnp.broadcast_to(jnp.mean(log_shape, axis=0), (k, d))
    if volume == "E":
        log_scale = jnp.broadcast_to(jnp.mean(log_scale), (k,))
    return Decomposition(jnp.exp(log_scale), jnp.exp(log_shape), _signed(axes))


def _common(covariances: Float[Array, "k d d"], shape: str) -> Float[Array, "d d"]:
    """The axes that all components have, the largest mean variance (relative to volume) first."""
    k, d = covariances.shape[:2]
    volume = jnp.exp(2 * linalg.half_log_det(linalg.cholesky(covariances)) / d)
    relative = covariances / volume[:, None, None]
    if shape == "E":
        return principal_axes(jnp.mean(relative, axis=0)[None])[1][0]
    count = jnp.ones(k, covariances.dtype)
    floor = jnp.zeros(1, covariances.dtype)
    axes = common_axes(relative, count, floor, free, candidate_axes(relative, count))
    order = jnp.argsort(-jnp.mean(along(axes, relative), axis=0))
    return axes[:, order]


def _signed(axes: Float[Array, "k d d"]) -> Float[Array, "k d d"]:
    largest = jnp.argmax(jnp.abs(axes), axis=-2, keepdims=True)
    return axes * jnp.sign(jnp.take_along_axis(axes, largest, axis=-2))

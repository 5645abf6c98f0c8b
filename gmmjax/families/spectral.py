"""Eigenvalues and axes: what the families that constrain them have in common.

Celeux and Govaert (1995) write Σ_j = λ_j D_j A_j D_jᵀ: volume λ_j = |Σ_j|^{1/d}, shape A_j (diagonal,
determinant 1), orientation D_j (orthogonal). Here `variances` are the products λ_j A_j, that is the
eigenvalues of Σ_j, and `axes` are the columns of D_j.
"""

import jax.numpy as jnp

from gmmjax import linalg
from gmmjax.families.full import Full
from gmmjax.typing import Array, Bool, Float


def principal_axes(
    scatter: Float[Array, "k d d"],
) -> tuple[Float[Array, "k d"], Float[Array, "k d d"]]:
    """Eigenvalues, the largest first and none below 0, and eigenvectors, of symmetric matrices."""
    values, vectors = jnp.linalg.eigh(linalg.symmetrize(scatter))
    return jnp.maximum(values[:, ::-1], 0.0), vectors[:, :, ::-1]


def along(axes: Float[Array, "d d"], scatter: Float[Array, "k d d"]) -> Float[Array, "k d"]:
    """The spread of each component along common axes: the diagonal of Dᵀ W_j D."""
    return jnp.maximum(linalg.einsum("ap,kab,bp->kp", axes, scatter, axes), 0.0)


def assemble(axes: Float[Array, "#k d d"], variances: Float[Array, "k d"]) -> Full:
    """The factors of D_j diag(variances_j) D_jᵀ; NaN where a variance is not positive."""
    d = variances.shape[-1]
    ratio = jnp.max(variances, axis=-1) / jnp.min(variances, axis=-1)
    # Beyond this the small variances would drown in the product with the large ones.
    narrow = ratio * d * jnp.finfo(variances.dtype).eps > 1e-3
    root = axes * jnp.sqrt(variances)[:, None, :]
    factor = linalg.cholesky(linalg.dot(root, jnp.swapaxes(root, -1, -2)))
    fine = jnp.all(variances > 0, axis=-1) & jnp.all(jnp.isfinite(variances), axis=-1)

    def stable() -> Array:
        usable = jnp.where(fine[:, None, None], root, jnp.eye(d, dtype=root.dtype))
        # Rᵀ of QR(rootᵀ) is the Cholesky factor of root rootᵀ, without the product.
        lower = jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(usable, -1, -2), mode="r"), -1, -2)
        sign = jnp.where(jnp.diagonal(lower, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
        return (lower * sign[:, None, :]).astype(factor.dtype)

    factor = linalg.when(jnp.any(narrow & fine), stable, factor)
    return Full(jnp.where(fine[:, None, None], factor, jnp.nan))


def share(
    scatter: Float[Array, "k ..."], count: Float[Array, "k"]
) -> tuple[Float[Array, "k ..."], Float[Array, "k"]]:
    """Scatter and count, those of a component without weight replaced by the average of the others.

    It adds nothing to sums that are weighted by the true counts, and gives such a component a
    covariance that belongs to the family instead of 0/0.
    """
    axes = (1,) * (scatter.ndim - 1)
    used = count > 0
    average = jnp.sum(scatter, axis=0) / jnp.sum(count)
    return (
        jnp.where(used.reshape(-1, *axes), scatter, average),
        jnp.where(used, count, jnp.ones_like(count)),
    )


def on_floor(variances: Float[Array, "k d"], floor: Float[Array, "#d"]) -> Bool[Array, "k"]:
    """Whether a component has a variance at its floor, or none that is positive."""
    rounding = 1 + 8 * jnp.finfo(variances.dtype).eps
    return jnp.any(~(variances > floor * rounding), axis=-1)


def supported(variances: Float[Array, "k d"], floor: Float[Array, "#d"]) -> Float[Array, "k d"]:
    """The variances, those that are no more than rounding and have no floor below them as NaN."""
    d = variances.shape[-1]
    noise = d * jnp.finfo(variances.dtype).eps * jnp.max(variances, axis=-1, keepdims=True)
    return jnp.where((variances > noise) | (floor > 0), variances, jnp.nan)

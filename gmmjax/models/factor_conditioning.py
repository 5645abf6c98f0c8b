"""Marginals, conditionals and imputation of factor analysers, by what the factors tell.

Given the factors f the coordinates are independent, so whatever is known of x speaks to the rest through
f alone. With o the known coordinates, Λ' = Λ / s and δ' = (x − μ) / s,

    M = I + Λ'_oᵀ Λ'_o,   f | x_o, z ~ N(u, M⁻¹),   u = M⁻¹ Λ'_oᵀ δ'_o,
    x_m | x_o, z ~ N(μ_m + Λ_m u, Λ_m M⁻¹ Λ_mᵀ + Ψ_m):

again a factor analyser, and for each row a matrix of q × q in place of d × d (Ghahramani and Hinton
1996; Bishop 2006, section 12.2.4).
"""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax import checks, linalg, missing
from gmmjax.blocks import split
from gmmjax.incomplete import Incomplete
from gmmjax.typing import Array, ArrayLike, Float, Key

if TYPE_CHECKING:
    from gmmjax.models.factor_analysis import FactorMixture

_CHUNK = 2**21
"""Numbers of rows × features, or × factors², that are held at once."""


def marginal(mixture: "FactorMixture", dims: checks.Dims) -> "FactorMixture":
    """The mixture of the coordinates `dims` alone, in that order.

    Raises `ValueError` where `dims` is empty, repeats itself or is out of range.
    """
    return _take(mixture, checks.dims(dims, mixture.n_features))


def condition(mixture: "FactorMixture", dims: checks.Dims, values: ArrayLike) -> "FactorMixture":
    """p(b | a): the coordinates not in `dims`, in ascending order, given x[dims] = values.

    `values` has shape [..., m], m the length of `dims`, in their order; leading axes give a mixture
    with those leading axes on every leaf, to be used under `vmap`. For the conditional means of many
    rows `impute` holds less.

    Raises `ValueError` where `dims` is empty, holds every coordinate, repeats itself or is out of
    range, and where `values` has another length or is not finite.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_iris().x
    >>> start = gmmjax.models.FactorMixture.start(jax.random.key(0), x, 3, n_factors=1)
    >>> petals = gmmjax.em(start, x, reg=1e-6).model.condition([0, 1], [5.0, 3.4])
    >>> petals.loadings.shape, (petals.weights @ petals.means).round(1).tolist()
    ((3, 2, 1), [1.5, 0.2...])
    """
    d = mixture.n_features
    a = checks.dims(dims, d)
    rest = checks.other_dims(a, d)
    given = checks.given(values, a.size, mixture.means.dtype)
    return _condition(mixture, tuple(a.tolist()), tuple(rest.tolist()), given)


def impute(
    key: Key[Array, ""],
    mixture: "FactorMixture",
    x: ArrayLike,
    how: Literal["mean", "draw"] = "mean",
) -> Float[Array, "n d"]:
    """x [n, d] with a value for every NaN, from the conditional mixture given what its row holds.

    - "mean": the conditional mean, which has the least squared error.
    - "draw": a draw, which keeps the spread; several keys give multiple imputations.

    Only "draw" uses the key. Every row may have holes of its own: the cost is one matrix of q × q a row and
    component. Where nothing is known of a row it is filled from the whole mixture. Known values are
    returned as they are. Raises `ValueError` on an unknown `how`, on another number of columns, and on
    infinity.

    >>> import jax, jax.numpy as jnp, gmmjax
    >>> x = gmmjax.datasets.load_iris().x
    >>> start = gmmjax.models.FactorMixture.start(jax.random.key(0), x, 3, n_factors=1)
    >>> model = gmmjax.em(start, x, reg=1e-6).model
    >>> rows = [[5.0, 3.4, jnp.nan, jnp.nan]]
    >>> model.impute(jax.random.key(1), rows).round(1).tolist()
    [[5.0, 3.4..., 1.5, 0.2...]]
    """
    if how not in ("mean", "draw"):
        raise ValueError(
            f"how: expected 'mean' or 'draw'; got {how!r}. For the mode of a few features use "
            "to_mixture().impute."
        )
    data = missing.mask(x)
    if data.x.shape[1] != mixture.n_features:
        raise ValueError(
            f"x: expected {mixture.n_features} columns, as many as the mixture has features; got "
            f"{data.x.shape[1]}."
        )
    return _impute(key, mixture, data, how)


def _take(mixture: "FactorMixture", dims: np.ndarray) -> "FactorMixture":
    return dataclasses.replace(
        mixture,
        means=mixture.means[:, dims],
        loadings=mixture.loadings[:, dims],
        scale=mixture.scale[:, dims],
    )


@partial(jax.jit, static_argnames=("dims", "rest"))
def _condition(
    mixture: "FactorMixture", dims: tuple[int, ...], rest: tuple[int, ...], values: Array
) -> "FactorMixture":
    known, left = _take(mixture, np.array(dims)), _take(mixture, np.array(rest))
    batch, (k, t, q) = values.shape[:-1], left.loadings.shape
    rows = values.reshape(-1, values.shape[-1])
    u = known.factors(rows)
    # The factors' covariance given a, M⁻¹ = L⁻ᵀ L⁻¹, folded into the loadings.
    loadings = linalg.dot(left.loadings, jnp.swapaxes(known.inner_whitener(), -1, -2))
    log_weights = jax.nn.log_softmax(known.log_joint(rows), axis=-1)
    means = left.means + linalg.einsum("ktq,nkq->nkt", left.loadings, u)
    return dataclasses.replace(
        mixture,
        log_weights=log_weights.reshape(*batch, k),
        means=means.reshape(*batch, k, t),
        loadings=jnp.broadcast_to(loadings, (*batch, k, t, q)),
        scale=jnp.broadcast_to(left.scale, (*batch, k, t)),
    )


@partial(jax.jit, static_argnames="how")
def _impute(key: Array, mixture: "FactorMixture", data: Incomplete, how: str) -> Array:
    k, d, q = mixture.loadings.shape
    n = data.x.shape[0]
    dtype = mixture.means.dtype
    key_z, key_f, key_e = jax.random.split(key, 3)
    draw = how == "draw"
    noise = (
        jax.random.gumbel(key_z, (n, k), dtype),
        jax.random.normal(key_f, (n, q), dtype),
        jax.random.normal(key_e, (n, d), dtype),
    )
    # Λ'_i Λ'_iᵀ of each pixel i: their sum over the known pixels of many rows is one product.
    loadings = mixture.loadings / mixture.scale[:, :, None]
    eye = jnp.eye(q, dtype=dtype)

    def block(part: tuple[Incomplete, tuple[Array, ...] | None]) -> Array:
        rows, noise = part
        x, known = rows.x.astype(dtype), rows.observed.astype(dtype)

        def one(component: tuple[Array, ...]) -> tuple[Array, Array]:
            log_weight, mean, scale, slope = component
            delta = known * (x - mean) / scale
            square = (slope[:, :, None] * slope[:, None, :]).reshape(d, q * q)
            inner = linalg.cholesky(eye + linalg.dot(known, square).reshape(-1, q, q))
            inverse = linalg.inverse_lower(inner)
            v = linalg.einsum("nab,nb->na", inverse, linalg.dot(delta, slope))
            u = linalg.einsum("nba,nb->na", inverse, v)
            # As in the density: two sums of squares, where a difference would cancel.
            left = delta - known * linalg.dot(u, slope.T)
            fit = jnp.sum(left * left, axis=-1) + jnp.sum(u * u, axis=-1)
            log_det = linalg.dot(known, jnp.log(scale)) + linalg.half_log_det(inner)
            if noise is not None:
                u = u + linalg.einsum("nba,nb->na", inverse, noise[1])
            return log_weight - log_det - 0.5 * fit, u

        components = (mixture.log_weights, mixture.means, mixture.scale, loadings)
        joint, u = lax.map(one, components)
        if noise is None:
            r = jax.nn.softmax(joint, axis=0).T
        else:
            r = jax.nn.one_hot(jnp.argmax(joint.T + noise[0], axis=-1), k, dtype=dtype)
        value = linalg.dot(r, mixture.means)
        value = value + linalg.einsum("nk,knq,kdq->nd", r, u, mixture.loadings)
        if noise is not None:
            value = value + linalg.dot(r, mixture.scale) * noise[2]
        return jnp.where(rows.observed, rows.x, value)

    laid = split((data, noise if draw else None), block=max(1, _CHUNK // max(d, q * q)))
    return lax.map(block, laid.data).reshape(-1, d)[:n]

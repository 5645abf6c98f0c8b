"""Starts for a mixture: centres or responsibilities, and the first M-step.

Distances are measured in coordinates in which the family is at home (`metric`), so that a fit
moves with its data: whitened for families closed under every linear map, scaled by column for those
closed under column scaling, as they are for the spherical one.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gmmjax import blocks as blocks_
from gmmjax import families, linalg, mixture, moments
from gmmjax.blocks import Blocks
from gmmjax.em import expect, run_to_end
from gmmjax.kmeans import Assignment, KMeans, scale_of
from gmmjax.lanes import in_batches
from gmmjax.mixture import GaussianMixture
from gmmjax.moments import Moments
from gmmjax.priors import Prior
from gmmjax.seeding import at_quantile, kmeans_plus_plus, random_points
from gmmjax.typing import Array, ArrayLike, Float, Int, Key

METHODS = ("mixed", "k-means", "k-means++", "random_points", "random_responsibilities")


def overall(blocks: Blocks) -> Float[Array, "d d"]:
    """A lower factor of the covariance of the data, which are centred already.

    It has a floor at rounding: collinear columns leave it invertible, and nearly true.
    """
    d = blocks.data.shape[-1]

    def second(x: Array, w: Array) -> Array:
        return linalg.dot(x.T * w, x)

    total = blocks_.total(second, blocks) / blocks.total_weight
    variance = jnp.diagonal(total)
    deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
    # Correlations, not covariances: the floor is then free of units.
    correlation = total / (deviation[:, None] * deviation)
    correlation = jnp.where(jnp.eye(d, dtype=bool), 1.0, correlation)
    floor = jnp.full((d,), 100 * d * jnp.finfo(total.dtype).eps, total.dtype)
    factor, _ = linalg.floored_cholesky(correlation[None], floor)
    return deviation[:, None] * factor[0]


def metric(factor: Float[Array, "d d"], family: str) -> tuple[Array, Array]:
    """M such that distances are Euclidean in x Mᵀ, and its inverse; `factor` as from `overall`."""
    match families.get(family).equivariance:
        case "linear":
            return linalg.inverse_lower(factor), factor
        case "diagonal":
            deviation = jnp.sqrt(jnp.sum(factor**2, axis=1))
            return jnp.diag(1.0 / deviation), jnp.diag(deviation)
        case _:
            eye = jnp.eye(len(factor), dtype=factor.dtype)
            return eye, eye


def starts(
    key: Key[Array, ""],
    method: str,
    lanes: int,
    batch: int,
    blocks: Blocks,
    k: int,
    family: str,
    *,
    prior: Prior | None,
    reg: ArrayLike,
    coordinates: tuple[Array, Array] | None = None,
    n_used: ArrayLike | None = None,
) -> GaussianMixture:
    """Starting mixtures with a leading axis of lanes, by one of `METHODS`; a key a lane.

    "mixed" takes two thirds of the lanes from k-means++ seeds and the rest from random points: either
    alone misses optima that the other finds. `coordinates` stands for the family's `metric`. With `n_used`
    the components from there on are masked, their weight 0.
    """
    keys = jax.random.split(key, lanes)
    table = _starters(blocks, k, family, prior, reg, coordinates, n_used)
    if method != "mixed":
        return in_batches(table[method], keys, batch)
    first = -(-2 * lanes // 3)
    parts = [
        in_batches(table[name], part, batch)
        for name, part in (("k-means++", keys[:first]), ("random_points", keys[first:]))
        if part.shape[0]
    ]
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def _starters(
    blocks: Blocks,
    k: int,
    family: str,
    prior: Prior | None,
    reg: ArrayLike,
    coordinates: tuple[Array, Array] | None,
    n_used: ArrayLike | None,
) -> dict[str, Callable[[Key[Array, ""]], GaussianMixture]]:
    """Functions from a key to a starting mixture, by name."""
    factor = overall(blocks)
    scaling, back = metric(factor, family) if coordinates is None else coordinates
    rows, weights = blocks.rows(), blocks.weights.reshape(-1)
    chunks = blocks_.chunked(blocks)
    used = jnp.ones(k, bool) if n_used is None else jnp.arange(k) < n_used

    def see(x: Array) -> Array:
        return linalg.dot(x, scaling.T)

    def alike(weight: Array, means: Array, covariance: Array) -> GaussianMixture:
        """Components with one covariance. They are members of every family: no constraint differs."""
        dense = jnp.broadcast_to(covariance, (k, *covariance.shape))
        factors = families.get(family).covariance.from_dense(dense)
        weight = jnp.where(used, weight, 0.0)
        log_weights = jnp.log(weight / jnp.sum(weight))
        return GaussianMixture(log_weights, means, factors, families.get(family).name)

    def within(assigned: Assignment, centers: Array) -> GaussianMixture:
        """The shares and means of clusters, and what they leave of the covariance."""
        weight = assigned.weight
        safe = jnp.where(weight > 0, weight, 1.0)[:, None]
        center = jnp.where(weight[:, None] > 0, assigned.first / safe, centers)
        means = linalg.dot(center, back.T)
        share = weight / jnp.sum(weight)
        between = linalg.dot(means.T * share, means)
        # A thousandth more than all there is: the rest of a subtraction must stay positive definite.
        left = 1.001 * linalg.dot(factor, factor.T) - between
        return alike(jnp.maximum(share, 1e-3 / k), means, left)

    def seeds(key: Key[Array, ""]) -> Float[Array, "k d"]:
        points = see(rows[kmeans_plus_plus(key, blocks, k, see)])
        # What is masked lies so far away that no row comes to it.
        return jnp.where(used[:, None], points, 1e6)

    # A copy of the data, for the many passes of "k-means"; where that is not asked for, none is made.
    seen = Blocks(see(blocks.data), blocks.weights)

    def by_kmeans(key: Key[Array, ""]) -> GaussianMixture:
        end = run_to_end(KMeans(seeds(key)), seen, tol=1e-4 * scale_of(seen), max_steps=50)
        return within(end.moments, end.model.centers)

    def by_seeds(key: Key[Array, ""]) -> GaussianMixture:
        model = KMeans(seeds(key))

        def one(x: Array, w: Array) -> tuple[Assignment, Array]:
            return expect(model, Blocks(see(x), w))

        return within(blocks_.total(one, chunks)[0], model.centers)

    def by_points(key: Key[Array, ""]) -> GaussianMixture:
        points = rows[random_points(key, weights, k)]
        return alike(jnp.ones(k, points.dtype), points, linalg.dot(factor, factor.T))

    def by_responsibilities(key: Key[Array, ""]) -> GaussianMixture:
        # A key a row, so that the start does not depend on how rows are laid out in blocks.
        index = jnp.arange(weights.shape[0]).reshape(blocks.weights.shape)

        def draw(row: Int[Array, "rows"]) -> Float[Array, "rows k"]:
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(row)
            e = jax.vmap(lambda one: jax.random.exponential(one, (k,), rows.dtype))(keys)
            return e / jnp.sum(e, axis=1, keepdims=True)  # Dirichlet(1, …, 1)

        sums = _collect(Blocks((blocks.data, index), blocks.weights), draw, k, family)
        return mixture.from_moments(sums, family, prior=prior, reg=reg)[0]

    return {
        "k-means": by_kmeans,
        "k-means++": by_seeds,
        "random_points": by_points,
        "random_responsibilities": by_responsibilities,
    }


def swap(key: Key[Array, ""], model: GaussianMixture, blocks: Blocks) -> GaussianMixture:
    """The model with a component, drawn at random, moved to a row that the model explains badly.

    Random swap (Zhao, Hautamäki and Fränti 2012): EM cannot move a component from where two share a
    cluster to where one covers two, because the way leads downhill. Such a start is at the other side.
    Rows are drawn in proportion to √(max log p − log p), much like a distance to what is covered.
    """
    u = jax.random.uniform(key, (2,), model.means.dtype)
    # Masked components, of weight 0, stay where they are.
    used = (model.log_weights > -jnp.inf).astype(model.means.dtype)
    j = at_quantile(u[:1], used)[0]
    row = at_quantile(u[1:], _badly_explained(model, blocks))[0]
    log_weights = model.log_weights.at[j].set(-jnp.log(jnp.sum(used)))
    return dataclasses.replace(
        model,
        log_weights=jax.nn.log_softmax(log_weights),
        means=model.means.at[j].set(blocks.rows()[row]),
    )


def _badly_explained(model: GaussianMixture, blocks: Blocks) -> Float[Array, "n"]:
    """w √(max log p − log p) of every row; w where that is 0 everywhere, or no number."""
    weights = blocks.weights.reshape(-1)
    density = jax.lax.map(model.log_prob, blocks.data).reshape(-1)
    best = jnp.max(jnp.where(weights > 0, density, -jnp.inf))
    mass = weights * jnp.sqrt(jnp.maximum(best - density, 0.0))
    total = jnp.sum(mass)
    return jnp.where((total > 0) & jnp.isfinite(total), mass, weights)


def labelled(
    blocks: Blocks, k: int, family: str, prior: Prior | None, reg: ArrayLike
) -> GaussianMixture:
    """The M-step from hard labels; `blocks.data` is (x, labels). Labels outside 0 … k − 1 count not.

    Two passes, the second about the means found by the first, so that narrow classes keep their
    digits.
    """

    def one_hot(labels: Int[Array, "rows"]) -> Float[Array, "rows k"]:
        return jax.nn.one_hot(labels, k)

    means = moments.centre(_collect(blocks, one_hot, k, family)).mean
    sums = _collect(blocks, one_hot, k, family, about=means)
    return mixture.from_moments(sums, family, prior=prior, reg=reg)[0]


def _collect(
    blocks: Blocks, responsibilities: Callable, k: int, family: str, about: Array | None = None
) -> Moments:
    """Moments over all rows of the responsibilities that a block's further data give."""
    kind = families.get(family).second
    x = blocks.data[0]
    points = jnp.zeros((k, x.shape[-1]), x.dtype) if about is None else about

    def one(data: tuple, weights: Array) -> Moments:
        x, *rest = data
        r = responsibilities(*rest)
        return moments.from_responsibilities(x, r.astype(x.dtype) * weights[:, None], points, kind)

    return blocks_.total(one, blocks)

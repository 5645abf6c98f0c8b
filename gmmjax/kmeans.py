"""K-means: Lloyd's iteration on the same driver, with hard responsibilities.

The limit of EM for spherical components of one common variance → 0 (MATH 4). The model's
"log-likelihood" is minus its inertia, so the driver's rise is Lloyd's fall.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gmmjax import checks, linalg
from gmmjax.backend import Choice, choose_for_kmeans, program
from gmmjax.blocks import Blocks, bucketed, collect, split, total, unfilled
from gmmjax.em import blank, turn
from gmmjax.lanes import Lanes, best_of, in_batches
from gmmjax.moments import column_mean
from gmmjax.seeding import kmeans_plus_plus, random_points
from gmmjax.status import Status
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree, static


@pytree
class Assignment:
    """What Lloyd's update needs from the data; two of them add up.

    Next to the sums stand the rows farthest from their centres, one candidate a block, so that an
    emptied cluster can be seeded again without another pass over the data.
    """

    weight: Float[Array, "k"]
    first: Float[Array, "k d"]
    far_distance: Float[Array, "m"]  # squared, descending; 0 where there is no candidate
    far_point: Float[Array, "m d"]

    def __add__(self, other: "Assignment") -> "Assignment":
        distance = jnp.concatenate([self.far_distance, other.far_distance])
        point = jnp.concatenate([self.far_point, other.far_point])
        order = jnp.argsort(-distance)[: self.far_distance.shape[0]]
        return Assignment(
            self.weight + other.weight,
            self.first + other.first,
            distance[order],
            point[order],
        )


@pytree
class KMeans:
    """Centres, and what follows from them alone."""

    centers: Float[Array, "k d"]

    def predict(self, x: ArrayLike) -> Int[Array, "n"]:
        """The nearest centre of each row; the first of equals.

        Raises `ValueError`, as the other methods do, on another number of columns, and on NaN or
        infinity outside `jit`.
        """
        origin = jnp.mean(self.centers, axis=0)  # far from 0 the expanded square cancels
        return _nearest(self.centers - origin, self._rows(x) - origin)

    def transform(self, x: ArrayLike) -> Float[Array, "n k"]:
        """Euclidean distance of each row to each centre, by differences."""
        x = self._rows(x)
        squares = jax.lax.map(lambda c: jnp.sum((x - c) ** 2, axis=1), self.centers)
        return jnp.sqrt(squares.T)

    def inertia(self, x: ArrayLike, weights: ArrayLike | None = None) -> Float[Array, ""]:
        """Σ_i w_i min_j ‖x_i − μ_j‖², by differences: never negative."""
        x = self._rows(x)
        rows = jnp.sum((x - self.centers[self.predict(x)]) ** 2, axis=1)
        return jnp.sum(rows if weights is None else rows * jnp.asarray(weights, rows.dtype))

    def _rows(self, x: ArrayLike) -> Float[Array, "n d"]:
        rows = checks.points(x, self.centers.shape[1], self.centers.dtype)
        if rows.ndim != 2:
            raise ValueError(f"x: expected shape [n, {self.centers.shape[1]}]; got {rows.shape}.")
        return rows

    def localize(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"] | None, prior: Any
    ) -> tuple["KMeans", Array, Any, Callable]:
        """Everything about the data's mean, where the expanded square does not cancel."""
        centre = column_mean(x, weights)
        return (
            KMeans(self.centers - centre),
            x - centre,
            prior,
            lambda result: dataclasses.replace(result, model=KMeans(result.model.centers + centre)),
        )

    def expect(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"], precision: str = "highest"
    ) -> tuple[Assignment, Float[Array, ""]]:
        """Hard assignment of a block: sums per cluster, and minus its inertia."""
        k, d = self.centers.shape
        labels = _nearest(self.centers, x, precision)
        hot = (labels == jnp.arange(k)[:, None]).astype(x.dtype) * weights
        distance = jnp.sum((x - self.centers[labels]) ** 2, axis=1)
        reach = jnp.where(weights > 0, distance, 0.0)
        farthest = jnp.argmax(reach)
        room = min(k, 8)
        found = Assignment(
            jnp.sum(hot, axis=1),
            linalg.dot(hot, x, "high" if precision == "tf32" else precision),
            jnp.zeros(room, x.dtype).at[0].set(reach[farthest]),
            jnp.zeros((room, d), x.dtype).at[0].set(x[farthest]),
        )
        return found, -jnp.sum(weights * distance)

    def collect(self, blocks: Blocks) -> tuple[Assignment, Float[Array, ""]]:
        """The sum of `expect` over all blocks, by a kernel where `blocks.how` says so."""
        precision = blocks.how.precision
        if blocks.how.kernel == "xla":
            return collect(partial(self.expect, precision=precision), blocks)
        rows, weights = blocks.rows(), blocks.weights.reshape(-1)
        room = min(self.centers.shape[0], 8)
        if blocks.how.kernel == "native":
            from gmmjax import native

            *found, inertia = native.assign(self.centers, rows, weights, room=room)
        else:
            from gmmjax import kernels

            *found, inertia = kernels.assign(
                self.centers, rows, weights, room=room, precision=precision
            )
        return Assignment(*found), -inertia

    def maximize(
        self, moments: Assignment, *, prior: Any = None, reg: ArrayLike = 0.0
    ) -> tuple["KMeans", Int[Array, ""]]:
        """Means of the clusters; the r-th emptied one moves to the r-th farthest row."""
        weight = moments.weight
        empty = ~(weight > 0)
        mean = moments.first / jnp.where(empty, 1.0, weight)[:, None]
        rank = jnp.clip(jnp.cumsum(empty) - 1, 0, moments.far_distance.shape[0] - 1)
        turn = jnp.cumsum(empty) <= moments.far_distance.shape[0]
        reseed = empty & turn & (moments.far_distance[rank] > 0)
        centers = jnp.where(empty[:, None], self.centers, mean)
        centers = jnp.where(reseed[:, None], moments.far_point[rank], centers)
        left = jnp.any(empty & ~reseed)
        return KMeans(centers), jnp.where(left, Status.EMPTY_COMPONENT, Status.CONVERGED)


def _nearest(
    centers: Float[Array, "k d"], x: Float[Array, "n d"], precision: str = "highest"
) -> Int[Array, "n"]:
    """argmin_j ½‖μ_j‖² − μ_j·x: half the squared distance, up to a term in x.

    A minimum, and the first index that attains it: XLA's argmin on a CPU is not vectorised.
    """
    k = centers.shape[0]
    half = 0.5 * jnp.sum(centers * centers, axis=1)
    distance = half[:, None] - linalg.dot(centers, x.T, precision)
    least = jnp.min(distance, axis=0)
    index = jnp.where(distance <= least, jnp.arange(k)[:, None], k - 1)  # NaN: any will do
    return jnp.min(index, axis=0)


def scale_of(blocks: Blocks) -> Float[Array, ""]:
    """Σ_a Var(x_a): the inertia per unit weight of a single cluster, the unit of the tolerance."""

    def sums(x: Array, w: Array) -> tuple[Array, Array]:
        return jnp.sum(w[:, None] * x, axis=0), jnp.sum(w[:, None] * x * x)

    first, second = total(sums, blocks)
    n = blocks.total_weight
    return second / n - jnp.sum((first / n) ** 2)


@pytree
class KMeansResult:
    """The best lane of K-means."""

    model: KMeans
    labels: Int[Array, "n"]  # the nearest centre of each row
    inertia: Float[Array, ""]  # Σ_i w_i min_j ‖x_i − μ_j‖², in the data's units squared
    converged: Array  # bool
    status: Int[Array, ""]  # a `Status`
    n_steps: Int[Array, ""]
    best: Int[Array, ""]  # which lane it was
    lanes: Lanes  # how every lane ended; its "log-likelihood" is minus the inertia
    choice: Choice = static(default=Choice())  # how it was computed

    @property
    def centers(self) -> Float[Array, "k d"]:
        return self.model.centers


def kmeans(
    key: Key[Array, ""],
    x: ArrayLike,
    n_clusters: int,
    *,
    restarts: int = 16,
    init: str | ArrayLike = "k-means++",
    weights: ArrayLike | None = None,
    tol: ArrayLike = 1e-7,
    max_steps: ArrayLike = 300,
    block: int | None = None,
    restart_batch: int | None = None,
    kernel: str = "auto",
    precision: str = "high",
    throw: bool = True,
) -> KMeansResult:
    """K-means by Lloyd's iteration from many starts at once; the least inertia is kept.

    **Arguments**

    - `key`: a `jax.random.key`; `x`: data [n, d], finite; `n_clusters`: k, at most n.
    - `restarts`: how many starts; given centres, as many as are given.
    - `init`: "k-means++" (greedy), "random_points", or centres [k, d] or [lanes, k, d].
    - `weights`: how often each row counts, [n].
    - `tol`: the fall of the inertia in one step, as a fraction of the variance of the data per row,
      at which a lane has converged. With 0, exactly `max_steps` are taken.
    - `max_steps`, `block`, `restart_batch`, `throw`: as in `fit`.
    - `kernel`: "auto", "xla", "native" or "pallas", as in `fit`; `precision` of the product that
      searches, in float32 on a GPU: "highest", "high", or "tf32", where a row that lies between two
      centres may go to either. Sums and inertia are those of the labels.

    An emptied cluster is moved to the row farthest from its centre; where every row lies on a
    centre, clusters stay empty and the status is `EMPTY_COMPONENT`.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError`.

    >>> import jax, gmmjax
    >>> x = [[0.0], [1.0], [10.0], [11.0]]
    >>> result = gmmjax.kmeans(jax.random.key(0), x, 2)
    >>> float(result.inertia), sorted(result.centers.ravel().tolist())
    (1.0, [0.5, 10.5])
    """
    x = checks.rows(x)
    n, d = x.shape
    k = checks.count(n_clusters, "n_clusters")
    w = checks.weights(weights, n, x.dtype)
    checks.enough_rows(n, k, w, "n_clusters")
    checks.nonnegative(tol, "tol")
    checks.nonnegative(max_steps, "max_steps")
    lanes = checks.count(restarts, "restarts")
    start = None
    if isinstance(init, str):
        if init not in ("k-means++", "random_points"):
            raise ValueError(f"init: expected k-means++, random_points or centres; got {init!r}.")
    else:
        start = jnp.asarray(init, x.dtype)
        if start.shape[-2:] != (k, d) or start.ndim not in (2, 3):
            raise ValueError(
                f"init: expected centres of shape [{k}, {d}] or [lanes, {k}, {d}]; got {start.shape}."
            )
        start = start[None] if start.ndim == 2 else start
        lanes, init = start.shape[0], "centers"
    choice = choose_for_kmeans(
        n, d, k, x.dtype, lanes, kernel=kernel, precision=precision,
        block=None if block is None else checks.count(block, "block"),
        batch=None if restart_batch is None else checks.count(restart_batch, "restart_batch"),
    )  # fmt: skip
    padded, w = bucketed(x, w, choice.block)
    result = _kmeans(
        key, padded, w, start, jnp.asarray(tol, x.dtype), jnp.asarray(max_steps, jnp.int32),
        k=k, init=init, lanes=lanes, choice=choice,
    )  # fmt: skip
    if throw:
        checks.ended(result.status, f"kmeans: none of {lanes} starts ended")
    return dataclasses.replace(result, labels=unfilled(result.labels, n))


@program("k", "init", "lanes", "choice")
def _kmeans(
    key: Array, x: Array, w: Array, start: Array | None, tol: Array, max_steps: Array, *,
    k: int, init: str, lanes: int, choice: Choice,
) -> KMeansResult:  # fmt: skip
    centre = column_mean(x, w)
    data = split(x - centre, w, choice.block, choice)
    rows, row_weights = data.rows(), data.weights.reshape(-1)
    unit = scale_of(data)

    def seeds(one: Array) -> Array:
        if init == "k-means++":
            return rows[kmeans_plus_plus(one, data, k)]
        return rows[random_points(one, row_weights, k)]

    if start is None:
        centers = in_batches(seeds, jax.random.split(key, lanes), choice.batch)
    else:
        centers = start - centre
    once = turn(data, tol=tol * unit, max_steps=max_steps)
    empty = blank(KMeans(centers[0]), data)
    result, endings, best = best_of(once, KMeans(centers), empty, choice.batch)
    labels = jax.lax.map(lambda x: _nearest(result.model.centers, x), data.data).reshape(-1)
    return KMeansResult(
        model=KMeans(result.model.centers + centre),
        labels=labels[: x.shape[0]],
        inertia=-result.log_likelihood,
        converged=result.converged,
        status=result.status,
        n_steps=result.n_steps,
        best=best,
        lanes=endings,
        choice=choice,
    )

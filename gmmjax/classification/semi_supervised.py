"""Fits to data of which some rows are labelled: EM on `LabelledMixture`, started from labels."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax import blocks as blocks_
from gmmjax import checks, families, initialization, linalg, mixture, moments
from gmmjax.backend import lanes_a_batch
from gmmjax.blocks import Blocks
from gmmjax.classification.labelled import UNLABELLED, LabelledMixture
from gmmjax.em import blank, turn
from gmmjax.fit import fit, stacked
from gmmjax.frame import Frame
from gmmjax.kmeans import KMeans
from gmmjax.lanes import Lanes, best_of, default_restarts
from gmmjax.mixture import GaussianMixture
from gmmjax.priors import Prior
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree


@pytree
class SemiSupervisedResult:
    """The best lane of a fit. Holds no data. Component j is class j."""

    model: GaussianMixture
    noise: Float[Array, "k k"]  # T_jy = p(label y | class j); the identity where labels are certain
    log_likelihood: Float[Array, ""]  # Σ labelled log p(x_i, y_i) + Σ unlabelled log p(x_i), nats
    converged: Array  # bool
    status: Int[Array, ""]  # a `Status`
    n_steps: Int[Array, ""]
    best: Int[Array, ""]  # which lane it was
    lanes: Lanes  # how every lane ended

    @property
    def labelled(self) -> LabelledMixture:
        """The model of x and labels together, e.g. for `responsibilities` of labelled rows."""
        return LabelledMixture(self.model, jnp.log(self.noise))


def fit_semi_supervised(
    key: Key[Array, ""],
    x: ArrayLike,
    labels: ArrayLike,
    n_components: int | None = None,
    *,
    mask: ArrayLike | None = None,
    label_noise: ArrayLike | None = None,
    estimate_noise: bool = False,
    family: str = "full",
    restarts: int | None = None,
    init: GaussianMixture | None = None,
    weights: ArrayLike | None = None,
    prior: Prior | None = None,
    reg: ArrayLike = 1e-7,
    tol: ArrayLike = 1e-8,
    max_steps: ArrayLike = 1000,
    block: int | None = None,
    restart_batch: int | None = None,
    throw: bool = True,
) -> SemiSupervisedResult:
    """Fit a mixture to rows of which some are labelled; component j is class j.

    With every row labelled it is the supervised fit `mle.mixture`; with none, the unsupervised
    `fit` (under `jit`, where labels cannot be looked at, from this function's own starts).

    **Arguments**

    - `key`: a `jax.random.key`; `x`: [n, d], finite.
    - `labels`: integers [n], from 0 to k − 1, and −1 for a row without label.
    - `n_components`: k; by default one more than the largest label. Components beyond the labels
      that occur are classes of which no row is labelled.
    - `mask`: booleans [n], True where the label is to be used; the other labels are not looked at.
    - `label_noise`: `None` where labels are certain. A rate ε from 0 to 1: a label is right with
      probability 1 − ε, and otherwise any of the others. A matrix [k, k]: T_jy, the probability of
      label y for a row of class j; rows sum to 1.
    - `estimate_noise`: whether the M-step updates T, from `label_noise` as the start. An entry of 0
      stays 0. Needs `label_noise`.
    - `init`: a `GaussianMixture` to start from, with a leading axis for several. By default lane 0
      starts with the labelled rows' means as centres, the other lanes with means of random weights;
      classes without label are seeded as in k-means++ among the rows without.
    - the others: as in `fit`.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError`.

    >>> import jax, numpy as np, gmmjax
    >>> iris = gmmjax.datasets.load_iris()
    >>> labels = np.where(np.arange(150) % 5 == 0, iris.labels, -1)  # one row in five has one
    >>> key = jax.random.key(0)
    >>> result = gmmjax.classification.fit_semi_supervised(key, iris.x, labels, restarts=4)
    >>> bool((result.model.predict(iris.x) == iris.labels).mean() > 0.95)
    True
    """
    name = families.get(family).name
    x = checks.rows(x)
    n, d = x.shape
    labels = _masked(labels, mask, n)
    labels, k = _labels(labels, n, n_components)
    w = checks.weights(weights, n, x.dtype)
    checks.enough_rows(n, k, w)
    checks.varying(x, w)
    for value, label in ((reg, "reg"), (tol, "tol"), (max_steps, "max_steps")):
        checks.nonnegative(value, label)
    lanes = default_restarts(n, k, d) if restarts is None else checks.count(restarts, "restarts")
    block = blocks_.DEFAULT_BLOCK if block is None else checks.count(block, "block")
    noise = _noise(label_noise, k, x.dtype)
    if estimate_noise and label_noise is None:
        raise ValueError(
            "label_noise: expected a rate or a matrix to start from with estimate_noise; got None. "
            "A label that is certain stays certain."
        )
    _check_possible(noise, labels)
    if init is not None:
        init, lanes = stacked(init, k, d, name, x.dtype)
    batch = lanes_a_batch(n, k, block, x.dtype) if restart_batch is None else restart_batch
    batch = min(checks.count(batch, "restart_batch"), lanes)
    if checks.concrete(labels, w):
        counted = np.asarray(labels) if w is None else np.asarray(labels)[np.asarray(w) > 0]
        if not np.any(counted >= 0):
            found = fit(
                key, x, k, family=name, restarts=lanes, init="mixed" if init is None else init,
                weights=w, prior=prior, reg=reg, tol=tol, max_steps=max_steps, block=block,
                restart_batch=restart_batch, throw=throw,
            )  # fmt: skip
            fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
            del fields["choice"]
            return SemiSupervisedResult(noise=noise, **fields)

    x, w = blocks_.bucketed(x, w, block)
    labels = blocks_.filled(labels, x.shape[0], UNLABELLED)
    result = _fit(
        key, x, labels, w, init, noise, prior,
        jnp.asarray(reg, x.dtype), jnp.asarray(tol, x.dtype), jnp.asarray(max_steps, jnp.int32),
        k=k, family=name, estimate_noise=bool(estimate_noise), lanes=lanes,
        block=min(block, x.shape[0]), batch=batch,
    )  # fmt: skip
    if throw:
        checks.ended(
            result.status,
            f"fit_semi_supervised: none of {lanes} starts of {k} {name} components ended with a "
            "finite model",
            result.lanes.status,
        )
    return result


@partial(jax.jit, static_argnames=("k", "family", "estimate_noise", "lanes", "block", "batch"))
def _fit(
    key: Array, x: Array, labels: Array, w: Array, init: GaussianMixture | None, noise: Array,
    prior: Prior | None, reg: Array, tol: Array, max_steps: Array, *,
    k: int, family: str, estimate_noise: bool, lanes: int, block: int, batch: int,
) -> SemiSupervisedResult:  # fmt: skip
    frame = Frame.of(x, w)
    local = None if prior is None else prior.into(frame)
    data = blocks_.split((frame.enter(x), labels), w, block)
    if init is None:
        models = _starts(key, data, lanes, batch, k, family, local, reg)
    else:
        models = init.into(frame)
    noisy = jax.vmap(lambda model: LabelledMixture(model, jnp.log(noise), estimate_noise))(models)
    once = turn(data, prior=local, reg=reg, tol=tol, max_steps=max_steps)
    empty = blank(jax.tree.map(lambda a: a[0], noisy), data)
    result, endings, best = best_of(once, noisy, empty, batch)
    result = frame.leave(result, data.total_weight)
    return SemiSupervisedResult(
        model=result.model.mixture,
        noise=jnp.exp(result.model.log_noise),
        log_likelihood=result.log_likelihood,
        converged=result.converged,
        status=result.status,
        n_steps=result.n_steps,
        best=best,
        lanes=endings.where_best_is(best, result.log_likelihood),
    )


def _starts(
    key: Array, data: Blocks, lanes: int, batch: int, k: int, family: str,
    prior: Prior | None, reg: ArrayLike,
) -> GaussianMixture:  # fmt: skip
    """Starting mixtures, a leading axis of lanes, whose component j begins at the rows of label j.

    Every other lane starts wide: the centres with the covariance of all the data and equal weights,
    instead of the clusters of the rows nearest to each. The two find different optima.
    """
    x, labels = data.rows()
    weights = data.weights.reshape(-1)
    blocks = Blocks(data.data[0], data.weights)
    # Distances in coordinates in which the family is at home, as for the starts of `fit`.
    scaling, _ = initialization.metric(initialization.overall(blocks), family)
    seen = linalg.dot(x, scaling.T)
    hot = (labels == jnp.arange(k)[:, None]) * weights
    free = jnp.where(labels < 0, weights, 0.0)
    everywhere = jnp.broadcast_to(jnp.asarray(1.0 / k, x.dtype), (x.shape[0], k))
    pooled = moments.from_responsibilities(
        x, everywhere * weights[:, None], jnp.zeros((k, x.shape[1]), x.dtype),
        families.get(family).second,
    )  # fmt: skip
    wide, _ = mixture.from_moments(pooled, family, prior=None, reg=reg)

    def one(at: tuple[Array, Array]) -> GaussianMixture:
        key, lane = at
        key_labelled, key_free = jax.random.split(key)
        noise = jax.random.exponential(key_labelled, weights.shape, weights.dtype)
        shares = hot * jnp.where(lane == 0, 1.0, noise)
        size = jnp.sum(shares, axis=1)
        shares = shares / jnp.where(size > 0, size, 1.0)[:, None]
        centers = _seed(key_free, seen, free, linalg.dot(shares, seen), size > 0)
        # Back from distances to the data: a free class's centre is a row.
        nearest = jnp.where(labels < 0, KMeans(centers).predict(seen), labels)
        clusters = Blocks((data.data[0], nearest.reshape(data.weights.shape)), data.weights)
        narrow = initialization.labelled(clusters, k, family, prior, reg)
        broad = dataclasses.replace(
            wide,
            means=narrow.means,
            log_weights=jnp.full((k,), -math.log(k), x.dtype),
        )
        return jax.tree.map(lambda a, b: jnp.where(lane % 2 == 0, a, b), narrow, broad)

    return lax.map(one, (jax.random.split(key, lanes), jnp.arange(lanes)), batch_size=batch)


def _seed(
    key: Array, x: Float[Array, "n d"], free: Float[Array, "n"], centers: Array, known: Array
) -> Float[Array, "k d"]:
    """Centres for the classes without label: rows drawn ∝ w·D² from the nearest centre so far."""

    def squares(center: Float[Array, "d"]) -> Float[Array, "n"]:
        return jnp.sum((x - center) ** 2, axis=1)

    nearest = jnp.min(jnp.where(known[:, None], lax.map(squares, centers), jnp.inf), axis=0)
    keys = jax.random.split(key, known.shape[0])

    def body(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        centers, nearest = carry
        mass = jnp.where(jnp.isfinite(nearest), free * nearest, free)
        mass = jnp.where(jnp.any(mass > 0), mass, free)
        drawn = x[jax.random.categorical(keys[j], jnp.log(mass))]
        center = jnp.where(known[j], centers[j], drawn)
        return centers.at[j].set(center), jnp.minimum(nearest, squares(center))

    return lax.fori_loop(0, known.shape[0], body, (centers, nearest))[0]


# --- what came in ---------------------------------------------------------------------------------


def _masked(labels: ArrayLike, mask: ArrayLike | None, n: int) -> ArrayLike:
    if mask is None:
        return labels
    use = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if use.shape != (n,) or use.dtype != bool:
        raise ValueError(
            f"mask: expected booleans of shape [{n}], one a row of x; got {use.dtype} of shape "
            f"{use.shape}."
        )
    array = labels if isinstance(labels, jax.Array) else np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(f"labels: expected shape [{n}], one a row; got {array.shape}.")
    xp = np if checks.concrete(array, use) else jnp
    return xp.where(use, array, UNLABELLED)


def _labels(labels: ArrayLike, n: int, k: int | None) -> tuple[Int[Array, "n"], int]:
    y, found = checks.labels(labels, "labels", k, n=n, least=UNLABELLED)
    if k is None and not np.any(np.asarray(y) >= 0):
        raise ValueError("n_components: expected a number where no row is labelled; got None.")
    return y, found


def _noise(label_noise: ArrayLike | None, k: int, dtype: Any) -> Float[Array, "k k"]:
    """T, from None, a rate or a matrix."""
    eye = jnp.eye(k, dtype=dtype)
    if label_noise is None:
        return eye
    noise = jnp.asarray(label_noise, dtype)
    if noise.shape not in ((), (k, k)):
        raise ValueError(
            f"label_noise: expected a rate, or a matrix of shape [{k}, {k}]; got {noise.shape}."
        )
    if checks.concrete(noise):
        values = np.asarray(noise)
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError("label_noise: expected probabilities from 0 to 1.")
        if noise.ndim == 2 and np.max(np.abs(values.sum(axis=1) - 1)) > 1e-5:
            raise ValueError(
                "label_noise: expected rows that sum to 1, the labels of one class each; got sums "
                f"{values.sum(axis=1).tolist()}. Transpose it if classes stand in its columns."
            )
    if noise.ndim == 2 or k == 1:
        return noise if noise.ndim == 2 else eye
    return jnp.where(eye > 0, 1.0 - noise, noise / (k - 1))


def _check_possible(noise: Array, labels: Array) -> None:
    if checks.concrete(noise, labels):
        possible = np.any(np.asarray(noise) > 0, axis=0)
        occur = np.unique(np.asarray(labels)[np.asarray(labels) >= 0])
        bad = occur[~possible[occur]].tolist()
        if bad:
            raise ValueError(
                f"label_noise: labels {bad} occur and have probability 0 for every class. Give "
                "each column that occurs a positive entry."
            )

"""`fit_gmvae`: a Gaussian-mixture VAE from rows; many seeds in one program, one chosen by its ELBO."""

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks, families
from gmmjax import moments as moments_
from gmmjax.status import FitError, Status
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree
from gmmjax.vae import training as training_
from gmmjax.vae.checkpoint import Checkpoints
from gmmjax.vae.evaluation import Summary
from gmmjax.vae.likelihoods import Likelihood, named
from gmmjax.vae.model import GMVAE, flat
from gmmjax.vae.networks import Architecture, Autoencoder
from gmmjax.vae.objectives import OBJECTIVES, Objective
from gmmjax.vae.prior import standard
from gmmjax.vae.run import Data, Progress, run
from gmmjax.vae.schedule import JOINT, Training
from gmmjax.vae.training import Plan, TrainState

CERTAIN = -1e4
"""log p(y | c) where a label excludes a component: −inf would make a gradient NaN."""


@pytree
class GMVAEResult:
    """The seeds of one training. Holds no data."""

    model: GMVAE  # of the seed with the best validation ELBO
    models: GMVAE  # all of them, with a leading axis of seeds
    best: Int[Array, ""]
    elbo: Float[Array, "seeds"]  # on the validation rows, nats a row
    history: Summary  # of the validation rows, [epochs, seeds]; all stages, one after the other
    stage: Int[Array, "epochs"]  # 0 and 1: pretraining, 2: joint training
    stopped: Array  # bool [seeds]: ended by `patience`
    names: Int[Array, "k"] | None  # label of each cluster of `model`, where labels were given

    def seed(self, index: int) -> GMVAE:
        """One of the models."""
        return jax.tree.map(lambda a: a[index], self.models)

    def seeds(self) -> Iterator[GMVAE]:
        """The models one by one."""
        return (self.seed(i) for i in range(self.elbo.shape[0]))


def fit_gmvae(
    key: Key[Array, ""],
    x: ArrayLike,
    n_components: int,
    *,
    shape: tuple[int, ...] | None = None,
    latent: int = 10,
    hidden: tuple[int, ...] = (256, 256),
    channels: tuple[int, ...] = (),
    likelihood: str | Likelihood = "normal",
    family: str = "EEV",
    objective: Objective = "structured",
    seeds: int = 1,
    training: Training = Training(),  # noqa: B008, frozen
    y: ArrayLike | None = None,
    supervise: bool = False,
    validation: float | ArrayLike = 0.1,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    progress: bool = False,
) -> GMVAEResult:
    """Train Gaussian-mixture VAEs on rows, many seeds at once, and choose one by its validation ELBO.

    Three stages: a VAE with a standard normal prior; EM with many starts on its codes (`gmmjax.fit`),
    which becomes the prior; then networks and prior together. No label enters, unless `supervise`.

    **Arguments**

    - `key`: a `jax.random.key`. The same key gives the same result.
    - `x`: rows [n, d] or [n, height, width(, channels)], finite, in the likelihood's range.
    - `n_components`: k, the number of clusters.
    - `shape`: of a row, where x is flat and the networks should know the picture.
    - `latent`, `hidden`, `channels`: see `Architecture`.
    - `likelihood`: "normal" (σ calibrated), "bernoulli" (values from 0 to 1), "logistic" (grey values in
      256 steps), or an object of `gmmjax.vae.likelihoods`.
    - `family`: of the prior's covariances, any of `families.names()`. In "EEV" components have one size
      and shape and turn freely: none grows over its neighbours, and clusters of digits come far closer to
      the classes than with "full", which has the higher likelihood.
    - `objective`: "structured", "mean-field" or "amortised", see `gmmjax.vae.objectives`.
    - `seeds`: how many models; they train in one program and start from different weights.
    - `training`: a `Training`.
    - `y`: integer labels [n] of x, −1 for none, by which the clusters of the chosen model are named.
    - `supervise`: let the labels take part: component j is then class j.
    - `validation`: the share of the rows that is held out for the ELBO by which the seed is chosen, or
      rows of their own; 0 chooses by the training rows.
    - `checkpoint`: a folder. Training goes on from the latest checkpoint there, and ends bit for bit where
      it would have ended. One is written every `checkpoint_every` epochs.
    - `progress`: show a bar with the validation figures (needs tqdm).

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError` where every seed
    ended without a finite ELBO; `CheckpointError`.

    >>> import jax, gmmjax
    >>> from gmmjax.vae import Training, fit_gmvae
    >>> x = gmmjax.datasets.load_iris().x
    >>> short = Training(pretrain_epochs=2, epochs=2, batch=32, restarts=2)
    >>> result = fit_gmvae(jax.random.key(0), x, 3, latent=2, hidden=(8,), training=short)
    >>> result.model.responsibilities(x).shape
    (150, 3)
    """
    k = checks.count(n_components, "n_components")
    if objective not in OBJECTIVES:
        raise ValueError(f"objective: expected one of {', '.join(OBJECTIVES)}; got {objective!r}.")
    training.check()
    x, shape = _data(x, shape)
    n_clusters = k if objective == "amortised" else 0
    architecture = Architecture(shape, latent, hidden, channels, n_clusters)
    density = named(likelihood)
    density.check(x, "x")
    labels = _labels(y, len(x), k, supervise)
    key_split, key_init, key_fit, key_eval = jax.random.split(key, 4)
    chosen, held_out = _split(key_split, x, validation, shape, density)
    rows = x[chosen]
    checks.enough_rows(len(rows), k, None)
    checks.varying(rows, None)
    if training.batch > len(rows):
        raise ValueError(
            f"batch: expected at most the {len(rows)} training rows; got {training.batch}. Use "
            "Training(batch=...) with a smaller number, or more data."
        )
    known = labels[chosen] if supervise and labels is not None else None
    states = _states(
        jax.random.split(key_init, checks.count(seeds, "seeds")), rows, architecture, density, k,
        families.get(family).name,
    )  # fmt: skip
    start = Progress.start(states, sum(training.lengths), map_prior=training.map_prior)
    data = Data(rows, held_out, known, _evidence(known, k, rows.dtype), key_fit, key_eval)
    augment = training.shift > 0 or training.denoise > 0
    plan = Plan(objective, training.prior_update, training.batch, augment)
    options: dict[str, Any] = {
        "every": checks.count(checkpoint_every, "checkpoint_every"),
        "bar": progress,
    }
    if checkpoint is None:
        end = run(start, data, training, plan, **options)
    else:
        about = {
            "architecture": repr(architecture), "likelihood": repr(density), "training": repr(training),
            "family": families.get(family).name, "objective": objective, "n_components": k,
            "seeds": len(states.epoch), "rows": list(rows.shape), "dtype": str(rows.dtype),
            "data": float(jnp.sum(rows)), "key": jax.random.key_data(key).tolist(),
        }  # fmt: skip
        with contextlib.closing(Checkpoints(checkpoint, about)) as checkpoints:
            latest = checkpoints.latest(start)
            start = start if latest is None else latest
            end = run(start, data, training, plan, checkpoints=checkpoints, **options)
    return _result(end, data, training, plan, x, labels)


def _result(
    end: Progress, data: Data, settings: Training, plan: Plan, x: Array, labels: Array | None
) -> GMVAEResult:
    # The best is that of the joint training, and the last where there was none.
    patient = settings.patience > 0 and settings.epochs > 0
    network, prior = end.best if patient else (end.states.network, end.states.prior)
    models = GMVAE(network, prior, plan.objective)
    done = int(end.done)
    elbo = end.best_elbo if patient else end.history.elbo[done - 1]
    finite = jnp.isfinite(elbo)
    if not bool(jnp.any(finite)):
        raise FitError(
            Status.NONFINITE, f"fit_gmvae: none of {len(elbo)} seeds ended with a finite ELBO"
        )
    best = jnp.argmax(jnp.where(finite, elbo, -jnp.inf))
    model = jax.tree.map(lambda a: a[best], models)
    stages = np.repeat(np.arange(JOINT + 1), settings.lengths)[:done]
    return GMVAEResult(
        model=model,
        models=models,
        best=best,
        elbo=elbo,
        history=jax.tree.map(lambda a: a[:done], end.history),
        stage=jnp.asarray(stages, jnp.int32),
        stopped=end.states.stopped,
        names=None if labels is None else model.name_clusters(x, labels),
    )


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _states(
    keys: Array,
    rows: Array,
    architecture: Architecture,
    likelihood: Likelihood,
    k: int,
    family: str,
) -> TrainState:
    """The start of every seed: random networks and a standard normal prior."""

    def one(key: Array) -> TrainState:
        key_network, key_state = jax.random.split(key)
        network = Autoencoder.create(key_network, architecture, likelihood, rows)
        prior = standard(k, architecture.latent, family)
        moments = moments_.zeros(prior.means, families.get(family).second)
        return training_.init(network, prior, moments, key_state)

    return jax.vmap(one)(keys)


def _data(x: ArrayLike, shape: tuple[int, ...] | None) -> tuple[Array, tuple[int, ...]]:
    """Rows [n, features] in JAX's default precision, and the shape of one."""
    array = x if isinstance(x, jax.Array) else np.asarray(x)
    if array.ndim < 2 or 0 in array.shape:
        raise ValueError(
            f"x: expected rows [n, d] or pictures [n, height, width(, channels)], at least one of them; "
            f"got shape {array.shape}."
        )
    shape = tuple(array.shape[1:]) if shape is None else tuple(shape)
    return flat(array, shape).astype(jnp.zeros(()).dtype), shape


def _labels(y: ArrayLike | None, n: int, k: int, supervise: bool) -> Array | None:
    if y is None:
        if supervise:
            raise ValueError("y: expected labels, -1 for a row without, to supervise; got None.")
        return None
    labels, n_classes = checks.labels(y, "y", n=n, least=-1)
    if supervise and n_classes > k:
        raise ValueError(
            f"y: expected labels below n_components = {k}, as component j is class j; got "
            f"{n_classes - 1}. Use more components."
        )
    return labels


def _evidence(labels: Array | None, k: int, dtype: Any) -> Array | None:
    if labels is None:
        return None
    other = 1 - jax.nn.one_hot(labels, k, dtype=dtype)
    return jnp.where((labels >= 0)[:, None], CERTAIN * other, 0.0)


def _split(
    key: Array,
    x: Array,
    validation: float | ArrayLike,
    shape: tuple[int, ...],
    likelihood: Likelihood,
) -> tuple[np.ndarray, Array]:
    """Which rows are trained on, and the rows held out."""
    n = len(x)
    if np.ndim(validation):
        held_out = flat(validation, shape, "validation").astype(x.dtype)
        likelihood.check(held_out, "validation")
        return np.arange(n), held_out
    checks.nonnegative(validation, "validation")
    share = float(validation)  # type: ignore[arg-type]
    if share >= 1:
        raise ValueError(f"validation: expected a share below 1, or rows; got {validation}.")
    if share == 0:
        return np.arange(n), x
    order = np.asarray(jax.random.permutation(key, n))
    count = max(1, round(share * n))
    return np.sort(order[count:]), x[np.sort(order[:count])]

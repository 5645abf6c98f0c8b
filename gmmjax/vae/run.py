"""The loop over epochs and stages: pretraining, EM on the codes, joint training, for all seeds at once.

Everything that the rest of a run depends on is one pytree, `Progress`, and each stage begins as a
function of it. So a run that was killed goes on from a checkpoint and ends bit for bit where it
would have ended.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import moments
from gmmjax._optional import optional_import
from gmmjax.classification import fit_semi_supervised
from gmmjax.em import em
from gmmjax.fit import fit
from gmmjax.mixture import GaussianMixture
from gmmjax.priors import Prior
from gmmjax.typing import Array, Float, Int, Key, pytree
from gmmjax.uncertain import Uncertain
from gmmjax.vae import training
from gmmjax.vae.checkpoint import Checkpoints
from gmmjax.vae.evaluation import Summary, evaluate_each, moments_of_codes
from gmmjax.vae.networks import Autoencoder
from gmmjax.vae.objectives import Objective
from gmmjax.vae.schedule import JOINT, Training
from gmmjax.vae.training import Plan, TrainState


@pytree
class Data:
    """What a run reads; no part of its progress."""

    rows: Float[Array, "n features"]
    held_out: Float[Array, "m features"]  # of which the ELBO is reported and decides
    labels: Int[Array, "n"] | None  # of the rows, where they take part; -1 for none
    evidence: Float[Array, "n k"] | None  # the same as log p(label | c)
    key_fit: Key[Array, ""]
    key_eval: Key[Array, ""]


@pytree
class Progress:
    """All that the rest of a run depends on; leaves have a leading axis of seeds."""

    states: TrainState
    conjugates: Prior | None  # the conjugate prior of each mixture
    best: tuple[Autoencoder, GaussianMixture]  # where the joint training's ELBO was highest
    best_elbo: Float[Array, "seeds"]
    since: Int[Array, "seeds"]  # epochs since then
    history: Summary  # [epochs, seeds]; those to come are 0
    done: Int[Array, ""]  # epochs so far; no axis of seeds

    @classmethod
    def start(cls, states: TrainState, epochs: int, *, map_prior: bool) -> "Progress":
        """Before the first of so many epochs."""
        seeds, k, d = states.prior.means.shape
        one = Prior.create(mean=jnp.zeros(d), scale=jnp.eye(d))
        conjugates = jax.tree.map(lambda a: jnp.broadcast_to(a, (seeds, *a.shape)), one)
        dtype = states.prior.means.dtype
        figures = {f.name: jnp.zeros((epochs, seeds), dtype) for f in dataclasses.fields(Summary)}
        figures["usage"] = jnp.zeros((epochs, seeds, k), dtype)
        figures["active_units"] = jnp.zeros((epochs, seeds), jnp.int32)
        return cls(
            states=states,
            conjugates=conjugates if map_prior else None,
            best=(states.network, states.prior),
            best_elbo=jnp.full(seeds, -jnp.inf, dtype),
            since=jnp.zeros(seeds, jnp.int32),
            history=Summary(**figures),
            done=jnp.asarray(0, jnp.int32),
        )


def run(
    progress: Progress,
    data: Data,
    settings: Training,
    plan: Plan,
    *,
    checkpoints: Checkpoints | None = None,
    every: int = 10,
    bar: bool = False,
) -> Progress:
    """All epochs that are left, a checkpoint after every `every` of them."""
    stages = np.repeat(np.arange(JOINT + 1), settings.lengths)
    starts = {int(np.argmax(stages == stage)) for stage in np.unique(stages)}
    done = int(progress.done)
    with _bar(len(stages), done, bar) as show:
        for at in range(done, len(stages)):
            if bool(jnp.all(progress.states.stopped)):
                break
            stage = int(stages[at])
            if at in starts:
                progress = _begin(progress, data, settings, plan, stage)
            states = training.epochs(
                progress.states, data.rows, data.evidence, progress.conjugates,
                settings.rates(stage), plan,
            )  # fmt: skip
            summary = evaluate_each(
                data.key_eval, states.network, states.prior, data.held_out, plan.objective
            )
            progress = _record(progress, states, summary, stage == JOINT, settings.patience)
            show(stage, summary)
            if checkpoints is not None and ((at + 1) % every == 0 or at + 1 == len(stages)):
                checkpoints.save(at + 1, progress)
    return progress


@jax.jit
def _record(
    progress: Progress,
    states: TrainState,
    summary: Summary,
    joint: bool | Array,
    patience: int | Array,
) -> Progress:
    """The epoch's figures, the best model so far, and which seeds stop (never, where `patience` is 0)."""
    joint = jnp.asarray(joint)
    better = joint & (summary.elbo > progress.best_elbo) & ~states.stopped
    since = jnp.where(better | ~joint, 0, progress.since + 1)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    stopped = states.stopped | (joint & (patience > 0) & (since >= patience))
    return Progress(
        states=dataclasses.replace(states, stopped=stopped),
        conjugates=progress.conjugates,
        best=jax.tree.map(choose, (states.network, states.prior), progress.best),
        best_elbo=jnp.where(better, summary.elbo, progress.best_elbo),
        since=since,
        history=jax.tree.map(
            lambda a, b: a.at[progress.done].set(b.astype(a.dtype)), progress.history, summary
        ),
        done=progress.done + 1,
    )


def _begin(progress: Progress, data: Data, settings: Training, plan: Plan, stage: int) -> Progress:
    """The first state of a stage, from the last of the one before."""
    states = progress.states
    if stage == JOINT:
        progress = hand_over(progress, data, settings, plan)
        states = progress.states
    new = jax.vmap(training.init)(states.network, states.prior, states.moments, states.key)
    return dataclasses.replace(progress, states=new)


def hand_over(progress: Progress, data: Data, settings: Training, plan: Plan) -> Progress:
    """Each seed's prior becomes the mixture that EM with many starts finds on its codes."""
    states = progress.states
    k, family = states.prior.means.shape[-2], states.prior.family
    found = []
    for seed in range(states.epoch.shape[0]):
        network = jax.tree.map(lambda a, seed=seed: a[seed], states.network)
        key = jax.random.fold_in(data.key_fit, seed)
        codes = _codes(network, data.rows)
        found.append(mixture_of_codes(key, codes, k, family, settings, data.labels))
    prior, conjugates = jax.tree.map(lambda *a: jnp.stack(a), *found)
    sums = _moments(states.network, prior, states.key, data.rows, data.evidence, plan.objective)
    states = dataclasses.replace(states, prior=prior, moments=sums)
    return dataclasses.replace(progress, states=states, conjugates=conjugates)


def mixture_of_codes(
    key: Key[Array, ""],
    codes: Uncertain,
    k: int,
    family: str,
    settings: Training,
    labels: Int[Array, "n"] | None = None,
) -> tuple[GaussianMixture, Prior | None]:
    """The mixture that EM with many starts finds on codes, and the conjugate prior that it had.

    The starts are on the mean codes. From the best of them EM goes on with the codes as rows known up to
    the encoder's noise: their spread is that of the means and the noise together.
    """
    key, key_noise = jax.random.split(key)
    limits: dict[str, Any] = {"reg": settings.reg, "tol": 1e-5}
    options: dict[str, Any] = {
        "family": family, "restarts": settings.restarts, "max_steps": 300, "throw": False,
        "prior": Prior.default(codes.x, k, family) if settings.map_prior else None, **limits,
    }  # fmt: skip
    conjugate = None
    if settings.map_prior:
        noise = jax.random.normal(key_noise, codes.x.shape, codes.x.dtype)
        conjugate = Prior.default(codes.x + jnp.sqrt(codes.variance) * noise, k, family)
    if labels is not None:
        start = fit_semi_supervised(key, codes.x, labels, k, **options).model
        return _with_noise(start, codes, conjugate, settings.reg), conjugate
    start = fit(key, codes.x, k, **options).model
    start = _with_noise(start, codes, conjugate, settings.reg)
    return em(start, codes, prior=conjugate, max_steps=100, **limits).model, conjugate


@jax.jit
def _with_noise(
    start: GaussianMixture, codes: Uncertain, conjugate: Prior | None, reg: float
) -> GaussianMixture:
    """The M-step on codes with their noise, under the responsibilities of their means.

    Where the noise of a code is far above the spread of the means, as in a dimension of little use, the
    mixture of the means gives each code to the one component that is widest there.
    """
    ones = jnp.ones(len(codes.x), codes.x.dtype)
    sums, _ = start.expect(codes.x, ones)
    responsibilities = start.responsibilities(codes.x).T
    sums = sums + moments.noise(codes.variance, responsibilities, sums.about, sums.kind)
    return start.maximize(sums, prior=conjugate, reg=reg)[0]


@jax.jit
def _codes(network: Autoencoder, rows: Array) -> Uncertain:
    return network.encode(rows).uncertain()


@partial(jax.jit, static_argnames="objective")
def _moments(
    networks: Autoencoder,
    priors: GaussianMixture,
    keys: Array,
    rows: Array,
    evidence: Array | None,
    objective: Objective,
) -> Any:
    one = lambda n, p, key: moments_of_codes(n, p, key, rows, evidence, objective)  # noqa: E731
    return jax.vmap(one)(networks, priors, keys)


@contextlib.contextmanager
def _bar(total: int, done: int, wanted: bool) -> Iterator[Callable[[int, Summary], None]]:
    """A progress bar with the figures of the seed whose ELBO is highest."""
    if not wanted:
        yield lambda stage, summary: None
        return
    with optional_import("vae"):
        from tqdm.auto import tqdm
    with tqdm(total=total, initial=done, unit="epoch") as handle:

        def show(stage: int, summary: Summary) -> None:
            best = jax.tree.map(lambda a: a[int(jnp.argmax(summary.elbo))], summary)
            handle.set_description("joint" if stage == JOINT else "pretraining", refresh=False)
            handle.set_postfix_str(
                f"ELBO {best.elbo:.2f}, reconstruction {best.reconstruction:.2f}, KL {best.kl:.2f}, "
                f"entropy of clusters {best.cluster_entropy:.2f}, active {best.active_units:d}",
                refresh=False,
            )
            handle.update()

        yield show

"""Figures of R's mclust, and fits from the same starts: shared by the tests that compare the two."""

import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import blocks, datasets, families, initialization
from gmmjax.em import run

REFERENCE = Path(__file__).parent / "reference" / "mclust"
# fmt: off
MODELS = (
    "EII", "VII", "EEI", "VEI", "EVI", "VVI",
    "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV",
)
# fmt: on
CELLS = (
    "iris_3_labels",
    "iris_3_kmeans",
    "diabetes_3_labels",
    "faithful_2_threshold",
    "faithful_2_kmeans",
)


@cache
def figures(name: str) -> dict:
    return json.loads((REFERENCE / f"{name}.json").read_text())


def data(name: str) -> np.ndarray:
    return datasets.load(name).x


@partial(jax.jit, static_argnames=("k", "family"))
def from_labels(x, labels, weights, prior, reg, tol, steps, *, k, family):
    """EM from hard labels, of which the first M-step counts as one of `steps`; in centred data."""
    centre = x.mean(0)
    if prior is not None:
        prior = prior.__class__(
            prior.concentration, prior.mean - centre, prior.mean_precision, prior.dof, prior.scale
        )
    both = blocks.split((x - centre, labels), weights)
    start = initialization.labelled(both, k, family, prior, reg)
    rows = blocks.split(x - centre, weights)
    result = run(start, rows, prior=prior, reg=reg, tol=tol, max_steps=steps - 1)
    return result, result.model.affine(centre)


def fit(x, labels, k, family, *, weights=None, prior=None, reg=0.0, tol=0.0, steps=5000):
    name = families.get(family).name
    # Always an array, so that fits with and without weights share a program.
    weights = jnp.asarray(np.ones(len(x)) if weights is None else weights, float)
    return from_labels(
        jnp.asarray(x, float),
        jnp.asarray(labels),
        weights,
        prior,
        reg,
        tol,
        steps,
        k=k,
        family=name,
    )


def apart(ours, theirs) -> float:
    """The largest difference, relative to the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def dense(entry: dict, k: int) -> np.ndarray:
    """Σ_j of a reference entry, [k, d, d]."""
    if "variances" in entry:
        out = np.stack([np.diag(v) for v in entry["variances"]])
    else:
        out = np.asarray(entry["covariances"])
    return np.broadcast_to(out, (k, *out.shape[1:]))

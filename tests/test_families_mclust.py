"""The 14 families against R's mclust, from the same starts, in float64.

What each figure is, and where mclust itself is off, stands in `reference/mclust/FAMILIES.md`.
"""

import jax
import numpy as np
import pytest
from mclust_figures import CELLS, MODELS, apart, data, dense, figures, fit

import gmmjax
from gmmjax import families

STAGES = ("1", "10", "50", "limit")
INNER = ("VEE", "EVE")
"""mclust ends the inner iterations of these early; all others agree to rounding."""


pytestmark = pytest.mark.usefixtures("float64")


def tolerance(model: str) -> tuple[float, float]:
    """On the log-likelihood and on the parameters, relative."""
    return (1e-6, 1e-5) if model in INNER else (1e-10, 1e-7)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("model", [m for m in MODELS if m != "VVE"])
def test_every_step_is_that_of_mclust(cell, model):
    """The M-step from labels, 10 and 50 steps, and the limit, after as many steps as mclust took."""
    reference = figures(f"me_{cell}")
    k = reference["n_components"]
    x = data(reference["dataset"])
    rtol, ptol = tolerance(model)
    for stage in STAGES:
        entry = reference["models"][model][stage]
        result, ours = fit(x, reference["start"], k, model, steps=entry["steps"])
        assert int(result.n_steps) == entry["steps"] - 1
        np.testing.assert_allclose(result.log_likelihood, entry["log_likelihood"], rtol=rtol)
        assert apart(ours.weights, entry["weights"]) < ptol, stage
        assert apart(ours.means, entry["means"]) < ptol, stage
        assert apart(ours.covariances, dense(entry, k)) < ptol, stage
    np.testing.assert_allclose(ours.log_likelihood(x), result.log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("model", MODELS)
def test_the_limit_is_at_least_as_high(cell, model):
    reference = figures(f"me_{cell}")
    k = reference["n_components"]
    entry = reference["models"][model]["limit"]
    result, _ = fit(data(reference["dataset"]), reference["start"], k, model, tol=1e-14)
    theirs = entry["log_likelihood"]
    assert bool(result.converged)
    if model == "VVE":
        assert float(result.log_likelihood) > theirs
    else:
        np.testing.assert_allclose(result.log_likelihood, theirs, rtol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_vve_is_monotone_and_its_m_step_better_than_that_of_mclust(cell):
    reference = figures(f"me_{cell}")
    k = reference["n_components"]
    x, labels = data(reference["dataset"]), np.asarray(reference["start"])
    result, _ = fit(x, labels, k, "VVE", steps=30)
    path = np.asarray(result.trace)
    assert np.all(np.diff(path[np.isfinite(path)]) > -1e-12 * abs(path[-1]))
    scatter = np.stack(
        [np.cov(x[labels == j].T, bias=True) * (labels == j).sum() for j in range(k)]
    )
    count = np.bincount(labels)

    def cost(covariances):
        logs = np.linalg.slogdet(covariances)[1]
        return np.sum(
            count * logs + np.trace(np.linalg.solve(covariances, scatter), axis1=1, axis2=2)
        )

    _, ours = fit(x, labels, k, "VVE", steps=1)
    theirs = dense(reference["models"]["VVE"]["1"], k)
    assert cost(np.asarray(ours.covariances)) < cost(theirs)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_counted_as_by_mclust(cell, model):
    reference = figures(f"me_{cell}")
    k, d = reference["n_components"], data(reference["dataset"]).shape[1]
    count = k - 1 + k * d + families.get(model).n_parameters(k, d)
    assert count == reference["models"][model]["df"]


@pytest.mark.parametrize("cell", ["iris_3_labels", "faithful_2_threshold"])
@pytest.mark.parametrize("model", [m for m in MODELS if m != "VVE"])
def test_volume_shape_and_orientation_are_those_of_mclust(cell, model):
    reference = figures(f"me_{cell}")
    k = reference["n_components"]
    x = data(reference["dataset"])
    entry = reference["models"][model]["limit"]
    _, ours = fit(x, reference["start"], k, model, steps=entry["steps"])
    parts = families.decompose(ours)
    d = x.shape[1]
    assert apart(parts.covariances, ours.covariances) < 1e-12
    if "scale" in entry:
        np.testing.assert_allclose(parts.scale, np.broadcast_to(entry["scale"], k), rtol=1e-5)
    if "shape" in entry:
        theirs = np.asarray(entry["shape"])
        # One row a component or one for all; mclust may list a common orientation's axes in another order.
        theirs = np.broadcast_to(theirs if theirs.ndim == 2 else theirs[None], (k, d))
        if model[2] == "I":
            np.testing.assert_allclose(parts.shape, theirs, rtol=1e-5)
        else:
            np.testing.assert_allclose(np.sort(parts.shape), np.sort(theirs), rtol=1e-5)


PUBLISHED = [
    ("faithful", "EEE", 3, -1126.326, 11, -2314.316),
    ("faithful", "VVV", 2, -1130.264, 11, -2322.192),
    ("iris", "VEV", 2, -215.726, 26, -561.728),
    ("diabetes", "VVV", 3, -2303.496, 29, -4751.316),
]


@pytest.mark.parametrize(("name", "model", "k", "log_likelihood", "df", "bic"), PUBLISHED)
def test_published_fits_are_found_or_bettered(name, model, k, log_likelihood, df, bic):
    x = data(name)
    result = gmmjax.fit(jax.random.key(0), x, k, family=model)
    assert result.model.n_parameters() == df
    # mclust stops at a relative change of 1e-5, hence a little below the limit.
    found = float(result.log_likelihood)
    assert found > log_likelihood - 1e-3
    assert abs(found - log_likelihood) < 0.02
    assert abs(-float(result.model.bic(x)) - bic) < 0.04


@pytest.mark.parametrize("model", MODELS)
def test_weighted_fits_are_those_of_mclust(model):
    reference = figures("me_weighted_iris")
    entry = reference["models"][model]
    weights = np.asarray(reference["weights"])
    labels = np.repeat(np.arange(3), 50)
    x = data("iris")
    if model == "VVE":
        result, _ = fit(x, labels, 3, model, weights=weights, tol=1e-12)
        assert float(result.log_likelihood) > entry["log_likelihood"]
        return
    result, ours = fit(x, labels, 3, model, weights=weights, steps=entry["steps"])
    rtol = 1e-6 if model in INNER else 1e-11
    ptol = {"EVE": 5e-4, "VEE": 3e-5}.get(model, 1e-8)
    np.testing.assert_allclose(result.log_likelihood, entry["log_likelihood"], rtol=rtol)
    np.testing.assert_allclose(ours.log_likelihood(x, weights), result.log_likelihood, rtol=1e-12)
    assert apart(ours.weights, entry["weights"]) < ptol
    assert apart(ours.means, entry["means"]) < ptol
    assert apart(ours.covariances, dense(entry, 3)) < ptol

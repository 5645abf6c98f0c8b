"""MAP-EM with mclust's default conjugate prior against R's mclust, in float64."""

import csv

import jax
import numpy as np
import pytest
from mclust_figures import MODELS, REFERENCE, apart, data, figures, fit

import gmmjax
from gmmjax import families

K = {"iris": 3, "faithful": 2, "diabetes": 3}
START = {
    "iris": "iris_3_labels",
    "faithful": "faithful_2_threshold",
    "diabetes": "diabetes_3_labels",
}
WITH_PRIOR = ("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "EEV", "VEV", "VVV")
"""mclust has no prior for the others."""


pytestmark = pytest.mark.usefixtures("float64")


def map_fit(name, model):
    x, labels = data(name), figures(f"me_{START[name]}")["start"]
    prior = gmmjax.Prior.default(x, K[name], model)
    return fit(x, labels, K[name], model, prior=prior, tol=1e-14)


@pytest.mark.parametrize("name", K)
@pytest.mark.parametrize("model", WITH_PRIOR)
def test_the_default_prior_is_that_of_mclust(name, model):
    theirs = figures("me_prior")[f"{name}_{model}"]["prior"]
    ours = gmmjax.Prior.default(data(name), K[name], model)
    np.testing.assert_allclose(ours.mean, theirs["mean"], rtol=1e-11)
    np.testing.assert_allclose(ours.mean_precision, theirs["shrinkage"])
    np.testing.assert_allclose(ours.dof, theirs["dof"])
    scale = np.asarray(theirs["scale"])
    if scale.ndim == 0:
        # mclust prints a scale for EII too, but does not use it.
        scale = scale * np.eye(len(theirs["mean"])) * (model != "EII")
    np.testing.assert_allclose(ours.scale, scale, rtol=1e-10, atol=1e-10 * np.abs(scale).max())


@pytest.mark.parametrize("name", K)
@pytest.mark.parametrize("model", WITH_PRIOR)
def test_the_mode_is_that_of_mclust(name, model):
    entry = figures("me_prior")[f"{name}_{model}"]
    result, ours = map_fit(name, model)
    assert bool(result.converged)
    # mclust's EEI leaves the means where the data put them: not the mode.
    rtol, ptol = (2e-5, 1e-3) if model == "EEI" else (1e-7, 1e-6)
    np.testing.assert_allclose(result.log_likelihood, entry["log_likelihood"], rtol=rtol)
    assert apart(ours.weights, entry["weights"]) < ptol
    assert apart(ours.means, entry["means"]) < ptol
    assert apart(ours.covariances, entry["covariances"]) < ptol


def table(name, model):
    with (REFERENCE / f"bic_prior_{name}.csv").open() as file:
        return {int(row["G"]): float(row[model]) for row in csv.DictReader(file) if row[model]}


@pytest.mark.parametrize("name", ["iris", "faithful"])
@pytest.mark.parametrize("model", ["VII", "VVI", "EEE", "VVV"])
def test_bic_of_one_component_is_that_of_mclust(name, model):
    """With one component mclust takes these four for all."""
    x = data(name)
    prior = gmmjax.Prior.default(x, 1, model)
    _, one = fit(x, np.zeros(len(x), int), 1, model, prior=prior, steps=1)
    np.testing.assert_allclose(-one.bic(x), table(name, model)[1], rtol=1e-10)


@pytest.mark.parametrize("model", WITH_PRIOR)
def test_bic_of_three_components_is_that_of_mclust(model):
    """Its hierarchical start leads to the mode of the class labels; for EEV to a lower one."""
    _, ours = map_fit("iris", model)
    gain = -float(ours.bic(data("iris"))) - table("iris", model)[3]
    # mclust stops at a relative change of 1e-5.
    assert gain > -0.1
    assert gain < (0.1 if model != "EEV" else 2.0)


@pytest.mark.parametrize("model", MODELS)
def test_the_posterior_rises_and_its_mode_is_stationary(model):
    """The M-step maximises the objective that `log_prior` states: any step away from it is lower."""
    _, mode = map_fit("faithful", model)
    x = data("faithful")
    prior = gmmjax.Prior.default(x, 2, model)

    def objective(means, factor):
        factors = jax.tree.map(lambda a: a * factor, mode.factors)
        near = gmmjax.GaussianMixture(mode.log_weights, means, factors, mode.family)
        return near.log_likelihood(x) + near.log_prior(prior)

    slope = jax.grad(objective, argnums=(0, 1))(mode.means, np.float64(1.0))
    # In units of each mean's standard error, and relative to n for the volume.
    assert np.all(np.abs(np.asarray(slope[0])) * x.std(0) < 1e-4)
    assert abs(float(slope[1])) < 1e-4
    assert families.get(model).name == mode.family

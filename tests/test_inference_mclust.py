"""Standard errors, tests of k and merging against R's mclust and against plain definitions, in float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mclust_figures import data, figures
from scipy.stats import multivariate_normal

import gmmjax
from gmmjax import inference
from gmmjax.inference import Parameters

pytestmark = pytest.mark.own_dtype
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@cache
def faithful() -> tuple[np.ndarray, gmmjax.GaussianMixture]:
    """The data, and VVV with two components at its limit, in mclust's order of components."""
    x = data("faithful")
    fit = figures("bootstrap_faithful")["boot_faithful_VVV_bs"]["fit"]
    start = gmmjax.GaussianMixture.create(fit["pro"], fit["mean"], fit["sigma"])
    return x, gmmjax.em(start, jnp.asarray(x), tol=1e-13).model


def flat(parameters: Parameters) -> np.ndarray:
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(parameters)])


def theirs(kind: str) -> np.ndarray:
    se = figures("bootstrap_faithful")[f"boot_faithful_VVV_{kind}"]["se"]
    return np.concatenate([np.ravel(se[part]) for part in ("pro", "mean", "variance")])


# ---- standard errors ----


def test_the_information_is_that_of_numerical_differences():
    """Central differences of SciPy's log-likelihood in the plain parameters φ₁, μ, vech Σ."""
    x, model = faithful()
    below = np.tril_indices(2)

    def log_likelihood(theta):
        total = 0.0
        for weight, part in zip((theta[0], 1 - theta[0]), (theta[1:6], theta[6:]), strict=True):
            covariance = np.zeros((2, 2))
            covariance[below] = part[2:]
            covariance = covariance + np.tril(covariance, -1).T
            total = total + weight * multivariate_normal(part[:2], covariance).pdf(x)
        return np.sum(np.log(total))

    parts = [
        np.concatenate([np.asarray(model.means[j]), np.asarray(model.covariances[j])[below]])
        for j in range(2)
    ]
    theta = np.concatenate([[float(model.weights[0])], *parts])
    ours = inference.standard_errors(model, x)
    expected = np.concatenate(
        [
            [ours.errors.weights[0]],
            *[
                np.concatenate(
                    [ours.errors.means[j], np.asarray(ours.errors.covariances[j])[below]]
                )
                for j in range(2)
            ],
        ]
    )
    step = np.diag(2e-3 * expected * np.sqrt(len(x)) / 10)
    p = len(theta)
    hessian = np.array(
        [
            [
                (
                    log_likelihood(theta + step[a] + step[b])
                    - log_likelihood(theta + step[a] - step[b])
                    - log_likelihood(theta - step[a] + step[b])
                    + log_likelihood(theta - step[a] - step[b])
                )
                / (4 * step[a, a] * step[b, b])
                for b in range(p)
            ]
            for a in range(p)
        ]
    )
    numerical = np.sqrt(np.diag(np.linalg.inv(-hessian)))
    np.testing.assert_allclose(expected, numerical, rtol=1e-4)
    assert float(ours.errors.weights[0]) == pytest.approx(float(ours.errors.weights[1]))


def test_the_bootstrap_is_that_of_mclust_within_monte_carlo_error():
    x, model = faithful()
    found = inference.bootstrap(KEY, model, x, replicates=999)
    assert int(jnp.sum(found.usable)) == 999
    ours = flat(found.standard_errors())
    everything = np.asarray(
        jax.vmap(lambda m: jnp.concatenate([a.ravel() for a in jax.tree.leaves(Parameters.of(m))]))(
            found.models
        )
    )
    delta = everything - everything.mean(0)
    np.testing.assert_allclose(ours, everything.std(0, ddof=1), rtol=1e-10)
    # The error of a standard deviation of b values: σ √((κ − 1) / 4b); theirs has one too.
    kurtosis = np.mean(delta**4, axis=0) / np.mean(delta**2, axis=0) ** 2
    error = ours * np.sqrt(2 * (kurtosis - 1) / (4 * 999))
    assert np.all(np.abs(ours - theirs("bs")) < 4 * error)
    limits = np.stack([limit.weights for limit in found.intervals(0.95)])
    ci = figures("bootstrap_faithful")["boot_faithful_VVV_bs"]["ci_pro"]
    np.testing.assert_allclose(limits, ci, atol=0.014)  # 4 standard errors of such a quantile


def test_the_jackknife_is_that_of_mclust_and_refits_without_a_row():
    x, model = faithful()
    found = inference.jackknife(model, x, tol=1e-10)
    assert len(found.status) == len(x)
    # mclust's refits stop early, on their way to ours.
    np.testing.assert_allclose(flat(found.standard_errors()), theirs("jk"), rtol=0.04)
    limits = np.stack([limit.weights for limit in found.intervals(0.95)])
    ci = figures("bootstrap_faithful")["boot_faithful_VVV_jk"]["ci_pro"]
    np.testing.assert_allclose(limits, ci, atol=5e-4)
    for i in (0, 200):
        without = gmmjax.em(model, jnp.asarray(np.delete(x, i, axis=0)), reg=1e-7, tol=1e-10).model
        mine = jax.tree.map(lambda a, i=i: a[i], found.models)
        np.testing.assert_allclose(mine.means, without.means, rtol=1e-6)
        np.testing.assert_allclose(mine.covariances, without.covariances, rtol=1e-5)
    # The sandwich is the jackknife's limit in large samples.
    robust = flat(inference.standard_errors(model, x, robust=True).errors)
    np.testing.assert_allclose(robust, flat(found.standard_errors()), rtol=0.04)


@pytest.mark.parametrize("method", ["weighted", "parametric"])
def test_the_other_bootstraps_agree_with_what_they_estimate(method):
    """The weighted one with the sandwich, the parametric one with the information."""
    x, model = faithful()
    found = inference.bootstrap(KEY, model, x, method=method, replicates=999)
    expected = inference.standard_errors(model, x, robust=method == "weighted")
    np.testing.assert_allclose(found.standard_errors().means, expected.errors.means, rtol=0.12)
    np.testing.assert_allclose(found.standard_errors().weights, expected.errors.weights, rtol=0.12)


# ---- how many components ----


def null(k, family="tied"):
    return gmmjax.fit(KEY, data("faithful"), k, family=family, restarts=12).model


def ratio(model, x, key=KEY, replicates=19):
    # One set of static arguments, so that the tests share a program.
    return inference.likelihood_ratio(key, model, x, replicates=replicates, starts=6)


def test_the_likelihood_ratio_is_that_of_mclust_where_its_optima_are_best():
    lrt = figures("bootstrap_faithful")["LRT_faithful_EEE"]
    found = ratio(null(1), data("faithful"))
    assert float(found.statistic) == pytest.approx(lrt["obs"][0], rel=1e-4)
    assert float(found.p_value) == 1 / 20
    assert np.all(np.asarray(found.replicates) >= 0)
    assert np.isfinite(found.replicates).all()
    x = data("faithful")
    difference = found.alternative.log_likelihood(x) - found.null.log_likelihood(x)
    assert float(found.statistic) == pytest.approx(2 * float(difference), rel=1e-8)
    # Quartiles of the null, loosely: 19 replicates, and mclust's search misses optima.
    low, high = lrt["boot_quantiles"][1][0], lrt["boot_quantiles"][4][0]
    assert low < np.median(found.replicates) < high


def test_the_statistic_is_never_negative():
    """mclust's is, for 3 against 4 components: -0.0889."""
    assert figures("bootstrap_faithful")["LRT_faithful_EEE"]["obs"][2] < 0
    found = ratio(null(3), data("faithful"))
    assert float(found.statistic) > 1
    assert np.all(np.asarray(found.replicates) >= 0)
    assert found.alternative.n_components == 4


@pytest.mark.slow
def test_the_sequence_of_tests():
    x = data("faithful")
    found = inference.bootstrap_lrt(
        KEY, x, max_components=2, family="tied", replicates=19, starts=6, level=0.06, restarts=12
    )
    assert found.p_values == [1 / 20, 1 / 20]  # as small as they can be; mclust's too
    assert found.n_components == 3
    assert float(found.tests[1].statistic) >= 27.721 - 0.01
    model = found.tests[1].null
    assert float(model.log_likelihood(x)) >= float(found.tests[0].null.log_likelihood(x))


@pytest.mark.slow
def test_the_test_holds_its_level():
    """In samples of one normal, p-values ≤ 0.2 come in 1 of 5 (to 4 standard errors)."""
    rng = np.random.default_rng(0)
    values = []
    for seed in range(40):
        x = rng.normal(size=(80, 2))
        mean, covariance = gmmjax.mle.normal(x)
        model = gmmjax.GaussianMixture.create([1.0], mean[None], covariance, "tied")
        values.append(float(ratio(model, x, jax.random.key(seed)).p_value))
    share = np.mean(np.array(values) <= 0.2)
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 40)
    assert abs(np.mean(values) - 0.525) < 4 * 0.29 / np.sqrt(40)


# ---- merging ----


@pytest.mark.parametrize("name", ["faithful", "iris"])
def test_mergers_are_those_of_mclust(name):
    theirs = figures("merge_components")[name]
    z = np.array(theirs["z"])
    z = z / z.sum(1, keepdims=True)
    merging = inference.merge_components(z)
    k = z.shape[1]
    np.testing.assert_allclose(merging.entropy, theirs["entropy"], rtol=1e-8, atol=1e-11)
    assert merging.elbow() == theirs["optim_G"]
    combined = np.eye(k)
    for c in range(k, 0, -1):
        combined = np.array(theirs["combiM"][c - 1]) @ combined
        ours = np.asarray(merging.clusters[c - 1]) == np.arange(c)[:, None]
        np.testing.assert_array_equal(ours, combined)
        labels = np.array(theirs["classification"][c - 1]) - 1
        np.testing.assert_array_equal(merging.labels(z, c), labels)

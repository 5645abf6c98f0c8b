"""Standard errors, resampling and merging: closed forms, invariants, transforms and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mclust_figures import MODELS
from problems import blobs, rows, tolerance

import gmmjax
from gmmjax import FitError, GaussianMixture, Status, families, inference, models
from gmmjax.inference import Replicates

KEY = jax.random.key(0)
X = blobs(0, 200, 2, 2) * np.array([1.0, 30.0]) + np.array([5.0, 100.0])
N = len(X)


def one() -> GaussianMixture:
    mean, covariance = gmmjax.mle.normal(X)
    return GaussianMixture.create([1.0], np.asarray(mean)[None], np.asarray(covariance)[None])


# ---- coordinates ----


@jax.jit
def _moved(model, noise):
    theta, at = inference.coordinates(model)
    return theta, at(theta), at(theta + noise[: theta.shape[0]])


@pytest.mark.parametrize("family", MODELS)
def test_coordinates_are_free_and_keep_the_family(family):
    k, d = 2, 3
    rng = np.random.default_rng(3)
    root = np.eye(d) + 0.4 * rng.normal(size=(k, d, d))
    model = GaussianMixture.create(
        [0.3, 0.7], rng.normal(size=(k, d)), root @ root.transpose(0, 2, 1), family
    )
    theta, same, other = _moved(model, rows(0.3 * rng.normal(size=30)))
    assert theta.shape == (model.n_parameters(),)
    np.testing.assert_allclose(same.covariances, model.covariances, atol=tolerance(1e-12, 1e-5))
    np.testing.assert_allclose(same.weights, model.weights, rtol=1e-5)
    a, b = np.asarray(other.covariances, float)
    assert np.max(np.abs(a - np.asarray(model.covariances[0]))) > 1e-2
    volume, shape, orientation = families.get(family).mclust
    tol = tolerance(1e-10, 1e-4)
    spectra = [np.linalg.eigvalsh(m) / np.linalg.det(m) ** (1 / d) for m in (a, b)]
    assert (abs(np.linalg.det(a) / np.linalg.det(b) - 1) < tol) == (volume == "E")
    # A common shape along the coordinates or axes may be in any order of its entries.
    assert (np.max(np.abs(spectra[0] - spectra[1])) < tol) == (shape in "EI")
    assert (np.max(np.abs(a @ b - b @ a)) < 10 * tol) == (orientation in "EI")
    assert (np.max(np.abs(a - np.diag(np.diag(a)))) < tol) == (orientation == "I")


# ---- standard errors ----


@pytest.mark.parametrize("robust", [False, True])
def test_errors_of_one_normal_are_the_closed_forms(robust):
    """σ/√n for means; √((Σ_ab² + Σ_aa Σ_bb)/n) for covariances, or the fourth moments' if robust."""
    model = one()
    covariance = np.asarray(model.covariances[0], float)
    errors = inference.standard_errors(model, X, robust=robust).errors
    rtol = tolerance(1e-8, 2e-3)
    np.testing.assert_allclose(errors.means[0], np.sqrt(np.diag(covariance) / N), rtol=rtol)
    variances = np.diag(covariance)
    expected = np.sqrt((covariance**2 + np.outer(variances, variances)) / N)
    if robust:
        delta = X - X.mean(0)
        products = np.einsum("na,nb->nab", delta, delta)
        expected = products.std(0) / np.sqrt(N)
    np.testing.assert_allclose(errors.covariances[0], expected, rtol=rtol)
    np.testing.assert_allclose(errors.weights, 0, atol=1e-6)


def test_rows_count_by_weight_and_intervals_are_normal():
    model = one()
    once = inference.standard_errors(model, X, weights=np.ones(N))
    twice = inference.standard_errors(model, X, weights=np.full(N, 2.0))
    np.testing.assert_allclose(
        once.errors.means, np.sqrt(2) * twice.errors.means, rtol=tolerance(1e-9, 1e-3)
    )
    low, high = once.intervals(model, 0.95)
    np.testing.assert_allclose(
        high.means - low.means, 2 * 1.959964 * once.errors.means, rtol=tolerance(1e-5, 1e-3)
    )


def test_where_there_is_no_maximum_it_says_so():
    model = one()
    double = GaussianMixture.create(
        [0.5, 0.5], np.repeat(model.means, 2, 0), np.repeat(model.covariances, 2, 0)
    )
    with pytest.raises(ValueError, match="model: expected a maximum of the likelihood"):
        inference.standard_errors(double, X)
    found = inference.standard_errors(double, X, throw=False)
    assert not bool(found.positive_definite)
    assert np.isnan(found.errors.means).all()


# ---- resampling ----


@pytest.mark.parametrize("method", inference.METHODS)
def test_the_bootstrap_of_one_normal(method):
    model = one()
    found = inference.bootstrap(KEY, model, X, method=method, replicates=400)
    assert bool(jnp.all(found.usable))
    expected = np.sqrt(np.diag(np.asarray(model.covariances[0])) / N)
    errors = found.standard_errors()
    np.testing.assert_allclose(errors.means[0], expected, rtol=4 / np.sqrt(800))
    low, high = found.intervals(0.9)
    assert np.all(low.means < model.means)
    assert np.all(model.means < high.means)
    np.testing.assert_allclose((high.means - low.means)[0], 2 * 1.645 * expected, rtol=0.2)
    of_means = found.standard_errors(lambda m: m.means[0])
    np.testing.assert_allclose(of_means, errors.means[0], rtol=1e-6)


def test_the_same_key_gives_the_same_whatever_the_batch():
    model = one()
    first = inference.bootstrap(KEY, model, X, replicates=20)
    again = inference.bootstrap(KEY, model, X, replicates=20, batch=7)
    np.testing.assert_allclose(first.models.means, again.models.means, rtol=tolerance(1e-12, 1e-5))
    assert len(np.unique(np.asarray(first.models.means)[:, 0, 0])) == 20


def test_any_model_and_any_statistic():
    noise = np.random.default_rng(0).uniform(X.min(0), X.max(0), (20, 2))
    x = np.concatenate([X, noise])
    mixture = GaussianMixture.create([1.0], x.mean(0)[None], np.cov(X.T)[None] / 2)
    start = models.NoisyMixture.create(mixture, 0.5, models.log_hypervolume(x))
    model = gmmjax.em(start, rows(x)).model
    found = inference.bootstrap(KEY, model, x, replicates=30)
    assert 0 < float(found.standard_errors(lambda m: m.noise_weight)) < 0.5
    with pytest.raises(TypeError, match="model: expected one with a method `sample`"):
        inference.bootstrap(KEY, model, x, method="parametric")


def test_refits_that_failed_do_not_count():
    values = jnp.asarray([[1.0], [3.0], [jnp.nan], [100.0]])
    replicates = Replicates(
        estimate=jnp.asarray([2.0]),
        models=values,
        status=jnp.asarray(
            [Status.CONVERGED, Status.SPURIOUS, Status.NONFINITE, Status.DEGENERATE]
        ),
        n_steps=jnp.ones(4, jnp.int32),
        method="nonparametric",
    )
    assert replicates.usable.tolist() == [True, True, False, False]
    error = replicates.standard_errors(lambda m: m)
    np.testing.assert_allclose(error, [np.sqrt(2.0)], rtol=1e-6)
    low, high = replicates.intervals(0.5, lambda m: m)
    assert (float(low[0]), float(high[0])) == (1.5, 2.5)


# ---- merging ----


def _greedy(z):
    """The definition, by lists of columns."""

    def entropy(z):
        return -np.sum(np.where(z > 0, z * np.log(np.where(z > 0, z, 1)), 0))

    found = [entropy(z)]
    while z.shape[1] > 1:
        k = z.shape[1]
        options = []
        for a in range(k):
            for b in range(a + 1, k):
                merged = np.delete(z, b, axis=1)
                merged[:, a] = z[:, a] + z[:, b]
                options.append((entropy(merged), merged))
        least, z = min(options, key=lambda option: option[0])
        found.append(least)
    return found[::-1]


def test_mergers_are_greedy_and_counted_by_weight():
    rng = np.random.default_rng(0)
    z = rng.dirichlet(0.3 * np.ones(5), 60)
    merging = inference.merge_components(z)
    np.testing.assert_allclose(merging.entropy, _greedy(z), rtol=tolerance(1e-10, 1e-4), atol=1e-4)
    assert np.all(np.diff(merging.entropy) > 0)
    counts = rng.integers(0, 3, 60)
    weighted = inference.merge_components(z, counts)
    repeated = inference.merge_components(np.repeat(z, counts, axis=0))
    np.testing.assert_array_equal(weighted.pairs, repeated.pairs)
    np.testing.assert_allclose(weighted.sizes, repeated.sizes, rtol=1e-4)
    np.testing.assert_allclose(merging.responsibilities(z, 3).sum(1), 1, rtol=1e-5)
    assert merging.labels(z, 1).tolist() == [0] * 60
    np.testing.assert_array_equal(merging.labels(z, 5), z.argmax(1))


def test_the_elbow_is_where_two_lines_meet():
    merging = inference.Merging(
        entropy=jnp.asarray([0.0, 0.1, 0.2, 5.2, 10.2, 15.2]),
        clusters=jnp.zeros((6, 6), int),
        pairs=jnp.zeros((5, 2), int),
        sizes=jnp.zeros(5),
    )
    assert merging.elbow() == 3
    single = inference.merge_components(np.ones((4, 1)))
    assert single.elbow() == 1
    assert single.labels(np.ones((4, 1)), 1).tolist() == [0] * 4


# ---- bad input ----


def test_bad_arguments_are_named():
    model = one()
    with pytest.raises(TypeError, match="model: expected a GaussianMixture"):
        inference.standard_errors(3, X)
    with pytest.raises(ValueError, match=r"x: expected shape \[n, 2\]"):
        inference.standard_errors(model, X[:, :1])
    with pytest.raises(ValueError, match=r"x: expected shape \[n, 2\]"):
        inference.bootstrap(KEY, model, X[:, :1])
    with pytest.raises(ValueError, match="method: expected one of nonparametric"):
        inference.bootstrap(KEY, model, X, method="boot")
    with pytest.raises(ValueError, match="replicates: expected at least 2"):
        inference.bootstrap(KEY, model, X, replicates=1)
    with pytest.raises(TypeError, match="model: expected a GaussianMixture or"):
        inference.jackknife(3, X)
    with pytest.raises(ValueError, match="at least 2 rows"):
        inference.jackknife(model, X[:1])
    with pytest.raises(ValueError, match="finite"):
        inference.jackknife(model, np.full((5, 2), np.nan))
    with pytest.raises(FitError, match="fewer than two"):
        inference.jackknife(model, np.ones((4, 2)), reg=0.0)
    found = inference.bootstrap(KEY, model, X, replicates=20)
    with pytest.raises(ValueError, match="level: expected a number between 0 and 1"):
        found.intervals(95)


def test_bad_arguments_of_tests_and_mergers_are_named():
    with pytest.raises(ValueError, match="number of components of null"):
        inference.likelihood_ratio(KEY, one(), X[:1])
    with pytest.raises(TypeError, match="starts: expected a whole number"):
        inference.likelihood_ratio(KEY, one(), X, starts=2.5)
    with pytest.raises(ValueError, match="replicates: expected at least 19"):
        inference.bootstrap_lrt(KEY, X, replicates=10)
    with pytest.raises(ValueError, match="level: expected"):
        inference.bootstrap_lrt(KEY, X, level=5)
    with pytest.raises(ValueError, match="max_components"):
        inference.bootstrap_lrt(KEY, X[:3], max_components=3)
    with pytest.raises(ValueError, match="responsibilities: expected rows of non-negative"):
        inference.merge_components(X)
    merging = inference.merge_components(np.eye(3))
    with pytest.raises(ValueError, match="n_clusters: expected at most the 3"):
        merging.labels(np.eye(3), 4)
    with pytest.raises(ValueError, match="responsibilities: expected shape"):
        merging.labels(np.eye(2), 2)

"""Classifiers from labelled rows: discriminant analysis, cross-validation, outliers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from scipy.stats import chi2
from sklearn.discriminant_analysis import (
    LinearDiscriminantAnalysis,
    QuadraticDiscriminantAnalysis,
)
from sklearn.naive_bayes import GaussianNB

import gmmjax
from gmmjax import classification, datasets, metrics, mle
from gmmjax.classification import ClassConditionalMixture

X64 = bool(jax.config.jax_enable_x64)
CLOSE = 1e-8 if X64 else 2e-4
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def iris():
    data = datasets.load_iris()
    return data.x, data.labels


@pytest.fixture(scope="module")
def diabetes():
    data = datasets.load_diabetes()
    return data.x, data.labels


def two_blobs_and_one(n: int = 60, seed: int = 0):
    """Class 0 has two clusters, class 1 one."""
    rng = np.random.default_rng(seed)
    centers = np.array([[-6.0, 0.0], [6.0, 0.0], [0.0, 3.0]])
    z = np.repeat(np.arange(3), [n, n, 2 * n])
    return centers[z] + rng.normal(size=(4 * n, 2)), np.array([0, 0, 1])[z]


# ---- one normal a class, against scikit-learn ----


def labelled(name):
    """Measured data and classes; float32 has the digits for the first two."""
    if name == "diabetes":
        data = datasets.load_diabetes()
        return data.x, data.labels
    return getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)


SETS = ["iris", "diabetes", "wine", "breast_cancer"] if X64 else ["iris", "diabetes"]


def same_classifier(ours, theirs, x):
    """Posterior, its logarithm and the classes: to 1e-8 in float64."""
    log_posterior = jax.nn.log_softmax(ours.log_joint(x), axis=-1)
    np.testing.assert_allclose(ours.responsibilities(x), theirs.predict_proba(x), atol=CLOSE)
    if X64:
        np.testing.assert_allclose(
            log_posterior, theirs.predict_log_proba(x), atol=CLOSE, rtol=CLOSE
        )
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))


@pytest.mark.parametrize("name", SETS)
def test_tied_is_linear_discriminant_analysis(name):
    x, y = labelled(name)
    # "eigen" divides the pooled covariance by n, as maximum likelihood does.
    theirs = LinearDiscriminantAnalysis(solver="eigen").fit(x, y)
    ours = mle.mixture(x, y, family="tied")
    np.testing.assert_allclose(ours.means, theirs.means_, rtol=CLOSE)
    np.testing.assert_allclose(ours.weights, theirs.priors_, rtol=CLOSE)
    np.testing.assert_allclose(ours.covariances[0], theirs.covariance_, rtol=CLOSE)
    same_classifier(ours, theirs, x)


# 30 columns of breast cancer are collinear in a class, which scikit-learn refuses.
@pytest.mark.parametrize("name", [name for name in SETS if name != "breast_cancer"])
def test_full_is_quadratic_discriminant_analysis(name):
    x, y = labelled(name)
    theirs = QuadraticDiscriminantAnalysis(store_covariance=True).fit(x, y)
    ours = mle.mixture(x, y, family="full")
    for c in range(3):
        # Its divisor was n_c − 1 and is n_c since 1.8; ours is n_c. Put it on ours.
        own = np.var(x[y == c, 0]) / theirs.covariance_[c][0, 0]
        theirs.scalings_[c] = theirs.scalings_[c] * own
        scale = np.sqrt(np.outer(*2 * [np.diag(theirs.covariance_[c])]))
        np.testing.assert_allclose(
            ours.covariances[c] / scale, own * theirs.covariance_[c] / scale, atol=CLOSE
        )
    np.testing.assert_allclose(ours.means, theirs.means_, rtol=CLOSE)
    same_classifier(ours, theirs, x)


@pytest.mark.parametrize("name", SETS)
def test_diag_is_naive_bayes(name):
    x, y = labelled(name)
    theirs = GaussianNB(var_smoothing=0.0).fit(x, y)
    ours = mle.mixture(x, y, family="diag")
    variances = np.diagonal(ours.covariances, axis1=1, axis2=2)
    np.testing.assert_allclose(variances, theirs.var_, rtol=CLOSE)
    np.testing.assert_allclose(ours.means, theirs.theta_, rtol=CLOSE)
    same_classifier(ours, theirs, x)


def test_edda_chooses_the_family_of_least_bic(iris):
    x, y = iris
    names = ["spherical", "diag", "tied", "full"]
    result = classification.fit_edda(x, y, family=names)
    assert result.families == tuple(names)
    for name, bic in zip(names, result.bic, strict=True):
        model = mle.mixture(x, y, family=name)
        joint = np.take_along_axis(np.asarray(model.log_joint(x)), y[:, None], axis=1).sum()
        expected = -2 * joint + model.n_parameters() * np.log(150)
        assert float(bic) == pytest.approx(expected, rel=1e-5)
    assert result.model.family == names[int(np.argmin(result.bic))] == "full"
    assert float(result.log_likelihood) == pytest.approx(-188.3756, abs=1e-2)


def test_edda_passes_over_a_singular_family():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 3)), np.repeat(np.arange(3), 3)  # 3 rows a class, 3 features
    result = classification.fit_edda(x, y, family=["full", "diag"])
    assert result.model.family == "diag"
    assert np.isnan(result.bic[0])
    with pytest.raises(ValueError, match="singular in each of full"):
        classification.fit_edda(x, y, family=["full", "VVV"])
    with pytest.raises(ValueError, match="covariance of some class is singular"):
        classification.fit_edda(x, y, family="full")


# ---- a mixture a class ----


@pytest.fixture(scope="module")
def discriminant():
    x, y = two_blobs_and_one()
    result = classification.fit_discriminant(
        KEY, x, y, family="spherical", n_components=[1, 2], restarts=4, init="random_points"
    )
    return x, y, result


def test_each_class_chooses_its_own_number_of_components(discriminant):
    x, y, result = discriminant
    assert [result.candidates[c] for c in result.chosen] == [("spherical", 2), ("spherical", 1)]
    assert [m.n_components for m in result.model.densities] == [2, 1]
    np.testing.assert_array_equal(np.argmin(result.bic, axis=1), result.chosen)
    # Of the class's own rows, smaller is better.
    at = result.chosen[0]
    assert float(result.bic[0, at]) == pytest.approx(
        float(result.model.densities[0].bic(jnp.asarray(x[y == 0], float))), rel=1e-4
    )
    assert np.all(np.asarray(result.status) == gmmjax.Status.CONVERGED)
    one_normal = mle.mixture(x, y)
    wrong = np.mean(np.asarray(result.model.classify(x)) != y)
    assert wrong < 0.03 < np.mean(np.asarray(one_normal.predict(x)) != y) + 0.03


def test_the_joint_likelihood_and_the_parameters_are_counted(discriminant):
    x, y, result = discriminant
    joint = np.take_along_axis(np.asarray(result.model.log_joint(x)), y[:, None], axis=1)
    assert float(result.log_likelihood) == pytest.approx(joint.sum(), rel=1e-5)
    assert result.model.n_parameters() == 1 + (1 + 4 + 2) + (2 + 1)


def test_one_full_component_a_class_is_quadratic_discriminant_analysis(iris):
    x, y = iris
    result = classification.fit_discriminant(KEY, x, y)
    qda = mle.mixture(x, y)
    np.testing.assert_allclose(result.model.priors, qda.weights, rtol=1e-8 if X64 else 1e-6)
    np.testing.assert_allclose(
        result.model.posterior(x), qda.responsibilities(x), atol=1e-8 if X64 else 1e-3
    )


def test_a_candidate_with_more_components_than_rows_is_left_out():
    x, y = two_blobs_and_one()
    y = np.where(np.arange(240) < 239, 0, 1)  # one row of class 1
    result = classification.fit_discriminant(
        KEY, x, y, family="spherical", n_components=[1, 241], throw=False, reg=1e-3
    )
    assert result.chosen == (0, 0)
    assert np.isnan(result.bic[:, 1]).all()
    with pytest.raises(ValueError, match="n_components: expected at most the 1 rows of class 1"):
        classification.fit_discriminant(KEY, x, y, family="spherical", n_components=2)


def test_discriminant_under_jit_and_weights():
    x, y = two_blobs_and_one(20)
    weights = (np.arange(80) % 3 > 0).astype(float)

    def fit(y, weights):
        found = classification.fit_discriminant(KEY, x, y, 2, family="diag", weights=weights)
        return found.model

    ours = jax.jit(lambda w: fit(y, w))(weights)
    kept = mle.mixture(x[weights > 0], y[weights > 0], family="diag")
    np.testing.assert_allclose(
        ours.posterior(x), kept.responsibilities(x), atol=1e-8 if X64 else 2e-3
    )
    # Labels under a trace: the other classes' rows have weight 0.
    traced = jax.jit(lambda y: fit(y, weights))(y)
    np.testing.assert_allclose(traced.posterior(x), ours.posterior(x), atol=1e-8 if X64 else 2e-3)
    with pytest.raises(ValueError, match="under jit and vmap expected one candidate"):
        jax.jit(
            lambda w: (
                classification.fit_discriminant(KEY, x, y, family=["full", "tied"], weights=w).model
            )
        )(weights)


# ---- the model of a class each ----


@pytest.fixture(scope="module")
def conditional():
    first = gmmjax.GaussianMixture.create(
        [0.3, 0.7], [[0.0, 0.0], [4.0, 1.0]], [[1.0, 2.0], [0.5, 0.3]], "diag"
    )
    second = gmmjax.GaussianMixture.create([1.0], [[-3.0, 2.0]], [[[1.0, 0.4], [0.4, 0.5]]])
    return ClassConditionalMixture.create([0.25, 0.75], [first, second])


def test_bayes_rule(conditional):
    x = np.random.default_rng(0).normal(size=(7, 2)) * 3
    first, second = conditional.densities
    np.testing.assert_allclose(conditional.log_prob(x, 1), second.log_prob(x), rtol=1e-6)
    y = np.array([0, 1, 0, 1, 0, 1, 1])
    each = np.where(y == 0, first.log_prob(x), second.log_prob(x))
    np.testing.assert_allclose(conditional.log_prob(x, y), each, rtol=1e-6)
    joint = np.stack([first.log_prob(x), second.log_prob(x)], 1) + np.log([0.25, 0.75])
    np.testing.assert_allclose(conditional.log_joint(x), joint, rtol=1e-5)
    np.testing.assert_allclose(
        conditional.log_prob(x), np.logaddexp.reduce(joint, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(
        conditional.posterior(x), np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None]), rtol=1e-4
    )
    np.testing.assert_allclose(
        np.exp(conditional.log_posterior(x)), conditional.posterior(x), atol=1e-6
    )
    np.testing.assert_array_equal(conditional.classify(x), joint.argmax(axis=1))
    assert (conditional.n_classes, conditional.n_features) == (2, 2)
    np.testing.assert_allclose(
        conditional.mixture().log_prob(x), conditional.log_prob(x), rtol=1e-5
    )
    assert conditional.n_parameters() == 1 + (1 + 4 + 4) + (2 + 3)


def test_draws_are_those_of_the_class(conditional):
    """Means within 5 standard errors, and a classifier finds the classes again."""
    n = 4000
    for c, density in enumerate(conditional.densities):
        x = conditional.sample(jax.random.key(c), np.full(n, c))
        error = np.sqrt(np.diag(density.covariance()) / n)
        assert np.all(np.abs(x.mean(axis=0) - density.mean()) < 5 * error)
    x, y = conditional.sample_joint(KEY, n)
    assert abs(float(y.mean()) - 0.75) < 5 * np.sqrt(0.25 * 0.75 / n)
    assert float(metrics.accuracy(y, conditional.classify(x))) > 0.9
    np.testing.assert_allclose(
        jax.jit(lambda y: conditional.sample(KEY, y))(np.arange(6) % 2),
        conditional.sample(KEY, np.arange(6) % 2),
        rtol=1e-5,
    )


def test_conditional_under_vmap_and_grad(conditional):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)))
    np.testing.assert_allclose(
        jax.vmap(conditional.log_posterior)(x), conditional.log_posterior(x), rtol=1e-5, atol=1e-6
    )
    slope = jax.grad(lambda x: jnp.sum(conditional.log_posterior(x)[:, 0]))(x)
    assert np.isfinite(slope).all()
    moved = jax.vmap(lambda s: conditional.densities[0].affine(s).mean())(jnp.eye(2))
    assert moved.shape == (2, 2)


def test_bad_classes(conditional):
    with pytest.raises(ValueError, match="y: expected classes from 0 to 1; got 2 to 2"):
        conditional.sample(KEY, np.array([2]))
    with pytest.raises(ValueError, match="y: expected classes from 0 to 1; got -1 to 0"):
        conditional.log_prob(np.zeros((2, 2)), np.array([0, -1]))
    with pytest.raises(TypeError, match="y: expected integer classes"):
        conditional.sample(KEY, np.array([0.5]))
    with pytest.raises(ValueError, match=r"priors: expected shape \[2\]"):
        ClassConditionalMixture.create([1.0], conditional.densities)
    with pytest.raises(ValueError, match="priors: expected non-negative numbers of sum 1"):
        ClassConditionalMixture.create([0.5, 0.6], conditional.densities)
    wide = gmmjax.GaussianMixture.create([1.0], [[0.0] * 3], [1.0], "spherical")
    with pytest.raises(ValueError, match="densities: expected one number of features"):
        ClassConditionalMixture.create([0.5, 0.5], [wide, conditional.densities[0]])


def test_bad_training_data(iris):
    x, y = iris
    for fit in (
        classification.fit_edda,
        lambda *args: classification.fit_discriminant(KEY, *args),
        mle.mixture,
    ):
        with pytest.raises(ValueError, match=r"[yz]: expected labels from 0 to 1; got 0 to 2"):
            fit(x, y, 2)
        with pytest.raises(ValueError, match=r"[yz]: expected each class at least once; \[3\]"):
            fit(x, y, 4)
        with pytest.raises(ValueError, match=r"[yz]: expected shape \[150\], one a row"):
            fit(x, y[:10])
        with pytest.raises(TypeError, match="expected integer labels"):
            fit(x, y.astype(str))
        with pytest.raises(ValueError, match="x: expected finite"):
            fit(np.where(x > 7, np.nan, x), y)
    with pytest.raises(ValueError, match="family: expected one of"):
        classification.fit_discriminant(KEY, x, y, family="fulll")
    with pytest.raises(ValueError, match="n_components: expected at least one"):
        classification.fit_discriminant(KEY, x, y, n_components=[])


# ---- cross-validation ----


def test_folds_are_stratified():
    y = np.repeat([0, 1, 2], [40, 23, 7])
    folds = np.asarray(classification.stratified_folds(KEY, y, 5))
    assert set(np.bincount(folds)) == {14}
    for c, size in enumerate((40, 23, 7)):
        counts = np.bincount(folds[y == c], minlength=5)
        assert counts.max() - counts.min() <= 1
        assert counts.sum() == size
    other = classification.stratified_folds(jax.random.key(1), y, 5)
    assert np.any(np.asarray(other) != folds)


def test_cross_validation_is_a_loop_over_folds_in_one_compilation(iris):
    x, y = iris
    folds = classification.stratified_folds(KEY, y, 10)
    traces = []

    def fit(weights):
        traces.append(1)
        return mle.mixture(x, y, 3, family="tied", weights=weights)

    result = classification.cross_validate(fit, x, y, folds)
    assert len(traces) == 1
    for f in (0, 7):
        out = np.asarray(folds) == f
        model = mle.mixture(x[~out], y[~out], 3, family="tied")
        theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x[~out], y[~out])
        posterior = np.exp(result.log_posterior[out])
        np.testing.assert_allclose(posterior, model.responsibilities(x[out]), atol=CLOSE)
        np.testing.assert_allclose(posterior, theirs.predict_proba(x[out]), atol=CLOSE)
        assert float(result.error[f]) == pytest.approx(
            np.mean(np.asarray(result.labels)[out] != y[out]), abs=1e-6
        )
        p = theirs.predict_proba(x[out])
        assert float(result.log_loss[f]) == pytest.approx(
            float(metrics.log_loss(y[out], p)), abs=CLOSE, rel=1e-3
        )
        assert float(result.brier_score[f]) == pytest.approx(
            float(metrics.brier_score(y[out], p)), abs=CLOSE, rel=1e-3
        )


def test_cross_validation_of_a_mixture_a_class():
    x, y = two_blobs_and_one()
    folds = classification.stratified_folds(KEY, y, 3)

    def fit(weights):
        return classification.fit_discriminant(
            KEY, x, y, weights=weights, family="spherical", n_components=2, restarts=4,
            init="random_points",
        ).model  # fmt: skip

    result = classification.cross_validate(fit, x, y, folds)
    assert np.all(np.asarray(result.error) < 0.06)
    assert np.isfinite(result.log_loss).all()


def test_a_fold_that_fails_is_not_hidden(iris):
    x, y = iris
    x = np.concatenate([x, np.eye(150)[:, :1]], axis=1)  # constant but for row 0
    folds = classification.stratified_folds(KEY, y, 5)
    result = classification.cross_validate(
        lambda w: mle.mixture(x, y, 3, family="tied", weights=w), x, y, folds
    )
    failed = np.arange(5) == int(folds[0])
    np.testing.assert_array_equal(np.isnan(result.log_loss), failed)
    np.testing.assert_array_equal(np.isnan(result.error), failed)


def test_bad_folds(iris):
    x, y = iris

    def fit(weights):
        raise AssertionError("not reached")

    with pytest.raises(ValueError, match=r"fold 0 holds all rows of class \[0\]"):
        classification.cross_validate(fit, x, y, y)
    with pytest.raises(ValueError, match=r"folds: expected a row in each of 3 folds; fold 1"):
        classification.cross_validate(fit, x, y, np.where(np.arange(150) % 2, 0, 2))
    with pytest.raises(ValueError, match=r"folds: expected shape \[150\]"):
        classification.cross_validate(fit, x, y, [0, 1])
    with pytest.raises(ValueError, match="n_folds: expected at least 2"):
        classification.stratified_folds(KEY, y, 1)
    with pytest.raises(ValueError, match="n_folds: expected at most the 150 rows"):
        classification.stratified_folds(KEY, y, 151)


# ---- outliers ----


def test_the_threshold_of_one_normal_is_a_quantile_of_chi_squared():
    model = gmmjax.GaussianMixture.create([1.0], [[1.0, -2.0, 0.5]], [[1.0, 4.0, 0.2]], "diag")
    peak = float(model.log_prob(model.means[0]))
    rate, n = 0.02, 2**16
    threshold = float(classification.sampled_threshold(KEY, model, rate, n_draws=n))
    reached = chi2.sf(2 * (peak - threshold), df=3)
    assert abs(reached - rate) < 5 * np.sqrt(rate * (1 - rate) / n)


def test_the_rate_of_false_alarms_is_met_on_new_draws(conditional):
    model = conditional.mixture()
    threshold = classification.sampled_threshold(KEY, model, 0.05)
    x, _ = model.sample(jax.random.key(1), 20_000)
    alarms = float(jnp.mean(classification.is_outlier(model, x, threshold)))
    assert abs(alarms - 0.05) < 5 * np.sqrt(0.05 * 0.95 / 20_000)
    far = jnp.array([[50.0, 50.0], [4.0, 1.0]])
    assert classification.is_outlier(model, far, threshold).tolist() == [True, False]


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5])
def test_the_empirical_threshold_holds_the_rate_on_the_data(iris, rate):
    x, y = iris
    model = mle.mixture(x, y, family="full")
    threshold = classification.empirical_threshold(model, x, rate)
    alarms = int(jnp.sum(classification.is_outlier(model, x, threshold)))
    assert alarms == int(rate * 150)


def test_the_empirical_threshold_counts_weights_and_compiles_once(iris):
    x, y = iris
    model = mle.mixture(x, y, family="tied")
    half = np.arange(150) % 2 == 0
    weighted = classification.empirical_threshold(model, x, 0.1, weights=half.astype(float))
    assert float(weighted) == pytest.approx(
        float(classification.empirical_threshold(model, x[half], 0.1)), rel=1e-5
    )
    rates = np.array([0.02, 0.1, 0.3])
    several = jax.jit(
        jax.vmap(lambda r: classification.empirical_threshold(model, jnp.asarray(x, float), r))
    )(rates)
    each = [float(classification.empirical_threshold(model, x, r)) for r in rates]
    np.testing.assert_allclose(several, each, rtol=1e-5)


def test_bad_rates(iris):
    x, y = iris
    model = mle.mixture(x, y)
    for rate in (0.0, 1.0, -0.1, np.nan, [0.1, 0.2]):
        with pytest.raises(ValueError, match="rate: expected a number between 0 and 1"):
            classification.sampled_threshold(KEY, model, rate)
        with pytest.raises(ValueError, match="rate: expected a number between 0 and 1"):
            classification.empirical_threshold(model, x, rate)
    with pytest.raises(ValueError, match="n_draws: expected at least 10 / rate = 10000"):
        classification.sampled_threshold(KEY, model, 0.001, n_draws=1000)

"""Hard and bad inputs, one test each: a status or an exception, and the remedy in its text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FAMILIES, blobs, start, x64

import gmmjax
from gmmjax import FitError, GaussianMixture, Status

KEY = jax.random.key(0)
X = blobs(0, 100, 2, 3)
FIRST = start(0, X, 3, "full")


def usable(fit: gmmjax.FitResult) -> None:
    """A finite model, positive definite, that is a distribution."""
    model = fit.model
    assert all(
        bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves((model.means, model.factors))
    )
    assert not bool(jnp.any(jnp.isnan(model.log_weights)))
    assert np.all(np.linalg.eigvalsh(np.asarray(model.covariances, float)) > 0)
    assert abs(float(jnp.sum(model.weights)) - 1) < 1e-5
    assert bool(jnp.isfinite(fit.log_likelihood))


# --- values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_data_are_named_by_row_and_column(bad):
    x = X.copy()
    x[7, 1] = bad
    with pytest.raises(ValueError, match=r"x: expected finite.*row 7, column 1.*Drop|impute"):
        gmmjax.fit(KEY, x, 2)
    with pytest.raises(ValueError, match="row 7, column 1"):
        gmmjax.kmeans(KEY, x, 2)
    with pytest.raises(ValueError, match="row 7, column 1"):
        gmmjax.mle.normal(x)


def test_non_finite_data_under_jit_end_with_a_status_and_never_converged():
    x = jnp.asarray(X).at[7, 1].set(jnp.nan)
    fit = jax.jit(lambda x: gmmjax.fit(KEY, x, 2, restarts=4))(x)
    assert int(fit.status) == Status.NONFINITE_INPUT
    assert not bool(fit.converged)
    assert np.all(np.asarray(fit.lanes.status) == Status.NONFINITE_INPUT)


def evaluations():
    """Every public method that reads rows of a fitted model."""
    classes = gmmjax.classification.ClassConditionalMixture.create([0.5, 0.5], [FIRST, FIRST])
    noisy = gmmjax.models.NoisyMixture.create(FIRST, 0.1, 3.0)
    factors = gmmjax.models.FactorMixture.start(KEY, X, 2, 1)
    centers = gmmjax.KMeans(FIRST.means)
    for model in (FIRST, noisy, factors):
        yield from (model.log_joint, model.log_prob, model.log_likelihood)
        yield from (model.responsibilities, model.predict)
    yield from (FIRST.log_certainty, FIRST.bic, FIRST.icl, FIRST.aic)
    yield lambda x: FIRST.log_likelihood(x, np.ones(len(x)))
    yield from (classes.log_joint, classes.log_prob, classes.log_posterior, classes.posterior)
    yield from (classes.classify, lambda x: classes.log_prob(x, np.zeros(len(x), int)))
    yield from (centers.predict, centers.transform, centers.inertia)
    yield lambda x: gmmjax.classification.is_outlier(FIRST, x, -5.0)
    yield lambda x: gmmjax.classification.empirical_threshold(FIRST, x, 0.1)
    yield lambda x: gmmjax.classification.LabelledMixture(
        FIRST, jnp.log(jnp.eye(3))
    ).responsibilities(x, np.full(len(x), -1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_reads_no_row_that_is_not_finite(bad):
    x = X[:10].copy()
    x[7, 1] = bad
    for read in evaluations():
        with pytest.raises(
            ValueError, match=r"x: expected finite numbers; got .* at row 7, column 1"
        ):
            read(x)
        # Nor one of another width.
        with pytest.raises(ValueError, match=r"x: expected shape|features"):
            read(X[:10, :1])
    with pytest.raises(ValueError, match=r"got .* at column 1"):
        FIRST.log_prob(x[7])
    with pytest.raises(ValueError, match="at row 1, 2, column 1"):
        FIRST.predict(x.reshape(2, 5, 2))
    with pytest.raises(ValueError, match=r"x: expected shape \[n, 2\]; got \(2,\)"):
        gmmjax.KMeans(FIRST.means).predict(X[0])
    with pytest.raises(ValueError, match="variance: expected finite"):
        FIRST.log_prob(gmmjax.uncertain.Uncertain(X, x[7] + X))
    # An absent row may hold anything; known parts of rows are said by a mask.
    absent = np.arange(10) != 7
    assert np.isfinite(FIRST.log_likelihood(x, absent))
    if np.isnan(bad):
        assert np.isfinite(FIRST.log_prob(gmmjax.missing.mask(x))).all()


def test_under_jit_a_row_of_nan_has_a_density_of_nan():
    x = jnp.asarray(X[:10], float).at[7, 1].set(jnp.nan)
    bad = np.arange(10) == 7
    np.testing.assert_array_equal(np.isnan(jax.jit(FIRST.log_prob)(x)), bad)
    np.testing.assert_array_equal(np.isnan(jax.jit(FIRST.responsibilities)(x)).all(axis=1), bad)
    np.testing.assert_array_equal(
        np.isnan(jax.jit(gmmjax.KMeans(FIRST.means).transform)(x)).all(axis=1), bad
    )


def test_em_on_nan_is_not_converged_and_keeps_the_model():
    x = jnp.asarray(X, float).at[0, 0].set(jnp.nan)
    result = gmmjax.em(FIRST, x)
    assert int(result.status) == Status.NONFINITE_INPUT
    assert not bool(result.converged)
    assert int(result.n_steps) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_far_outlier_leaves_a_usable_model(family):
    x = np.concatenate([X, [[1e6, -1e6]]])
    fit = gmmjax.fit(KEY, x, 3, family=family, restarts=6)
    usable(fit)


@pytest.mark.parametrize("family", FAMILIES)
def test_more_components_than_distinct_points(family):
    x = np.repeat([[0.0, 0.0], [1.0, 3.0], [4.0, 1.0]], 10, axis=0)
    fit = gmmjax.fit(KEY, x, 5, family=family, restarts=6)
    usable(fit)
    assert not bool(fit.converged)
    assert int(fit.status) in (Status.DEGENERATE, Status.EMPTY_COMPONENT, Status.SPURIOUS)
    assert "fewer components" in fit.message.lower()


def test_duplicates_with_more_clusters_than_points():
    x = np.repeat([[0.0, 0.0], [1.0, 3.0], [4.0, 1.0]], 10, axis=0)
    result = gmmjax.kmeans(KEY, x, 5)
    assert int(result.status) == Status.EMPTY_COMPONENT
    assert float(result.inertia) < 1e-10
    assert np.all(np.isfinite(result.centers))


def test_all_rows_equal():
    with pytest.raises(ValueError, match=r"x: expected rows that differ.*point"):
        gmmjax.fit(KEY, np.ones((20, 2)), 2)


@pytest.mark.parametrize("family", ["full", "tied", "diag"])
def test_a_constant_column_is_singular(family):
    x = np.column_stack([X, np.full(len(X), 3.0)])
    with pytest.raises(FitError, match=r"singular.*constant.*drop the column") as error:
        gmmjax.fit(KEY, x, 2, family=family, restarts=2)
    assert error.value.status == Status.SINGULAR
    fit = gmmjax.fit(KEY, x, 2, family=family, restarts=2, throw=False)
    assert int(fit.status) == Status.SINGULAR
    assert not bool(fit.converged)


def test_a_constant_column_is_no_trouble_for_one_variance():
    x = np.column_stack([X, np.full(len(X), 3.0)])
    fit = gmmjax.fit(KEY, x, 2, family="spherical", restarts=2)
    usable(fit)
    assert bool(fit.converged)


def test_collinear_columns_lie_on_the_floor():
    x = np.column_stack([X, X.sum(1)])
    fit = gmmjax.fit(KEY, x, 2, restarts=4)
    usable(fit)
    assert int(fit.status) == Status.DEGENERATE
    assert "collinear" in fit.message
    assert "reg" in fit.message


def test_a_singular_covariance_without_a_floor():
    x = np.column_stack([X, X.sum(1)])
    fit = gmmjax.fit(KEY, x, 2, restarts=4, reg=0.0, throw=False)
    assert int(fit.status) >= Status.NONFINITE_INPUT
    with pytest.raises(FitError, match="reg"):
        gmmjax.fit(KEY, x, 2, restarts=4, reg=0.0)


def test_one_row():
    fit = gmmjax.fit(KEY, [[1.0, 2.0]], 1, family="spherical", throw=False)
    assert int(fit.status) == Status.SINGULAR
    with pytest.raises(FitError, match="singular"):
        gmmjax.fit(KEY, [[1.0, 2.0]], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_component_is_the_normal_mle(family):
    fit = gmmjax.fit(KEY, X, 1, family=family)
    assert bool(fit.converged)
    mean, covariance = gmmjax.mle.normal(X)
    np.testing.assert_allclose(fit.model.means[0], mean, atol=1e-5)
    diagonal = np.diag(np.diag(covariance))
    expected = {
        "full": covariance,
        "tied": covariance,
        "diag": diagonal,
        "spherical": np.eye(2) * np.trace(covariance) / 2,
    }[family]
    np.testing.assert_allclose(fit.model.covariances[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_feature(family):
    fit = gmmjax.fit(KEY, X[:, :1], 2, family=family, restarts=4)
    usable(fit)


def test_an_emptied_component_keeps_its_parameters():
    """A component of weight next to nothing, far away, loses its last row: no NaN, and a status."""
    model = GaussianMixture.create(
        [0.5, 0.5 - 1e-6, 1e-6], [[-1.0, 0.0], [1.0, 0.0], [1e3, 1e3]], [1.0, 1.0, 1.0], "spherical"
    )
    result = gmmjax.em(model, jnp.asarray(X, float))
    assert int(result.status) == Status.EMPTY_COMPONENT
    assert np.all(np.isfinite(result.model.means))
    np.testing.assert_allclose(result.model.means[2], 1e3, rtol=1e-5)
    assert float(result.model.weights[2]) == 0
    assert np.all(np.isfinite(result.model.log_prob(jnp.asarray(X, float))))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_bad_lane_changes_nothing_for_the_others(family):
    good = [start(s, X, 3, family) for s in range(64)]
    lanes = jax.tree.map(lambda *a: jnp.stack(a), *good)
    bad = jax.tree.map(lambda a: a.at[17].set(a[17] * (1e-200 if x64() else 1e-30)), lanes.factors)
    broken = GaussianMixture(lanes.log_weights, lanes.means, bad, lanes.family)
    options = {"family": family, "tol": 1e-6, "restart_batch": 8}
    clean = gmmjax.fit(KEY, X, 3, init=lanes, **options)
    mixed = gmmjax.fit(KEY, X, 3, init=broken, **options)
    others = np.arange(64) != 17
    for a, b in zip(jax.tree.leaves(clean.lanes), jax.tree.leaves(mixed.lanes), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[others], np.asarray(b)[others])
    assert int(mixed.lanes.status[17]) != Status.CONVERGED
    assert int(mixed.best) != 17
    usable(mixed)


# --- arguments -------------------------------------------------------------------------------------


def test_fewer_rows_than_components():
    with pytest.raises(
        ValueError, match=r"n_components: expected at most.*got 4 for 3 rows.*smaller"
    ):
        gmmjax.fit(KEY, X[:3], 4)
    with pytest.raises(ValueError, match="n_clusters: expected at most"):
        gmmjax.kmeans(KEY, X[:3], 4)


def test_rows_of_weight_zero_do_not_count():
    w = np.zeros(len(X))
    w[:3] = 1
    with pytest.raises(ValueError, match="got 4 for 3 rows"):
        gmmjax.fit(KEY, X, 4, weights=w)


@pytest.mark.parametrize("k", [0, -1])
def test_no_components(k):
    with pytest.raises(ValueError, match=f"n_components: expected at least 1; got {k}"):
        gmmjax.fit(KEY, X, k)


@pytest.mark.parametrize("k", [2.0, "2", None, True])
def test_a_number_of_components_that_is_no_whole_number(k):
    with pytest.raises(TypeError, match="n_components: expected a whole number"):
        gmmjax.fit(KEY, X, k)


def test_integers_are_data():
    fit = gmmjax.fit(KEY, (10 * X).astype(np.int64), 2, restarts=2)
    usable(fit)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (X > 0, TypeError, "got booleans.*astype"),
        (X.astype(object), TypeError, "dtype object.*astype"),
        (np.array([["a", "b"]]), TypeError, "real numbers; got dtype"),
        (X.astype(complex), TypeError, "real numbers; got dtype complex"),
        (X[:, 0], ValueError, r"shape \[n, d\]; got \(100,\).*\[:, None\]"),
        (X[None], ValueError, r"shape \[n, d\]; got \(1, 100, 2\)"),
        (X[:0], ValueError, "at least one row"),
        (X[:, :0], ValueError, "at least one row and one column"),
        ([[1.0, 2.0], [3.0]], ValueError, "x: expected rows of equal length"),
    ],
)
def test_arrays_that_are_no_data(x, error, match):
    with pytest.raises(error, match=match):
        gmmjax.fit(KEY, x, 2)
    with pytest.raises(error, match=match):
        gmmjax.kmeans(KEY, x, 2)


@pytest.mark.parametrize(
    ("w", "match"),
    [
        (-np.ones(100), "non-negative.*-1"),
        (np.full(100, np.nan), "finite"),
        (np.zeros(100), "all 0"),
        (np.ones(99), r"shape \[100\].*\(99,\)"),
        (np.ones((100, 1)), r"shape \[100\]"),
    ],
)
def test_weights_that_cannot_be(w, match):
    with pytest.raises(ValueError, match=match):
        gmmjax.fit(KEY, X, 2, weights=w)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"family": "round"}, "family: expected one of .*full.*got 'round'"),
        ({"init": "best"}, "init: expected one of mixed, k-means"),
        ({"init": np.zeros(100)}, "init: expected the name of a method.*float"),
        ({"init": np.zeros(99, int)}, r"labels of shape \[100\]"),
        ({"init": np.full(100, 2)}, "labels from 0 to 1; got 2"),
        ({"init": np.zeros(100, int)}, r"each of the 2 labels at least once; \[1\]"),
        ({"init": FIRST}, r"means of shape \[2, 2\]"),
        ({"reg": -1.0}, "reg: expected one finite number ≥ 0"),
        ({"tol": np.nan}, "tol: expected one finite number ≥ 0"),
        ({"max_steps": -3}, "max_steps: expected"),
        ({"restarts": 0}, "restarts: expected at least 1"),
        ({"block": 0}, "block: expected at least 1"),
        ({"restart_batch": 0}, "restart_batch: expected at least 1"),
    ],
)
def test_options_that_cannot_be(options, match):
    with pytest.raises((ValueError, TypeError), match=match):
        gmmjax.fit(KEY, X, 2, **options)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([0.5, 0.6], [[0.0], [1.0]], [1.0, 1.0], "spherical"), "sum of 1; got 1.1.*Divide"),
        (([1.5, -0.5], [[0.0], [1.0]], [1.0, 1.0], "spherical"), "non-negative"),
        (([1.0], [[0.0], [1.0]], [1.0, 1.0], "spherical"), r"weights: expected shape \[2\]"),
        (([0.5, 0.5], [0.0, 1.0], [1.0, 1.0], "spherical"), r"means: expected shape \[k, d\]"),
        (([0.5, 0.5], [[0.0], [np.nan]], [1.0, 1.0], "spherical"), "means: expected finite"),
        (([0.5, 0.5], [[0.0], [1.0]], [1.0], "spherical"), r"covariances: expected shape \[2\]"),
        (([0.5, 0.5], [[0.0], [1.0]], [1.0, -1.0], "spherical"), "positive definite.*-1"),
        (
            ([1.0], [[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]], "full"),
            "positive definite.*eigenvalue",
        ),
        (([1.0], [[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]], "full"), "symmetric"),
        (([1.0], [["a"]], [1.0], "spherical"), "means: expected numbers"),
    ],
)
def test_a_mixture_that_cannot_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture.create(*arguments)


def test_density_of_rows_with_the_wrong_number_of_features():
    with pytest.raises(ValueError, match=r"x: expected shape \[..., 2\].*got \(100, 3\)"):
        FIRST.log_prob(np.zeros((100, 3)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gmmjax.mle.categorical([0, 1, 3], 3), "labels from 0 to 2; got 0 to 3"),
        (lambda: gmmjax.mle.categorical([0.5, 1.0]), "integer labels"),
        (lambda: gmmjax.mle.mixture(X, np.zeros(100, int), 2), r"\[1\] have no row"),
        (lambda: gmmjax.mle.mixture(X, np.zeros(99, int)), r"expected shape \[100\]"),
        (lambda: gmmjax.mle.mixture(X[:3], [0, 0, 1]), "singular.*reg"),
        (lambda: gmmjax.Prior.create(mean=[0.0], scale=[[1.0]], dof=-1.0), "dof"),
        (lambda: gmmjax.Prior.create(mean=[0.0], scale=[[-1.0]]), "positive semi-definite"),
        (lambda: gmmjax.Prior.create(mean=[0.0], scale=[[1.0]], concentration=0.5), "at least 1"),
    ],
)
def test_closed_forms_and_priors_that_cannot_be(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()


def test_em_on_data_wider_than_the_model_says_so(float64):
    model = gmmjax.GaussianMixture.create([0.5, 0.5], [[0.0], [1.0]], [[[1.0]], [[1.0]]])
    narrow = jax.tree.map(lambda a: a.astype("float32"), model)
    with pytest.raises(TypeError, match=r"data: expected dtype float32.*got float64"):
        gmmjax.em(narrow, jnp.linspace(0.0, 1.0, 9)[:, None])
    assert gmmjax.em(model, jnp.linspace(0.0, 1.0, 9, dtype="float32")[:, None]).converged

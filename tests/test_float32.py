"""float32 that can be trusted: shifts, scales, columns of mixed scale, narrow clusters.

The float32 fit, from the same start, ends within 1e-3 nats per sample of the float64 fit on the same
(rounded) data. Both models are scored in float64, so that what is compared is the model.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FAMILIES, blobs

import gmmjax

pytestmark = pytest.mark.own_dtype

N, D, K = 1200, 3, 4
SHIFTS = {f"shift {s:g}": (s, np.ones(D)) for s in (0.0, 1e2, 1e3, 1e4)}
SCALES = {f"scale {s:g}": (0.0, np.full(D, s)) for s in (1e-6, 1e-3, 1e3, 1e6)}
MIXED = {"mixed columns": (0.0, np.array([1e-3, 1.0, 1e3]))}


def narrow() -> np.ndarray:
    """Clusters a thousandth as wide as the data."""
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (K, D))[rng.integers(0, K, N)] + 1e-3 * rng.normal(size=(N, D))


def data(name: str) -> np.ndarray:
    if name == "narrow clusters":
        return narrow()
    shift, scale = (SHIFTS | SCALES | MIXED)[name]
    return (blobs(1, N, D, K) + shift) * scale


def labels(x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(2)
    centers = x[rng.choice(N, K, replace=False)]
    return np.argmin((((x[:, None] - centers) / x.std(0)) ** 2).sum(-1), 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [*SHIFTS, *SCALES, *MIXED, "narrow clusters"])
def test_a_float32_fit_is_as_good_as_a_float64_one(name, family):
    x = data(name).astype(np.float32)
    start = labels(x.astype(np.float64))

    def fit(dtype):
        return gmmjax.fit(
            jax.random.key(0), jnp.asarray(x, dtype), K, family=family, init=start, tol=1e-6
        )

    single = fit(jnp.float32)
    assert single.log_likelihood.dtype == jnp.float32
    for leaf in jax.tree.leaves(single.model):
        assert bool(jnp.all(jnp.isfinite(leaf)))
    assert np.all(np.linalg.eigvalsh(np.asarray(single.model.covariances, float)) > 0)
    assert bool(single.converged)
    with jax.enable_x64(True):
        double = fit(jnp.float64)
        assert double.log_likelihood.dtype == jnp.float64
        scored = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), single.model)
        mean = float(scored.log_likelihood(jnp.asarray(x, jnp.float64))) / N
        best = float(double.log_likelihood) / N
    assert abs(mean - best) < 1e-3
    # And what the float32 fit says of itself is true.
    assert abs(float(single.log_likelihood) / N - best) < 1e-3


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e4])
def test_inertia_is_never_negative(shift):
    x = jnp.asarray(blobs(4, 500, 2, 5) * 1e-2 + shift, jnp.float32)
    result = gmmjax.kmeans(jax.random.key(0), x, 60, restarts=2)
    assert float(result.inertia) >= 0
    assert np.all(np.asarray(result.model.transform(x)) >= 0)
    assert np.all(np.isfinite(result.centers))


def test_sums_do_not_stick_at_two_to_the_24():
    """A float32 counter of single rows stops at 2²⁴ = 16,777,216; weights reach it with few rows."""
    x = jnp.asarray(blobs(4, 4000, 2, 2), jnp.float32)
    w = jnp.full(len(x), 2.0**14, jnp.float32)  # 65 million observations
    labels = (np.asarray(x[:, 0]) > 0).astype(int)
    heavy = gmmjax.fit(jax.random.key(0), x, 2, weights=w, init=labels, tol=1e-6)
    light = gmmjax.fit(jax.random.key(0), x, 2, init=labels, tol=1e-6)
    np.testing.assert_allclose(heavy.model.weights, light.model.weights, rtol=1e-3)
    np.testing.assert_allclose(heavy.log_likelihood / 2**14, light.log_likelihood, rtol=1e-5)


def test_the_density_far_away_is_finite():
    """Densities exponentiated before the logarithm are −inf far from every centre."""
    model = gmmjax.GaussianMixture.create([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], "spherical")
    x = jnp.asarray([[1e4], [-1e6]], jnp.float32)
    assert np.all(np.isfinite(model.log_prob(x)))
    np.testing.assert_allclose(model.log_prob(x)[0], -0.5 * (1e4 - 1) ** 2, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_forms_of_the_e_step_are_the_same_function(family):
    """By features and by differences, against responsibilities and sums in plain float64 NumPy."""
    from gmmjax import expectation
    from gmmjax.moments import centre

    x = blobs(8, 400, D, K)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model = gmmjax.fit(jax.random.key(0), x, K, family=family, restarts=1, max_steps=3).model
        w = rng.uniform(0, 2, len(x))
        r = np.asarray(model.responsibilities(x)) * w[:, None]
        log_likelihood = float(model.log_likelihood(x, w))
    weight = r.sum(0)
    mean = r.T @ x / weight[:, None]
    for dtype, rtol in ((jnp.float32, 2e-4), (jnp.float64, 1e-10)):
        with jax.enable_x64(dtype == jnp.float64):
            cast = jax.tree.map(lambda a, t=dtype: jnp.asarray(np.asarray(a), t), model)
            for form in (expectation.by_features, expectation.by_differences):
                sums, ll = form(cast.prepare(), jnp.asarray(x, dtype), jnp.asarray(w, dtype))
                found = centre(sums)
                np.testing.assert_allclose(ll, log_likelihood, rtol=rtol)
                np.testing.assert_allclose(found.weight, weight, rtol=rtol)
                np.testing.assert_allclose(found.mean, mean, rtol=rtol, atol=rtol)


def test_the_accurate_form_takes_over_where_features_cancel():
    with jax.enable_x64(False):
        wide = gmmjax.GaussianMixture.create([0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0], "spherical")
        thin = gmmjax.GaussianMixture.create([0.5, 0.5], [[-1.0], [1.0]], [1e-6, 1e-6], "spherical")
        assert not bool(wide.prepare().cancels)
        assert bool(thin.prepare().cancels)


@pytest.mark.parametrize("accelerate", [False, True])
def test_a_lane_ends_though_its_objective_rounds_by_more_than_its_last_digit(accelerate):
    """Four clear clusters, 1.06 nats a row: single changes stay at 30 ε, and lanes took all 1000 steps."""
    x = blobs(7, 600, 3, 4)
    with jax.enable_x64(True):
        exact = gmmjax.fit(jax.random.key(0), x, 4, restarts=12, init="k-means++").log_likelihood
    with jax.enable_x64(False):
        data = jnp.asarray(x, jnp.float32)
        options = {"restarts": 12, "init": "k-means++", "accelerate": accelerate}
        result = gmmjax.fit(jax.random.key(0), data, 4, **options)
    assert bool(result.converged)
    assert int(result.lanes.n_steps.max()) < 300
    assert abs(float(result.log_likelihood) - float(exact)) < 1e-4 * 600


# ---- float32 rows while JAX's x64 mode is on ----


def _floats(tree) -> set[str]:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return {str(leaf.dtype) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}


IRIS = gmmjax.datasets.load_iris()
KEY = jax.random.key(0)
SOME_LABELS = np.where(np.arange(150) % 3, -1, IRIS.labels)
ENTRIES = {
    "fit": lambda x: gmmjax.fit(KEY, x, 3, restarts=12),
    "fit, no swaps": lambda x: gmmjax.fit(KEY, x, 3, restarts=6, init="k-means", family="tied"),
    "fit, float64 prior": lambda x: gmmjax.fit(
        KEY, x, 3, restarts=6, prior=gmmjax.Prior.default(IRIS.x, 3, "full")
    ),
    "fit, missing": lambda x: gmmjax.fit(
        KEY, x.at[::3, 1].set(jnp.nan), 2, restarts=6, missing="marginalize"
    ),
    "em": lambda x: gmmjax.em(gmmjax.mle.mixture(x, IRIS.labels), x, accelerate=True),
    "kmeans": lambda x: gmmjax.kmeans(KEY, x, 3),
    "select": lambda x: gmmjax.select(KEY, x, [1, 2], ["EEI", "VVI"], restarts=6).model,
    "fit_factors": lambda x: gmmjax.models.fit_factors(KEY, x, 2, 1, restarts=2),
    "fit_noise": lambda x: gmmjax.models.fit_noise(KEY, x, 2, restarts=2),
    "bootstrap": lambda x: gmmjax.inference.bootstrap(
        KEY, gmmjax.mle.mixture(x, IRIS.labels), x, replicates=5
    ),
    "semi-supervised": lambda x: gmmjax.classification.fit_semi_supervised(
        KEY, x, SOME_LABELS, restarts=2
    ),
    "condition": lambda x: gmmjax.mle.mixture(x, IRIS.labels).condition([0], [5.0]),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_float32_rows_stay_float32_where_x64_is_on(entry):
    """A constant of the default dtype in a loop made `fit` raise a TypeError from deep inside."""
    with jax.enable_x64(True):
        assert _floats(ENTRIES[entry](jnp.asarray(IRIS.x, jnp.float32))) == {"float32"}

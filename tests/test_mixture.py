"""Densities against scipy, closed forms against NumPy, K-means' invariants, and the exact floor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from problems import FAMILIES, blobs, rows, start, tolerance

import gmmjax
from gmmjax import linalg

RTOL = {"rtol": tolerance(1e-11, 2e-5)}


@pytest.mark.parametrize("family", FAMILIES)
def test_densities_are_those_of_scipy(family):
    x = np.asarray(rows(blobs(0, 60, 3, 4)), float)
    model = start(2, x, 4, family)
    weights, means = np.asarray(model.weights, float), np.asarray(model.means, float)
    covariances = np.asarray(model.covariances, float)
    normals = [
        scipy.stats.multivariate_normal(m, c) for m, c in zip(means, covariances, strict=True)
    ]
    joint = np.log(weights) + np.stack([p.logpdf(x) for p in normals], axis=1)
    np.testing.assert_allclose(model.log_joint(x), joint, **RTOL)
    total = scipy.special.logsumexp(joint, axis=1)
    np.testing.assert_allclose(model.log_prob(x), total, **RTOL)
    np.testing.assert_allclose(
        model.responsibilities(x), np.exp(joint - total[:, None]), atol=tolerance(1e-12, 1e-5)
    )
    np.testing.assert_array_equal(model.predict(x), joint.argmax(1))
    parameters = 3 + 4 * 3 + {"full": 24, "tied": 6, "diag": 12, "spherical": 4}[family]
    assert model.n_parameters() == parameters
    bic = -2 * total.sum() + parameters * np.log(60)
    np.testing.assert_allclose(model.bic(x), bic, **RTOL)
    np.testing.assert_allclose(model.aic(x), -2 * total.sum() + 2 * parameters, **RTOL)
    mean = weights @ means
    np.testing.assert_allclose(model.mean(), mean, atol=tolerance(1e-12, 1e-5))
    second = np.einsum("k,kab->ab", weights, covariances)
    second += np.einsum("k,ka,kb->ab", weights, means - mean, means - mean)
    np.testing.assert_allclose(model.covariance(), second, atol=tolerance(1e-12, 1e-5))


def test_densities_take_any_leading_shape():
    model = start(0, blobs(0, 50, 2, 3), 3, "full")
    x = rows(np.zeros((4, 5, 2)))
    assert model.log_prob(x).shape == (4, 5)
    assert model.log_joint(x).shape == (4, 5, 3)
    assert model.log_prob(x[0, 0]).shape == ()


def test_the_normal_mle_with_weights():
    x = blobs(1, 200, 3, 2) + 50.0
    w = np.random.default_rng(0).integers(0, 4, 200)
    mean, covariance = gmmjax.mle.normal(x, weights=w)
    repeated = np.repeat(np.asarray(rows(x), float), w, axis=0)
    np.testing.assert_allclose(mean, repeated.mean(0), rtol=tolerance(1e-13, 1e-6))
    np.testing.assert_allclose(
        covariance, np.cov(repeated.T, bias=True), rtol=tolerance(1e-11, 1e-4), atol=1e-4
    )


def test_the_categorical_mle_with_weights():
    found = gmmjax.mle.categorical([0, 2, 2, 1], 4, weights=[1.0, 2.0, 0.5, 0.5])
    np.testing.assert_allclose(found, [0.25, 0.125, 0.625, 0.0], rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_supervised_closed_form(family):
    x = blobs(2, 300, 2, 3)
    z = np.random.default_rng(1).integers(0, 3, 300)
    model = gmmjax.mle.mixture(x, z, family=family)
    np.testing.assert_allclose(model.weights, np.bincount(z) / 300, rtol=1e-5)
    within = np.stack([np.cov(x[z == j].T, bias=True) for j in range(3)])
    pooled = np.einsum("k,kab->ab", np.bincount(z) / 300, within)
    for j in range(3):
        np.testing.assert_allclose(model.means[j], x[z == j].mean(0), atol=tolerance(1e-12, 1e-5))
        expected = {
            "full": within[j],
            "tied": pooled,
            "diag": np.diag(np.diag(within[j])),
            "spherical": np.eye(2) * np.trace(within[j]) / 2,
        }[family]
        np.testing.assert_allclose(model.covariances[j], expected, atol=tolerance(1e-12, 1e-5))


def test_kmeans_whole_weights_are_repetition():
    x = blobs(3, 150, 2, 4)
    w = np.random.default_rng(0).integers(0, 3, 150)
    centers = x[:4]
    weighted = gmmjax.kmeans(jax.random.key(0), x, 4, init=centers, weights=w)
    repeated = gmmjax.kmeans(jax.random.key(0), np.repeat(x, w, axis=0), 4, init=centers)
    np.testing.assert_allclose(weighted.inertia, repeated.inertia, rtol=tolerance(1e-10, 1e-4))
    order = np.lexsort(np.asarray(weighted.centers).T)
    other = np.lexsort(np.asarray(repeated.centers).T)
    np.testing.assert_allclose(
        weighted.centers[order], repeated.centers[other], atol=tolerance(1e-9, 1e-3)
    )


def test_draws_in_many_features_take_no_factor_a_row():
    """By chunks of rows; the draws are those of the formula, whatever the chunk."""
    d, n = 300, 700  # more rows than a chunk holds
    rng = np.random.default_rng(0)
    root = np.tril(rng.normal(size=(2, d, d)) / d) + np.eye(d)
    m = gmmjax.GaussianMixture.create(
        [0.5, 0.5], rng.normal(size=(2, d)), root @ root.transpose(0, 2, 1)
    )
    z = jnp.asarray(np.arange(n) % 2)
    draw = jax.jit(m.sample_given).lower(jax.random.key(0), z).compile()
    assert draw.memory_analysis().temp_size_in_bytes < n * d * d * m.means.dtype.itemsize / 2
    noise = np.asarray(jax.random.normal(jax.random.key(0), (n, d), m.means.dtype))
    factors = np.asarray(m.factors.scale_tril)[np.asarray(z)]
    expected = np.asarray(m.means)[z] + np.einsum("nab,nb->na", factors, noise)
    np.testing.assert_allclose(m.sample_given(jax.random.key(0), z), expected, rtol=1e-4, atol=1e-4)


def test_kmeans_says_what_it_returns():
    x = rows(blobs(4, 300, 2, 5))
    result = gmmjax.kmeans(jax.random.key(0), x, 5, restarts=8)
    assert bool(result.converged)
    np.testing.assert_array_equal(result.labels, result.model.predict(x))
    np.testing.assert_allclose(result.inertia, result.model.inertia(x), rtol=tolerance(1e-10, 1e-4))
    distances = np.asarray(result.model.transform(x))
    np.testing.assert_array_equal(distances.argmin(1), result.labels)
    np.testing.assert_allclose((distances.min(1) ** 2).sum(), result.inertia, rtol=1e-4)
    assert float(result.inertia) <= float(-np.asarray(result.lanes.log_likelihood).max()) * 1.0001


def test_an_emptied_cluster_moves_to_the_farthest_row():
    x = np.concatenate([np.zeros((50, 2)), np.ones((50, 2)), [[5.0, 5.0]], [[9.0, 9.0]]])
    same = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.1]])
    result = gmmjax.kmeans(jax.random.key(0), x, 4, init=same)
    assert float(result.inertia) < 1e-8
    assert {tuple(np.round(c).tolist()) for c in np.asarray(result.centers)} == {
        (0.0, 0.0),
        (1.0, 1.0),
        (5.0, 5.0),
        (9.0, 9.0),
    }


def test_lloyd_never_raises_the_inertia():
    x = rows(blobs(5, 400, 3, 6))
    result = gmmjax.em(gmmjax.KMeans(x[:6]), x, tol=0.0, max_steps=12)
    falls = np.diff(np.asarray(result.trace)[-13:])
    assert np.all(falls >= -tolerance(1e-9, 1e-2))


def test_the_floor_is_the_exact_constrained_maximum():
    """−log|Σ| − tr(Σ⁻¹A) over Σ ⪰ diag(f), against a general optimiser over Σ = diag(f) + B Bᵀ."""
    with jax.enable_x64(True):
        a = np.array([[1.0, 0.9], [0.9, 0.82]])  # smallest eigenvalue about 0.005
        floor = np.array([0.05, 0.02])
        factor, active = linalg.floored_cholesky(jnp.asarray(a)[None], jnp.asarray(floor))
        assert bool(active[0])
        sigma = np.asarray(factor[0] @ factor[0].T)

    def cost(sigma):
        return np.linalg.slogdet(sigma)[1] + np.trace(np.linalg.solve(sigma, a))

    def of(b):
        b = b.reshape(2, 2)
        return cost(np.diag(floor) + b @ b.T)

    best = min(
        scipy.optimize.minimize(of, np.random.default_rng(s).normal(size=4), tol=1e-12).fun
        for s in range(5)
    )
    np.testing.assert_allclose(cost(sigma), best, rtol=1e-8)
    assert np.linalg.eigvalsh(sigma - np.diag(floor)).min() > -1e-12


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 9])
def test_small_factorisations(d):
    rng = np.random.default_rng(d)
    a = rng.normal(size=(6, d, d))
    spd = a @ a.transpose(0, 2, 1) + np.eye(d)
    factor = np.asarray(linalg.cholesky(rows(spd)), float)
    np.testing.assert_allclose(factor, np.linalg.cholesky(spd), atol=tolerance(1e-12, 2e-5))
    inverse = np.asarray(linalg.inverse_lower(rows(factor)), float)
    np.testing.assert_allclose(inverse @ factor, np.broadcast_to(np.eye(d), spd.shape), atol=1e-4)


def test_a_prior_holds_a_lonely_component():
    """MAP-EM: duplicates under a component collapse without a prior and not with one."""
    x = np.concatenate([blobs(6, 60, 2, 1), np.full((4, 2), 9.0)])
    prior = gmmjax.Prior.create(mean=x.mean(0), scale=np.cov(x.T) / 4)
    free = gmmjax.fit(jax.random.key(0), x, 2, restarts=4, init="k-means")
    held = gmmjax.fit(jax.random.key(0), x, 2, restarts=4, init="k-means", prior=prior)
    assert int(free.status) in (gmmjax.Status.DEGENERATE, gmmjax.Status.SPURIOUS)
    assert bool(held.converged)
    assert np.linalg.eigvalsh(np.asarray(held.model.covariances, float)).min() > 0.01

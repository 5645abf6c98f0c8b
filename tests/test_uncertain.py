"""Rows known up to Gaussian noise: the densities, the moments, and the climb of EM on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import blobs, start
from scipy.stats import multivariate_normal

import gmmjax
from gmmjax import families, moments
from gmmjax.uncertain import Uncertain

pytestmark = pytest.mark.own_dtype


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def member(family: str) -> gmmjax.GaussianMixture:
    """Some mixture of the family, without a fit."""
    x, _ = noisy()
    full = start(0, x, 3, "full")
    f = families.get(family)
    return gmmjax.GaussianMixture(
        full.log_weights, full.means, f.from_dense(full.covariances), f.name
    )


def noisy(n: int = 60, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    x = blobs(0, n, d, 3)
    return x, np.random.default_rng(1).uniform(0.05, 0.6, x.shape)


@pytest.mark.parametrize("family", ["full", "tied", "diag", "spherical"])
def test_the_density_is_the_mean_over_the_noise(family):
    """Against scipy: E[log φ_j N(z; μ_j, Σ_j)] = log φ_j + log N(m; μ_j, Σ_j) − ½ tr(Σ_j⁻¹ S)."""
    x, variance = noisy()
    model = member(family)
    found = model.log_joint(Uncertain(jnp.asarray(x), jnp.asarray(variance)))
    for j in range(3):
        cov = np.asarray(model.covariances[j])
        expected = float(model.log_weights[j]) + multivariate_normal.logpdf(x, model.means[j], cov)
        expected -= 0.5 * variance @ np.diagonal(np.linalg.inv(cov))
        np.testing.assert_allclose(found[:, j], expected, rtol=1e-9)


@pytest.mark.parametrize(
    "family", ["full", "tied", "diag", "tied-diag", "spherical", "tied-spherical"]
)
def test_the_moments_are_those_of_points_with_that_mean_and_spread(family):
    """2d points m ± √d s_a e_a have mean m and covariance diag(s²)."""
    x, variance = noisy(n=20)
    n, d = x.shape
    model = member(family)
    rows = Uncertain(jnp.asarray(x), jnp.asarray(variance))
    weights = jnp.linspace(0.5, 2.0, n)
    found, value = model.expect(rows, weights)
    np.testing.assert_allclose(value, jnp.sum(weights * model.log_prob(rows)), rtol=1e-12)
    offsets = np.sqrt(d * variance)[:, :, None] * np.eye(d)
    points = np.concatenate([x[:, None] + offsets, x[:, None] - offsets], axis=1).reshape(-1, d)
    r = np.repeat(model.responsibilities(rows) * weights[:, None], 2 * d, axis=0) / (2 * d)
    kind = families.get(family).second
    expected = moments.from_responsibilities(jnp.asarray(points), jnp.asarray(r), found.about, kind)
    for name in ("weight", "first", "second"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("family", ["full", "tied"])
def test_em_never_falls_and_keeps_the_noise_in_the_spread(family):
    x, variance = noisy()
    model = member(family)
    rows = Uncertain(jnp.asarray(x), jnp.asarray(variance))
    result = gmmjax.em(model, rows, tol=0, max_steps=20)
    trace = np.asarray(result.trace)
    trace = trace[np.isfinite(trace)]
    assert len(trace) == 21
    assert np.all(np.diff(trace) >= -1e-9 * np.abs(trace[1:]))
    # Law of total variance.
    spread = np.trace(np.asarray(result.model.covariance()))
    np.testing.assert_allclose(spread, x.var(0).sum() + variance.mean(0).sum(), rtol=1e-6)


def test_without_noise_they_are_plain_rows():
    x, _ = noisy()
    model = start(0, x, 3, "full")
    rows = Uncertain(jnp.asarray(x), jnp.zeros(x.shape))
    np.testing.assert_allclose(model.log_prob(rows), model.log_prob(x), rtol=1e-12)
    ends = [
        gmmjax.em(model, data, tol=0, max_steps=3).log_likelihood for data in (rows, jnp.asarray(x))
    ]
    np.testing.assert_allclose(*ends, rtol=1e-10)


def test_sums_about_another_point_are_the_same_sums():
    x, _ = noisy()
    for family in families.names():
        kind = families.get(family).second
        r = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(3), len(x)))
        there = moments.from_responsibilities(jnp.asarray(x), r, jnp.asarray(x[:3]), kind)
        here = moments.from_responsibilities(jnp.asarray(x), r, jnp.zeros((3, 3)), kind)
        moved = moments.about_origin(there)
        for name in ("about", "weight", "first", "second"):
            np.testing.assert_allclose(getattr(moved, name), getattr(here, name), atol=1e-10)

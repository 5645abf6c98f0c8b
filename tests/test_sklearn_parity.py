"""The same steps as scikit-learn from the same start: EM for four families, and Lloyd."""

import warnings

import jax
import numpy as np
import pytest
from problems import FAMILIES, blobs, own_shape, rows, start, tolerance
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import gmmjax

K = 4
X = blobs(0, 1200, 3, K)


def scikit_learn(model: gmmjax.GaussianMixture, steps: int) -> GaussianMixture:
    covariances = np.asarray(model.covariances, float)
    own = own_shape(model.family, covariances)
    inverse = np.linalg.inv(own) if model.family in ("full", "tied") else 1 / own
    # `create` made the start in the dtype of this run: hand over those numbers, not the originals.
    weights = np.asarray(model.weights, float)
    peer = GaussianMixture(
        model.n_components,
        covariance_type=model.family,
        weights_init=weights / weights.sum(),
        means_init=np.asarray(model.means, float),
        precisions_init=inverse,
        reg_covar=0,
        tol=0,
        max_iter=steps,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return peer.fit(X)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_em_takes_the_same_steps(family, steps):
    model = start(1, X, K, family)
    run = jax.jit(lambda m, x: gmmjax.em(m, x, tol=0.0, max_steps=steps, block=256))
    ours = run(model, rows(X))
    theirs = scikit_learn(model, steps)
    assert int(ours.n_steps) == steps
    rtol = tolerance(1e-8, 1e-4)
    np.testing.assert_allclose(ours.model.weights, theirs.weights_, rtol=rtol)
    np.testing.assert_allclose(ours.model.means, theirs.means_, rtol=rtol, atol=rtol)
    covariances = own_shape(family, np.asarray(ours.model.covariances))
    np.testing.assert_allclose(covariances, theirs.covariances_, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(ours.log_likelihood, theirs.score(X) * len(X), rtol=rtol)


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_lloyd_ends_at_the_same_centres(shift):
    x = blobs(3, 2000, 4, 5, spread=1.0) + shift
    centers = x[:7]
    ours = gmmjax.kmeans(jax.random.key(0), x, 7, init=centers, tol=1e-12)
    x_run = np.asarray(rows(x), float)
    theirs = KMeans(7, init=centers, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(x_run)
    rtol = tolerance(1e-10, 1e-4)
    np.testing.assert_allclose(ours.inertia, theirs.inertia_, rtol=rtol)
    np.testing.assert_allclose(
        ours.centers, theirs.cluster_centers_, rtol=rtol, atol=tolerance(1e-9, 2e-3)
    )
    assert np.mean(np.asarray(ours.labels) == theirs.labels_) >= tolerance(1.0, 0.995)

"""K-means as the limit of EM: spherical components of one variance → 0, with equal weights (MATH 4)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmjax
from gmmjax import moments
from gmmjax.kmeans import KMeans
from gmmjax.status import Status
from gmmjax.typing import pytree

X64 = bool(jax.config.jax_enable_x64)


@pytree
class MeansOnly:
    """A mixture of which EM moves nothing but the means."""

    mixture: gmmjax.GaussianMixture

    def expect(self, x, weights):
        return self.mixture.expect(x, weights)

    def maximize(self, sums, *, prior=None, reg=0.0):
        means = moments.centre(sums).mean
        return MeansOnly(dataclasses.replace(self.mixture, means=means)), Status.CONVERGED


def soft(centers, variance):
    k = len(centers)
    return MeansOnly(
        gmmjax.GaussianMixture.create(np.full(k, 1 / k), centers, np.full(k, variance), "spherical")
    )


def problem(seed: int, n: int = 150, k: int = 4):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) + 2.5 * rng.normal(size=(k, 2))[rng.integers(0, k, n)]
    return jnp.asarray(x, float), jnp.asarray(x[rng.choice(n, k, replace=False)], float)


@pytest.mark.parametrize("seed", range(3))
def test_em_follows_lloyd_step_by_step(seed):
    """At a small variance the two visit the same centres from the same start."""
    x, start = problem(seed)
    for steps in range(1, 5):
        lloyd = gmmjax.em(KMeans(start), x, tol=0.0, max_steps=steps).model
        gentle = gmmjax.em(soft(start, 1e-6), x, tol=0.0, max_steps=steps).model.mixture
        np.testing.assert_allclose(gentle.means, lloyd.centers, atol=1e-9 if X64 else 1e-4)
        np.testing.assert_array_equal(gentle.predict(x), lloyd.predict(x))


def test_labels_and_objective_converge_as_the_variance_falls():
    x, start = problem(7)
    n, d = x.shape
    k = len(start)
    lloyd = gmmjax.em(KMeans(start), x, tol=1e-9, max_steps=200).model
    labels, inertia = lloyd.predict(x), float(lloyd.inertia(x))
    apart, gaps = [], []
    for variance in (1.0, 0.1, 0.01, 1e-4):
        model = gmmjax.em(soft(start, variance), x, tol=1e-9, max_steps=2000).model.mixture
        apart.append(int(jnp.sum(model.predict(x) != labels)))
        # −2σ²(ℓ + n log k + (nd/2) log 2πσ²) → Σ_i min_j ‖x_i − μ_j‖²
        scaled = float(model.log_likelihood(x)) + n * np.log(k)
        scaled = -2 * variance * (scaled + 0.5 * n * d * np.log(2 * np.pi * variance))
        gaps.append(abs(scaled / inertia - 1))
        assert scaled < inertia * (1 + 1e-4)  # the softest minimum lies below the hard one
    assert apart[-1] == 0
    assert gaps[-1] < 1e-3 < gaps[0]
    assert sorted(gaps, reverse=True) == gaps

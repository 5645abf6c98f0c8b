"""The driver on a model that is no Gaussian, step by step and to the end; and its endings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import rows, tolerance

import gmmjax
from gmmjax import Status
from gmmjax.blocks import split
from gmmjax.em import init, step, terminate
from gmmjax.typing import pytree


@pytree
class PoissonMixture:
    """Counts from k Poisson distributions: all that `em` needs is an E-step and an M-step."""

    log_weights: jax.Array  # [k]
    log_rates: jax.Array  # [k]

    def log_joint(self, x):
        """log φ_j + log Poisson(x; λ_j), shape [n, k]."""
        x = x[:, None]
        log_factorial = jax.scipy.special.gammaln(x + 1)
        return self.log_weights + x * self.log_rates - jnp.exp(self.log_rates) - log_factorial

    def expect(self, x, weights):
        joint = self.log_joint(x)
        r = jax.nn.softmax(joint, axis=1) * weights[:, None]
        log_likelihood = jnp.sum(weights * jax.nn.logsumexp(joint, axis=1))
        return (jnp.sum(r, axis=0), r.T @ x), log_likelihood

    def maximize(self, moments, *, prior=None, reg=0.0):
        n, total = moments
        return PoissonMixture(jnp.log(n / jnp.sum(n)), jnp.log(total / n)), Status.CONVERGED


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    return rows(np.concatenate([rng.poisson(2.0, 600), rng.poisson(12.0, 400)]))


def model():
    return PoissonMixture(jnp.log(rows(np.array([0.5, 0.5]))), jnp.log(rows(np.array([1.0, 5.0]))))


def test_em_fits_a_poisson_mixture(counts):
    result = gmmjax.em(model(), counts, tol=1e-9, max_steps=500)
    assert int(result.status) == Status.CONVERGED
    np.testing.assert_allclose(jnp.exp(result.model.log_rates), [2.0, 12.0], rtol=0.06)
    np.testing.assert_allclose(jnp.exp(result.model.log_weights), [0.6, 0.4], rtol=0.08)
    # At the optimum the mean of the model is that of the data, exactly.
    mean = jnp.sum(jnp.exp(result.model.log_weights + result.model.log_rates))
    np.testing.assert_allclose(mean, jnp.mean(counts), rtol=tolerance(1e-6, 1e-3))


def test_steps_by_hand_are_the_steps_of_em(counts):
    blocks = split(counts, None, 128)
    state = init(model(), blocks)
    likelihoods = [float(state.log_likelihood)]
    for _ in range(6):
        state = terminate(step(state, blocks), blocks, tol=0.0, max_steps=100)
        likelihoods.append(float(state.log_likelihood))
    assert int(state.status) == Status.RUNNING
    assert np.all(np.diff(likelihoods) > 0)
    result = gmmjax.em(model(), counts, tol=0.0, max_steps=6)
    np.testing.assert_allclose(result.log_likelihood, likelihoods[-1], rtol=tolerance(1e-12, 1e-5))
    np.testing.assert_allclose(result.trace[-7:], likelihoods, rtol=tolerance(1e-12, 1e-5))


def test_the_bound_of_a_poisson_mixture(counts):
    m = model()
    posterior = jax.nn.softmax(m.log_joint(counts), axis=1)
    _, log_likelihood = m.expect(counts, jnp.ones_like(counts))
    rtol = tolerance(1e-12, 1e-5)
    np.testing.assert_allclose(gmmjax.elbo(m, counts, posterior), log_likelihood, rtol=rtol)
    hard = jax.nn.one_hot(jnp.argmax(posterior, axis=1), 2)
    assert float(gmmjax.elbo(m, counts, hard)) < float(log_likelihood)
    slope = jax.grad(lambda q: gmmjax.elbo(m, counts, q))(hard)
    assert np.all(np.isfinite(slope))


def test_weights_and_blocks_reach_any_model(counts):
    w = rows(np.random.default_rng(1).integers(0, 3, len(counts)))
    weighted = gmmjax.em(model(), counts, weights=w, tol=0.0, max_steps=10, block=77)
    repeated = gmmjax.em(model(), jnp.repeat(counts, np.asarray(w, int)), tol=0.0, max_steps=10)
    np.testing.assert_allclose(
        weighted.model.log_rates, repeated.model.log_rates, rtol=tolerance(1e-10, 1e-4)
    )


def test_the_driver_under_vmap(counts):
    many = PoissonMixture(
        jnp.log(jnp.full((3, 2), 0.5)),
        jnp.log(rows(np.array([[1.0, 5.0], [2.0, 3.0], [9.0, 20.0]]))),
    )
    results = jax.vmap(lambda m: gmmjax.em(m, counts, tol=1e-7, max_steps=400))(many)
    assert np.all(np.asarray(results.status) == Status.CONVERGED)
    assert np.ptp(results.log_likelihood) < tolerance(1e-2, 1.0)
    assert len(set(np.asarray(results.n_steps).tolist())) > 1  # each lane stopped by itself


@pytree
class Falling:
    """An M-step that makes things worse, by less each time: it must not count as converged."""

    value: jax.Array

    def expect(self, x, weights):
        return jnp.sum(weights), -self.value * jnp.sum(weights)

    def maximize(self, moments, *, prior=None, reg=0.0):
        return Falling(self.value + 1.0), Status.CONVERGED


def test_a_falling_likelihood_is_not_convergence():
    result = gmmjax.em(Falling(rows(0.0)), jnp.zeros(4), tol=1e-3, max_steps=9)
    assert int(result.status) == Status.MAX_STEPS
    assert int(result.n_steps) == 9
    assert not bool(result.converged)


@pytree
class Failing:
    """An M-step that gives NaN at its third turn."""

    value: jax.Array

    def expect(self, x, weights):
        return jnp.sum(weights), self.value * jnp.sum(weights)

    def maximize(self, moments, *, prior=None, reg=0.0):
        return Failing(jnp.where(self.value >= 2, jnp.nan, self.value + 1.0)), Status.CONVERGED


def test_a_step_that_is_not_finite_is_undone():
    result = gmmjax.em(Failing(rows(0.0)), jnp.zeros(4), tol=1e-3, max_steps=9)
    assert int(result.status) == Status.NONFINITE
    assert float(result.model.value) == 2.0
    assert float(result.log_likelihood) == 8.0
    assert int(result.n_steps) == 2


def test_no_steps():
    x = jnp.zeros(4)
    result = gmmjax.em(Falling(rows(0.0)), x, max_steps=0)
    assert int(result.n_steps) == 0
    assert int(result.status) == Status.MAX_STEPS


def test_every_status_has_a_message():
    for status in Status:
        assert len(status.message) > 30

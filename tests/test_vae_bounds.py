"""The three bounds against brute-force integration in one latent dimension, and their likelihoods."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import gmmjax
from gmmjax.vae import (
    Bernoulli,
    DiscretizedLogistic,
    Normal,
    Posterior,
    amortised,
    mean_field,
    structured,
)

pytestmark = pytest.mark.own_dtype

PRIOR = ([0.2, 0.5, 0.3], [[-2.0], [0.5], [1.5]], [[[0.3]], [[1.0]], [[0.2]]])
GRID = np.linspace(-14, 14, 20_001)
STEP = GRID[1] - GRID[0]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def prior() -> gmmjax.GaussianMixture:
    return gmmjax.GaussianMixture.create(*PRIOR)


def codes(seed: int = 0, n: int = 4) -> tuple[np.ndarray, np.ndarray, Posterior]:
    rng = np.random.default_rng(seed)
    mean, scale = rng.normal(size=n), rng.uniform(0.2, 1.0, n)
    return (
        mean,
        scale,
        Posterior(jnp.asarray(mean)[:, None], 2 * jnp.log(jnp.asarray(scale))[:, None]),
    )


def log_likelihood(z: np.ndarray) -> np.ndarray:
    """log p(x | z) of some x: anything smooth."""
    return norm.logpdf(np.sin(2 * z) + z, 0.7, 0.5)


def log_joint(z: np.ndarray) -> np.ndarray:
    """log p(z, c) [3, ...], by scipy."""
    w, m, v = PRIOR
    return np.stack([np.log(w[j]) + norm.logpdf(z, m[j][0], np.sqrt(v[j][0][0])) for j in range(3)])


def log_evidence() -> float:
    return float(
        np.log(np.sum(np.exp(log_likelihood(GRID)) * np.exp(log_joint(GRID)).sum(0)) * STEP)
    )


def over_q(values: np.ndarray, mean: float, scale: float) -> float:
    """∫ q(z) f(z) dz on the grid."""
    return float(np.sum(norm.pdf(GRID, mean, scale) * values) * STEP)


def structured_at_grid(i: int) -> float:
    """The mean over q of the function's own terms."""
    mean, scale, _ = codes()
    n = len(GRID)
    q = Posterior(jnp.full((n, 1), mean[i]), jnp.full((n, 1), 2 * np.log(scale[i])))
    terms = structured(prior(), q, jnp.asarray(GRID)[:, None], jnp.asarray(log_likelihood(GRID)))
    return over_q(np.asarray(terms.elbo), mean[i], scale[i])


def expected_reconstruction(i: int) -> float:
    mean, scale, _ = codes()
    return over_q(log_likelihood(GRID), mean[i], scale[i])


def integrated(i: int, g: np.ndarray) -> float:
    """Σ_c ∫ q g_c (log p(x, z, c) − log q − log g_c) dz, without any formula of the library's."""
    mean, scale, _ = codes()
    joint = log_joint(GRID) + log_likelihood(GRID) - norm.logpdf(GRID, mean[i], scale[i])
    return sum(g[j] * over_q(joint[j] - np.log(g[j]), mean[i], scale[i]) for j in range(3))


def test_structured_is_its_integral_and_below_the_evidence():
    mean, scale, _ = codes()
    for i in range(4):
        total = log_likelihood(GRID) + np.logaddexp.reduce(log_joint(GRID), axis=0)
        expected = over_q(total - norm.logpdf(GRID, mean[i], scale[i]), mean[i], scale[i])
        np.testing.assert_allclose(structured_at_grid(i), expected, rtol=1e-9)
        assert expected < log_evidence()


def test_mean_field_is_its_integral_at_the_exact_g_and_at_any_other():
    _, _, q = codes()
    ll = jnp.asarray([expected_reconstruction(i) for i in range(4)])
    exact = mean_field(prior(), q, ll)
    other = np.random.default_rng(1).dirichlet(np.ones(3), 4)
    for g, found in (
        (np.asarray(exact.responsibilities), exact.elbo),
        (other, mean_field(prior(), q, ll, log_g=jnp.log(other)).elbo),
    ):
        expected = [integrated(i, g[i]) for i in range(4)]
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_from_tight_to_loose():
    """log p(x) ≥ structured ≥ mean-field at its optimum ≥ mean-field at any g; the gap is a KL."""
    mean, scale, q = codes()
    ll = jnp.asarray([expected_reconstruction(i) for i in range(4)])
    exact = mean_field(prior(), q, ll)
    upper = np.array([structured_at_grid(i) for i in range(4)])
    g = np.asarray(exact.responsibilities)
    log_posterior = log_joint(GRID) - np.logaddexp.reduce(log_joint(GRID), axis=0)
    gaps = [
        over_q(
            np.sum(g[i][:, None] * (np.log(g[i])[:, None] - log_posterior), 0), mean[i], scale[i]
        )
        for i in range(4)
    ]
    np.testing.assert_allclose(upper - np.asarray(exact.elbo), gaps, rtol=1e-6)
    assert np.all(np.array(gaps) > 0)
    for seed in range(20):
        other = np.random.default_rng(seed).dirichlet(np.ones(3), 4)
        assert np.all(mean_field(prior(), q, ll, log_g=jnp.log(other)).elbo <= exact.elbo)
    # VaDE's choice, E_q[p(c | z)], is not the optimum.
    vade = np.array(
        [[over_q(np.exp(p), mean[i], scale[i]) for p in log_posterior] for i in range(4)]
    )
    assert np.all(mean_field(prior(), q, ll, log_g=jnp.log(vade)).elbo < exact.elbo)


def test_amortised_with_one_code_for_all_clusters_is_mean_field():
    _, _, q = codes()
    ll = jnp.asarray([expected_reconstruction(i) for i in range(4)])
    log_g = jnp.log(np.random.default_rng(2).dirichlet(np.ones(3), 4))
    each = jax.tree.map(lambda a: jnp.repeat(a[:, None], 3, axis=1), q)
    found = amortised(prior(), log_g, each, jnp.repeat(ll[:, None], 3, axis=1))
    np.testing.assert_allclose(found.elbo, mean_field(prior(), q, ll, log_g=log_g).elbo, rtol=1e-12)


def test_amortised_with_codes_of_their_own_is_its_integral():
    rng = np.random.default_rng(3)
    mean, scale, g = rng.normal(size=3), rng.uniform(0.2, 1, 3), rng.dirichlet(np.ones(3))
    q = Posterior(
        jnp.asarray(mean).reshape(1, 3, 1), 2 * jnp.log(jnp.asarray(scale)).reshape(1, 3, 1)
    )
    ll = [over_q(log_likelihood(GRID), mean[c], scale[c]) for c in range(3)]
    found = amortised(prior(), jnp.log(g)[None], q, jnp.asarray(ll)[None])
    joint = log_joint(GRID) + log_likelihood(GRID)
    expected = sum(
        g[c]
        * over_q(joint[c] - norm.logpdf(GRID, mean[c], scale[c]) - np.log(g[c]), mean[c], scale[c])
        for c in range(3)
    )
    np.testing.assert_allclose(found.elbo, [expected], rtol=1e-8)


@pytest.mark.parametrize("name", ["structured", "mean-field", "amortised"])
def test_the_gradient_is_finite_for_zero_weights_and_far_codes(name):
    """−inf − −inf and 0 · inf are NaN; float32, where squares of 1e5 are at their limit."""

    def value(means: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
        p = gmmjax.GaussianMixture(log_weights, means, base.factors, "full")
        q = Posterior(mean, log_variance)
        ll = jnp.zeros(len(mean))
        if name == "structured":
            return jnp.sum(structured(p, q, q.mean, ll).elbo)
        if name == "mean-field":
            return jnp.sum(mean_field(p, q, ll).elbo)
        log_g = jax.nn.log_softmax(p.log_joint(q.uncertain()))
        each = jax.tree.map(lambda a: jnp.repeat(a[:, None], 3, axis=1), q)
        return jnp.sum(amortised(p, log_g, each, jnp.zeros((len(mean), 3))).elbo)

    base = jax.tree.map(lambda a: a.astype(jnp.float32), prior())
    log_weights = jnp.asarray([-jnp.inf, np.log(0.6), np.log(0.4)], jnp.float32)
    mean = jnp.asarray([[0.0], [1e5], [-300.0]], jnp.float32)
    gradients = jax.grad(value, argnums=(0, 1, 2))(base.means, mean, jnp.full_like(mean, -3.0))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradients)


def test_evidence_fixes_the_component():
    _, _, q = codes()
    evidence = jnp.where(jnp.arange(3) == 1, 0.0, -1e4) * jnp.ones((4, 1))
    terms = structured(prior(), q, q.mean, jnp.zeros(4), evidence)
    np.testing.assert_allclose(terms.responsibilities, np.tile([0.0, 1.0, 0.0], (4, 1)))
    own = prior().log_joint(q.mean)[:, 1] + q.entropy()
    np.testing.assert_allclose(terms.elbo, own, rtol=1e-12)


# --- likelihoods ----------------------------------------------------------------------------------


def test_the_discretised_logistic_is_a_distribution_even_far_out():
    levels = 16
    density = DiscretizedLogistic(levels)
    x = jnp.arange(levels)[:, None] / (levels - 1)
    for out, log_scale in ((0.4, -1.0), (0.0, -3.0), (1.3, -6.0), (0.5, 2.0)):
        log_prob = density.log_prob(jnp.full((levels, 1), out), jnp.full(1, log_scale), x)
        np.testing.assert_allclose(jnp.sum(jnp.exp(log_prob)), 1.0, rtol=1e-9)
    far = density.log_prob(jnp.full((levels, 1), 50.0), jnp.full(1, -6.0), x)
    assert bool(jnp.all(jnp.isfinite(far)))  # the mass itself underflows to 0 there


def test_normal_and_bernoulli_against_scipy():
    rng = np.random.default_rng(0)
    x, out = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    log_scale = rng.normal(size=3)
    found = Normal(per_feature=True).log_prob(
        jnp.asarray(out), jnp.asarray(log_scale), jnp.asarray(x)
    )
    np.testing.assert_allclose(found, norm.logpdf(x, out, np.exp(log_scale)).sum(1), rtol=1e-12)
    bits = (x > 0).astype(float)
    p = 1 / (1 + np.exp(-out))
    expected = np.log(np.where(bits > 0, p, 1 - p)).sum(1)
    none = jnp.zeros(1)
    np.testing.assert_allclose(Bernoulli().log_prob(out, none, bits), expected, rtol=1e-12)
    extreme = Bernoulli().log_prob(jnp.full((1, 1), 1e5), none, jnp.zeros((1, 1)))
    np.testing.assert_allclose(extreme, [-1e5])


def test_samples_have_the_mean_and_the_range_that_they_say():
    key, out = jax.random.key(0), jnp.full((20_000, 1), 0.3)
    scale = jnp.full(1, np.log(0.1))
    for density in (Bernoulli(), Normal(), DiscretizedLogistic(16)):
        x = density.sample(key, out, scale)
        # 0.1: the logistic loses what it cuts off at 0; else five standard errors at most.
        tolerance = 0.02 if isinstance(density, DiscretizedLogistic) else 0.018
        np.testing.assert_allclose(jnp.mean(x), density.mean(out)[0, 0], atol=tolerance)
        density.check(x, "x")

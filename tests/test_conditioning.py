"""Marginals, conditionals and regression: against brute force, the textbook's formula, and gmr."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gmmjax import GaussianMixture, families

CLOSED = ("full", "tied", "diag", "spherical")
# To marginals and conditionals families differ by how they keep their factors.
KINDS = list({(families.get(f).covariance, f in CLOSED): f for f in families.names()}.values())
X64 = jax.config.jax_enable_x64
TOL = 1e-9 if X64 else 2e-4


def mixture(family="full", k=3, d=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((k, d, d))
    covariances = root @ root.transpose(0, 2, 1) + 0.5 * np.eye(d)
    means = spread * rng.standard_normal((k, d))
    return GaussianMixture.create(rng.dirichlet(np.full(k, 3.0)), means, covariances, family)


def exact(m):
    """Weights, means and covariances in float64."""
    arrays = m.weights, m.means, m.covariances
    return [np.asarray(a, np.float64) for a in arrays]


def textbook(m, a, values):
    """The conditional by Schur complements, in float64."""
    weights, means, covariances = exact(m)
    b = [i for i in range(m.n_features) if i not in a]
    log_w, mu, sigma = [], [], []
    for w, mean, cov in zip(weights, means, covariances, strict=True):
        gain = np.linalg.solve(cov[np.ix_(a, a)], cov[np.ix_(a, b)]).T
        mu.append(mean[b] + gain @ (values - mean[a]))
        sigma.append(cov[np.ix_(b, b)] - gain @ cov[np.ix_(a, b)])
        log_w.append(
            np.log(w) + stats.multivariate_normal(mean[a], cov[np.ix_(a, a)]).logpdf(values)
        )
    log_w = np.array(log_w)
    w = np.exp(log_w - log_w.max())
    return w / w.sum(), np.array(mu), np.array(sigma)


# --- the identities ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "a"),
    [("full", (0,)), ("full", (0, 2, 3)), ("tied", (3, 1)), ("diag", (3, 1)), ("spherical", (1,))],
)
def test_conditional_times_marginal_is_joint(family, a):
    m = mixture(family)
    b = [i for i in range(4) if i not in a]
    x = m.sample(jax.random.key(1), 50)[0]

    @jax.jit
    def both(m, x):
        given = m.condition(a, x[:, a])
        return m.marginal(a).log_prob(x[:, a]) + jax.vmap(lambda g, y: g.log_prob(y))(
            given, x[:, b]
        )

    np.testing.assert_allclose(both(m, x), m.log_prob(x), rtol=TOL, atol=TOL)


@pytest.mark.parametrize("family", KINDS)
def test_matches_the_textbook(family):
    m = mixture(family)
    a, values = [2, 0], np.array([0.7, -1.2])
    given = m.condition(a, values)
    for ours, theirs in zip(exact(given), textbook(m, a, values), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=TOL, atol=TOL)


def test_one_component_is_normal_regression():
    m = mixture(k=1)
    _, (mean,), (cov,) = exact(m)
    slope = np.linalg.solve(cov[:2, :2], cov[:2, 2:]).T
    x = np.random.default_rng(0).standard_normal((20, 2))
    y = m.regress([0, 1], x)
    np.testing.assert_allclose(y.mean, mean[2:] + (x - mean[:2]) @ slope.T, rtol=TOL, atol=TOL)
    residual = np.broadcast_to(cov[2:, 2:] - slope @ cov[:2, 2:], (20, 2, 2))
    np.testing.assert_allclose(y.covariance, residual, rtol=TOL, atol=TOL)
    normal = stats.norm(np.asarray(y.mean), np.sqrt(np.diagonal(residual, axis1=1, axis2=2)))
    for p in (0.01, 0.5, 0.9):
        np.testing.assert_allclose(y.quantiles(p), normal.ppf(p), rtol=TOL, atol=TOL)


@pytest.mark.parametrize("family", CLOSED)
def test_brute_force_on_a_grid(family):
    """p(y | x) as the joint density over its integral, in float64, for two coordinates."""
    m = mixture(family, k=3, d=2, seed=3, spread=2.0)
    weights, means, covariances = exact(m)
    at, grid = 0.4, np.linspace(-30, 30, 60_001)
    points = np.stack([np.full_like(grid, at), grid], axis=1)
    joint = sum(
        w * stats.multivariate_normal(mean, cov).pdf(points)
        for w, mean, cov in zip(weights, means, covariances, strict=True)
    )
    density = joint / np.trapezoid(joint, grid)
    mean = np.trapezoid(density * grid, grid)
    variance = np.trapezoid(density * (grid - mean) ** 2, grid)
    below = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
    y = m.regress([0], [at])
    # The trapezoid's own error bounds the agreement in float64.
    tolerance = 1e-6 if X64 else 1e-4
    np.testing.assert_allclose(y.mean[0], mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(y.covariance[0, 0], variance, rtol=tolerance)
    p = np.array([0.05, 0.3, 0.5, 0.8, 0.99])
    np.testing.assert_allclose(
        y.quantiles(p)[:, 0], np.interp(p, below, grid), rtol=1e-4, atol=1e-4
    )


def test_agrees_with_gmr():
    gmr = pytest.importorskip("gmr")
    m = mixture(k=4, d=5)
    weights, means, covariances = exact(m)
    rival = gmr.GMM(4, priors=weights, means=means, covariances=covariances)
    a = [0, 3]
    x = np.random.default_rng(1).standard_normal((30, 2))
    np.testing.assert_allclose(
        m.regress(a, x).mean, rival.predict(np.array(a), x), rtol=TOL, atol=TOL
    )
    theirs = rival.condition(a, x[0])
    ours = m.condition(a, x[0])
    for mine, yours in zip(
        exact(ours), (theirs.priors, theirs.means, theirs.covariances), strict=True
    ):
        np.testing.assert_allclose(mine, yours, rtol=TOL, atol=TOL)


# --- what stays -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", KINDS)
def test_marginal_takes_rows_of_means_and_covariances(family):
    m = mixture(family)
    part = m.marginal([3, 1])
    np.testing.assert_allclose(part.means, m.means[:, [3, 1]])
    dense = np.asarray(m.covariances)[:, [3, 1]][:, :, [3, 1]]
    np.testing.assert_allclose(part.covariances, dense, rtol=TOL, atol=TOL)
    np.testing.assert_allclose(
        m.marginal([0, 1, 2, 3]).log_prob(part.means[:, [0, 1, 0, 1]]),
        m.log_prob(part.means[:, [0, 1, 0, 1]]),
        rtol=TOL,
    )


@pytest.mark.parametrize("family", [*CLOSED, "tied-diag", "tied-spherical"])
def test_the_family_is_kept_where_it_is_closed(family):
    m = mixture(family)
    assert m.marginal([0, 2]).family == family
    assert m.condition([0], [0.0]).family == family
    assert type(m.condition([0], [0.0]).factors) is type(m.factors)


def test_a_batch_of_values_is_a_batch_of_mixtures():
    m = mixture()
    values = np.random.default_rng(2).standard_normal((2, 5, 2))
    given = m.condition([1, 2], values)
    assert given.log_weights.shape == (2, 5, 3)
    assert given.means.shape == (2, 5, 3, 2)
    one = m.condition([1, 2], values[1, 3])
    for batched, single in zip(jax.tree.leaves(given), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(batched[1, 3], single, rtol=TOL, atol=TOL)
    keys = jax.random.split(jax.random.key(0), (2, 5))
    draws, _ = jax.vmap(jax.vmap(lambda g, key: g.sample(key, 7)))(given, keys)
    assert draws.shape == (2, 5, 7, 2)


def test_samples_of_a_conditional_have_its_moments():
    m = mixture("full", k=2, d=3)
    given = m.condition([0], [0.5])
    n = 20_000
    x, _ = given.sample(jax.random.key(5), n)
    error = np.sqrt(np.diagonal(given.covariance()) / n)
    assert np.all(np.abs(np.mean(x, axis=0) - given.mean()) < 5 * error)


def test_sample_component_draws_from_that_component():
    m = mixture("tied", k=3, d=2)
    x = m.sample_component(jax.random.key(0), 2, 20_000)
    error = np.sqrt(np.diagonal(m.covariances[2]) / 20_000)
    assert np.all(np.abs(np.mean(x, axis=0) - m.means[2]) < 5 * error)
    by_trace = jax.jit(lambda c: m.sample_component(jax.random.key(0), c, 10))(2)
    np.testing.assert_allclose(by_trace, m.sample_component(jax.random.key(0), 2, 10), rtol=1e-5)


# --- transformations --------------------------------------------------------------------------


@pytest.mark.parametrize("family", CLOSED)
def test_under_vmap_over_models(family):
    models = [mixture(family, seed=s) for s in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *models)
    x = jnp.array([[0.3, -0.2]])
    together = jax.jit(jax.vmap(lambda m: m.regress([0, 1], x).mean))(stacked)
    apart = jnp.stack([m.regress([0, 1], x).mean for m in models])
    np.testing.assert_allclose(together, apart, rtol=TOL, atol=TOL)


@pytest.mark.parametrize("family", ["full", "diag"])
def test_gradient_of_the_conditional_density(family):
    """By the identity: d log p(b | a) = d log p(a, b) − d log p(a)."""
    m = mixture(family)
    x = jnp.array([0.3, -0.2, 1.0, 0.1])

    def conditional(m):
        return m.condition([2, 0], x[jnp.array([2, 0])]).log_prob(x[jnp.array([1, 3])])

    def by_identity(m):
        return m.log_prob(x) - m.marginal([2, 0]).log_prob(x[jnp.array([2, 0])])

    ours, theirs = jax.jit(lambda m: (jax.grad(conditional)(m), jax.grad(by_identity)(m)))(m)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # Of a triangular factor only the lower half is a parameter.
        a, b = (np.tril(a), np.tril(b)) if a.ndim > 1 and a.shape[-1] == a.shape[-2] else (a, b)
        np.testing.assert_allclose(a, b, rtol=50 * TOL, atol=50 * TOL)


def test_gradient_of_a_quantile():
    """dy/dp = 1/f(y), and dy/dμ = 1 for a common shift of the means."""
    m = mixture(k=3, d=2, spread=2.0)

    def quantile(p, shift):
        return m.affine(jnp.array([0.0, 1.0]) * shift).regress([0], [0.3]).quantiles(p)[0]

    by_p, by_shift = jax.jit(jax.grad(quantile, argnums=(0, 1)))(0.3, 0.0)
    density = jnp.exp(m.condition([0], [0.3]).log_prob(quantile(0.3, 0.0)[None]))
    np.testing.assert_allclose(by_p, 1 / density, rtol=1e-3)
    np.testing.assert_allclose(by_shift, 1.0, rtol=1e-4)


# --- numbers ----------------------------------------------------------------------------------


def test_keeps_its_digits_where_a_difference_of_matrices_would_not():
    """x₂ = x₁ + 10⁻⁴ ε: at float32 no digit of Σ₂₂ − Σ₂₁ Σ₁₁⁻¹ Σ₁₂ would be right, nor its sign."""
    factor = np.array([[1.0, 0.0], [1.0, 1e-4]])
    m = mixture(k=1, d=2)
    m = type(m)(m.log_weights, m.means, type(m.factors)(jnp.asarray(factor[None], float)), "full")
    deviation = float(m.condition([0], [0.0]).factors.scale_tril[0, 0, 0])
    assert deviation == pytest.approx(1e-4, rel=1e-3 if not X64 else 1e-10)
    back = float(m.condition([1], [0.0]).factors.scale_tril[0, 0, 0])
    assert back == pytest.approx(1e-4, rel=1e-3 if not X64 else 1e-10)


def test_values_far_from_every_component_give_finite_weights():
    m = mixture(k=3, d=3)
    given = m.condition([0], [1e4])
    assert np.isclose(np.sum(given.weights), 1.0)
    assert np.all(np.isfinite(given.means))


def test_quantiles_invert_the_distribution_function():
    m = mixture(k=3, d=3, spread=6.0)
    y = m.regress([0], np.array([[0.0], [2.0]]))
    p = np.array([1e-6, 0.02, 0.5, 0.98, 1 - 1e-6])
    q = np.asarray(y.quantiles(p), np.float64)
    assert q.shape == (5, 2, 2)
    weights = np.exp(np.asarray(y.log_weights, np.float64))[..., None]
    deviation = np.sqrt(np.diagonal(np.asarray(y.factors.dense(3, 2)), axis1=1, axis2=2))
    z = (q[..., None, :] - np.asarray(y.means)) / deviation
    below = np.sum(weights * stats.norm.cdf(z), axis=-2)
    np.testing.assert_allclose(below / p[:, None, None], 1.0, rtol=1e-6 if X64 else 1e-4)
    assert np.all(np.diff(q, axis=0) > 0)


def test_quantiles_at_the_ends_and_in_a_valley():
    far = GaussianMixture.create([0.5, 0.5], [[0.0, -50.0], [0.0, 50.0]], [1.0, 1.0], "spherical")
    y = far.regress([0], [0.0])
    np.testing.assert_array_equal(y.quantiles([0.0, 1.0])[:, 0], [-np.inf, np.inf])
    assert np.all(np.abs(y.quantiles([0.5])) < 50)
    assert np.isfinite(jax.grad(lambda p: far.regress([0], [0.0]).quantiles(p)[0])(0.5))


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "values", "words"),
    [
        ([], [], "dims: expected a list of at least one coordinate"),
        ([0, 1, 2, 3], [0.0] * 4, "got all"),
        ([0, 0], [0.0, 0.0], r"got \[0\] more than once"),
        ([4], [0.0], "from 0 to 3; got 4"),
        ([-1], [0.0], "from 0 to 3; got -1"),
        ([[0, 1]], [0.0, 0.0], "dims: expected a list"),
        ([0, 1], [0.0], r"values: expected shape \[..., 2\]"),
        ([0], 0.0, r"values: expected shape \[..., 1\]"),
        ([0], [np.nan], "use impute"),
        ([0], [np.inf], "values: expected finite numbers"),
    ],
)
def test_bad_arguments_of_condition(dims, values, words):
    for method in (mixture().condition, mixture().regress):
        with pytest.raises(ValueError, match=words):
            method(dims, values)


def test_bad_arguments_elsewhere():
    m = mixture()
    with pytest.raises(TypeError, match="dims: expected integers; got dtype float64"):
        m.marginal([0.5])
    with pytest.raises(TypeError, match="dims: expected integers; got dtype bool"):
        m.marginal([True, False, True, False])
    with pytest.raises(TypeError, match="known before compilation"):
        jax.jit(lambda a: m.marginal(a).means)(jnp.array([0, 1]))
    with pytest.raises(ValueError, match="dims: expected a list"):
        m.marginal([])
    with pytest.raises(ValueError, match="p: expected probabilities from 0 to 1"):
        m.regress([0], [0.0]).quantiles(1.5)
    with pytest.raises(ValueError, match="c: expected a component from 0 to 2; got 3"):
        m.sample_component(jax.random.key(0), 3, 1)

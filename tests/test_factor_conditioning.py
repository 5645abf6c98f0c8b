"""Factor analysers given some coordinates: against the dense mixture, which has the same density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gmmjax.models import FactorMixture
from tests.problems import tolerance


def mixture(k=3, d=6, q=2, noise="diag", seed=0, shift=0.0, dtype=None) -> FactorMixture:
    rng = np.random.default_rng(seed)
    scale = 0.3 + rng.random((k, d))
    scale = scale if noise == "diag" else np.repeat(scale[:, :1], d, axis=1)
    weights = np.log(rng.dirichlet(np.full(k, 3.0)))
    leaves = weights, shift + rng.standard_normal((k, d)), rng.standard_normal((k, d, q)), scale
    return FactorMixture(*(jnp.asarray(leaf, dtype) for leaf in leaves), noise=noise)


def holes(x, share=0.4, seed=3):
    """x with NaN in places, one row whole and one empty."""
    hidden = np.random.default_rng(seed).random(x.shape) < share
    hidden[0], hidden[1] = False, True
    return np.where(hidden, np.nan, x)


@pytest.mark.parametrize("noise", ["diag", "spherical"])
@pytest.mark.parametrize("a", [(0,), (4, 1), (5, 0, 1, 3)])
def test_conditional_times_marginal_is_joint(noise, a):
    m = mixture(noise=noise)
    b = [i for i in range(6) if i not in a]
    x = m.sample(jax.random.key(1), 40)[0]
    given = m.condition(a, x[:, list(a)])
    conditional = jax.vmap(lambda part, row: part.log_prob(row))(given, x[:, b])
    joint = m.marginal(a).log_prob(x[:, list(a)]) + conditional
    limit = tolerance(1e-10, 1e-4)
    np.testing.assert_allclose(joint, m.log_prob(x), rtol=limit, atol=limit)
    assert given.noise == noise


@pytest.mark.parametrize("a", [(2,), (4, 1), (5, 0, 1, 3, 2)])
def test_it_is_the_conditional_of_the_dense_mixture(a):
    m = mixture()
    values = np.random.default_rng(4).standard_normal(len(a))
    ours, dense = m.condition(a, values), m.to_mixture().condition(a, values)
    limit = tolerance(1e-10, 1e-4)
    np.testing.assert_allclose(ours.log_weights, dense.log_weights, rtol=limit, atol=limit)
    np.testing.assert_allclose(ours.means, dense.means, rtol=limit, atol=limit)
    np.testing.assert_allclose(ours.covariances, dense.covariances, rtol=limit, atol=limit)
    np.testing.assert_allclose(
        m.marginal(a).covariances, m.to_mixture().marginal(a).covariances, rtol=limit, atol=limit
    )


def test_far_from_the_origin_no_digits_are_lost():
    """Against the same model at 0, whose rows are exact there: a power of two, no rounding."""
    near = mixture(dtype=jnp.float32)
    near = FactorMixture(
        near.log_weights, jnp.round(near.means * 64) / 64, near.loadings, near.scale, "diag"
    )
    far = near.affine(jnp.full(6, 2.0**12, jnp.float32))
    values = jnp.asarray([[0.25, -0.5], [1.5, 0.0]], jnp.float32)
    at_0 = near.condition([1, 3], values)
    away = far.condition([1, 3], values + 2.0**12)
    np.testing.assert_allclose(away.means - 2.0**12, at_0.means, atol=2e-3)  # 2¹² has 5e-4
    np.testing.assert_allclose(away.log_weights, at_0.log_weights, atol=1e-4)


@pytest.mark.parametrize("noise", ["diag", "spherical"])
def test_imputed_means_are_those_of_the_dense_mixture(noise):
    m = mixture(noise=noise)
    x = holes(np.asarray(m.sample(jax.random.key(1), 60)[0]))
    filled = np.asarray(m.impute(jax.random.key(0), x))
    expected = np.asarray(m.to_mixture().impute(jax.random.key(0), x))
    limit = tolerance(1e-9, 1e-4)
    np.testing.assert_allclose(filled, expected, rtol=limit, atol=limit)
    known = ~np.isnan(x)
    np.testing.assert_array_equal(filled[known], x[known])
    mean = np.asarray(m.weights) @ np.asarray(m.means)
    np.testing.assert_allclose(filled[1], mean, rtol=limit, atol=limit)  # nothing is known of it


def test_imputed_draws_have_the_conditional_distribution():
    """By Kolmogorov and Smirnov, one coordinate of 20,000 draws; and their covariance."""
    m = mixture()
    row = np.asarray(m.sample(jax.random.key(5), 1)[0])[0]
    row = np.where(np.isin(np.arange(6), [1, 4]), np.nan, row)
    rows = np.broadcast_to(row, (20_000, 6))
    draws = np.asarray(m.impute(jax.random.key(2), rows, "draw"))[:, [1, 4]]
    given = m.to_mixture().condition([0, 2, 3, 5], row[[0, 2, 3, 5]])
    w, mu = np.asarray(given.weights), np.asarray(given.means)
    sd = np.sqrt(np.asarray(given.covariances)[:, [0, 1], [0, 1]])
    for j in range(2):

        def cdf(y, j=j):
            return stats.norm.cdf((y[:, None] - mu[:, j]) / sd[:, j]) @ w

        assert stats.kstest(draws[:, j], cdf).pvalue > 1e-3
    np.testing.assert_allclose(np.cov(draws.T), given.covariance(), atol=0.05)


def test_blocks_jit_vmap_and_grad(monkeypatch):
    from gmmjax.models import factor_conditioning

    m = mixture()
    x = holes(np.asarray(m.sample(jax.random.key(1), 23)[0]))
    whole = m.impute(jax.random.key(0), x)
    monkeypatch.setattr(factor_conditioning, "_CHUNK", 30)  # five rows a block
    jax.clear_caches()
    limit = tolerance(1e-10, 1e-4)
    np.testing.assert_allclose(m.impute(jax.random.key(0), x), whole, rtol=limit, atol=limit)
    monkeypatch.undo()
    jax.clear_caches()
    jitted = jax.jit(lambda m, x: m.impute(jax.random.key(0), x))(m, x)
    np.testing.assert_allclose(jitted, whole, rtol=limit, atol=limit)
    each = jax.vmap(lambda row: m.impute(jax.random.key(0), row[None])[0])(jnp.asarray(x))
    np.testing.assert_allclose(each, whole, rtol=limit, atol=limit)

    def loss(loadings):
        changed = FactorMixture(m.log_weights, m.means, loadings, m.scale, "diag")
        return jnp.sum(changed.impute(jax.random.key(0), x) ** 2)

    def dense(loadings):
        changed = FactorMixture(m.log_weights, m.means, loadings, m.scale, "diag")
        return jnp.sum(changed.to_mixture().impute(jax.random.key(0), x) ** 2)

    np.testing.assert_allclose(
        jax.grad(loss)(m.loadings),
        jax.grad(dense)(m.loadings),
        rtol=tolerance(1e-8, 1e-2),
        atol=tolerance(1e-8, 1e-2),
    )


def test_restored_pictures_of_784_pixels_take_no_square_matrix():
    m = mixture(k=10, d=784, q=5)
    x = holes(np.asarray(m.sample(jax.random.key(1), 50)[0]), 0.5)
    program = jax.jit(lambda x: m.impute(jax.random.key(0), x, "draw")).lower(x).as_text()
    assert "784x784" not in program
    filled = np.asarray(m.impute(jax.random.key(0), x))
    dense = m.condition(np.flatnonzero(~np.isnan(x[2])), x[2][~np.isnan(x[2])])
    expected = np.asarray(dense.weights) @ np.asarray(dense.means)
    limit = tolerance(1e-8, 1e-3)
    np.testing.assert_allclose(filled[2][np.isnan(x[2])], expected, rtol=limit, atol=limit)


def test_a_join_is_the_weighted_sum_of_the_densities():
    parts = [mixture(seed=0, k=2), mixture(seed=1, k=3, noise="spherical")]
    joined = FactorMixture.join([0.25, 0.75], parts)
    x = parts[1].sample(jax.random.key(0), 30)[0]
    expected = 0.25 * np.exp(parts[0].log_prob(x)) + 0.75 * np.exp(parts[1].log_prob(x))
    np.testing.assert_allclose(np.exp(joined.log_prob(x)), expected, rtol=tolerance(1e-10, 1e-4))
    assert (joined.n_components, joined.noise) == (5, "diag")
    only = FactorMixture.join([0.0, 1.0], parts)
    np.testing.assert_allclose(only.log_prob(x), parts[1].log_prob(x), rtol=tolerance(1e-10, 1e-4))


def test_bad_input_is_refused():
    m = mixture()
    with pytest.raises(ValueError, match="dims: expected at most 5 of the 6 coordinates; got all"):
        m.condition(range(6), np.zeros(6))
    with pytest.raises(ValueError, match="dims: expected a list of at least one coordinate"):
        m.condition([], [])
    with pytest.raises(ValueError, match="dims: expected integers from 0 to 5; got 0 to 6"):
        m.marginal([0, 6])
    with pytest.raises(ValueError, match="dims: expected each coordinate once"):
        m.marginal([0, 0])
    with pytest.raises(ValueError, match=r"values: expected shape \[..., 2\]"):
        m.condition([0, 1], [1.0])
    with pytest.raises(ValueError, match="values: expected finite numbers"):
        m.condition([0, 1], [1.0, np.nan])
    with pytest.raises(ValueError, match="how: expected 'mean' or 'draw'; got 'mode'"):
        m.impute(jax.random.key(0), np.zeros((1, 6)), "mode")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x: expected 6 columns"):
        m.impute(jax.random.key(0), np.zeros((1, 5)))
    with pytest.raises(ValueError, match="x: expected finite numbers, or NaN for missing"):
        m.impute(jax.random.key(0), np.full((1, 6), np.inf))
    with pytest.raises(ValueError, match="shares: expected 1 non-negative numbers of sum 1"):
        FactorMixture.join([0.5], [m])
    with pytest.raises(ValueError, match="mixtures: expected one number of features"):
        FactorMixture.join([0.5, 0.5], [m, mixture(d=5)])

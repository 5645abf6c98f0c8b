"""Missing values: the E-step against the textbook, EM's promises, recovery, imputation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import gmmjax
from gmmjax import GaussianMixture, Prior, families, fit, missing, moments
from gmmjax.em import expect
from gmmjax.fit import _fit

# Tolerances and step limits are traced, so that tests of one shape share a program.
em = jax.jit(gmmjax.em)
step = jax.jit(lambda m, data, weights: m.expect(data, weights))
X64 = jax.config.jax_enable_x64
TOL = 1e-9 if X64 else 5e-4
SOME = ("full", "tied", "diag", "spherical")
# To the E-step families differ by their second moment and by how they keep their factors.
KINDS = {(families.get(f).second, families.get(f).covariance): f for f in families.names()}


def every_family(*quick):
    """All 14; those not named are long tests, as each family compiles a program of its own."""
    slow = pytest.mark.slow
    return [f if f in quick else pytest.param(f, marks=slow) for f in families.names()]


def mixture(family="full", k=3, d=4, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((k, d, d))
    covariances = root @ root.transpose(0, 2, 1) + 0.5 * np.eye(d)
    means = spread * rng.standard_normal((k, d))
    return GaussianMixture.create(rng.dirichlet(np.full(k, 5.0)), means, covariances, family)


def holes(x, rate=0.3, seed=0):
    x = np.array(x)
    x[np.random.default_rng(seed).random(x.shape) < rate] = np.nan
    return x


def sample(m, n, seed=1):
    rng = np.random.default_rng(seed)
    weights, means, covs = (np.asarray(a) for a in (m.weights, m.means, m.covariances))
    z = rng.choice(len(weights), n, p=weights / weights.sum())
    noise = rng.standard_normal((n, means.shape[1]))
    x = means[z] + np.einsum("nab,nb->na", np.linalg.cholesky(covs)[z], noise)
    return x.astype(means.dtype)


def textbook(m, x, kind):
    """N_j, Σ r x̂, the second moment about the means, and ℓ, row by row in float64."""
    weights, means, covs = (np.asarray(a, np.float64) for a in (m.weights, m.means, m.covariances))
    k, d = means.shape
    count, first, second, total = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d)), 0.0
    for row in np.asarray(x, np.float64):
        o, u = np.flatnonzero(~np.isnan(row)), np.flatnonzero(np.isnan(row))
        joint, deltas, spreads = np.log(weights), [], []
        for j in range(k):
            delta, residual = np.zeros(d), np.zeros((d, d))
            if o.size:
                normal = stats.multivariate_normal(means[j, o], covs[j][np.ix_(o, o)])
                joint[j] += normal.logpdf(row[o])
                gain = np.linalg.solve(covs[j][np.ix_(o, o)], covs[j][np.ix_(o, u)]).T
                delta[o] = row[o] - means[j, o]
                delta[u] = gain @ delta[o]
                left = covs[j][np.ix_(u, u)] - gain @ covs[j][np.ix_(o, u)]
            else:
                left = covs[j]
            residual[np.ix_(u, u)] = left
            deltas.append(delta)
            spreads.append(residual)
        total += np.logaddexp.reduce(joint)
        r = np.exp(joint - np.logaddexp.reduce(joint))
        count += r
        first += r[:, None] * np.array(deltas)
        second += r[:, None, None] * (np.einsum("ka,kb->kab", deltas, deltas) + np.array(spreads))
    diagonal = np.diagonal(second, axis1=1, axis2=2)
    reduced = {"full": second, "diag": diagonal, "trace": diagonal.sum(axis=1)}[kind.shape_kind]
    return count, first, reduced.sum(axis=0) if kind.pooled else reduced, total


# --- the E-step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", KINDS.values())
def test_expected_moments_are_the_textbook_s(family):
    m = mixture(family)
    x = holes(sample(m, 120))
    x[7] = np.nan
    sums, log_likelihood = step(m, missing.mask(x), jnp.ones(120))
    count, first, second, total = textbook(m, x, families.get(family).second)
    scale = 120 * (1e-9 if X64 else 1e-5)
    np.testing.assert_allclose(sums.weight, count, atol=scale)
    np.testing.assert_allclose(sums.about, m.means)
    np.testing.assert_allclose(sums.first, first, atol=5 * scale)
    np.testing.assert_allclose(sums.second, second, rtol=1e-4, atol=50 * scale)
    np.testing.assert_allclose(log_likelihood, total, rtol=1e-9 if X64 else 1e-5)


@pytest.mark.parametrize("family", [*SOME, "VVE"])
def test_with_nothing_missing_it_is_the_plain_step(family):
    m = mixture(family)
    x = jnp.asarray(sample(m, 120))
    plain, of_plain = step(m, x, jnp.ones(120))
    ours, of_ours = step(m, missing.mask(x), jnp.ones(120))
    np.testing.assert_allclose(of_ours, of_plain, rtol=TOL)
    for a, b in zip(
        jax.tree.leaves(moments.centre(ours)), jax.tree.leaves(moments.centre(plain)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=TOL, atol=120 * TOL)


@pytest.mark.parametrize("family", ["full", "tied"])
@pytest.mark.parametrize("rate", [0.05, 0.6])
def test_groups_of_rows_give_the_sums_of_single_rows(family, rate):
    m = mixture(family)
    data = missing.mask(holes(sample(m, 120), rate))
    weights = jnp.asarray(np.random.default_rng(0).random(120), data.x.dtype)
    blocks = missing.lay(data, weights, n_components=3, family=family)
    assert blocks.data.x.shape[2] > 1
    np.testing.assert_allclose(blocks.total_weight, jnp.sum(weights), rtol=1e-6)
    grouped = jax.jit(expect)(m, blocks)
    single = step(m, data, weights)
    for a, b in zip(jax.tree.leaves(grouped), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=TOL, atol=120 * TOL)


def test_density_is_that_of_the_marginal():
    for family in ("full", "diag"):
        m = mixture(family)
        x = sample(m, 20)
        x[:, [1, 3]] = np.nan
        known = m.marginal([0, 2])
        data = missing.mask(x)
        log_prob, by_marginal = m.log_prob(data), known.log_prob(x[:, [0, 2]])
        np.testing.assert_allclose(log_prob, by_marginal, rtol=TOL, atol=TOL)
        np.testing.assert_allclose(
            m.responsibilities(data), known.responsibilities(x[:, [0, 2]]), rtol=TOL, atol=TOL
        )
        np.testing.assert_allclose(m.log_likelihood(data), jnp.sum(by_marginal), rtol=TOL)


def test_gradient_of_the_density():
    """By the marginal's; and 0 with respect to what stands where nothing is known."""
    m = mixture()
    data = missing.mask([[0.3, np.nan, -0.5, np.nan], [0.1, 0.2, 0.3, np.nan]])
    ours = jax.jit(jax.grad(lambda m: m.log_prob(data)[0]))(m)
    theirs = jax.jit(jax.grad(lambda m: m.marginal([0, 2]).log_prob(jnp.array([0.3, -0.5]))))(m)
    np.testing.assert_allclose(ours.means, theirs.means, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        np.tril(ours.factors.scale_tril), np.tril(theirs.factors.scale_tril), rtol=1e-3, atol=1e-3
    )
    by_x = jax.grad(lambda x: jnp.sum(m.log_prob(gmmjax.incomplete.Incomplete(x, data.observed))))
    np.testing.assert_array_equal(np.asarray(by_x(data.x))[~np.asarray(data.observed)], 0.0)


# --- EM -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", every_family("full", "tied", "diag", "spherical", "VEV"))
def test_em_of_every_family(family):
    """The likelihood never falls; without holes it is the plain EM; lanes share one program."""
    starts = [mixture(family, seed=seed) for seed in (5, 6)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *starts)
    x = sample(mixture(family), 120)
    some = holes(x)
    some[[3, 77]] = np.nan  # of which nothing is known

    @jax.jit
    def lanes(data, steps):
        return jax.vmap(lambda m: gmmjax.em(m, data, tol=0.0, max_steps=steps))(stacked)

    result = lanes(missing.mask(some), 31)
    traces = np.asarray(result.trace, np.float64)
    assert np.all(np.diff(traces) >= -(1e-12 if X64 else 2e-6) * np.abs(traces[:, -1:]))
    assert np.all(traces[:, -1] > traces[:, 0])
    model = jax.tree.map(lambda a: a[1], result.model)
    ell = model.log_likelihood(missing.mask(some))
    np.testing.assert_allclose(ell, traces[1, -1], rtol=1e-5)

    full = lanes(missing.mask(x), 5)
    assert lanes._cache_size() == 1
    plain = em(starts[1], jnp.asarray(x), tol=0.0, max_steps=5)
    same = jax.tree.map(lambda a: a[1], full.model)
    np.testing.assert_allclose(full.log_likelihood[1], plain.log_likelihood, rtol=TOL)
    np.testing.assert_allclose(same.means, plain.model.means, rtol=TOL, atol=10 * TOL)
    np.testing.assert_allclose(same.covariances, plain.model.covariances, rtol=TOL, atol=20 * TOL)


def test_the_bound_is_tight_at_the_posterior():
    m = mixture()
    data = missing.mask(holes(sample(m, 50)))
    r = m.responsibilities(data)
    ell = m.log_likelihood(data)
    np.testing.assert_allclose(gmmjax.elbo(m, data, r), ell, rtol=1e-5)
    assert gmmjax.elbo(m, data, jnp.roll(r, 1, axis=0)) < ell


def test_maximum_a_posteriori_never_falls():
    m = mixture()
    data = missing.mask(holes(sample(m, 120), 0.5))
    prior = Prior.create(mean=np.zeros(4), scale=np.eye(4))
    model, objectives = mixture(seed=7), []
    for _ in range(8):
        result = em(model, data, prior=prior, tol=0.0, max_steps=1)
        model = result.model
        objectives.append(float(result.objective))
    assert np.all(np.diff(objectives) > -1e-3)


@pytest.mark.parametrize("family", every_family("full"))
def test_recovers_the_parameters_and_beats_filling_in_the_mean(family):
    """Within Monte Carlo error: at 30 % missing at random, as if 70 % of the rows told of a mean, and
    49 % of a covariance."""
    # So far apart that the error of not knowing the component is small beside that of the draw.
    truth = mixture(family, k=2, d=3, seed=3, spread=6.0)
    n = 4000
    x, held_out = sample(truth, n), sample(truth, n, seed=9)
    seen = holes(x)
    start = mixture(family, k=2, d=3, seed=3, spread=5.0)
    model = em(start, missing.mask(seen), max_steps=300).model
    weights, means, covs = (np.asarray(a) for a in (truth.weights, truth.means, truth.covariances))
    count = n * weights[:, None]
    variance = np.diagonal(covs, axis1=1, axis2=2)
    error = np.sqrt(weights * (1 - weights) / (0.7 * n))
    assert np.all(np.abs(model.weights - weights) < 5 * error)
    error = np.sqrt(variance / (0.7 * count))
    assert np.all(np.abs(model.means - means) < 5 * error)
    products = variance[:, :, None] * variance[:, None, :] + covs**2
    error = np.sqrt(products / (0.49 * count[..., None]))
    assert np.all(np.abs(model.covariances - covs) < 5 * error)

    gaps = np.isnan(seen)
    filled = np.where(gaps, np.nanmean(seen, axis=0), seen)
    theirs = em(start, jnp.asarray(filled), max_steps=300).model
    assert model.log_prob(held_out).mean() > theirs.log_prob(held_out).mean() + 0.1
    value = np.asarray(model.impute(jax.random.key(1), seen))
    assert np.mean((value - x)[gaps] ** 2) < 0.9 * np.mean((filled - x)[gaps] ** 2)


def test_rows_of_which_nothing_is_known_carry_the_weights():
    m = mixture()
    x = holes(sample(m, 120), 0.1)
    x[80:] = np.nan
    weights = jnp.where(jnp.arange(120) < 80, 1.0, 0.0)
    sums, log_likelihood = step(m, missing.mask(x), jnp.ones(120))
    some, of_some = step(m, missing.mask(x), weights)
    np.testing.assert_allclose(log_likelihood, of_some, rtol=1e-5)
    np.testing.assert_allclose(sums.weight - some.weight, 40 * m.weights, rtol=1e-4)
    np.testing.assert_allclose(sums.first, some.first, atol=1e-3)
    # A maximum stays one: such rows add what is there already.
    without = em(m, missing.mask(x), weights=weights, tol=0.0, max_steps=1000).model
    further = em(without, missing.mask(x), tol=0.0, max_steps=20).model
    np.testing.assert_allclose(further.means, without.means, atol=1e-2)


def test_weights_are_repeated_rows():
    m = mixture()
    x = holes(sample(m, 120))
    times = np.repeat([0, 1, 2], 40)
    weighted = step(m, missing.mask(x), jnp.asarray(times, m.means.dtype))
    repeated = step(m, missing.mask(np.repeat(x, times, axis=0)), jnp.ones(120))
    for a, b in zip(jax.tree.leaves(weighted), jax.tree.leaves(repeated), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-2)


def test_a_shift_and_a_unit_change_nothing():
    m = mixture()
    x = holes(sample(m, 120))
    near = em(m, missing.mask(x), tol=0.0, max_steps=5)
    far = em(m.affine(4096.0, 16.0), missing.mask(16 * x + 4096), tol=0.0, max_steps=5)
    shift = np.sum(~np.isnan(x)) * np.log(16)
    np.testing.assert_allclose(far.log_likelihood + shift, near.log_likelihood, rtol=1e-3)
    np.testing.assert_allclose((far.model.means - 4096) / 16, near.model.means, atol=1e-2)


def test_one_program_for_all_masks_and_tolerances():
    m = mixture()
    options = {"init": m, "missing": "marginalize", "max_steps": 4}
    x = sample(m, 120)
    before = _fit._cache_size()
    with_masks = fit(jax.random.key(0), holes(x, 0.4), 3, tol=0.0, **options)
    # Sixteen masks, one program; and another tolerance, floor and limit are no new one.
    fit(jax.random.key(1), holes(x, 0.4), 3, tol=1e-3, reg=1e-5, **options | {"max_steps": 2})
    assert _fit._cache_size() == before + 1
    by_em = em(m, missing.mask(holes(x, 0.4)), tol=0.0, max_steps=4)
    np.testing.assert_allclose(with_masks.log_likelihood, by_em.log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(with_masks.model.means, by_em.model.means, rtol=1e-3, atol=1e-3)

    def inside(x):
        return fit(jax.random.key(0), x, 3, tol=0.0, **options).log_likelihood

    traced = jax.jit(inside)(holes(x, 0.4))
    np.testing.assert_allclose(traced, by_em.log_likelihood, rtol=1e-5)


def test_masks_of_like_data_are_laid_out_alike():
    x = sample(mixture(d=6), 500)
    shapes = {
        missing.lay(
            missing.mask(holes(x, 0.4, seed)), jnp.ones(500), n_components=3, family="full"
        ).data.shape
        for seed in range(5)
    }
    assert len(shapes) <= 2


# --- imputation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["full", "diag"])
def test_imputed_means_are_those_of_the_regression(family):
    m = mixture(family)
    x = sample(m, 30)
    known = x.copy()
    x[:, [0, 3]] = np.nan
    out = np.asarray(m.impute(jax.random.key(0), x))
    np.testing.assert_array_equal(out[:, [1, 2]], known[:, [1, 2]].astype(out.dtype))
    expected = m.regress([1, 2], known[:, [1, 2]]).mean
    np.testing.assert_allclose(out[:, [0, 3]], expected, rtol=10 * TOL, atol=10 * TOL)


@pytest.mark.parametrize("family", ["full", "spherical"])
def test_imputed_modes_are_maxima(family):
    m = mixture(family)
    x = holes(sample(m, 40), 0.5)
    x[3] = np.nan
    out = m.impute(jax.random.key(0), x, "mode")
    slope = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(m.log_prob(x))))(out))
    assert np.all(np.abs(slope[np.isnan(x)]) < (1e-5 if X64 else 3e-2))
    assert np.all(m.log_prob(out) >= m.log_prob(m.impute(jax.random.key(0), x)) - 1e-4)
    assert m.log_prob(out[3]) >= jnp.max(m.log_prob(m.means)) - 1e-4


def test_imputed_draws_follow_the_conditional():
    m = mixture(k=2, d=3)
    n = 20_000
    x = np.tile([0.5, np.nan, -0.2], (n, 1))
    draws = np.asarray(m.impute(jax.random.key(0), x, "draw"))
    given = m.regress([0, 2], [0.5, -0.2])
    deviation = np.sqrt(float(given.covariance[0, 0]))
    assert abs(draws[:, 1].mean() - given.mean[0]) < 5 * deviation / np.sqrt(n)
    assert abs(draws[:, 1].std() / deviation - 1) < 0.05
    again = np.asarray(m.impute(jax.random.key(0), x, "draw"))
    np.testing.assert_array_equal(draws, again)


def test_imputation_where_nothing_is_known_and_under_jit():
    m = mixture()
    x = np.full((2, 4), np.nan)
    np.testing.assert_allclose(m.impute(jax.random.key(0), x)[0], m.mean(), rtol=TOL, atol=TOL)
    x = holes(sample(m, 10))
    inside = jax.jit(lambda m, x: m.impute(jax.random.key(0), x))(m, x)
    np.testing.assert_allclose(inside, m.impute(jax.random.key(0), x), rtol=TOL, atol=TOL)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input():
    x = holes(sample(mixture(), 50))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="x: expected finite numbers; got nan"):
        fit(key, x, 2)
    with pytest.raises(ValueError, match="missing: expected 'refuse' or 'marginalize'; got 'drop'"):
        fit(key, x, 2, missing="drop")
    infinite = x.copy()
    infinite[4, 1] = np.inf
    with pytest.raises(ValueError, match=r"or NaN for missing; got inf at row 4, column 1"):
        fit(key, infinite, 2, missing="marginalize")
    unknown = x.copy()
    unknown[:, 2] = np.nan
    with pytest.raises(ValueError, match="got none in column 2"):
        fit(key, unknown, 2, missing="marginalize")
    empty = np.full((50, 4), np.nan)
    empty[0] = 1.0
    with pytest.raises(ValueError, match="rows of x that count; got 2 for 1 rows"):
        fit(key, empty, 2, missing="marginalize")
    constant = np.where(np.isnan(x), np.nan, 3.0)
    with pytest.raises(ValueError, match="expected rows that differ"):
        fit(key, constant, 2, missing="marginalize")
    with pytest.raises(ValueError, match="how: expected 'mean', 'mode' or 'draw'; got 'median'"):
        mixture().impute(key, x, "median")
    with pytest.raises(ValueError, match="x: expected 4 columns"):
        mixture().impute(key, x[:, :3])

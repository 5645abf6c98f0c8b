"""Mixtures of which some rows are labelled: between the supervised and the unsupervised fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmjax
from gmmjax import classification, mle
from gmmjax.classification import LabelledMixture, fit_semi_supervised

X64 = bool(jax.config.jax_enable_x64)
KEY = jax.random.key(0)
K, N = 3, 240


def data(seed: int = 0, spread: float = 2.2):
    """Three overlapping clusters in the plane, unequal in size, shape and number of rows."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(K), rng.choice(K, N - K, p=[0.5, 0.3, 0.2])])
    centers = spread * np.array([[0.0, 0.0], [1.5, 0.0], [0.6, 1.4]])
    roots = np.array(
        [[[1.0, 0.0], [0.5, 0.7]], [[0.6, 0.0], [0.0, 1.2]], [[0.8, 0.0], [-0.3, 0.5]]]
    )
    return centers[y] + np.einsum("nab,nb->na", roots[y], rng.normal(size=(N, 2))), y


X, Y = data()
SOME = np.where(np.arange(N) % 8 == 0, Y, -1)
SOME[:K] = np.arange(K)


def fit(labels, k=K, *, x=X, restarts=4, **options):
    # One set of static arguments, so that the tests share a program.
    return fit_semi_supervised(KEY, x, labels, k, restarts=restarts, **options)


def same_model(a, b, tol):
    np.testing.assert_allclose(a.weights, b.weights, atol=tol)
    np.testing.assert_allclose(a.means, b.means, atol=tol)
    np.testing.assert_allclose(a.covariances, b.covariances, atol=tol)


def log_likelihood(model, x, labels, noise=None) -> float:
    """The definition: Σ log Σ_j p(x_i, z = j) p(y_i | z = j)."""
    joint = np.asarray(model.log_joint(x), float)
    noise = np.eye(K) if noise is None else np.asarray(noise, float)
    with np.errstate(divide="ignore"):
        evidence = np.where(labels[:, None] < 0, 0.0, np.log(noise.T[np.maximum(labels, 0)]))
    return float(np.logaddexp.reduce(joint + evidence, axis=1).sum())


# ---- the two ends ----


def test_with_every_row_labelled_it_is_the_supervised_fit():
    result = fit(Y)
    supervised = mle.mixture(X, Y)
    same_model(result.model, supervised, 1e-12 if X64 else 2e-5)
    if X64:
        np.testing.assert_array_equal(result.model.predict(X), supervised.predict(X))
    assert bool(result.converged)
    assert int(result.n_steps) <= 2
    joint = np.take_along_axis(np.asarray(result.model.log_joint(X)), Y[:, None], 1).sum()
    assert float(result.log_likelihood) == pytest.approx(joint, rel=1e-5)


def test_with_no_row_labelled_it_is_the_unsupervised_fit():
    ours = fit(np.full(N, -1))
    theirs = gmmjax.fit(KEY, X, K, restarts=4)
    for a, b in zip(jax.tree.leaves(ours.model), jax.tree.leaves(theirs.model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(ours.log_likelihood) == float(theirs.log_likelihood)
    assert int(ours.status) == int(theirs.status)


@pytest.mark.parametrize("estimate", [False, True])
def test_em_without_a_label_is_em_of_the_mixture(estimate):
    """Not only where `fit` is called in its place: every step of the driver is the same."""
    start = mle.mixture(X, Y)
    noise = jnp.full((K, K), 0.1) + 0.7 * jnp.eye(K)
    both = LabelledMixture(start, jnp.log(noise), estimate)
    ours = gmmjax.em(both, (jnp.asarray(X, float), jnp.full(N, -1)), max_steps=20, tol=0.0)
    theirs = gmmjax.em(start, jnp.asarray(X, float), max_steps=20, tol=0.0)
    same_model(ours.model.mixture, theirs.model, 1e-12 if X64 else 1e-4)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(ours.model.log_noise), noise, rtol=1e-5)


# ---- between ----


def test_the_likelihood_is_its_definition_and_never_falls():
    result = fit(SOME)
    assert bool(result.converged)
    expected = log_likelihood(result.model, X, SOME)
    assert float(result.log_likelihood) == pytest.approx(expected, rel=1e-5)
    start = LabelledMixture(mle.mixture(X, np.arange(N) % K), jnp.log(jnp.eye(K)))
    path = gmmjax.em(start, (jnp.asarray(X, float), jnp.asarray(SOME)), max_steps=31, tol=0.0)
    trace = np.asarray(path.trace)
    assert np.isfinite(trace).all()
    assert np.all(np.diff(trace) > -(1e-9 if X64 else 1e-5) * abs(trace[-1]))
    assert trace[-1] > trace[0] + 1


def test_the_bound_touches_the_likelihood_at_the_posterior():
    model = LabelledMixture(mle.mixture(X, Y), jnp.log(jnp.eye(K)))
    pair = jnp.asarray(X, float), jnp.asarray(SOME)
    q = model.responsibilities(*pair)
    bound = gmmjax.elbo(model, pair, q)
    assert float(bound) == pytest.approx(log_likelihood(model.mixture, X, SOME), rel=1e-5)
    other = jnp.where(SOME[:, None] >= 0, q, jnp.full((N, K), 1 / K))
    assert float(gmmjax.elbo(model, pair, other)) < float(bound)


def test_a_label_clamps_the_responsibility():
    result = fit(SOME)
    r = np.asarray(result.labelled.responsibilities(X, SOME))
    np.testing.assert_array_equal(r[SOME >= 0], np.eye(K)[SOME[SOME >= 0]])
    free = SOME < 0
    np.testing.assert_allclose(r[free], result.model.responsibilities(X[free]), atol=1e-5)
    np.testing.assert_allclose(r.sum(axis=1), 1, rtol=1e-5)


def test_rows_without_label_help():
    """The partly labelled fit is nearer to the supervised one of all rows than that of the few."""
    target = mle.mixture(X, Y)
    few = mle.mixture(X[SOME >= 0], Y[SOME >= 0])
    ours = fit(SOME).model

    def distance(model):
        return float(jnp.sum((model.covariances - target.covariances) ** 2))

    assert distance(ours) < distance(few)
    assert np.mean(np.asarray(ours.predict(X)) == Y) >= np.mean(np.asarray(few.predict(X)) == Y)


def test_a_class_of_which_no_row_is_labelled_is_found():
    labels = np.where(SOME == 2, -1, SOME)
    model = fit(labels).model
    third = Y == 2
    assert np.mean(np.asarray(model.predict(X))[third] == 2) > 0.8
    assert np.mean(np.asarray(model.predict(X)) == Y) > 0.85


def test_a_mask_is_as_good_as_minus_one():
    masked = fit(Y, mask=SOME >= 0)
    plain = fit(SOME)
    np.testing.assert_array_equal(masked.model.means, plain.model.means)


def test_a_row_of_weight_zero_is_as_if_absent():
    weights = (np.arange(N) % 4 > 0).astype(float)
    ours = fit(SOME, weights=weights)
    start = jax.tree.map(lambda a: a[None], ours.model)
    kept = weights > 0
    again = fit_semi_supervised(KEY, X[kept], SOME[kept], K, init=start)
    same_model(ours.model, again.model, 1e-4 if X64 else 5e-3)
    np.testing.assert_allclose(ours.log_likelihood, again.log_likelihood, rtol=1e-5)


def test_it_moves_with_the_data():
    x = np.round(X * 256) / 256  # exact in float32 after the shift
    there = fit(SOME, x=x + 2048.0)
    here = fit(SOME, x=x)
    same_model(there.model.affine(-2048.0), here.model, 1e-4 if X64 else 2e-2)
    np.testing.assert_array_equal(there.model.predict(x + 2048.0), here.model.predict(x))


def test_under_jit_and_vmap():
    several = np.stack([SOME, np.where(SOME == 2, -1, SOME), Y])

    def one(labels):
        return fit_semi_supervised(KEY, X, labels, K, restarts=4)

    batch = jax.jit(jax.vmap(one))(several)
    for i, labels in enumerate(several):
        alone = fit(labels)
        assert int(batch.status[i]) == int(alone.status)
        np.testing.assert_allclose(batch.log_likelihood[i], alone.log_likelihood, rtol=1e-5)


# ---- noisy labels ----

NOISE = np.array([[0.8, 0.1, 0.1], [0.05, 0.9, 0.05], [0.3, 0.0, 0.7]])


def noisy(seed: int = 0):
    rng = np.random.default_rng(seed)
    return np.array([rng.choice(K, p=NOISE[y]) for y in Y])


def test_no_noise_is_a_certain_label():
    certain = fit(SOME)
    for none in (0.0, np.eye(K)):
        np.testing.assert_array_equal(fit(SOME, label_noise=none).model.means, certain.model.means)


def test_noise_that_is_told_mends_labels():
    wrong = noisy()
    told = fit(wrong, label_noise=NOISE)
    assert float(told.log_likelihood) == pytest.approx(
        log_likelihood(told.model, X, wrong, NOISE), rel=1e-5
    )
    taken_at_their_word, target = mle.mixture(X, wrong), mle.mixture(X, Y)

    def distance(model):
        return float(jnp.sum((model.covariances - target.covariances) ** 2))

    assert distance(told.model) < 0.5 * distance(taken_at_their_word)
    assert np.mean(np.asarray(told.model.predict(X)) == Y) > np.mean(wrong == Y) + 0.05
    np.testing.assert_allclose(told.noise, NOISE, atol=1e-6)


def test_a_rate_is_spread_over_the_other_labels():
    np.testing.assert_allclose(
        fit(SOME, label_noise=0.1).noise, np.full((K, K), 0.05) + 0.85 * np.eye(K), atol=1e-6
    )


def test_noise_is_estimated_within_its_standard_error():
    wrong = noisy()
    result = fit(wrong, label_noise=0.2, estimate_noise=True)
    error = np.sqrt(0.25 / np.bincount(Y))[:, None]
    assert np.all(np.abs(np.asarray(result.noise) - NOISE) < 3 * error)
    np.testing.assert_allclose(np.asarray(result.noise).sum(axis=1), 1, rtol=1e-5)
    told = fit(wrong, label_noise=0.2)
    assert float(result.log_likelihood) > float(told.log_likelihood)
    # The M-step is the ratio of expected counts.
    r = np.asarray(result.labelled.responsibilities(X, wrong))
    counts = r.T @ np.eye(K)[wrong]
    np.testing.assert_allclose(result.noise, counts / counts.sum(axis=1, keepdims=True), atol=2e-3)


def test_estimating_noise_never_lowers_the_likelihood():
    noise = jnp.full((K, K), 0.1) + 0.7 * jnp.eye(K)
    start = LabelledMixture(mle.mixture(X, np.arange(N) % K), jnp.log(noise), True)
    labels = np.where(np.arange(N) % 3 == 0, -1, noisy())
    path = gmmjax.em(start, (jnp.asarray(X, float), jnp.asarray(labels)), max_steps=31, tol=0.0)
    trace = np.asarray(path.trace)
    assert np.all(np.diff(trace) > -(1e-9 if X64 else 1e-5) * abs(trace[-1]))
    expected = log_likelihood(path.model.mixture, X, labels, np.exp(path.model.log_noise))
    assert float(path.log_likelihood) == pytest.approx(expected, rel=1e-5)


# ---- what cannot be used ----


def test_bad_labels():
    with pytest.raises(ValueError, match=r"labels: expected labels from -1 to 1; got -1 to 2"):
        fit(SOME, 2)
    with pytest.raises(ValueError, match=r"labels: expected labels from -1 to 2; got -2 to 2"):
        fit(np.where(SOME == 1, -2, SOME))
    with pytest.raises(ValueError, match=r"labels: expected shape \[240\], one a row; got \(7,\)"):
        fit(SOME[:7])
    with pytest.raises(TypeError, match="labels: expected integer labels"):
        fit(SOME.astype(float))
    with pytest.raises(
        ValueError, match="n_components: expected a number where no row is labelled"
    ):
        fit(np.full(N, -1), None)
    with pytest.raises(ValueError, match="under jit the number of classes must be given"):
        jax.jit(lambda labels: fit(labels, None).model)(SOME)
    with pytest.raises(ValueError, match=r"mask: expected booleans of shape \[240\]"):
        fit(SOME, mask=np.ones(N))
    with pytest.raises(ValueError, match=r"mask: expected booleans of shape \[240\]"):
        fit(SOME, mask=np.ones(3, bool))
    with pytest.raises(ValueError, match=r"labels: expected labels from -1 to 2"):
        fit(SOME).labelled.responsibilities(X, SOME + 1)


def test_bad_noise():
    with pytest.raises(
        ValueError, match=r"label_noise: expected a rate, or a matrix of shape \[3, 3"
    ):
        fit(SOME, label_noise=np.eye(2))
    with pytest.raises(ValueError, match="label_noise: expected probabilities from 0 to 1"):
        fit(SOME, label_noise=1.5)
    with pytest.raises(ValueError, match="label_noise: expected rows that sum to 1"):
        fit(SOME, label_noise=NOISE.T)
    with pytest.raises(ValueError, match=r"labels \[2\] occur and have probability 0"):
        fit(SOME, label_noise=np.eye(K)[[0, 1, 0]])
    with pytest.raises(ValueError, match="label_noise: expected a rate or a matrix to start from"):
        fit(SOME, estimate_noise=True)


def test_bad_starts_and_data():
    start = mle.mixture(X, Y, family="diag")
    with pytest.raises(ValueError, match="init: expected a mixture of family 'full'; got 'diag'"):
        fit(SOME, init=start)
    with pytest.raises(ValueError, match="x: expected finite"):
        fit(SOME, x=np.where(X > 3, np.inf, X))
    with pytest.raises(ValueError, match="n_components: expected at most the number of rows"):
        classification.fit_semi_supervised(KEY, X[:2], SOME[:2], 3)

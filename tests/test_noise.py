"""The noise component: its E-step, its limits, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import rows, tolerance, x64

import gmmjax
from gmmjax import GaussianMixture, Prior, expectation, moments
from gmmjax.models import NoisyMixture, fit_noise, log_hypervolume

KEY = jax.random.key(0)
N, D, K = 300, 2, 2


def data(noise: int = 60) -> np.ndarray:
    """Two tight clusters and uniform noise in a square of side 20, in the last rows."""
    rng = np.random.default_rng(0)
    z = rng.integers(0, K, N - noise)
    clusters = np.array([[-4.0, 0.0], [4.0, 2.0]])[z] + 0.6 * rng.normal(size=(N - noise, D))
    return np.concatenate([clusters, rng.uniform(-10, 10, (noise, D))])


X = data()
START = GaussianMixture.create([0.4, 0.6], [[-3.0, 1.0], [3.0, 1.0]], np.stack([np.eye(D)] * K))


def noisy(family: str = "full", share: float = 0.3) -> NoisyMixture:
    mixture = GaussianMixture.create(START.weights, START.means, np.stack([np.eye(D)] * K), family)
    return NoisyMixture.create(mixture, share, np.log(400.0))


def fit(x=X, **options):
    # One set of static arguments, so that the tests share a program.
    return fit_noise(KEY, x, K, restarts=6, **options)


# ---- the E-step ----


@pytest.mark.parametrize(
    "family", ["full", "diag", "spherical", "tied", "tied-diag", "tied-spherical"]
)
def test_both_forms_of_the_e_step_are_the_definition(family):
    model = noisy(family)
    w = np.random.default_rng(1).uniform(0.5, 2, N)
    joint = np.asarray(model.log_joint(rows(X)), float)
    total = np.logaddexp.reduce(joint, axis=1)
    r = np.exp(joint - total[:, None]) * w[:, None]
    background = model.log_odds - model.log_volume
    shift = float(jax.nn.log_sigmoid(-model.log_odds))
    prepared = model.mixture.prepare()
    for form in (expectation.by_features, expectation.by_differences):
        sums, log_likelihood = jax.jit(form)(prepared, rows(X), rows(w), None, background)
        rtol = tolerance(1e-10, 2e-4)
        np.testing.assert_allclose(log_likelihood + w.sum() * shift, w @ total, rtol=rtol)
        np.testing.assert_allclose(sums.weight, r[:, :K].sum(0), rtol=rtol)
        central = moments.centre(sums)
        mean = r[:, :K].T @ X / r[:, :K].sum(0)[:, None]
        np.testing.assert_allclose(central.mean, mean, rtol=rtol, atol=rtol)
        delta = X[None] - mean[:, None]
        scatter = np.einsum("nk,kna,knb->kab", r[:, :K], delta, delta)
        if sums.kind.shape_kind != "full":
            scatter = np.diagonal(scatter, axis1=1, axis2=2)
        if sums.kind.shape_kind == "trace":
            scatter = scatter.sum(1)
        scatter = scatter.sum(0) if sums.kind.pooled else scatter
        np.testing.assert_allclose(
            central.scatter, scatter, rtol=tolerance(1e-9, 1e-3), atol=np.max(scatter) * rtol
        )


def test_the_likelihood_never_falls_and_touches_the_bound():
    path = gmmjax.em(noisy(share=0.05), rows(X), tol=0.0, max_steps=31)
    trace = np.asarray(path.trace)
    assert np.isfinite(trace).all()
    assert np.all(np.diff(trace) > -tolerance(1e-9, 1e-5) * abs(trace[-1]))
    assert trace[-1] > trace[0] + 10
    model = path.model
    assert float(path.log_likelihood) == pytest.approx(
        float(model.log_likelihood(X)), rel=tolerance(1e-10, 1e-5)
    )
    q = model.responsibilities(rows(X))
    bound = float(gmmjax.elbo(model, rows(X), q))
    assert bound == pytest.approx(float(path.log_likelihood), rel=1e-5)
    assert float(gmmjax.elbo(model, rows(X), jnp.full_like(q, 1 / (K + 1)))) < bound


# ---- the fit ----


def test_a_fit_finds_the_clusters_and_the_noise():
    result = fit()
    assert int(result.status) <= gmmjax.Status.MAX_STEPS
    assert float(result.model.noise_weight) == pytest.approx(0.2, abs=0.05)
    order = np.argsort(result.model.mixture.means[:, 0])
    np.testing.assert_allclose(result.model.mixture.means[order], [[-4, 0], [4, 2]], atol=0.2)
    labels = np.asarray(result.model.predict(X))
    assert set(labels.tolist()) == {-1, 0, 1}
    assert np.mean(labels[-60:] == -1) > 0.85
    assert np.mean(labels[:-60] == -1) < 0.05
    np.testing.assert_allclose(np.sum(result.model.weights), 1, rtol=1e-5)
    np.testing.assert_allclose(result.model.responsibilities(X).sum(1), 1, rtol=1e-5)
    expected = float(result.model.log_likelihood(X))
    assert float(result.log_likelihood) == pytest.approx(expected, rel=1e-5)
    assert result.message


def test_outliers_with_the_noise_component_fitted():
    """By the component itself, and by a density threshold on the mixture that it leaves clean."""
    model = fit().model
    rng = np.random.default_rng(1)
    clean = np.array([[-4.0, 0.0], [4.0, 2.0]])[rng.integers(0, K, 4000)]
    clean = clean + 0.6 * rng.normal(size=(4000, D))
    far = rng.uniform(-10, 10, (4000, D))
    far = far[np.min(np.linalg.norm(far[:, None] - model.mixture.means, axis=2), axis=1) > 3]
    assert np.mean(np.asarray(model.predict(clean)) == -1) < 0.03
    assert np.mean(np.asarray(model.predict(far)) == -1) > 0.999
    rate = 0.02
    threshold = gmmjax.classification.sampled_threshold(KEY, model.mixture, rate)
    draws, _ = model.mixture.sample(jax.random.key(1), 20_000)
    alarms = np.mean(gmmjax.classification.is_outlier(model.mixture, draws, threshold))
    assert abs(alarms - rate) < 5 * np.sqrt(rate * (1 - rate) / 20_000)
    # The clusters are known to their standard errors only: 120 rows each.
    assert np.mean(gmmjax.classification.is_outlier(model.mixture, clean, threshold)) < 2 * rate
    assert np.all(gmmjax.classification.is_outlier(model.mixture, far, threshold))


@pytest.mark.parametrize("prior", [None, Prior.default(X, K, "full")], ids=["ML", "MAP"])
def test_without_noise_it_is_the_mixture(prior):
    """φ₀ = 0 stays 0, and everything else is as without a noise component."""
    model = noisy(share=0.0)
    ours = gmmjax.em(model, rows(X), prior=prior, tol=0.0, max_steps=20)
    theirs = gmmjax.em(model.mixture, rows(X), prior=prior, tol=0.0, max_steps=20)
    assert float(ours.model.noise_weight) == 0
    for a, b in zip(
        jax.tree.leaves(ours.model.mixture), jax.tree.leaves(theirs.model), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=tolerance(1e-10, 1e-4), atol=1e-6)
    assert float(ours.log_likelihood) == pytest.approx(float(theirs.log_likelihood), rel=1e-5)
    assert float(ours.objective) == pytest.approx(float(theirs.objective), rel=1e-5)


def test_it_moves_with_the_data_and_counts_rows_by_weight():
    base = fit(init=noisy())
    start = noisy().affine(jnp.asarray([8.0, -2.0]), 4.0)
    moved = fit(4.0 * X + np.array([8.0, -2.0]), init=start)
    expected = base.model.affine(jnp.asarray([8.0, -2.0]), 4.0)
    tol = tolerance(1e-8, 1e-2)
    for a, b in zip(jax.tree.leaves(moved.model), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)
    counts = np.random.default_rng(2).integers(0, 3, N)
    weighted = gmmjax.em(noisy(), rows(X), weights=rows(counts), tol=0.0, max_steps=20)
    repeated = gmmjax.em(noisy(), rows(np.repeat(X, counts, axis=0)), tol=0.0, max_steps=20)
    np.testing.assert_allclose(
        weighted.model.weights, repeated.model.weights, rtol=tolerance(1e-9, 1e-4)
    )


def test_a_start_from_labels_and_a_given_volume():
    labels = np.where(np.arange(N) >= N - 60, -1, np.where(X[:, 0] > 0, 1, 0))
    result = fit(init=labels, log_volume=np.log(400.0))
    best = fit(log_volume=np.log(400.0))
    assert float(result.model.log_volume) == pytest.approx(np.log(400.0), rel=1e-6)
    assert float(result.log_likelihood) == pytest.approx(float(best.log_likelihood), rel=1e-5)


def test_jit_vmap_and_grad():
    volumes = jnp.log(jnp.asarray([300.0, 400.0, 900.0]))

    start = noisy()

    def share(log_volume):
        model = dataclasses.replace(start, log_volume=log_volume)
        return gmmjax.em(model, rows(X), max_steps=20).model.noise_weight

    together = jax.jit(jax.vmap(share))(volumes)
    np.testing.assert_allclose(together[0], share(volumes[0]), rtol=tolerance(1e-9, 2e-3))
    assert float(together[0]) > float(together[2])  # a wider region makes noise less dense
    gradient = jax.grad(lambda m: m.log_likelihood(rows(X)))(noisy())
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))
    step = 1e-3 if x64() else 3e-2
    odds = [
        float(dataclasses.replace(noisy(), log_odds=noisy().log_odds + s).log_likelihood(rows(X)))
        for s in (step, -step)
    ]
    slope = (odds[0] - odds[1]) / (2 * step)
    assert float(gradient.log_odds) == pytest.approx(slope, rel=tolerance(1e-5, 1e-2))


def test_the_smaller_of_the_two_boxes():
    rng = np.random.default_rng(0)
    flat = rng.uniform(-1, 1, (500, 2)) * np.array([10.0, 0.1])
    turn = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    straight, turned = log_hypervolume(flat), log_hypervolume(flat @ turn)
    assert float(straight) == pytest.approx(np.log(np.prod(np.ptp(flat, axis=0))), rel=0.01)
    # The principal axes of a sample are not quite those of the strip; along the coordinates log V = 5.3.
    assert float(straight) - 0.01 < float(turned) < float(straight) + 0.3
    many = log_hypervolume(1e3 * rng.normal(size=(60, 20)))  # V = 10⁶⁰ and more
    assert np.isfinite(many)


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"log_volume": np.inf}, ValueError, "log_volume: expected one finite number"),
        ({"log_volume": [1.0, 2.0]}, ValueError, "log_volume: expected one finite number"),
        ({"init": noisy(), "log_volume": 1.0}, ValueError, "log_volume: expected None"),
        ({"init": START}, TypeError, "init: expected a NoisyMixture"),
        ({"init": "mixed"}, TypeError, "init: expected a NoisyMixture"),
        ({"init": noisy("diag")}, ValueError, "init: expected a mixture of family 'full'"),
        ({"init": np.arange(N) % K}, ValueError, "labelled -1"),
        ({"init": np.full(N, -1)}, ValueError, "init: expected each class"),
        ({"init": np.full(N, 5)}, ValueError, "init: expected labels from -1 to 1"),
        ({"family": "fool"}, ValueError, "family: expected one of"),
        ({"tol": -1.0}, ValueError, "tol: expected"),
        ({"weights": np.ones(3)}, ValueError, "weights: expected shape"),
    ],
)
def test_bad_arguments_are_named(options, error, words):
    with pytest.raises(error, match=words):
        fit(**options)


def test_bad_data_are_named():
    with pytest.raises(ValueError, match="x: expected finite numbers"):
        fit(np.full((10, 2), np.nan))
    with pytest.raises(ValueError, match="span a box"):
        fit(np.stack([X[:, 0], 2 * X[:, 0]], axis=1))
    with pytest.raises(ValueError, match="span a box"):
        log_hypervolume(np.stack([X[:, 0], np.ones(N)], axis=1))
    with pytest.raises(ValueError, match="noise_weight"):
        NoisyMixture.create(START, 1.0, 0.0)

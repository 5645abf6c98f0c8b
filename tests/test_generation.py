"""Principal axes and lifted mixtures; scores of generated samples against closed forms."""

import jax
import numpy as np
import pytest
from scipy import linalg, stats
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import gmmjax
from benchmarks import generate_digits
from gmmjax import GaussianMixture, metrics
from gmmjax.generation import PrincipalAxes, tile
from gmmjax.metrics.generation import nearest_distance

X64 = jax.config.jax_enable_x64
TOL = 1e-9 if X64 else 1e-3


def rows(n=200, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ np.diag(np.arange(d, 0, -1.0)) + rng.standard_normal(d)


def latent(k=2, m=3, family="full", seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((k, m, m))
    covariances = root @ root.transpose(0, 2, 1) + np.eye(m)
    return GaussianMixture.create([0.3, 0.7], rng.standard_normal((k, m)), covariances, family)


# --- principal axes -------------------------------------------------------------------------------


def test_principal_axes_are_scikit_learn_s():
    x = rows()
    axes, rival = PrincipalAxes.of(x, 3), PCA(3).fit(x)
    np.testing.assert_allclose(axes.mean, rival.mean_, rtol=TOL, atol=TOL)
    alike = np.abs(np.sum(np.asarray(axes.axes[:, :3]).T * rival.components_, axis=1))
    np.testing.assert_allclose(alike, 1.0, rtol=TOL)
    # The divisor is n there, n − 1 there.
    np.testing.assert_allclose(
        axes.variances[:3], rival.explained_variance_ * 199 / 200, rtol=max(TOL, 1e-6)
    )
    back = axes.decode(axes.encode(x))
    expected = rival.inverse_transform(rival.transform(x))
    np.testing.assert_allclose(back, expected, rtol=10 * TOL, atol=10 * TOL)


def test_fewer_rows_than_features():
    axes = PrincipalAxes.of(rows(4, 10), 2)
    np.testing.assert_allclose(axes.axes.T @ axes.axes, np.eye(10), atol=1e-5)
    np.testing.assert_allclose(axes.variances[4:], 0.0, atol=1e-5)


@pytest.mark.parametrize("family", ["full", "diag"])
def test_a_lifted_mixture_has_the_covariance_of_probabilistic_pca(family):
    axes, z = PrincipalAxes.of(rows(), 3), latent(family=family)
    model = axes.lift(z)
    kept, rest = np.split(np.asarray(axes.axes), [3], axis=1)
    inner = kept @ np.asarray(z.covariances) @ kept.T
    expected = inner + float(axes.residual_variance) * rest @ rest.T
    np.testing.assert_allclose(model.covariances, expected, rtol=TOL, atol=10 * TOL)
    np.testing.assert_allclose(model.means, axes.decode(z.means), rtol=TOL, atol=TOL)
    # What is left out is independent of what is kept: densities multiply.
    x = rows(20, seed=3)
    left = (x - np.asarray(axes.mean)) @ rest
    noise = stats.norm(scale=np.sqrt(float(axes.residual_variance))).logpdf(left).sum(axis=1)
    np.testing.assert_allclose(
        model.log_prob(x), z.log_prob(axes.encode(x)) + noise, rtol=10 * TOL, atol=10 * TOL
    )


def test_the_floor_bounds_the_density_where_nothing_varies():
    x = rows(100, 5)
    x[:, 3:] = 1.0
    axes = PrincipalAxes.of(x, 3)
    model = axes.lift(latent(), floor=0.01)
    assert np.linalg.eigvalsh(np.asarray(model.covariances, np.float64)).min() > 0.0099
    assert np.all(np.isfinite(model.log_prob(x)))


def test_lifted_factors_are_the_lifted_mixture_where_no_axis_varies_less_than_the_rest():
    axes = PrincipalAxes.of(rows(), 3)
    wide = latent().affine(np.zeros(3), 20.0)
    x = wide.sample(jax.random.key(0), 20)[0]
    x = np.asarray(axes.decode(x)) + 0.1 * rows(20, seed=3)
    ours, dense = axes.lift_factors(wide), axes.lift(wide)
    np.testing.assert_allclose(ours.covariances, dense.covariances, rtol=TOL, atol=100 * TOL)
    np.testing.assert_allclose(ours.log_prob(x), dense.log_prob(x), rtol=10 * TOL, atol=10 * TOL)


def test_lifted_factors_raise_a_narrow_axis_to_the_variance_of_the_rest():
    axes = PrincipalAxes.of(rows(), 3)
    narrow = latent(family="spherical").affine(np.zeros(3), 1e-3)
    ours = axes.lift_factors(narrow, floor=4.0)
    expected = max(4.0, float(axes.residual_variance)) * np.eye(6)
    np.testing.assert_allclose(ours.covariances[0], expected, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="mixture: expected 3 features"):
        axes.lift_factors(latent(m=2))


def test_lower_half_of_a_digit_from_its_upper_half():
    """Better than the mean of its class; and an imputed picture is the regression's."""
    x, y = load_digits(return_X_y=True)
    x = np.random.default_rng(0).permutation(x[y == 3])
    train, test = x[:120], x[120:]
    axes = PrincipalAxes.of(train, 12)
    z = gmmjax.mle.mixture(axes.encode(train), np.zeros(120, int))
    model = axes.lift(z)
    upper, lower = np.arange(32), np.arange(32, 64)
    predicted = np.asarray(model.regress(upper, test[:, upper]).mean)
    error = np.mean((predicted - test[:, lower]) ** 2)
    assert error < 0.95 * np.mean((train.mean(axis=0)[lower] - test[:, lower]) ** 2)
    seen = test.copy()
    seen[:, lower] = np.nan
    filled = np.asarray(model.impute(jax.random.key(0), seen))
    np.testing.assert_allclose(filled[:, lower], predicted, rtol=1e-2, atol=1e-2)


def test_tiles():
    grid = tile(np.ones((5, 4)), 3, shape=(2, 2))
    assert grid.shape == (5, 8)
    assert np.isnan(grid[2]).all()
    assert np.isnan(grid[3:, 6:]).all()
    assert np.nansum(grid) == 20
    np.testing.assert_array_equal(tile(np.arange(4.0).reshape(1, 2, 2), 1), [[0, 1], [2, 3]])


def test_bad_input_of_pictures():
    x = rows()
    with pytest.raises(ValueError, match="n_kept: expected at most 5"):
        PrincipalAxes.of(x, 6)
    with pytest.raises(ValueError, match="n_kept: expected at least 1"):
        PrincipalAxes.of(x, 0)
    with pytest.raises(ValueError, match="mixture: expected 2 features"):
        PrincipalAxes.of(x, 2).lift(latent(m=3))
    with pytest.raises(ValueError, match=r"pictures: expected shape \[n, h, w\]"):
        tile(np.ones((5, 4)), 3)
    with pytest.raises(ValueError, match="columns: expected at least 1"):
        tile(np.ones((5, 4)), 0, shape=(2, 2))


# --- scores ---------------------------------------------------------------------------------------


def test_frechet_distance_is_the_textbook_s():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((300, 4)), rng.standard_normal((400, 4)) @ rng.random((4, 4)) + 1
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    expected += np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_distance(a, a + 2.0) == pytest.approx(16.0)


def test_frechet_distance_of_singular_covariances():
    """Fewer rows than features, and features that never vary."""
    rng = np.random.default_rng(0)
    a = np.pad(rng.standard_normal((5, 8)), [(0, 0), (0, 2)])
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_distance(a, 3 * a) == pytest.approx(
        4 * (np.sum(a.mean(axis=0) ** 2) + np.trace(np.cov(a.T)))
    )


def test_nearest_distances_are_exact():
    rng = np.random.default_rng(0)
    train, x = rng.standard_normal((500, 5)) + 1e4, rng.standard_normal((1500, 5)) + 1e4
    expected = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train - 1e4)
    np.testing.assert_allclose(
        nearest_distance(x, train), expected.kneighbors(x - 1e4)[0][:, 0], rtol=1e-7
    )
    assert np.all(nearest_distance(train[:50], train) == 0)


def test_copies_are_found():
    rng = np.random.default_rng(0)
    train, fresh, other = (rng.standard_normal((1000, 3)) for _ in range(3))
    honest = metrics.nearest_neighbours(fresh, train, other)
    copied = metrics.nearest_neighbours(train + 1e-3, train, other)
    assert honest.ratio == pytest.approx(1, abs=0.1)
    assert honest.closer < 0.03
    assert copied.ratio < 0.05
    assert copied.closer > 0.9


def test_scores_tell_good_from_bad_generators():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])

    def draw(n, spread=1.0):
        y = rng.integers(0, 3, n)
        return centres[y] + spread * rng.standard_normal((n, 2)), y

    def classifier():
        return KNeighborsClassifier(5)

    train, test, good = draw(600), draw(600), draw(600)
    scores = metrics.score_generation(classifier, train, test, good)
    assert abs(scores.useful - scores.accuracy_real) < 0.05
    assert abs(scores.recognised - scores.accuracy_real) < 0.05
    assert scores.frechet < 0.2
    # One point for each class: easily recognised, and of little use.
    narrow = metrics.score_generation(classifier, train, test, draw(600, 0.01))
    assert narrow.recognised > 0.95
    assert narrow.frechet > 2 * max(scores.frechet, scores.frechet_real)
    assert narrow.neighbours.ratio < 0.6
    # The wrong classes.
    x, y = draw(600)
    wrong = metrics.score_generation(classifier, train, test, (x, (y + 1) % 3))
    assert wrong.recognised < 0.1
    assert wrong.useful < 0.1
    assert wrong.frechet < 0.2


@pytest.mark.slow
def test_the_benchmark_of_digits_in_small(tmp_path, capsys):
    """Table and pictures; a normal a class beats the mean picture and is recognised."""
    table = generate_digits.main(["--quick", "--out", str(tmp_path)])
    scores = table["a normal a class"]
    plain = table["the mean picture"]["RMSE, lower half"]
    assert 0.5 < scores["useful"] <= scores["real, for both"]
    assert scores["recognised"] > 0.7
    assert scores["RMSE, lower half"] < plain
    assert 0 < scores["bits a pixel"] < np.log2(17)
    text = (tmp_path / "scores.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "600 training and 597 held-out pictures" in text
    for name in ("samples", "lower_half", "restored"):
        assert (tmp_path / f"{name}_a_normal_a_class.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_input_of_scores():
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="b: expected 2 features"):
        metrics.frechet_distance(x, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="a: expected at least 2 rows"):
        metrics.frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match="a: expected finite"):
        metrics.frechet_distance(np.full((4, 2), np.nan), x)
    with pytest.raises(ValueError, match="source: expected a class for each of 4 rows"):
        metrics.transfer_accuracy(KNeighborsClassifier, (x, [0, 1]), (x, [0] * 4))
    with pytest.raises(ValueError, match="held_out: expected rows that are not in train"):
        metrics.nearest_neighbours(x + 1, x, x)
    with pytest.raises(ValueError, match="generated: expected 2 features"):
        metrics.nearest_neighbours(np.zeros((4, 3)), x, x + 1)

"""Pictures: what is drawn is where it should be, and nothing global is touched."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from gmmjax.mixture import GaussianMixture
from gmmjax.plot import PALETTE, plot_criterion, plot_entropy, plot_mixture


def axes():
    return Figure().subplots()


def ellipses(ax):
    return [patch for patch in ax.patches if isinstance(patch, Ellipse)]


def mixture(d=2, k=2):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((k, d, d))
    covariances = root @ root.transpose(0, 2, 1) + 0.5 * np.eye(d)
    return GaussianMixture.create(np.full(k, 1 / k), 5 * rng.standard_normal((k, d)), covariances)


def rows(model, n=60):
    rng = np.random.default_rng(1)
    centres = np.asarray(model.means)[rng.integers(model.n_components, size=n)]
    return centres + rng.standard_normal((n, model.n_features))


def outline(ellipse):
    """Points on the drawn ellipse, in data coordinates."""
    angle = np.linspace(0, 2 * np.pi, 40)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return ellipse.get_patch_transform().transform(circle)


@pytest.mark.parametrize("columns", [(0, 1), (2, 0)])
def test_ellipses_are_the_contours_at_1_2_3_standard_deviations(columns):
    """Every point of an outline is that Mahalanobis distance from its mean, in the marginal."""
    model = mixture(d=3)
    ax = axes()
    plot_mixture(ax, model, rows(model), columns=columns)
    drawn = ellipses(ax)
    assert len(drawn) == 3 * model.n_components
    for i, ellipse in enumerate(drawn):
        j, sigma = i // 3, 1 + i % 3
        mean = np.asarray(model.means)[j, list(columns)]
        covariance = np.asarray(model.covariances)[j][np.ix_(columns, columns)]
        delta = outline(ellipse) - mean
        distance = np.sqrt(np.einsum("na,ab,nb->n", delta, np.linalg.inv(covariance), delta))
        np.testing.assert_allclose(distance, sigma, rtol=1e-3)


def test_points_are_coloured_by_component():
    model = mixture()
    x = rows(model)
    ax = axes()
    plot_mixture(ax, model, x, feature_names=["length", "wait"])
    labels = np.asarray(model.predict(x))
    for j, points in enumerate(ax.collections):
        np.testing.assert_array_equal(points.get_offsets(), x[labels == j])
        assert points.get_label() == f"component {j}"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("length", "wait")


def test_given_labels_are_used():
    model = mixture()
    x = rows(model)
    ax = axes()
    plot_mixture(ax, model, x, np.zeros(len(x), int))
    assert [len(points.get_offsets()) for points in ax.collections] == [len(x), 0]


def test_one_feature_draws_a_density_that_integrates_to_one():
    model = GaussianMixture.create([0.3, 0.7], [[0.0], [6.0]], [1.0, 2.0], "spherical")
    x = rows(model, 400)
    ax = axes()
    plot_mixture(ax, model, x, feature_names=["t"])
    bars = sum(bar.get_width() * bar.get_height() for bar in ax.patches)
    assert bars == pytest.approx(1)
    grid, density = ax.lines[-1].get_data()
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(density, np.exp(model.log_prob(grid[:, None])), rtol=1e-4)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("t", "density")


def test_more_components_than_colours_differ_by_marker():
    model = mixture(k=12)
    ax = axes()
    plot_mixture(ax, model, rows(model, 200))
    looks = {
        (tuple(points.get_facecolor().ravel()[:3]), points.get_paths()[0].vertices.tobytes())
        for points in ax.collections
    }
    assert len(looks) == 12
    assert len(set(PALETTE)) == 8


def test_many_rows_are_thinned_and_it_says_so():
    model = mixture()
    ax = axes()
    plot_mixture(ax, model, rows(model, 50_000))
    assert "16,667 of 50,000 rows drawn" in ax.get_title()
    assert sum(len(points.get_offsets()) for points in ax.collections) == 16_667


def test_a_figure_can_be_written(tmp_path):
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    model = mixture()
    plot_mixture(left, model, rows(model))
    plot_criterion(right, [1, 2, 3], [3.0, 1.0, 2.0])
    figure.savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("values", "best"), [([3.0, 1.0, 2.0], 2), ([np.nan, 5.0, 4.0], 3), ([np.nan] * 3, None)]
)
def test_criterion_marks_its_minimum(values, best):
    ax = axes()
    plot_criterion(ax, [1, 2, 3], values, name="ICL")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), values)
    if best is None:
        assert len(ax.lines) == 1
    else:
        assert ax.lines[1].get_xdata().tolist() == [best]
        assert ax.get_legend().get_texts()[0].get_text() == f"k = {best}"
    assert ax.get_ylabel() == "ICL (smaller is better)"
    assert "components" in ax.get_xlabel()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"x": np.ones((5, 3))}, r"x: expected shape \[n, 2\].*\(5, 3\)"),
        ({"x": np.ones(5)}, r"x: expected"),
        ({"labels": np.zeros(4)}, r"labels: expected shape \(5,\)"),
        ({"columns": (0, 2)}, "columns: expected two of 0 to 1"),
        ({"columns": (-1, 0)}, "columns"),
        ({"feature_names": ["a"]}, "expected 2 names; got 1"),
    ],
)
def test_bad_arguments(arguments, match):
    arguments = {"x": np.ones((5, 2)), **arguments}
    with pytest.raises(ValueError, match=match):
        plot_mixture(axes(), mixture(), **arguments)


def test_criterion_of_another_length():
    with pytest.raises(ValueError, match="expected 3 values"):
        plot_criterion(axes(), [1, 2, 3], [1.0, 2.0])


def test_pyplot_is_never_imported():
    code = (
        "import sys, numpy as np\n"
        "from matplotlib.figure import Figure\n"
        "from gmmjax.mixture import GaussianMixture\n"
        "from gmmjax.plot import plot_mixture\n"
        "m = GaussianMixture.create([1.0], [[0.0, 0.0]], [1.0], 'spherical')\n"
        "plot_mixture(Figure().subplots(), m, np.zeros((3, 2)))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_entropy_is_drawn_against_the_number_of_clusters():
    ax = axes()
    plot_entropy(ax, [0.0, 1.0, 5.0])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 0], [2, 1], [3, 5]])
    with pytest.raises(ValueError, match="entropy: expected shape"):
        plot_entropy(ax, [[1.0]])

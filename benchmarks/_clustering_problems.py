"""Data on which K-means and mixtures are compared: where each should win, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np

OUTLIER = -1
"""The label of a row that belongs to no class; it is clustered, but not scored."""


@dataclass(frozen=True)
class Problem:
    """Rows with known classes, and how many clusters are asked for."""

    name: str
    title: str
    why: str  # what decides it
    k: int
    make: Callable[[int], tuple[np.ndarray, np.ndarray | None]]  # seed → x [n, d], y [n] or None
    real: bool = False  # the same rows for every seed: only the starts vary
    restarts: int = 16
    without: tuple[str, ...] = ()  # families that are left out; `why` says why
    best_accuracy: float | None = None  # that of Bayes' rule, where it is known


def _rows(rng, centers, roots, sizes) -> tuple[np.ndarray, np.ndarray]:
    """Rows μ_j + L_j ε, `sizes[j]` of them, in random order."""
    y = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centers, roots = np.asarray(centers, float), np.asarray(roots, float)
    noise = rng.normal(size=(len(y), centers.shape[1]))
    return centers[y] + np.einsum("nab,nb->na", roots[y], noise), y


def _isotropic(seed: int):
    rng = np.random.default_rng(seed)
    centers = 2.2 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    return _rows(rng, centers, [np.eye(2)] * 4, [150] * 4)


def _anisotropic(seed: int):
    rng = np.random.default_rng(seed)
    root = np.array([[2.2, 0.0], [1.9, 0.45]])
    return _rows(rng, [[-2.5, 1.5], [0.0, 0.0], [2.5, -1.5]], [root] * 3, [200] * 3)


def _unequal(seed: int):
    rng = np.random.default_rng(seed)
    roots = [3.0 * np.eye(2), 0.4 * np.eye(2), 0.4 * np.eye(2)]
    return _rows(rng, [[0, 0], [6, 0], [6, 2.5]], roots, [480, 60, 60])


def _overlap(seed: int):
    rng = np.random.default_rng(seed)
    return _rows(rng, [[-1, 0], [1, 0]], [np.eye(2)] * 2, [300, 300])


def _many_dimensions(seed: int):
    rng = np.random.default_rng(seed)
    d = 50
    centers = np.zeros((3, d))
    centers[np.arange(3), np.arange(3)] = 6.0
    return _rows(rng, centers, [np.eye(d)] * 3, [34, 33, 33])


def _heavy_tails(seed: int):
    rng = np.random.default_rng(seed)
    centers = np.array([[-5.0, 0.0], [5.0, 0.0], [0.0, 7.0]])
    y = rng.permutation(np.repeat(np.arange(3), 190))
    # Student's t with 2.5 degrees of freedom, and 5 % of rows anywhere.
    t = rng.normal(size=(570, 2)) / np.sqrt(rng.chisquare(2.5, size=(570, 1)) / 2.5)
    x = np.concatenate([centers[y] + t, rng.uniform(-25, 25, size=(30, 2))])
    return x, np.concatenate([y, np.full(30, OUTLIER)])


def _wrong_k(seed: int):
    rng = np.random.default_rng(seed)
    root = np.array([[1.6, 0.0], [1.2, 0.6]])
    return _rows(rng, [[-5, 0], [0, 0], [5, 0]], [root] * 3, [200] * 3)


def _ring(seed: int):
    rng = np.random.default_rng(seed)
    core = 0.6 * rng.normal(size=(300, 2))
    angle = rng.uniform(0, 2 * np.pi, 300)
    radius = 4 + 0.3 * rng.normal(size=300)
    ring = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    order = rng.permutation(600)
    return np.concatenate([core, ring])[order], np.repeat([0, 1], 300)[order]


SYNTHETIC = [
    Problem(
        "isotropic",
        "equal round blobs",
        "Round clusters of one size are what K-means assumes: the boundary of Bayes' rule is that of "
        "the nearest centre. A mixture with free covariances spends parameters on nothing.",
        4,
        _isotropic,
    ),
    Problem(
        "anisotropic",
        "parallel ellipses",
        "The long axis of a cluster reaches farther than its neighbour is away, so the nearest "
        "centre is often the wrong one; a shared covariance measures distance in the clusters' own "
        "shape.",
        3,
        _anisotropic,
    ),
    Problem(
        "unequal",
        "unequal spread and size",
        "Inertia is least when the wide cluster is split and the small ones are merged; a mixture has "
        "a weight and a variance for each.",
        3,
        _unequal,
    ),
    Problem(
        "overlap",
        "two overlapping normals",
        "Bayes' rule errs on 15.9 % of the rows, and its boundary lies halfway between the "
        "centres, so K-means cannot be beaten. The shape of overlapping clusters is hard to "
        "learn: each free parameter of the mixture costs accuracy. What it adds is the "
        "posterior, and means that are not pushed apart.",
        2,
        _overlap,
        best_accuracy=0.5 * (1 + erf(1 / sqrt(2))),
    ),
    Problem(
        "many_dimensions",
        "50 dimensions, 100 rows",
        "A full covariance has 1,275 numbers and 33 rows to estimate them from: it collapses onto its "
        "floor. With one variance for all there are enough rows, and BIC sees it.",
        3,
        _many_dimensions,
    ),
    Problem(
        "heavy_tails",
        "heavy tails and outliers",
        "A far row moves a centre a little. It moves the likelihood a lot: a mixture gains most "
        "by giving a component to the far rows, and has one too few for the classes. Neither "
        "model is true; tails or noise must be in the model to be told apart.",
        3,
        _heavy_tails,
    ),
    Problem(
        "wrong_k",
        "5 clusters asked for, 3 there",
        "K-means must cut two clusters in half. A mixture that knows the shape may lay a spare "
        "component over a cluster or over a few stray rows, and mostly leaves the classes "
        "whole.",
        5,
        _wrong_k,
    ),
    Problem(
        "ring",
        "a ring around a core",
        "No centre represents the ring, so K-means gives the core to one half of it. Two "
        "normals about one mean, a narrow and a wide one, tell the classes apart though the "
        "ring is not normal.",
        2,
        _ring,
    ),
]


def _standardized(x: np.ndarray) -> np.ndarray:
    x = x[:, x.std(axis=0) > 0]
    return (x - x.mean(axis=0)) / x.std(axis=0)


def _faithful(seed: int):
    from gmmjax import datasets

    return _standardized(datasets.load_faithful().x), None


def _iris(seed: int):
    from gmmjax import datasets

    data = datasets.load_iris()
    return data.x, data.labels


def _of_sklearn(name: str, scale: bool = True) -> Callable:
    def load(seed: int):
        from sklearn import datasets

        data = getattr(datasets, f"load_{name}")()
        return (_standardized(data.data) if scale else data.data), data.target

    return load


def _digits_raw(seed: int):
    x, y = _of_sklearn("digits", scale=False)(seed)
    return x[:, x.std(axis=0) > 0], y


def _digits_pca(seed: int):
    x, y = _of_sklearn("digits", scale=False)(seed)
    x = x - x.mean(axis=0)
    _, _, vectors = np.linalg.svd(x, full_matrices=False)
    return x @ vectors[:12].T, y


REAL = [
    Problem(
        "faithful",
        "Old Faithful",
        "Two clear groups without classes to score: both find them, and the mixture says that they "
        "are elongated.",
        2,
        _faithful,
        real=True,
    ),
    Problem(
        "iris",
        "iris",
        "Versicolor and virginica overlap along a direction that a shared covariance finds and "
        "a distance does not. BIC prefers free shapes here, which fit better and classify "
        "worse.",
        3,
        _iris,
        real=True,
    ),
    Problem(
        "wine",
        "wine, standardised",
        "Thirteen columns, 178 rows, three compact groups once the columns are scaled: every "
        "simple model finds them. Free shapes have 91 numbers a class for 59 rows, and lose.",
        3,
        _of_sklearn("wine"),
        real=True,
    ),
    Problem(
        "breast_cancer",
        "breast cancer, standardised",
        "Benign tumours are alike and malignant ones vary: classes of unequal spread, in thirty "
        "correlated columns.",
        2,
        _of_sklearn("breast_cancer"),
        real=True,
    ),
    Problem(
        "digits_raw",
        "digits, 61 pixels",
        "Pixels are bounded and often constant within a class, so per-class variances collapse in the "
        "likelihood's favour; a distance does not mind. Free shapes are left out: 1,891 numbers a "
        "class for 180 rows.",
        10,
        _digits_raw,
        real=True,
        restarts=4,
        without=("VVV",),
    ),
    Problem(
        "digits_pca",
        "digits, 12 components",
        "After projection the directions that collapse are gone, and the shapes of the classes "
        "count.",
        10,
        _digits_pca,
        real=True,
        restarts=4,
    ),
]

PROBLEMS = SYNTHETIC + REAL

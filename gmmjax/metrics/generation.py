"""How good generated samples are: for mixtures and for variational autoencoders alike.

No single number will do (Theis, van den Oord and Bethge 2016): a model may copy its training data, give
one good picture for all, or have a high likelihood and poor pictures. Hence several, each with the
figure that real held-out data would get:

- *recognised*: a classifier trained on real data, on samples generated for each class. Low where
  samples do not look like their class.
- *useful*: the same kind of classifier trained on generated samples, on real held-out data. Low also
  where the samples of a class lack variety ("GAN-test" and "GAN-train", Shmelkov, Schmid and Alahari
  2018).
- *Fréchet distance* between Gaussians fitted to features of real and of generated data.
- *nearest neighbours*: samples closer to the training set than real held-out data are copies.

With these belongs the log-likelihood of held-out data, where the model has one. Everything is computed
on the host in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

_ROWS = 1024


class Classifier(Protocol):
    """What scikit-learn's classifiers are."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """Learn from rows [n, d] and their classes [n]."""
        ...

    def predict(self, x: np.ndarray) -> ArrayLike:
        """The class of each row."""
        ...


@dataclass(frozen=True)
class NearestNeighbours:
    """Distances from samples to the nearest training row, beside those of held-out data."""

    ratio: float  # of the medians, generated over held-out: near 1 is right, well below it copies
    closer: float  # share of samples nearer than all but 1 % of held-out rows: 0.01 is right


@dataclass(frozen=True)
class GenerationScores:
    """The scores of one generator, and those of the real data in its place."""

    recognised: float  # accuracy on generated samples, trained on real data
    useful: float  # accuracy on held-out data, trained on generated samples
    frechet: float  # between held-out data and generated samples
    neighbours: NearestNeighbours
    accuracy_real: float  # accuracy on held-out data, trained on real data
    frechet_real: float  # between held-out and training data


def score_generation(
    classifier: Callable[[], Classifier],
    train: tuple[ArrayLike, ArrayLike],
    held_out: tuple[ArrayLike, ArrayLike],
    generated: tuple[ArrayLike, ArrayLike],
    features: Callable[[np.ndarray], ArrayLike] | None = None,
) -> GenerationScores:
    """All scores of samples that were generated for given classes.

    - `classifier`: makes a new one, e.g. `lambda: LogisticRegression()`. It should know nothing of
      the generator.
    - `train`, `held_out`, `generated`: rows [n, d] and classes [n]. Use at least as many generated
      samples as training rows, or `useful` measures their number.
    - `features`: rows [n, d] to [n, f], fixed beforehand, for the Fréchet distance; the rows
      themselves by default. Distances are comparable only in the same features and for samples of
      the same size.
    """
    (train_x, train_y), (test_x, test_y), (x, y) = (
        _labelled(name, *pair)
        for name, pair in (("train", train), ("held_out", held_out), ("generated", generated))
    )
    seen = _same if features is None else features
    real = classifier()
    real.fit(train_x, train_y)
    return GenerationScores(
        recognised=_share_right(real, x, y),
        useful=transfer_accuracy(classifier, (x, y), (test_x, test_y)),
        frechet=frechet_distance(seen(test_x), seen(x)),
        neighbours=nearest_neighbours(x, train_x, test_x),
        accuracy_real=_share_right(real, test_x, test_y),
        frechet_real=frechet_distance(seen(test_x), seen(train_x)),
    )


def transfer_accuracy(
    classifier: Callable[[], Classifier],
    source: tuple[ArrayLike, ArrayLike],
    target: tuple[ArrayLike, ArrayLike],
) -> float:
    """Accuracy on `target` of a classifier trained on `source`, each rows [n, d] and classes [n]."""
    model = classifier()
    model.fit(*_labelled("source", *source))
    return _share_right(model, *_labelled("target", *target))


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """|μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½), of features [n, f] and [m, f].

    The squared 2-Wasserstein distance of two normals (Dowson and Landau 1982), as Heusel et al. (2017)
    use it. It is biased upwards by about tr Σ (f / n), so compare samples of one size.

    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    x, y = _rows("a", a), _rows("b", b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"b: expected {x.shape[1]} features, as many as a has; got {y.shape[1]}.")
    for name, rows in (("a", x), ("b", y)):
        if len(rows) < 2:
            raise ValueError(f"{name}: expected at least 2 rows for a covariance; got {len(rows)}.")
    gap = x.mean(axis=0) - y.mean(axis=0)
    # By triangular roots: with Σ = RᵀR the trace of (Σ_a Σ_b)^½ is the sum of the singular values of
    # R_a R_bᵀ. A matrix square root of a singular product loses half the digits, or turns complex.
    roots = [
        np.asarray(np.linalg.qr((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1), mode="r"))
        for rows in (x, y)
    ]
    spread = sum(float(np.sum(root**2)) for root in roots)
    common = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return max(float(gap @ gap) + spread - 2 * common, 0.0)


def nearest_neighbours(
    generated: ArrayLike, train: ArrayLike, held_out: ArrayLike
) -> NearestNeighbours:
    """Whether samples [n, d] lie nearer to the training rows [m, d] than held-out rows [h, d] do."""
    x, rows, fresh = (
        _rows(name, value)
        for name, value in (("generated", generated), ("train", train), ("held_out", held_out))
    )
    for name, value in (("generated", x), ("held_out", fresh)):
        if value.shape[1] != rows.shape[1]:
            raise ValueError(
                f"{name}: expected {rows.shape[1]} features, as many as train has; got "
                f"{value.shape[1]}."
            )
    ours, theirs = nearest_distance(x, rows), nearest_distance(fresh, rows)
    middle = float(np.median(theirs))
    if middle == 0:
        raise ValueError(
            "held_out: expected rows that are not in train; more than half of them are. Split the data "
            "again."
        )
    closer = float(np.mean(ours < np.quantile(theirs, 0.01)))
    return NearestNeighbours(float(np.median(ours)) / middle, closer)


def nearest_distance(x: ArrayLike, train: ArrayLike) -> np.ndarray:
    """The Euclidean distance from each row of x [n, d] to the nearest of train [m, d], in blocks."""
    points, rows = _rows("x", x), _rows("train", train)
    centre = rows.mean(axis=0)
    points, rows = points - centre, rows - centre
    square = np.sum(rows**2, axis=1)
    out = np.empty(len(points))
    for start in range(0, len(points), _ROWS):
        block = points[start : start + _ROWS]
        nearest = np.argmin(square - 2 * block @ rows.T, axis=1)
        # The distance itself by differences: the expanded form leaves rounding where it should be 0.
        out[start : start + _ROWS] = np.linalg.norm(block - rows[nearest], axis=1)
    return out


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _share_right(model: Classifier, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.asarray(model.predict(x)) == y))


def _rows(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name}: expected rows of shape [n, d], n and d ≥ 1; got {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: expected finite numbers; got NaN or infinity.")
    return array


def _labelled(name: str, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    rows, labels = _rows(name, x), np.asarray(y)
    if labels.shape != (len(rows),):
        raise ValueError(
            f"{name}: expected a class for each of {len(rows)} rows; got shape {labels.shape}."
        )
    return rows, labels

"""How far two labellings agree, whatever the names of the labels.

Every function takes (labels_true, labels_pred): integers from 0, shape [n], of equal length, and
checked outside `jit`. Under `jit` and `vmap` give `n_classes` and `n_clusters`; a label out of
range there makes the result NaN. Natural logarithms; every score is without unit.
"""

from types import ModuleType
from typing import Literal

from gmmjax.metrics.contingency import counts
from gmmjax.typing import Array, ArrayLike, Float

Average = Literal["arithmetic", "geometric", "min", "max"]


def adjusted_rand(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Float[Array, ""]:
    """Adjusted Rand index: agreement on pairs of rows, 0 on average by chance, 1 at best.

    Hubert and Arabie (1985), "Comparing partitions". Symmetric; at least −½.

    >>> from gmmjax import metrics
    >>> float(metrics.adjusted_rand([0, 0, 1, 1], [1, 1, 0, 0]))
    1.0
    """
    table, xp = counts(labels_true, labels_pred, n_classes, n_clusters)
    n = xp.sum(table)
    squares = xp.sum(table**2)
    # Ordered pairs: together in both, in the second only, in the first only, in neither. Shares of
    # n², because products of two numbers of pairs overflow float32 from 3·10⁹ rows on.
    both = (squares - n) / n**2
    second = (xp.sum(xp.sum(table, axis=0) ** 2) - squares) / n**2
    first = (xp.sum(xp.sum(table, axis=1) ** 2) - squares) / n**2
    neither = 1 - first - second - squares / n**2
    agree = 2 * (both * neither - first * second)
    chance = (both + first) * (first + neither) + (both + second) * (second + neither)
    same = (first == 0) & (second == 0)
    return xp.where(same, 1.0, agree / xp.where(same, 1.0, chance))


def normalized_mutual_information(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    average: Average = "arithmetic",
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Float[Array, ""]:
    """I(true; pred) over a mean of the two entropies: 0 where independent, 1 where equal.

    `average` names the mean: "arithmetic", "geometric", "min" or "max" (scikit-learn's
    `average_method`). Not corrected for chance: it grows with the number of clusters. Vinh, Epps
    and Bailey (2010), "Information theoretic measures for clusterings comparison".
    """
    table, xp = counts(labels_true, labels_pred, n_classes, n_clusters)
    h_true, h_pred, mutual = _information(table, xp)
    match average:
        case "arithmetic":
            norm = 0.5 * (h_true + h_pred)
        case "geometric":
            norm = xp.sqrt(h_true * h_pred)
        case "min":
            norm = xp.minimum(h_true, h_pred)
        case "max":
            norm = xp.maximum(h_true, h_pred)
        case _:
            raise ValueError(
                f"average: expected 'arithmetic', 'geometric', 'min' or 'max'; got {average!r}."
            )
    # One group on both sides agrees; one group on one side only says nothing.
    trivial = xp.where((h_true == 0) & (h_pred == 0), 1.0, 0.0)
    return _ratio(mutual, norm, trivial, xp)


def homogeneity(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Float[Array, ""]:
    """1 − H(true | pred) / H(true): 1 where each cluster holds one class only."""
    table, xp = counts(labels_true, labels_pred, n_classes, n_clusters)
    h_true, _, mutual = _information(table, xp)
    return _ratio(mutual, h_true, 1.0, xp)


def completeness(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Float[Array, ""]:
    """1 − H(pred | true) / H(pred): 1 where each class lies within one cluster."""
    table, xp = counts(labels_true, labels_pred, n_classes, n_clusters)
    _, h_pred, mutual = _information(table, xp)
    return _ratio(mutual, h_pred, 1.0, xp)


def v_measure(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Float[Array, ""]:
    """(1 + β) h c / (β h + c), the weighted harmonic mean of homogeneity h and completeness c.

    Rosenberg and Hirschberg (2007). With β = 1 it is the arithmetic normalised mutual information.
    """
    table, xp = counts(labels_true, labels_pred, n_classes, n_clusters)
    h_true, h_pred, mutual = _information(table, xp)
    h, c = _ratio(mutual, h_true, 1.0, xp), _ratio(mutual, h_pred, 1.0, xp)
    return _ratio((1 + beta) * h * c, beta * h + c, 0.0, xp)


def purity(
    labels_true: ArrayLike,
    labels_pred: ArrayLike,
    *,
    n_classes: int | None = None,
    n_clusters: int | None = None,
) -> Float[Array, ""]:
    """(1/n) Σ_k max_c n_ck: the share of rows in their cluster's commonest class.

    Not an accuracy: several clusters may name the same class, and with a cluster for each row it is
    1. For an accuracy see `matched_accuracy`.
    """
    table, xp = counts(labels_true, labels_pred, n_classes, n_clusters)
    return xp.sum(xp.max(table, axis=0)) / xp.sum(table)


def _information(table: Float[Array, "c k"], xp: ModuleType) -> tuple[Array, Array, Array]:
    """Entropies of the rows' and the columns' labels and their mutual information, in nats."""

    def log(a: Array) -> Array:  # 0 where a is 0, where it is always multiplied by 0
        return xp.log(xp.where(a == 0, 1.0, a))

    def entropy(size: Array) -> Array:
        return xp.abs(xp.sum(size / n * log(size / n)))

    n = xp.sum(table)
    rows, columns = xp.sum(table, axis=1), xp.sum(table, axis=0)
    excess = log(table) + xp.log(n) - log(rows)[:, None] - log(columns)
    mutual = xp.sum(xp.where(table != 0, table / n * excess, 0.0))
    return entropy(rows), entropy(columns), xp.maximum(mutual, 0.0)


def _ratio(part: ArrayLike, whole: ArrayLike, otherwise: ArrayLike, xp: ModuleType) -> Array:
    """part / whole, and `otherwise` where the whole is 0. NaN goes through."""
    return xp.where(whole != 0, part / xp.where(whole != 0, whole, 1.0), otherwise)

"""Metrics: equal to scikit-learn's, jit-able, and clear about what they cannot use."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.optimize import linear_sum_assignment

from gmmjax import metrics

X64 = jax.config.jax_enable_x64
EXACT = {"rtol": 1e-12, "atol": 1e-12}
TOL = EXACT if X64 else {"rtol": 3e-5, "atol": 3e-6}


def close(a, b, **tol):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), **(tol or TOL))


def labellings(seed: int, n: int = 500, c: int = 4, k: int = 6, noise: float = 0.5):
    """Two labellings that agree in part, every label present."""
    rng = np.random.default_rng(seed)
    true = np.concatenate([np.arange(c), rng.integers(0, c, n - c)])
    pred = np.where(rng.random(n) < noise, rng.integers(0, k, n), true % k)
    pred[-k:] = np.arange(k)
    return true, pred


PAIRS = {
    "random": labellings(0, noise=1.0),
    "related": labellings(1),
    "near": labellings(2, c=5, k=5, noise=0.02),
    "fewer clusters": labellings(3, c=7, k=3),
    "large": labellings(4, n=20_000, c=10, k=12),
    "equal": (np.arange(30) % 3, (np.arange(30) + 1) % 3),
    "one cluster": (np.arange(30) % 3, np.zeros(30, int)),
    "one class": (np.zeros(30, int), np.arange(30) % 3),
    "both trivial": (np.zeros(5, int), np.zeros(5, int)),
    "singletons": (np.arange(9) % 3, np.arange(9)),
    "two rows": (np.array([0, 1]), np.array([0, 0])),
}

SCORES = {
    "adjusted_rand": (metrics.adjusted_rand, sk.adjusted_rand_score),
    "nmi": (metrics.normalized_mutual_information, sk.normalized_mutual_info_score),
    "homogeneity": (metrics.homogeneity, sk.homogeneity_score),
    "completeness": (metrics.completeness, sk.completeness_score),
    "v_measure": (metrics.v_measure, sk.v_measure_score),
    "v_measure_2": (
        partial(metrics.v_measure, beta=2.0),
        partial(sk.v_measure_score, beta=2.0),
    ),
} | {
    f"nmi_{name}": (
        partial(metrics.normalized_mutual_information, average=name),
        partial(sk.normalized_mutual_info_score, average_method=name),
    )
    for name in ("geometric", "min", "max")
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("score", SCORES)
def test_agreement_is_scikit_learns(score, pair):
    ours, theirs = SCORES[score]
    close(ours(*PAIRS[pair]), theirs(*PAIRS[pair]), **EXACT)


def test_agreement_under_jit_and_vmap():
    true, pred = PAIRS["related"]

    def every(true, pred, **sizes):
        return {name: ours(true, pred, **sizes) for name, (ours, _) in SCORES.items()} | {
            "accuracy": metrics.matched_accuracy(true, pred, **sizes),
            "purity": metrics.purity(true, pred, **sizes),
        }

    several = np.stack([pred, (pred + 1) % 6, np.roll(pred, 1)])
    batch = jax.jit(jax.vmap(partial(every, n_classes=4, n_clusters=6), (None, 0)))
    found = batch(true, several)
    for i, one in enumerate(several):
        for name, value in every(true, one).items():
            close(found[name][i], value)


def test_perfect_agreement_is_exactly_one():
    true, _ = labellings(5, n=5000, c=7, k=7)
    other = (true * 3) % 7
    assert float(metrics.adjusted_rand(true, other)) == 1.0
    assert float(metrics.matched_accuracy(true, other)) == 1.0
    assert jax.jit(partial(metrics.adjusted_rand, n_classes=7, n_clusters=7))(true, other) == 1.0


def test_contingency_and_confusion_are_scikit_learns():
    true, pred = PAIRS["related"]
    np.testing.assert_array_equal(
        metrics.contingency(true, pred), sk.cluster.contingency_matrix(true, pred)
    )
    true, pred = PAIRS["near"]
    np.testing.assert_array_equal(metrics.contingency(true, pred), sk.confusion_matrix(true, pred))


@pytest.mark.parametrize("pair", PAIRS)
def test_matched_accuracy_is_the_best_of_all_matchings(pair):
    true, pred = PAIRS[pair]
    table = sk.cluster.contingency_matrix(true, pred)
    rows, columns = linear_sum_assignment(table, maximize=True)
    best = table[rows, columns].sum() / len(true)
    close(metrics.matched_accuracy(true, pred), best, **EXACT)
    c, k = table.shape
    if pair in ("fewer clusters", "one cluster", "singletons"):
        fixed = partial(metrics.matched_accuracy, n_classes=c, n_clusters=k)
        close(jax.jit(fixed)(true, pred), best)
    classes = np.asarray(metrics.matching(true, pred))
    assert np.mean(classes[pred] == true) == pytest.approx(best)
    named = classes[classes >= 0]
    assert len(set(named.tolist())) == len(named) == min(c, k)


@pytest.mark.parametrize("pair", ["related", "near", "fewer clusters", "equal", "one cluster"])
def test_matched_confusion_has_the_matched_rows_on_its_diagonal(pair):
    true, pred = PAIRS[pair]
    c, k = true.max() + 1, pred.max() + 1
    table = np.asarray(metrics.matched_confusion(true, pred))
    assert table.shape == (c, max(c, k))
    assert table.sum() == len(true)
    accuracy = float(metrics.matched_accuracy(true, pred))
    assert np.trace(table) / len(true) == pytest.approx(accuracy)
    classes = np.asarray(metrics.matching(true, pred))
    plain = np.asarray(metrics.contingency(true, pred))
    for cluster, name in enumerate(classes):
        if name >= 0:
            np.testing.assert_array_equal(table[:, name], plain[:, cluster])
    if pair == "related":
        again = jax.jit(partial(metrics.matched_confusion, n_classes=4, n_clusters=6))
        assert np.trace(again(true, pred)) == np.trace(table)


def test_purity_is_no_accuracy():
    """With a cluster for each row purity is 1, and the matched accuracy is not."""
    true, each = PAIRS["singletons"]
    assert float(metrics.purity(true, each)) == 1.0
    close(metrics.matched_accuracy(true, each), 1 / 3)
    true, pred = PAIRS["related"]
    table = sk.cluster.contingency_matrix(true, pred)
    close(metrics.purity(true, pred), table.max(axis=0).sum() / len(true))


# ---- silhouette ----


def blobs(n: int = 300, d: int = 3, k: int = 4, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    return rng.normal(size=(n, d)) + 2.0 * rng.normal(size=(k, d))[labels], labels


@pytest.mark.parametrize("block", [1, 7, 300, None])
def test_silhouette_is_scikit_learns(block):
    x, labels = blobs()
    close(metrics.silhouette_samples(x, labels, block=block), sk.silhouette_samples(x, labels))
    close(metrics.silhouette(x, labels, block=block), sk.silhouette_score(x, labels))


def test_silhouette_with_single_rows_and_absent_clusters():
    x, labels = blobs(40)
    labels = np.where(labels == 3, 5, labels)  # 3 and 4 do not occur
    labels[np.flatnonzero(labels == 5)[1:]] = 0
    ours = metrics.silhouette_samples(x, labels)
    close(ours, sk.silhouette_samples(x, labels))
    assert float(ours[np.flatnonzero(labels == 5)[0]]) == 0.0


def test_silhouette_far_from_the_origin():
    """Expanded squares lose the distances at a shift of 10⁴."""
    x, labels = blobs()
    x = np.round(x * 64) / 64  # exact in float32 after the shift
    close(metrics.silhouette(x + 1e4, labels), sk.silhouette_score(x, labels), rtol=1e-4, atol=1e-4)


def test_silhouette_under_jit_and_vmap():
    x, labels = blobs()
    one = jax.jit(partial(metrics.silhouette, n_clusters=4, block=64))
    close(one(x, labels), metrics.silhouette(x, labels))
    both = jax.vmap(partial(metrics.silhouette, n_clusters=4), (None, 0))(
        jnp.asarray(x), np.stack([labels, np.roll(labels, 1)])
    )
    close(both[1], metrics.silhouette(x, np.roll(labels, 1)))


def test_silhouette_memory_is_that_of_a_block():
    """Of 20,000 rows a full matrix of distances would hold 400 million numbers."""
    shape = jax.ShapeDtypeStruct((20_000, 8), jnp.float32)
    labels = jax.ShapeDtypeStruct((20_000,), jnp.int32)
    fn = jax.jit(partial(metrics.silhouette_samples, n_clusters=3, block=50))
    stats = fn.lower(shape, labels).compile().memory_analysis()
    assert stats.temp_size_in_bytes < 5 * 50 * 20_000 * 8


# ---- probabilities ----


def predicted(n: int = 200, c: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(c), rng.integers(0, c, n - c)])
    return y, rng.dirichlet(np.ones(c), n), rng.integers(0, 3, n).astype(float)


@pytest.mark.parametrize("c", [2, 4])
def test_probabilistic_scores_are_scikit_learns(c):
    y, p, w = predicted(c=c)
    close(metrics.log_loss(y, p), sk.log_loss(y, p))
    close(metrics.log_loss(y, np.log(p), log=True), sk.log_loss(y, p))
    close(metrics.log_loss(y, p, weights=w), sk.log_loss(y, p, sample_weight=w))
    hot = np.eye(c)[y]
    close(metrics.brier_score(y, p), np.mean(np.sum((p - hot) ** 2, axis=1)))
    half = metrics.brier_score(y, p, scale_by_half=True)
    close(half, 0.5 * np.mean(np.sum((p - hot) ** 2, axis=1)))
    close(metrics.accuracy(y, p.argmax(1)), sk.accuracy_score(y, p.argmax(1)))
    close(
        metrics.accuracy(y, p.argmax(1), weights=w),
        sk.accuracy_score(y, p.argmax(1), sample_weight=w),
    )


def test_binary_brier_score_is_scikit_learns():
    y, p, w = predicted(c=2)
    close(metrics.brier_score(y, p, scale_by_half=True), sk.brier_score_loss(y, p[:, 1]))
    close(
        metrics.brier_score(y, p, weights=w, scale_by_half=True),
        sk.brier_score_loss(y, p[:, 1], sample_weight=w),
    )


def test_log_loss_of_an_impossible_class_is_infinite():
    assert float(metrics.log_loss([0, 1], [[1.0, 0.0], [1.0, 0.0]])) == np.inf


def test_log_loss_keeps_the_digits_of_tiny_probabilities():
    close(metrics.log_loss([1], [[0.0, -2000.0]], log=True), 2000.0)


def test_probabilistic_scores_under_jit_vmap_and_with_rows_absent():
    y, p, _ = predicted()
    folds = (np.arange(200) % 4 == np.arange(4)[:, None]).astype(float)
    for score in (metrics.log_loss, metrics.brier_score):
        each = jax.jit(jax.vmap(lambda w, score=score: score(y, p, weights=w)))(folds)
        close(each, [score(y[w > 0], p[w > 0]) for w in folds])
    each = jax.vmap(lambda w: metrics.accuracy(y, jnp.argmax(p, axis=1), weights=w))(folds)
    close(each, [metrics.accuracy(y[w > 0], p[w > 0].argmax(1)) for w in folds])
    assert np.isfinite(jax.grad(lambda p: metrics.log_loss(y, p))(jnp.asarray(p))).all()


# ---- what cannot be used ----

TWO_LABELLINGS = [
    metrics.adjusted_rand,
    metrics.normalized_mutual_information,
    metrics.homogeneity,
    metrics.completeness,
    metrics.v_measure,
    metrics.purity,
    metrics.contingency,
    metrics.matching,
    metrics.matched_accuracy,
    metrics.matched_confusion,
    metrics.accuracy,
]


@pytest.mark.parametrize("score", TWO_LABELLINGS)
def test_bad_labellings(score):
    with pytest.raises(ValueError, match=r"labels_pred: expected shape \[3\].*got \(2,\)"):
        score([0, 1, 0], [0, 1])
    with pytest.raises(ValueError, match=r"labels_true: expected shape \[n\], n ≥ 1.*\(0,\)"):
        score(np.zeros(0, int), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"labels_pred: expected labels from 0.*got -1 to 1"):
        score([0, 1], [-1, 1])
    with pytest.raises(TypeError, match=r"labels_true: expected integer.*np\.unique"):
        score(["a", "b"], [0, 1])
    with pytest.raises(TypeError, match="labels_pred: expected integer"):
        score([0, 1], [0.0, 1.0])
    with pytest.raises(ValueError, match="labels_true: expected shape"):
        score([[0, 1]], [[0, 1]])


def test_labels_out_of_range():
    with pytest.raises(ValueError, match=r"labels_true: expected labels from 0 to 1; got 0 to 2"):
        metrics.adjusted_rand([0, 2], [0, 1], n_classes=2)
    with pytest.raises(ValueError, match=r"cells.*np\.unique"):
        metrics.adjusted_rand([0, 10**6], [0, 10**6])
    with pytest.raises(ValueError, match="average: expected 'arithmetic'"):
        metrics.normalized_mutual_information([0, 1], [0, 1], average="mean")


def test_under_jit_the_numbers_of_labels_are_needed_and_a_bad_label_gives_nan():
    with pytest.raises(ValueError, match="under jit the number of classes must be given"):
        jax.jit(metrics.adjusted_rand)(np.array([0, 1]), np.array([0, 1]))
    for score in (metrics.adjusted_rand, metrics.v_measure, metrics.matched_accuracy):
        fixed = jax.jit(partial(score, n_classes=2, n_clusters=2))
        assert np.isnan(fixed(np.array([0, 1, 2]), np.array([0, 1, 1])))
        assert np.isnan(fixed(np.array([0, 1, 0]), np.array([0, 1, -1])))


def test_bad_silhouette():
    x, labels = blobs(20)
    with pytest.raises(ValueError, match="labels: expected from 2 to n − 1 = 19 clusters"):
        metrics.silhouette(x, np.zeros(20, int))
    with pytest.raises(ValueError, match="got 20"):
        metrics.silhouette(x, np.arange(20))
    with pytest.raises(ValueError, match=r"labels: expected shape \[20\]"):
        metrics.silhouette(x, labels[:5])
    with pytest.raises(ValueError, match="block: expected at least 1"):
        metrics.silhouette(x, labels, block=0)
    with pytest.raises(ValueError, match="x: expected finite"):
        metrics.silhouette(np.full((20, 2), np.nan), labels)


def test_bad_probabilities():
    for score in (metrics.log_loss, metrics.brier_score):
        with pytest.raises(
            ValueError, match=r"labels_true: expected labels from 0 to 1; got 0 to 2"
        ):
            score([0, 2], [[0.5, 0.5], [0.5, 0.5]])
        with pytest.raises(ValueError, match=r"labels_true: expected shape \[2\]"):
            score([0], [[0.5, 0.5], [0.5, 0.5]])
        with pytest.raises(ValueError, match=r"probabilities: expected prob.*log=True"):
            score([0, 1], np.log([[0.5, 0.5], [0.5, 0.5]]))
        with pytest.raises(ValueError, match="sum to 1"):
            score([0, 1], [[0.5, 0.2], [0.5, 0.5]])
    with pytest.raises(ValueError, match="weights: expected shape"):
        metrics.log_loss([0], [[0.5, 0.5]], weights=[1.0, 1.0])
    assert np.isnan(jax.jit(metrics.brier_score)(np.array([5]), np.array([[0.5, 0.5]])))

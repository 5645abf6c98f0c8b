"""The shipped data are whole, and the numbers that the literature knows."""

import numpy as np
import pytest

from gmmjax import datasets


@pytest.mark.parametrize(
    ("name", "shape", "mean"),
    [
        ("faithful", (272, 2), [3.487783, 70.897059]),
        ("iris", (150, 4), [5.843333, 3.057333, 3.758, 1.199333]),
        ("diabetes", (145, 3), None),
    ],
)
def test_shapes_and_means(name, shape, mean):
    data = datasets.load(name)
    assert data.name == name
    assert data.x.shape == shape
    assert data.x.dtype == np.float64
    assert np.isfinite(data.x).all()
    assert len(data.feature_names) == shape[1]
    if mean is not None:
        np.testing.assert_allclose(data.x.mean(axis=0), mean, atol=1e-6)


def test_faithful_has_no_labels():
    data = datasets.load_faithful()
    assert data.feature_names == ("eruptions", "waiting")
    assert data.labels is None
    assert data.label_names == ()


@pytest.mark.parametrize(
    ("name", "label_names", "counts"),
    [
        ("iris", ("setosa", "versicolor", "virginica"), [50, 50, 50]),
        ("diabetes", ("Chemical", "Normal", "Overt"), [36, 76, 33]),
    ],
)
def test_labels(name, label_names, counts):
    data = datasets.load(name)
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert data.label_names == label_names
    assert np.bincount(data.labels).tolist() == counts


def test_iris_means_by_species():
    data = datasets.load_iris()
    setosa = data.x[data.labels == 0].mean(axis=0)
    np.testing.assert_allclose(setosa, [5.006, 3.428, 1.462, 0.246], atol=1e-12)


def test_iris_is_that_of_scikit_learn():
    theirs = pytest.importorskip("sklearn.datasets").load_iris()
    ours = datasets.load_iris()
    np.testing.assert_array_equal(ours.x, theirs.data)
    np.testing.assert_array_equal(ours.labels, theirs.target)


def test_unknown_name():
    with pytest.raises(ValueError, match="faithful, iris, diabetes"):
        datasets.load("irises")

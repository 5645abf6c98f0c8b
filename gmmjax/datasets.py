"""The small data sets that ship with the package, read without a network.

- `faithful`: 272 eruptions of the Old Faithful geyser, in minutes: how long it lasted and the
  wait to the next. W. Härdle (1991), *Smoothing Techniques with Implementation in S*; A. Azzalini
  and A. W. Bowman (1990), Applied Statistics 39, 357-365. No labels.
- `iris`: 150 flowers of three species, four lengths in cm. E. Anderson (1935), Bulletin of the
  American Iris Society 59, 2-5; R. A. Fisher (1936), Annals of Eugenics 7, 179-188.
- `diabetes`: 145 adults in three clinical classes: the area under the plasma glucose curve and
  under the insulin curve after a load, and the steady-state plasma glucose (sspg). G. M. Reaven
  and R. G. Miller (1979), Diabetologia 16, 17-24. It is the table that the R package mclust 6.0.0
  ships, so that results compare; its row 104 (the first is 1) is known to be wrong there.

The numbers are those of R 4.2 and mclust 6.0.0.

`load_mnist` and `load_fashion_mnist` read IDX files from a folder (see `gmmjax.idx`), which do not ship and
which nothing here fetches.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np

from gmmjax.idx import load_fashion_mnist, load_mnist

__all__ = [
    "Dataset",
    "load",
    "load_diabetes",
    "load_faithful",
    "load_fashion_mnist",
    "load_iris",
    "load_mnist",
]


@dataclass(frozen=True)
class Dataset:
    """A table of samples, with the classes where they are known."""

    name: str
    x: np.ndarray  # [n, d], float64
    feature_names: tuple[str, ...]  # d of them
    labels: np.ndarray | None  # [n], int64, an index into `label_names`; None where unlabelled
    label_names: tuple[str, ...]  # in alphabetical order; empty where unlabelled


def _read(name: str, *, labelled: bool) -> Dataset:
    file = resources.files("gmmjax") / "data" / f"{name}.csv"
    header, *rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
    if not labelled:
        return Dataset(name, np.array(rows, dtype=np.float64), tuple(header), None, ())
    x = np.array([row[:-1] for row in rows], dtype=np.float64)
    label_names, labels = np.unique([row[-1] for row in rows], return_inverse=True)
    return Dataset(
        name, x, tuple(header[:-1]), labels.astype(np.int64), tuple(label_names.tolist())
    )


def load_faithful() -> Dataset:
    """Old Faithful: x [272, 2] in minutes, no labels.

    >>> load_faithful().x.shape
    (272, 2)
    """
    return _read("faithful", labelled=False)


def load_iris() -> Dataset:
    """Fisher's irises: x [150, 4] in cm, 50 labels of each of three species.

    >>> load_iris().label_names
    ('setosa', 'versicolor', 'virginica')
    """
    return _read("iris", labelled=True)


def load_diabetes() -> Dataset:
    """Reaven and Miller's diabetes data: x [145, 3], labels Chemical, Normal and Overt.

    >>> load_diabetes().feature_names
    ('glucose', 'insulin', 'sspg')
    """
    return _read("diabetes", labelled=True)


LOADERS: dict[str, Callable[[], Dataset]] = {
    "faithful": load_faithful,
    "iris": load_iris,
    "diabetes": load_diabetes,
}


def load(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        ValueError: if none has that name.

    >>> load("iris").x.shape
    (150, 4)
    """
    if name not in LOADERS:
        raise ValueError(f"no data set is called {name!r}: choose from {', '.join(LOADERS)}")
    return LOADERS[name]()

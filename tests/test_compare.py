"""The comparison of K-means and mixtures runs, and its problems are what they say."""

import csv

import numpy as np
import pytest

from benchmarks import compare_kmeans_mixture as compare
from benchmarks._clustering_problems import OUTLIER, PROBLEMS, SYNTHETIC


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_a_problem_gives_rows_and_classes(problem):
    x, y = problem.make(0)
    assert x.ndim == 2
    assert np.isfinite(x).all()
    again, _ = problem.make(0)
    np.testing.assert_array_equal(x, again)
    other, _ = problem.make(1)
    assert np.array_equal(x, other) == problem.real
    if y is not None:
        assert y.shape == (len(x),)
        assert set(np.unique(y)) <= {OUTLIER, *range(problem.k)}
        assert len(x) >= 10 * problem.k


def test_the_overlap_has_the_error_it_says():
    (overlap,) = (p for p in SYNTHETIC if p.name == "overlap")
    x, y = map(np.concatenate, zip(*(overlap.make(seed) for seed in range(100)), strict=True))
    accuracy = np.mean((x[:, 0] > 0) == y)
    error = np.sqrt(0.25 / len(y))
    assert abs(accuracy - overlap.best_accuracy) < 4 * error


@pytest.mark.slow
def test_a_quick_run_writes_table_and_picture(tmp_path, capsys):
    argv = ["--quick", "--problems", "ring", "--out", str(tmp_path)]
    assert compare.main(argv) == 0
    text = (tmp_path / "scores.md").read_text(encoding="utf-8")
    assert "a ring around a core" in text
    assert text.split("## ", 1)[1] in "## " + capsys.readouterr().out
    with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    kmeans, mixture = rows["K-means"], rows["mixture, free shapes"]
    assert float(mixture["adjusted_rand"]) > 0.6 > float(kmeans["adjusted_rand"])
    assert float(kmeans["adjusted_rand_error"]) > 0
    assert (tmp_path / "ring.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_problem_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main(["--problems", "rings", "--out", str(tmp_path)])
    assert "rings: choose from isotropic" in capsys.readouterr().err

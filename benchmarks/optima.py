"""Optima: how often the default search reaches the best likelihood known, at what price.

For EII, EEI and EEE and 2 to 9 components: mclust's own value (one hierarchical start), the best of its 200
random starts, our best, in how many keys ours came within 1e-3 of the best known, CPU seconds a
fit, and the shares in 100 of single lanes that came as near: of those that start afresh, and of those that
start from the best so far with one component moved. The last lines count cells that at least 9 of 10 keys
reach: the best known, and the best of mclust's random starts.

The data sets of `tests/reference/mclust/best_known.csv` have mclust's figures. For others (of scikit-learn,
of this package, or a CSV file of numbers) mclust runs here from `--mclust` random starts
(mclust_starts.R), and the best known is the higher of its best and ours; without, it is ours. In float64.

    python -m benchmarks.optima
    python -m benchmarks.optima --data iris --keys 3 --restarts 48
    python -m benchmarks.optima --data wine,diabetes,FILE.csv --mclust 200
"""

import argparse
import csv
import resource
import subprocess
import tempfile
from pathlib import Path

import jax
import numpy as np

import gmmjax
from gmmjax.search import n_fresh

REFERENCE = Path(__file__).parent.parent / "tests" / "reference" / "mclust" / "best_known.csv"
STARTS = Path(__file__).with_name("mclust_starts.R")
MODELS = ("EII", "EEI", "EEE")
WITHIN = 1e-3


def load(name: str) -> np.ndarray:
    if name in gmmjax.datasets.LOADERS:
        return gmmjax.datasets.load(name).x
    if name.endswith(".csv"):
        return np.loadtxt(name, delimiter=",", ndmin=2)
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")().data


def known(name: str) -> dict[tuple[str, int], tuple[float, float]]:
    """mclust's default and best log-likelihoods, by model and number of components."""
    with REFERENCE.open() as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == name]
    return {
        (row["model"], int(row["G"])): (float(row["hc_default_loglik"]), float(row["best_loglik"]))
        for row in rows
    }


def from_mclust(
    x: np.ndarray, ks: range, starts: int
) -> dict[tuple[str, int], tuple[float, float]]:
    """The same, of mclust on these rows from so many random starts; NaN where its default gives nothing."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        np.savetxt(file, x, delimiter=",", fmt="%.17g")
        command = ["Rscript", str(STARTS), str(file), ",".join(MODELS)]
        command += [",".join(map(str, ks)), str(starts)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split(",") for line in lines.split()]
    number = lambda text: float("nan") if text == "NA" else float(text)  # noqa: E731
    return {(model, int(k)): (number(one), number(best)) for model, k, one, best, _ in rows}


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compare(
    name: str, keys: int, restarts: int | None, largest: int, mclust: int
) -> tuple[int, int, int]:
    """Print a line a cell; return in how many cells 9 of 10 keys reach the best known, in how many the best
    of mclust, and how many there are."""
    x, reference, reached, level = load(name), known(name), 0, 0
    ks = range(2, largest + 1)
    published = bool(reference)
    if mclust and not published:
        reference = from_mclust(x, ks, mclust)
    print(f"{name}: {x.shape[0]} rows, {x.shape[1]} columns")
    print(
        f"{'':>8}{'k':>3}{'mclust':>14}{'best known':>14}{'ours':>14}{'gain':>9}{'hits':>8}{'CPU s':>8}"
        f"{'fresh %':>9}{'moved %':>9}"
    )
    for model in MODELS:
        # The first call compiles.
        gmmjax.select(jax.random.key(keys), x, [largest], [model], restarts=restarts, throw=False)
        found, lanes, seconds = [], [], 0.0
        for seed in range(keys):
            before = cpu_seconds()
            grid = gmmjax.select(jax.random.key(seed), x, ks, [model], restarts=restarts)
            seconds += cpu_seconds() - before
            found.append([grid.cell(k, model).log_likelihood for k in ks])
            lanes.append([grid.cell(k, model).lanes.log_likelihood for k in ks])
        fresh = n_fresh(max(len(each) for each in lanes[0]))  # one program: that of most lanes
        for at, k in enumerate(ks):
            ours = np.array([each[at] for each in found])
            by_lane = np.array([each[at] for each in lanes])
            default, theirs = reference.get((model, k), (float("nan"), float("nan")))
            best = theirs if published else np.nanmax([theirs, *ours])
            hits = int(np.sum(ours > best - WITHIN))
            reached += hits >= 0.9 * keys
            level += np.sum(ours > theirs - WITHIN) >= 0.9 * keys
            near = 100 * (by_lane > best - WITHIN)
            print(
                f"{model:>8}{k:>3}{default:>14.4f}{best:>14.4f}{max(ours):>14.4f}"
                f"{max(ours) - theirs:>9.4f}{hits:>5}/{keys:<2}{seconds / keys / len(ks):>8.2f}"
                f"{near[:, :fresh].mean():>9.1f}{near[:, fresh:].mean():>9.1f}",
                flush=True,
            )
    return reached, level, len(MODELS) * len(ks)


def main() -> None:
    """Compare on every data set asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="faithful,iris,diabetes,wine")
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--restarts", type=int, help="starts a fit (default: as `fit` chooses)")
    parser.add_argument(
        "--mclust", type=int, default=0, help="random starts of mclust on data without its figures"
    )
    parser.add_argument("--largest", type=int, default=9, help="most components (default 9)")
    args = parser.parse_args()
    with jax.enable_x64(True):
        for name in args.data.split(","):
            reached, level, cells = compare(
                name, args.keys, args.restarts, args.largest, args.mclust
            )
            print(
                f"{name}: at least 9 of 10 keys reach the best known in {reached} of {cells} cells, "
                f"mclust's best in {level}\n"
            )


if __name__ == "__main__":
    main()

"""K-means against mixtures, on data where each should win and lose: scores, times, pictures.

Every method gets the same rows, the same number of starts and the same most steps. Synthetic data
are drawn anew for each of the keys, real data stay and only the starts change. Scores are means over
keys ± one standard error. Times are of a fit that is compiled already, without the compilation.

    python -m benchmarks.compare_kmeans_mixture --out build/compare_kmeans_mixture
    python -m benchmarks.compare_kmeans_mixture --quick

Writes `scores.csv`, `scores.md` and a picture of the partitions of each problem.
"""

import argparse
import csv
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gmmjax
from benchmarks._clustering_problems import OUTLIER, PROBLEMS, Problem
from gmmjax import metrics

KMEANS, BIC = "K-means", "mixture of least BIC"
FAMILIES = {
    "EII": "mixture, one round shape",
    "VII": "mixture, round",
    "VVI": "mixture, axis-parallel",
    "EEE": "mixture, one shape",
    "VVV": "mixture, free shapes",
}
MAX_STEPS = 500
COLUMNS = ["adjusted_rand", "nmi", "accuracy", "silhouette", "objective", "seconds"]


@dataclass(frozen=True)
class Run:
    """One fit of one method."""

    labels: np.ndarray
    objective: float  # mean log-likelihood a row in nats, or the inertia a row for K-means
    seconds: float
    bic: float  # NaN for K-means, and where a covariance lies on its floor
    status: str


def kmeans(key: jax.Array, x: jax.Array, k: int, restarts: int) -> Run:
    """K-means from k-means++."""
    start = time.perf_counter()
    result = jax.block_until_ready(gmmjax.kmeans(key, x, k, restarts=restarts, max_steps=MAX_STEPS))
    seconds = time.perf_counter() - start
    status = gmmjax.Status(int(result.status)).name
    inertia = float(result.inertia) / len(x)
    return Run(np.asarray(result.labels), inertia, seconds, np.nan, status)


def mixture(family: str, key: jax.Array, x: jax.Array, k: int, restarts: int) -> Run:
    """A mixture of one family, and the most probable component of each row."""
    start = time.perf_counter()
    result = jax.block_until_ready(
        gmmjax.fit(key, x, k, family=family, restarts=restarts, max_steps=MAX_STEPS, throw=False)
    )
    seconds = time.perf_counter() - start
    labels = np.asarray(result.model.predict(x))
    status = gmmjax.Status(int(result.status))
    bic = -2 * float(result.log_likelihood) + result.model.n_parameters() * np.log(len(x))
    sound = status <= gmmjax.Status.MAX_STEPS
    objective = float(result.log_likelihood) / len(x)
    return Run(labels, objective, seconds, bic if sound else np.nan, status.name)


def runs_of(problem: Problem, seed: int, families: list[str]) -> dict[str, Run]:
    """Every method on the rows of one seed."""
    x, _ = problem.make(seed)
    rows = jnp.asarray(x, float)
    key = jax.random.key(seed)
    found = {KMEANS: kmeans(key, rows, problem.k, problem.restarts)}
    for family in families:
        if family in problem.without:
            continue
        found[FAMILIES[family]] = mixture(family, key, rows, problem.k, problem.restarts)
    sound = [name for name, run in found.items() if np.isfinite(run.bic)]
    if len(families) > 1 and sound:
        best = min(sound, key=lambda name: found[name].bic)
        total = sum(run.seconds for name, run in found.items() if name != KMEANS)
        run = found[best]
        found[BIC] = Run(run.labels, run.objective, total, run.bic, run.status)
    return found


def score(x: np.ndarray, y: np.ndarray | None, k: int, run: Run) -> list[float]:
    """One number for each of `COLUMNS`."""
    clusters = np.unique(run.labels)
    wide = 1 < len(clusters) < len(x)
    silhouette = float(metrics.silhouette(x, run.labels, n_clusters=k)) if wide else np.nan
    if y is None:
        return [np.nan, np.nan, np.nan, silhouette, run.objective, run.seconds]
    true, found = y[y != OUTLIER], run.labels[y != OUTLIER]
    agreement = [
        metrics.adjusted_rand(true, found),
        metrics.normalized_mutual_information(true, found),
        metrics.matched_accuracy(true, found),
    ]
    return [*(float(a) for a in agreement), silhouette, run.objective, run.seconds]


def compare(problem: Problem, keys: int, families: list[str]) -> list[dict]:
    """A row of the table for each method."""
    runs_of(problem, 0, families)  # compiles
    scores: dict[str, list[list[float]]] = {}
    endings: dict[str, list[str]] = {}
    for seed in range(keys):
        x, y = problem.make(seed)
        for method, run in runs_of(problem, seed, families).items():
            scores.setdefault(method, []).append(score(x, y, problem.k, run))
            endings.setdefault(method, []).append(run.status)
    rows = []
    for method, values in scores.items():
        table = np.asarray(values)
        row: dict = {"problem": problem.name, "method": method, "runs": len(values)}
        for j, column in enumerate(COLUMNS):
            # Times scatter upwards only: the median, and no error.
            middle = np.median if column == "seconds" else np.mean
            row[column] = float(middle(table[:, j]))
            if column != "seconds":
                spread = np.std(table[:, j], ddof=1) if len(table) > 1 else np.nan
                row[column + "_error"] = float(spread / np.sqrt(len(table)))
        names, counts = np.unique(endings[method], return_counts=True)
        row["endings"] = ", ".join(f"{c} {n.lower()}" for n, c in zip(names, counts, strict=True))
        rows.append(row)
    return rows


def markdown(problem: Problem, rows: list[dict]) -> str:
    """The problem's table, its best agreement in bold, and the reason."""
    x, y = problem.make(0)
    lines = [
        f"## {problem.title}",
        "",
        f"{len(x):,} rows, {x.shape[1]} columns, k = {problem.k}, {problem.restarts} starts, "
        f"{rows[0]['runs']} keys. {problem.why}",
        "",
        "| method | adjusted Rand | NMI | matched accuracy | silhouette | nats or inertia a row "
        "| ms a fit | endings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    best = max((r["adjusted_rand"] for r in rows), default=np.nan) if y is not None else np.nan
    for row in rows:
        cells = []
        for column in COLUMNS[:-1]:
            value, error = row[column], row[column + "_error"]
            digits = 2 if column == "objective" else 3
            text = "–" if np.isnan(value) else f"{value:.{digits}f}"
            if np.isfinite(error) and error >= 0.5 * 10**-digits:
                text += f" ± {error:.{digits}f}"
            if column == "adjusted_rand" and value >= best - 5e-4:
                text = f"**{text}**"
            cells.append(text)
        cells += [f"{1000 * row['seconds']:.1f}", row["endings"]]
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    if problem.best_accuracy is not None:
        lines += ["", f"Bayes' rule: matched accuracy {problem.best_accuracy:.3f}."]
    return "\n".join(lines) + "\n"


def picture(problem: Problem, families: list[str], path: Path) -> None:
    """The classes and the partitions, of the first key, in the plane of greatest variance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from gmmjax.plot import PALETTE

    x, y = problem.make(0)
    runs = runs_of(problem, 0, families)
    plane, names = x, ("x1", "x2")
    if x.shape[1] > 2:
        centred = x - x.mean(axis=0)
        _, _, vectors = np.linalg.svd(centred, full_matrices=False)
        plane = centred @ vectors[:2].T
        names = ("first principal component", "second principal component")
    panels = {} if y is None else {"classes": y}
    panels |= {method: run.labels for method, run in runs.items() if method in (KMEANS, BIC)}
    if BIC not in runs:
        panels |= {m: r.labels for m, r in runs.items() if m != KMEANS}
    figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    markers = "o^sDvPX*<>"
    for axes, (name, labels) in zip(
        np.atleast_1d(figure.subplots(1, len(panels), sharex=True, sharey=True)),
        panels.items(),
        strict=True,
    ):
        shown = np.asarray(labels)
        if y is not None and name != "classes":  # each cluster in the colour of its class
            inside = y != OUTLIER
            match = np.asarray(metrics.matching(y[inside], shown[inside], n_clusters=problem.k))
            spare = iter(range(problem.k, 2 * problem.k))
            shown = np.array([m if m >= 0 else next(spare) for m in match])[shown]
        for label in np.unique(shown):
            mine = plane[shown == label]
            axes.scatter(
                mine[:, 0],
                mine[:, 1],
                s=10,
                marker=markers[label % len(markers)] if label >= 0 else ".",
                color=PALETTE[label % 7] if label >= 0 else "0.6",
                alpha=0.7,
                linewidths=0,
            )
        axes.set_title(name)
        axes.set_xlabel(names[0])
    figure.axes[0].set_ylabel(names[1])
    figure.suptitle(problem.title)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/compare_kmeans_mixture"))
    parser.add_argument("--keys", type=int, default=20, help="how many keys (default 20)")
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="only these problems")
    parser.add_argument(
        "--quick", action="store_true", help="3 keys, two problems, two methods, for a check"
    )
    options = parser.parse_args(argv)
    known = {problem.name: problem for problem in PROBLEMS}
    chosen = options.problems or (["anisotropic", "ring"] if options.quick else list(known))
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        parser.error(f"no problem is called {', '.join(unknown)}: choose from {', '.join(known)}")
    keys, families = (3, ["VVV"]) if options.quick else (options.keys, list(FAMILIES))
    options.out.mkdir(parents=True, exist_ok=True)
    texts, rows = [], []
    for name in chosen:
        found = compare(known[name], keys, families)
        rows += found
        texts.append(markdown(known[name], found))
        print(texts[-1], flush=True)
        picture(known[name], families, options.out / f"{name}.png")
        jax.clear_caches()  # every problem has programs of its own, which would pile up
        # Written as it goes, so that a long run that is stopped leaves what it has.
        device = f"{jax.default_backend()}, {jnp.zeros(()).dtype}"
        head = f"# K-means and mixtures\n\nAt most {MAX_STEPS} steps a start; {device}.\n\n"
        (options.out / "scores.md").write_text(head + "\n".join(texts), encoding="utf-8")
        with (options.out / "scores.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(f"Written to {options.out}/")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

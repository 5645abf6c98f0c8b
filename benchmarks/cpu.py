"""EM and K-means on a CPU, works W1 to W9, against oneDAL, scikit-learn, faiss, Armadillo and others.

Every contender runs in a process of its own, in turn with the others, warm, from the same start and with
the same number of steps; each at its best number of threads. One step's time is that of a long run less a
short one, so that nobody pays for how he starts; works with many restarts are timed whole. The score is
the mean log-likelihood (or minus the inertia a row) of the final parameters, by one float64 yardstick. The
share is that of a large matrix product on this machine, in useful operations.
"""

import argparse
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks._contest import Result, contest, limits
from benchmarks._cpu_contenders import CONTENDERS, Work
from gmmjax import native


@dataclass(frozen=True)
class Case:
    """`steps` (short, long), see `contest`; `per` is how many parts the time is divided by."""

    text: str
    kind: str
    n: int
    d: int
    k: int
    steps: tuple[int, int]
    unit: str
    restarts: int = 1
    per: int = 1
    bar: dict[str, float] | float = 1.0  # least ratio to the fastest rival


EM_BAR = {"float32": 1.5, "float64": 2.0}
CASES = {
    "W1": Case("full n=100k d=8 k=16", "full", 100_000, 8, 16, (2, 22), "ms/step", bar=EM_BAR),
    "W2": Case("full n=1M d=16 k=32", "full", 1_000_000, 16, 32, (1, 4), "ms/step", bar=EM_BAR),
    "W3": Case("diag n=1M d=16 k=32", "diag", 1_000_000, 16, 32, (1, 4), "ms/step", bar=EM_BAR),
    "W4": Case("full n=100k d=64 k=64", "full", 100_000, 64, 64, (1, 3), "ms/step", bar=EM_BAR),
    "W5": Case(
        "full n=10k d=4 k=8, 100 restarts", "full", 10_000, 4, 8, (0, 20), "ms/step/restart",
        restarts=100, per=2000, bar=4.0,
    ),
    "W6": Case("K-means n=1M d=32 k=256", "k-means", 1_000_000, 32, 256, (1, 4), "ms/step"),
    "W7": Case(
        "K-means n=100k d=8 k=16, 50 restarts", "k-means", 100_000, 8, 16, (0, 10),
        "ms/step/restart", restarts=50, per=500,
    ),
    "W8": Case(
        "full 150×4 k=3, 1000 restarts of 20 steps", "full", 150, 4, 3, (0, 20), "ms in all",
        restarts=1000, bar=4.0,
    ),
    "W9": Case(
        "K-means 150×4 k=3, 1000 restarts", "k-means", 150, 4, 3, (0, 20), "ms in all",
        restarts=1000, bar=0.5,
    ),
}  # fmt: skip


def bench(name: str, dtype: str, repeats: int, peak: float, rivals: list[str]) -> list[dict]:
    """One work in one dtype: a line a contender, the fastest first."""
    case = CASES[name]
    work = Work(case.kind, case.n, case.d, case.k, case.restarts, dtype)
    chosen = {n: c for n, c in CONTENDERS.items() if n in rivals}
    results = contest(chosen, work, case.steps, repeats)
    ours = next(r for r in results if r.name == "gmmjax" and not r.skipped)
    rows = []
    for r in sorted(results, key=lambda r: r.median if r.seconds else np.inf):
        row = {"case": name, "work": case.text, "dtype": dtype, **asdict(r)}
        if r.skipped:
            print(f"{name} {dtype}  {r.name:<13} skipped: {r.skipped}", flush=True)
        else:
            # Both lists are in the order of the runs: a pair is what ran one after the other.
            pairs = [theirs / mine for theirs, mine in zip(r.seconds, ours.seconds, strict=True)]
            row["ratio"] = float(np.median(pairs))
            row["time"], row["unit"] = 1e3 * r.median / case.per, case.unit
            whole = 1 if case.steps[0] else case.restarts * case.steps[1]
            row["share"] = work.useful * whole / r.median / 1e9 / peak
            print(
                f"{name} {dtype}  {r.name:<13}{row['time']:10.3f} {case.unit:<16} "
                f"ratio {row['ratio']:6.2f}  score {r.score:.5f}  {r.threads} threads  "
                f"{r.memory:6.0f} MiB  {row['share']:5.1%} of the limit",
                flush=True,
            )
        rows.append(row)
    fastest = _fastest(results)
    if fastest:
        bar = case.bar[dtype] if isinstance(case.bar, dict) else case.bar
        ratio = next(r["ratio"] for r in rows if r["name"] == fastest.name)
        verdict = "met" if ratio >= bar else "MISSED"
        print(
            f"{name} {dtype}  {case.text}: {ratio:.2f} times as fast as {fastest.name}; "
            f"bar {bar}: {verdict}"
        )
    return rows


def _fastest(results: list[Result]) -> Result | None:
    rivals = [r for r in results if not r.name.startswith("gmmjax") and r.seconds]
    return min(rivals, key=lambda r: r.median) if rivals else None


def picture(rows: list[dict], path: str) -> None:
    """Times relative to ours, a panel a dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dtypes = sorted({r["dtype"] for r in rows})
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(6 * len(dtypes), 4.2), squeeze=False, layout="constrained"
    )
    names = [n for n in CONTENDERS if n != "gmmjax"]
    colors = [
        "#000000",
        "#0072B2",
        "#56B4E9",
        "#E69F00",
        "#009E73",
        "#CC79A7",
        "#D55E00",
        "#999999",
    ]
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        cases = [c for c in CASES if any(r["case"] == c and r["dtype"] == dtype for r in rows)]
        for name, color, mark in zip(names, colors, "_osD^vPX", strict=True):
            points = [
                (cases.index(r["case"]), r["ratio"])
                for r in rows
                if r["name"] == name and r["dtype"] == dtype and "ratio" in r
            ]
            if points:
                axis.plot(*zip(*points, strict=True), mark, color=color, label=name)
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set(yscale="log", xticks=range(len(cases)), xticklabels=cases, title=dtype)
        axis.set_ylabel("time of the rival / time of gmmjax")
        axis.grid(axis="y", alpha=0.3)
    handles = {}
    for axis in axes[0]:
        handles |= {
            label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=len(handles), fontsize=8
    )
    figure.savefig(path, dpi=130)


def table(rows: list[dict]) -> str:
    """Markdown: a line a work and dtype; times, and in brackets how many times gmmjax's own."""
    names = [n for n in CONTENDERS if any(r["name"] == n and "time" in r for r in rows)]
    lines = [f"| work | unit | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
    for case in CASES:
        for dtype in ("float32", "float64"):
            mine = {r["name"]: r for r in rows if (r["case"], r["dtype"]) == (case, dtype)}
            timed = {n: r for n, r in mine.items() if "time" in r}
            if timed:
                unit = next(iter(timed.values()))["unit"]
                cells = [
                    f"{timed[n]['time']:.3g} ({timed[n]['ratio']:.2g})" if n in timed else ""
                    for n in names
                ]
                cells[0] = f"**{timed['gmmjax']['time']:.3g}**"
                text = CASES[case].text
                lines.append(f"| {case} {text}, {dtype} | {unit} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the lines; write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only these")
    parser.add_argument("--dtype", choices=("float32", "float64"), action="append")
    parser.add_argument("--rival", choices=CONTENDERS, action="append", help="only these")
    parser.add_argument("--repeats", type=int, default=3, help="counted runs of each (default 3)")
    parser.add_argument(
        "--json", help="a file for the results; those already there of other cases stay"
    )
    parser.add_argument("--picture", help="a file for the picture")
    parser.add_argument("--table", metavar="JSON", help="only print results of before in Markdown")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(Path(arguments.table).read_text())["rows"]), end="")
        return 0
    machine = limits()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; a large product: "
        f"{machine['float32']:.0f} GF/s (float32), {machine['float64']:.0f} (float64); a copy: "
        f"{machine['copy']:.1f} GB/s",
        flush=True,
    )
    rivals = ["gmmjax", *(arguments.rival or CONTENDERS)]
    native.build()
    rows = []
    if arguments.json and os.path.exists(arguments.json):
        rows = json.loads(Path(arguments.json).read_text())["rows"]
    for name in arguments.case or CASES:
        for dtype in arguments.dtype or ("float32", "float64"):
            new = bench(name, dtype, arguments.repeats, machine[dtype], rivals)
            rows = [r for r in rows if (r["case"], r["dtype"]) != (name, dtype)] + new
            if arguments.json:
                with open(arguments.json, "w") as file:
                    json.dump(
                        {"machine": machine, "cores": os.cpu_count(), "rows": rows}, file, indent=1
                    )
    if arguments.picture:
        picture(rows, arguments.picture)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

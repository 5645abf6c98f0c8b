"""Seconds of a whole fit against `restart_batch`, how many lanes step together; and what was chosen.

A lane's steps differ in number, so a plain `vmap` of the loop (all lanes at once) goes on computing lanes
that have ended. Slots that take up the next start waste less, and their rows of responsibilities stay in
the cache; few slots make small matrix products, and many calls. All sizes start alike and end alike; they
run in turn, warm, and each time is the median of several runs.

    python -m benchmarks restart_batch [--kernel xla] [--json FILE]

On a GPU the same command measures there.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

CASES = {
    "faithful n=272 d=2 k=4, 144 lanes": (None, 2, 4, 144),
    "n=2,000 d=8 k=5, 144 lanes": (2_000, 8, 5, 144),
    "n=10,000 d=4 k=8, 100 lanes": (10_000, 4, 8, 100),
    "n=100,000 d=8 k=16, 16 lanes": (100_000, 8, 16, 16),
}
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


def problem(n: int | None, d: int, k: int) -> np.ndarray:
    """Old Faithful, or overlapping clusters, in float32."""
    import gmmjax

    if n is None:
        return np.asarray(gmmjax.datasets.load_faithful().x, np.float32)
    rng = np.random.default_rng(0)
    centers = 2.0 * rng.normal(size=(k, d))
    return (centers[rng.integers(0, k, n)] + rng.normal(size=(n, d))).astype(np.float32)


@dataclass(frozen=True)
class Work:
    """Fits of one case by one kernel, compiled: `run(size)` gives the seconds of one and what it found."""

    name: str
    n: int
    lanes: int
    run: Callable[[int | None], tuple[float, Any]]
    sizes: list[int]
    fits: dict[int | None, Any]


def prepare(name: str, kernel: str, wanted: Sequence[int]) -> Work:
    """Every size runs once, which compiles it; XLA's compiler leaves the threads to others."""
    import jax

    import gmmjax

    n, d, k, lanes = CASES[name]
    x = jax.device_put(problem(n, d, k))

    def run(batch: int | None) -> tuple[float, gmmjax.FitResult]:
        begin = time.perf_counter()
        fit = gmmjax.fit(
            jax.random.key(0), x, k, restarts=lanes, init="random_points", tol=1e-6,
            restart_batch=batch, kernel=kernel,
        )  # fmt: skip
        jax.block_until_ready(fit)
        return time.perf_counter() - begin, fit

    sizes = [size for size in wanted if size < lanes] + [lanes]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fits = dict(zip([None, *sizes], pool.map(lambda b: run(b)[1], [None, *sizes]), strict=True))
    return Work(name, len(x), lanes, run, sizes, fits)


def measure(work: Work, runs: int) -> dict:
    """Medians in seconds by size, the default's among them."""
    seconds: dict[int | None, list[float]] = {size: [] for size in work.fits}
    for _ in range(runs):
        for size in seconds:
            seconds[size].append(work.run(size)[0])
    steps = np.asarray(work.fits[work.lanes].lanes.n_steps)
    scores = [float(fit.log_likelihood) / work.n for fit in work.fits.values()]
    chosen = work.fits[None].choice
    return {
        "case": work.name,
        "kernel": chosen.kernel,
        "default": chosen.batch,
        "default_seconds": statistics.median(seconds[None]),
        "seconds": {size: statistics.median(seconds[size]) for size in work.sizes},
        "steps": [int(np.median(steps)), int(steps.max())],
        "scores": [min(scores), max(scores)],
    }


def main() -> int:
    """A table: a line a case and kernel, a column a size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", choices=("auto", "xla", "native", "pallas"), action="append")
    parser.add_argument("--case", choices=CASES, action="append", help="only these")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each (default 5)")
    parser.add_argument("--size", type=int, nargs="+", default=SIZES, help="numbers of lanes")
    parser.add_argument("--json", help="a file for the results")
    options = parser.parse_args()
    import jax

    print(f"seconds of a fit, medians of {options.runs}, float32, {jax.devices()[0].device_kind}")
    print(
        f"{'':<36}{'kernel':>8}{'steps':>10}{'default':>14}",
        *(f"{s:>7}" for s in options.size),
        "    all",
    )
    results = []
    kernels = options.kernel or ["xla", "native" if jax.default_backend() == "cpu" else "pallas"]
    for name in options.case or CASES:
        for kernel in kernels:
            r = measure(prepare(name, kernel, options.size), options.runs)
            results.append(r)
            lanes = CASES[name][3]
            default = f"{r['default_seconds']:.3f} ({r['default']})"
            cells = [r["seconds"].get(size) if size < lanes else None for size in options.size]
            steps = f"{r['steps'][0]}–{r['steps'][1]}"
            print(
                f"{name:<36}{r['kernel']:>8}{steps:>10}{default:>14}",
                *("       " if s is None else f"{s:>7.3f}" for s in cells),
                f"{r['seconds'][lanes]:>7.3f}   mean log-likelihood {r['scores'][0]:.5f}"
                f" to {r['scores'][1]:.5f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

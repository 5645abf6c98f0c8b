"""Peak memory of a fit: the whole process's largest resident set, less the data.

Each case runs in a process of its own, from starts by k-means++ ("mixed", the default) and from random
rows, on XLA and, where a compiler is there, on the native steps. Beside it stands what the fit added to
the peak that was there before it: Python, JAX, the data, and the compiler with a small fit.
"""

import argparse
import json
import subprocess
import sys
from itertools import product

CASES = {
    "one start, n=2,000,000 d=16 k=64, full, float32": (2_000_000, 16, 64, 1),
    "32 starts, n=100,000 d=16 k=32, full, float32": (100_000, 16, 32, 32),
}
LIMIT_MIB = 1024


def measure(n: int, d: int, k: int, restarts: int, steps: int, init: str, kernel: str) -> dict:
    """MiB of the data, and of this process's peak over them and over what was there before the fit."""
    import resource

    import jax
    import numpy as np

    import gmmjax
    from gmmjax.native import BuildError

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    rng = np.random.default_rng(0)
    centers = 4 * rng.standard_normal((k, d), dtype=np.float32)
    x = np.empty((n, d), np.float32)
    for rows in np.array_split(x, 100):  # no temporary as large as the data
        rng.standard_normal(dtype=np.float32, out=rows)
        rows += centers[rng.integers(0, k, len(rows))]
    options = {"restarts": restarts, "max_steps": steps, "tol": 0.0, "init": init, "kernel": kernel}
    # Compilation's own memory is the same for any n.
    try:
        jax.block_until_ready(gmmjax.fit(jax.random.key(0), x[:5000], k, throw=False, **options))
    except BuildError as error:
        return {"skipped": str(error)}
    before = peak()
    fit = jax.block_until_ready(gmmjax.fit(jax.random.key(0), x, k, throw=False, **options))
    data = x.nbytes / 2**20
    return {
        "data": data,
        "over": peak() - data,
        "added": peak() - before,
        "log_likelihood": float(fit.log_likelihood) / n,
    }


def main() -> int:
    """Print a line a case; exit status 1 if one is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="EM steps (default 3)")
    for hidden in ("--case", "--init", "--kernel"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        how = arguments.steps, arguments.init, arguments.kernel
        print(json.dumps(measure(*CASES[arguments.case], *how)))
        return 0
    over = False
    for name, init, kernel in product(CASES, ("mixed", "random_points"), ("xla", "native")):
        command = [sys.executable, "-m", "benchmarks.memory", "--case", name]
        command += ["--steps", str(arguments.steps), "--init", init, "--kernel", kernel]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        if "skipped" in result:
            print(f"{name}, {init}, {kernel}: skipped: {result['skipped']}", flush=True)
            continue
        over |= result["over"] > LIMIT_MIB
        print(
            f"{name}, {init}, {kernel}: {result['over']:.0f} MiB over data of {result['data']:.0f} MiB "
            f"(limit {LIMIT_MIB}), {result['added']:.0f} of them by the fit; mean log-likelihood "
            f"{result['log_likelihood']:.4f}",
            flush=True,
        )
    return int(over)


if __name__ == "__main__":
    raise SystemExit(main())

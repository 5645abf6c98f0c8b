"""Peak memory of a fit, over the data and over what JAX itself takes.

Each case runs in a process of its own: the peak of a process never falls. What is printed is the
peak resident set less that of the same process once the data lie there and a small fit has run.
"""

import argparse
import json
import subprocess
import sys

CASES = {
    "one start, n=2,000,000 d=16 k=64, full, float32": (2_000_000, 16, 64, 1),
    "32 starts, n=100,000 d=16 k=32, full, float32": (100_000, 16, 32, 32),
}
LIMIT_MIB = 1024


def measure(n: int, d: int, k: int, restarts: int, steps: int) -> dict:
    """Peak in MiB before and after the fit, in this process."""
    import resource

    import jax
    import numpy as np

    import gmmjax

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    x += (4 * rng.standard_normal((k, d), dtype=np.float32))[rng.integers(0, k, n)]
    # Compilation's own memory is the same for any n, and not the fit's.
    options = {"restarts": restarts, "max_steps": steps, "tol": 0.0, "init": "random_points"}
    jax.block_until_ready(gmmjax.fit(jax.random.key(0), x[:5000], k, throw=False, **options))
    before = peak()
    fit = jax.block_until_ready(gmmjax.fit(jax.random.key(0), x, k, throw=False, **options))
    return {
        "data": x.nbytes / 2**20,
        "over": peak() - before,
        "log_likelihood": float(fit.log_likelihood) / n,
    }


def main() -> int:
    """Print a line a case; exit status 1 if one is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3, help="EM steps (default 3)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*CASES[arguments.case], arguments.steps)))
        return 0
    over = False
    for name in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", "--case", name]
        command += ["--steps", str(arguments.steps)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        over |= result["over"] > LIMIT_MIB
        print(
            f"{name}: {result['over']:.0f} MiB over data of {result['data']:.0f} MiB "
            f"(limit {LIMIT_MIB}); mean log-likelihood {result['log_likelihood']:.4f}",
            flush=True,
        )
    return int(over)


if __name__ == "__main__":
    raise SystemExit(main())

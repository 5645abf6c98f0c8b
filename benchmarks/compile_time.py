"""What the first fit of a fresh process costs, and what JAX's compilation cache on disk saves of it.

Each line is a process of its own: importing gmmjax, the first fit, the same again, and one of slightly
fewer rows, which takes the same program. With the cache, the second process finds what the first compiled.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product

CASES = {
    "full n=10k d=4 k=8": (10_000, 4, 8, "full"),
    "full n=10k d=16 k=8": (10_000, 16, 8, "full"),
    "tied n=10k d=4 k=8": (10_000, 4, 8, "tied"),
    "diag n=10k d=4 k=8": (10_000, 4, 8, "diag"),
}
LIMIT = 3.0


def measure(n: int, d: int, k: int, family: str, kernel: str) -> dict:
    """Seconds of each, in this process."""
    begin = time.perf_counter()
    import jax

    import gmmjax

    imported = time.perf_counter() - begin
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), np.float32)
    x += (3 * rng.standard_normal((k, d), np.float32))[rng.integers(0, k, n)]

    def seconds(rows: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(
            gmmjax.fit(jax.random.key(0), x[:rows], k, family=family, kernel=kernel)
        )
        return time.perf_counter() - begin

    return {"import": imported, "first": seconds(n), "again": seconds(n), "fewer": seconds(n - 9)}


def main() -> int:
    """Two lines a case: a fresh process, and one that finds the cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument(
        "--kernel", choices=("xla", "native"), action="append", help="xla; native has to be built"
    )
    parser.add_argument("--json", help="a file for the results")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(*CASES[arguments.case], arguments.kernel[0])))
        return 0
    rows = []
    for name, kernel in product(CASES, arguments.kernel or ["xla"]):
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": folder,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            for label in ("without a cache", "fills the cache", "finds the cache"):
                given = {**os.environ} if label == "without a cache" else environment
                command = [sys.executable, "-m", "benchmarks.compile_time", "--case", name]
                command += ["--kernel", kernel]
                out = subprocess.run(command, check=True, capture_output=True, env=given).stdout
                row = {"case": name, "kernel": kernel, "process": label, **json.loads(out)}
                rows.append(row)
                print(
                    f"{name:<22} {kernel:<7} {label:<16} import {row['import']:.2f} s  "
                    f"first fit {row['first']:.2f}  again {row['again']:.2f}  "
                    f"nine rows fewer {row['fewer']:.2f}",
                    flush=True,
                )
    slow = [r for r in rows if r["process"] == "without a cache" and r["first"] > LIMIT]
    print(f"limit {LIMIT} s for a first fit: {'missed by ' + str(len(slow)) if slow else 'met'}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

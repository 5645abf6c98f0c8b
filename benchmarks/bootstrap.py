"""Standard errors by refitting: 1,000 bootstrap refits and the jackknife, compile and run time.

The first call compiles; "run" is the best of five further calls, each with new keys. The bar: 1,000
refits of Old Faithful with two full components in under 10 s on two CPU cores.

    python -m benchmarks.bootstrap
    JAX_ENABLE_X64=1 python -m benchmarks.bootstrap --replicates 1000
"""

import argparse
import os
import time
from functools import partial

import jax
import numpy as np

import gmmjax
from gmmjax import inference


def timed(call) -> tuple[float, inference.Replicates]:
    """Seconds until the result is there."""
    begin = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - begin, result


def main(arguments: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Print the table; returns seconds of the first call and of a further one, by method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=1000)
    options = parser.parse_args(arguments)
    x = gmmjax.datasets.load_faithful().x
    model = gmmjax.fit(jax.random.key(0), x, 2).model
    dtype = model.means.dtype
    print(f"Old Faithful, {x.shape[0]} × {x.shape[1]}, 2 full components, {dtype}, ", end="")
    print(f"{len(os.sched_getaffinity(0))} cores, {jax.default_backend()}")
    print(f"{'':<16}{'refits':>8}{'first call, s':>16}{'run, s':>10}{'mean steps':>12}  s.e. of φ")
    table = {}
    for method in (*inference.METHODS, "jackknife"):

        def refits(seed: int, method: str = method) -> inference.Replicates:
            if method == "jackknife":
                return inference.jackknife(model, x)
            key = jax.random.key(seed)
            return inference.bootstrap(key, model, x, method=method, replicates=options.replicates)

        first, _ = timed(partial(refits, 0))
        runs = [timed(partial(refits, seed)) for seed in range(1, 6)]
        seconds, result = min(seconds for seconds, _ in runs), runs[-1][1]
        table[method] = (first, seconds)
        error = float(result.standard_errors().weights[0])
        steps = float(np.mean(result.n_steps))
        print(
            f"{method:<16}{len(result.status):>8}{first:>16.2f}{seconds:>10.3f}{steps:>12.1f}",
            end="",
        )
        print(f"  {error:.4f}")
    return table


if __name__ == "__main__":
    main()

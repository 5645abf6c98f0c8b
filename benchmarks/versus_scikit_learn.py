"""EM against scikit-learn: 20 steps from the same start, full covariances, in float32 and float64.

Interleaved in one process, warm, blocked; the median of several runs each. scikit-learn runs with
each number of BLAS threads up to the number of cores, and its fastest is taken. scikit-learn has no
restarts from given starts, so its time for those is that of the starts one after the other.
"""

import argparse
import json
import os
import statistics
import time
import warnings

import numpy as np

CASES = {
    "n=100k d=8 k=16": (100_000, 8, 16, 1),
    "n=1M d=16 k=32": (1_000_000, 16, 32, 1),
    "n=10k d=4 k=8, 100 restarts": (10_000, 4, 8, 100),
}
STEPS = 20


def problem(n: int, d: int, k: int, restarts: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters, and rows to start from, [restarts, k, d]."""
    rng = np.random.default_rng(0)
    centers = 2.5 * rng.normal(size=(k, d))
    x = (centers[rng.integers(0, k, n)] + rng.normal(size=(n, d))).astype(dtype)
    starts = np.stack([x[rng.choice(n, k, replace=False)] for _ in range(restarts)])
    return x, starts


def ours(x: np.ndarray, starts: np.ndarray):
    """A function that runs the fit, and returns seconds and the best mean log-likelihood."""
    import jax
    import jax.numpy as jnp

    import gmmjax

    r, k, d = starts.shape
    eye = jnp.broadcast_to(jnp.eye(d, dtype=x.dtype), (r, k, d, d))
    weights = jnp.full((r, k), -np.log(k), x.dtype)
    models = gmmjax.GaussianMixture(weights, jnp.asarray(starts), gmmjax.families.Full(eye), "full")
    data = jax.device_put(x)

    def run() -> tuple[float, float]:
        begin = time.perf_counter()
        fit = gmmjax.fit(
            jax.random.key(0),
            data,
            k,
            init=models,
            tol=0.0,
            max_steps=STEPS,
            accelerate=False,
            reg=1e-6,
        )
        jax.block_until_ready(fit)
        return time.perf_counter() - begin, float(fit.log_likelihood) / len(x)

    return run


def theirs(x: np.ndarray, starts: np.ndarray, threads: int):
    """The same for scikit-learn, on the first few of many starts, scaled to all of them."""
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    r, k, d = starts.shape
    some = starts[: min(r, 5)]

    def run() -> tuple[float, float]:
        best = -np.inf
        seconds = 0.0
        for means in some:
            peer = GaussianMixture(
                k,
                weights_init=np.full(k, 1 / k, x.dtype),
                means_init=means,
                precisions_init=np.broadcast_to(np.eye(d, dtype=x.dtype), (k, d, d)),
                tol=0,
                max_iter=STEPS,
                reg_covar=1e-6,
                init_params="random_from_data",
            )
            with threadpool_limits(threads), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                begin = time.perf_counter()
                peer.fit(x)
                seconds += time.perf_counter() - begin
            # `lower_bound_` is that of the parameters before the last M-step.
            best = max(best, peer.score(x))
        return seconds * r / len(some), best

    return run


def compare(name: str, dtype: type, runs: int) -> dict:
    """Medians in seconds, and the ratio of the medians of pairs."""
    x, starts = problem(*CASES[name], dtype)
    mine = ours(x, starts)
    peers = {t: theirs(x, starts, t) for t in range(1, (os.cpu_count() or 1) + 1)}
    mine()  # compiles
    times: dict = {"ours": [], **{t: [] for t in peers}}
    for _ in range(runs):
        seconds, score = mine()
        times["ours"].append(seconds)
        for t, peer in peers.items():
            seconds, peer_score = peer()
            times[t].append(seconds)
    best = min(peers, key=lambda t: statistics.median(times[t]))
    ratios = [b / a for a, b in zip(times["ours"], times[best], strict=True)]
    return {
        "case": name,
        "dtype": np.dtype(dtype).name,
        "ours": statistics.median(times["ours"]),
        "scikit-learn": statistics.median(times[best]),
        "threads": best,
        "ratio": statistics.median(ratios),
        "ours_mean_log_likelihood": score,
        "their_mean_log_likelihood": peer_score,
    }


def main() -> int:
    """Print a line a case, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each (default 3)")
    parser.add_argument("--case", choices=CASES, action="append", help="only these")
    parser.add_argument("--json", help="a file for the results")
    arguments = parser.parse_args()
    import jax

    results = []
    print(f"{STEPS} EM steps, full; seconds, medians of {arguments.runs}; {os.cpu_count()} cores")
    for name in arguments.case or CASES:
        for dtype in (np.float32, np.float64):
            with jax.enable_x64(dtype is np.float64):
                r = compare(name, dtype, arguments.runs)
            results.append(r)
            print(
                f"{name:<28} {r['dtype']}: ours {r['ours']:.3f}  scikit-learn "
                f"{r['scikit-learn']:.3f} ({r['threads']} threads)  ratio {r['ratio']:.1f}  "
                f"mean log-likelihood {r['ours_mean_log_likelihood']:.5f}, "
                f"{r['their_mean_log_likelihood']:.5f}",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

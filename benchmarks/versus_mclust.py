"""A batch of data sets: one vmapped program against R's mclust in a loop.

Resamples of Old Faithful, one mixture each, in float64. *Fresh*: mclust starts each by hierarchical
clustering; ours takes `--restarts` starts each, and the table says how often each of the two ends higher.
*Refits*: the bootstrap, from the parameters of the whole data (`MclustBootstrap`, `inference.bootstrap`).
Seconds are of a program that is compiled already, the median of three calls; R's of one.

    apt-get install r-cran-mclust
    python -m benchmarks versus_mclust
"""

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import gmmjax
from gmmjax import inference

CELLS = [("VVV", 2), ("EEE", 3), ("VVV", 3), ("EEE", 6)]
SAME = 1e-3
"""Nats within which two optima are the same; mclust stops at a relative change of 1e-5."""


def by_mclust(
    x: np.ndarray, index: np.ndarray, model: str, k: int
) -> tuple[float, float, np.ndarray]:
    """Seconds of fresh fits and of refits, and the log-likelihoods of the fresh ones."""
    with tempfile.TemporaryDirectory() as folder:
        np.savetxt(Path(folder) / "x.csv", x, delimiter=",", fmt="%.17g")
        np.savetxt(Path(folder) / "index.csv", index + 1, delimiter=",", fmt="%d")
        script = str(Path(__file__).with_name("mclust_batch.R"))
        subprocess.run(["Rscript", script, folder, model, str(k)], check=True, capture_output=True)
        text = (Path(folder) / "out.csv").read_text().replace("NA", "nan")
    fresh, refits, *values = map(float, text.split())
    return fresh, refits, np.array(values)


def timed(call: Callable[[], jax.Array]) -> tuple[float, np.ndarray]:
    """The median of three calls after one that compiles."""
    value = np.asarray(jax.block_until_ready(call()))
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds)), value


def compare(batch: int, restarts: int, model: str, k: int) -> dict[str, float]:
    """One cell of the table."""
    x = gmmjax.datasets.load_faithful().x
    index = np.random.default_rng(0).integers(0, len(x), (batch, len(x)))
    r_fresh, r_refits, theirs = by_mclust(x, index, model, k)
    sets, keys = jnp.asarray(x[index]), jax.random.split(jax.random.key(0), batch)
    fit = partial(gmmjax.fit, n_components=k, family=model, restarts=restarts, throw=False)
    fits = jax.jit(jax.vmap(lambda key, rows: fit(key, rows).log_likelihood))
    fresh, ours = timed(lambda: fits(keys, sets))
    start = gmmjax.fit(jax.random.key(1), x, k, family=model).model
    refits, _ = timed(
        lambda: inference.bootstrap(jax.random.key(2), start, x, replicates=batch).status
    )
    known = np.isfinite(theirs)
    return {
        "mclust, s": r_fresh, "ours, s": fresh, "ratio": r_fresh / fresh,
        "higher, %": 100 * np.mean(ours[known] > theirs[known] + SAME),
        "lower, %": 100 * np.mean(ours[known] < theirs[known] - SAME),
        "gain, nats": float(np.mean(ours[known] - theirs[known])),
        "refits, mclust": r_refits, "refits, ours": refits, "ratio of refits": r_refits / refits,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> list[dict[str, float]]:
    """Print the table; returns its rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1000, help="resamples (default 1000)")
    parser.add_argument("--restarts", type=int, default=12, help="starts each (default 12)")
    options = parser.parse_args(arguments)
    if shutil.which("Rscript") is None:
        raise SystemExit("no R here: apt-get install r-cran-mclust")
    print(
        f"{options.batch} resamples of Old Faithful, {options.restarts} starts each; ratios: mclust / ours"
    )
    rows = []
    with jax.enable_x64(True):
        for model, k in CELLS:
            row = compare(options.batch, options.restarts, model, k)
            if not rows:
                print(f"{'':<9}" + "".join(f"{name:>17}" for name in row))
            print(
                f"{model} k={k:<3}" + "".join(f"{value:>17.3f}" for value in row.values()),
                flush=True,
            )
            rows.append(row)
    return rows


if __name__ == "__main__":
    main()

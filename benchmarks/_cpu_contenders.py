"""gmmjax and its rivals on a CPU, each as a contender for `_contest`: same rows, same starts, same steps.

A mixture's start is a mean at a row, unit covariances and equal weights; K-means' are rows as centres. The
parameters returned are (weights, means, covariances) or centres, of the best start where there are many.
"""

import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np

from benchmarks._contest import Run, Skip, clock, need

SCORED = 2**16
"""Rows that the common yardstick looks at."""


@dataclass(frozen=True)
class Work:
    """A problem in one dtype. `kind` is a covariance family, or "k-means"."""

    kind: str
    n: int
    d: int
    k: int
    restarts: int
    dtype: str

    @cached_property
    def x(self) -> np.ndarray:
        """Overlapping clusters, [n, d]."""
        rng = np.random.default_rng(0)
        centers = 2.5 * rng.normal(size=(self.k, self.d))
        x = rng.standard_normal((self.n, self.d), np.float32)
        x += centers.astype(np.float32)[rng.integers(0, self.k, self.n)]
        return x.astype(self.dtype)

    @cached_property
    def starts(self) -> np.ndarray:
        """Rows to start from, [restarts, k, d]."""
        rng = np.random.default_rng(1)
        rows = [rng.choice(self.n, self.k, replace=False) for _ in range(self.restarts)]
        return self.x[np.stack(rows)]

    @property
    def useful(self) -> float:
        """Floating-point operations of one step of one restart: two products, or one for K-means."""
        features = {"full": self.d * (self.d + 3) // 2, "diag": 2 * self.d}
        if self.kind == "k-means":
            return 2.0 * self.n * self.k * self.d
        return 4.0 * self.n * self.k * features[self.kind]

    def score(self, parameters: Any) -> float:
        """Mean log-likelihood (nats), or minus the inertia a row, in float64, of the first rows."""
        x = self.x[:SCORED].astype(np.float64)
        if self.kind == "k-means":
            c = np.asarray(parameters, np.float64)
            squares = (x * x).sum(1)[:, None] - 2 * x @ c.T + (c * c).sum(1)
            return -float(np.mean(np.maximum(squares.min(1), 0)))
        weights, means, covariances = (np.asarray(p, np.float64) for p in parameters)
        joint = np.empty((self.k, len(x)))
        for j in range(self.k):
            dense = np.diag(covariances[j]) if covariances[j].ndim == 1 else covariances[j]
            factor = np.linalg.cholesky(dense)
            y = np.linalg.solve(factor, (x - means[j]).T)
            half = np.log(np.diag(factor)).sum() + 0.5 * self.d * np.log(2 * np.pi)
            joint[j] = np.log(weights[j]) - half - 0.5 * (y * y).sum(0)
        top = joint.max(0)
        return float(np.mean(top + np.log(np.exp(joint - top).sum(0))))


def gmmjax(work: Work, threads: int) -> Run:
    """All starts in one program, its E-step in C++."""
    return _gmmjax(work, "native")


def gmmjax_xla(work: Work, threads: int) -> Run:
    """The same without the compiled steps, as it comes from the package index."""
    return _gmmjax(work, "xla")


def _gmmjax(work: Work, kernel: str) -> Run:
    import jax
    import jax.numpy as jnp

    from gmmjax import GaussianMixture, families, fit, kmeans

    data, (r, k, d) = jax.device_put(work.x), work.starts.shape
    key = jax.random.key(0)
    if work.kind == "k-means":
        # `tol` in float64 is one part in 10¹² of the variance: no step that changes a label is below it.
        tol = 0.0 if r == 1 else 1e-12

        def run(steps: int) -> tuple[float, Any]:
            options = {"init": work.starts, "tol": tol, "max_steps": steps, "throw": False}
            options["kernel"] = kernel
            return clock(lambda: np.asarray(kmeans(key, data, k, **options).centers))

        return run
    dense = jnp.broadcast_to(jnp.eye(d, dtype=data.dtype), (k, d, d))
    factors = families.get(work.kind).from_dense(dense)
    factors = jax.tree.map(lambda a: jnp.broadcast_to(a, (r, *a.shape)), factors)
    log_weights = jnp.full((r, k), -np.log(k), data.dtype)
    models = GaussianMixture(log_weights, jnp.asarray(work.starts), factors, work.kind)

    def run(steps: int) -> tuple[float, Any]:
        options = {"init": models, "tol": 0.0, "max_steps": steps, "accelerate": False}
        options["kernel"] = kernel
        seconds, result = clock(
            lambda: jax.block_until_ready(
                fit(key, data, k, family=work.kind, throw=False, **options)
            )
        )
        model = result.model
        return seconds, (np.exp(model.log_weights), model.means, model.covariances)

    return run


gmmjax.threads = gmmjax_xla.threads = (os.cpu_count(),)  # XLA's pool has one thread a core


def scikit_learn(work: Work, threads: int) -> Run:
    """Its steps start by start; of very many starts the first 50, and the time scaled to all."""
    need("sklearn")
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    some = work.starts[:50]
    eye = np.eye(work.d, dtype=work.dtype)
    eye = np.ones((work.k, work.d), work.dtype) if work.kind == "diag" else np.stack([eye] * work.k)

    def one(start: np.ndarray, steps: int) -> tuple[float, Any]:
        if work.kind == "k-means":
            peer = KMeans(work.k, init=start, n_init=1, tol=0, max_iter=steps, algorithm="lloyd")
            seconds, _ = clock(lambda: peer.fit(work.x))
            return seconds, (-peer.inertia_, peer.cluster_centers_)
        peer = GaussianMixture(
            work.k, covariance_type=work.kind, tol=0, max_iter=steps, reg_covar=1e-6,
            weights_init=np.full(work.k, 1 / work.k, work.dtype), means_init=start,
            precisions_init=eye, init_params="random_from_data",
        )  # fmt: skip
        seconds, _ = clock(lambda: peer.fit(work.x))
        return seconds, (peer.lower_bound_, (peer.weights_, peer.means_, peer.covariances_))

    def run(steps: int) -> tuple[float, Any]:
        with threadpool_limits(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fits = [one(start, steps) for start in some]
        seconds = sum(s for s, _ in fits) * work.restarts / len(some)
        return seconds, max((f for _, f in fits), key=lambda f: f[0])[1]

    return run


def onedal(work: Work, threads: int) -> Run:
    """Intel oneDAL by daal4py, a start after the other, its own threads within each."""
    one = _onedal(work, threads)

    def run(steps: int) -> tuple[float, Any]:
        seconds, fits = clock(lambda: [one(start, steps) for start in work.starts])
        return seconds, max(fits, key=lambda f: f[0])[1]

    return run


def onedal_pool(work: Work, threads: int) -> Run:
    """oneDAL with a fit on every core, in Python threads."""
    if work.restarts == 1:
        raise Skip("one start")
    one = _onedal(work, 1)

    def run(steps: int) -> tuple[float, Any]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            seconds, fits = clock(lambda: list(pool.map(lambda s: one(s, steps), work.starts)))
        return seconds, max(fits, key=lambda f: f[0])[1]

    return run


onedal_pool.threads = (os.cpu_count(),)


def _onedal(work: Work, threads: int) -> Callable[[np.ndarray, int], tuple[float, Any]]:
    """One fit from one start: its log-likelihood or minus its inertia, and its parameters."""
    daal = need("daal4py")
    daal.daalinit(threads)
    kind = "float" if work.dtype == "float32" else "double"
    weights = np.full((1, work.k), 1 / work.k, work.dtype)
    eye = np.eye(work.d, dtype=work.dtype)
    eye = eye if work.kind == "full" else np.ones((1, work.d), work.dtype)

    def one(start: np.ndarray, steps: int) -> tuple[float, Any]:
        if work.kind == "k-means":
            algorithm = daal.kmeans(
                work.k, maxIterations=steps, fptype=kind, accuracyThreshold=0.0, assignFlag=False
            )
            out = algorithm.compute(work.x, start)
            return -float(out.objectiveFunction[0, 0]), out.centroids
        algorithm = daal.em_gmm(
            work.k, fptype=kind, maxIterations=steps, accuracyThreshold=0.0,
            covarianceStorage={"full": "full", "diag": "diagonal"}[work.kind],
            regularizationFactor=1e-6,
        )  # fmt: skip
        try:
            out = algorithm.compute(work.x, weights, start, [eye] * work.k)
        except RuntimeError:  # an ill-conditioned covariance ends this start
            return -np.inf, None
        covariances = [c if work.kind == "full" else c.ravel() for c in out.covariances]
        parameters = out.weights.ravel(), out.means, np.stack(covariances)
        return float(out.goalFunction[0, 0]), parameters

    return one


def faiss(work: Work, threads: int) -> Run:
    """faiss-cpu's K-means on all rows, float32."""
    library = need("faiss")
    if work.kind != "k-means" or work.dtype != "float32":
        raise Skip("K-means in float32 only")
    library.omp_set_num_threads(threads)

    def one(start: np.ndarray, steps: int) -> tuple[float, Any]:
        peer = library.Kmeans(
            work.d, work.k, niter=steps, max_points_per_centroid=work.n, min_points_per_centroid=1
        )
        peer.train(work.x, init_centroids=start)
        return -float(peer.obj[-1]), peer.centroids

    def run(steps: int) -> tuple[float, Any]:
        seconds, fits = clock(lambda: [one(start, steps) for start in work.starts])
        return seconds, max(fits, key=lambda f: f[0])[1]

    return run


def superkmeans(work: Work, threads: int) -> Run:
    """superkmeans on all rows, float32; it draws its own starts, so that its score is another's."""
    library = need("superkmeans")
    if work.kind != "k-means" or work.dtype != "float32":
        raise Skip("K-means in float32 only")
    if work.restarts > 1:
        raise Skip("takes no given start, and has no restarts")

    def run(steps: int) -> tuple[float, Any]:
        peer = library.SuperKMeans(
            work.k, work.d, hierarchical=False, iters=steps, sampling_fraction=1.0,
            max_points_per_cluster=work.n, n_threads=threads, early_termination=False,
        )  # fmt: skip
        return clock(lambda: peer.train(work.x))

    return run


def armadillo(work: Work, threads: int) -> Run:
    """Armadillo by a small C++ program, compiled here with OpenMP."""
    if which("g++") is None:
        raise Skip("no C++ compiler (g++)")
    folder = Path(tempfile.mkdtemp())
    source = Path(__file__).with_name("armadillo.cpp")
    program = folder / "armadillo"
    flags = ["-O3", "-march=native", "-fopenmp", "-std=c++17", "-DARMA_NO_DEBUG"]
    command = ["g++", *flags, str(source), "-o", str(program), "-larmadillo"]
    if subprocess.run(command, capture_output=True).returncode:
        raise Skip("armadillo.cpp does not compile: is libarmadillo-dev there?")
    kind = "f32" if work.dtype == "float32" else "f64"
    return _outside(work, folder, [str(program)], [work.kind, kind], work.dtype, threads)


def mclust(work: Work, threads: int) -> Run:
    """R's mclust, float64."""
    if which("Rscript") is None:
        raise Skip("no R (Rscript)")
    if work.kind == "k-means" or work.dtype != "float64":
        raise Skip("mixtures in float64 only")
    if work.n * work.k * work.d**2 > 2**30:
        raise Skip("its E-step takes minutes at this size")
    if work.restarts > 100:
        raise Skip("hundreds of starts one by one take minutes")
    program = ["Rscript", str(Path(__file__).with_name("mclust.R"))]
    model = {"full": "VVV", "diag": "VVI"}[work.kind]
    return _outside(work, Path(tempfile.mkdtemp()), program, [model], "float64", threads)


mclust.threads = (1,)


def _outside(
    work: Work, folder: Path, program: list[str], kind: list[str], dtype: str, threads: int
) -> Run:
    """A program that reads rows and starts from a file, times itself, and writes its parameters."""
    file = folder / "work"
    with open(file, "wb") as out:
        work.x.astype(dtype).tofile(out)
        work.starts.astype(dtype).tofile(out)
    sizes = [str(s) for s in (work.n, work.d, work.k, work.restarts)]
    k, d = work.k, work.d

    def run(steps: int) -> tuple[float, Any]:
        command = [*program, str(file), *kind, *sizes, str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        raw = Path(f"{file}.out").read_bytes()
        seconds = float(np.frombuffer(raw[:8], np.float64)[0])
        values = np.frombuffer(raw[8:], dtype)
        if work.kind == "k-means":
            return seconds, values.reshape(k, d)
        weights, means = values[:k], values[k : k + k * d].reshape(k, d)
        rest = values[k + k * d :]
        return seconds, (weights, means, rest.reshape(k, d, -1).squeeze(-1) if len(rest) == k * d
                         else rest.reshape(k, d, d))  # fmt: skip

    return run


CONTENDERS = {
    "gmmjax": gmmjax, "gmmjax, XLA": gmmjax_xla, "oneDAL": onedal, "oneDAL, pool": onedal_pool,
    "scikit-learn": scikit_learn, "faiss": faiss, "superkmeans": superkmeans,
    "Armadillo": armadillo, "mclust": mclust,
}  # fmt: skip

"""One EM or Lloyd step on a GPU, cases A to I, against plain XLA, a blocked torch baseline and the peers.

Every rival is an adapter that skips with a reason where it cannot run. Each is timed warm and blocked,
over several steps from the same parameters, in turn with the others. The table has medians, the error
of the mean log-likelihood (or the relative error of the inertia) against float64, and the share of the
machine's limit: a large TF32 product measured in the same run. scikit-learn's array API wants
SCIPY_ARRAY_API=1 in the environment.
"""

import argparse
import copy
import fcntl
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Case:
    """`shared`: the lanes are restarts over the same rows; else each has rows of its own."""

    family: str  # or "k-means"
    n: int
    d: int
    k: int
    lanes: int = 1
    shared: bool = True
    bar_high: float | None = None  # milliseconds
    bar_tf32: float | None = None


CASES = {
    "A": Case("full", 2**20, 16, 32, bar_high=1.0, bar_tf32=0.6),
    "B": Case("full", 2**20, 16, 32, lanes=16, bar_high=6.5, bar_tf32=4.0),
    "C": Case("full", 2**17, 64, 64, bar_high=1.8, bar_tf32=1.0),
    "D": Case("full", 2**13, 4, 8, lanes=1024, shared=False, bar_high=0.5, bar_tf32=0.4),
    "E": Case("diag", 2**20, 128, 1024, bar_high=13.0, bar_tf32=6.0),
    "F": Case("spherical", 2**20, 128, 1024, bar_high=10.0, bar_tf32=5.0),
    "G": Case("k-means", 2**20, 32, 256, bar_tf32=0.6),
    "H": Case("k-means", 2**20, 128, 1024, bar_tf32=1.3),
    "I": Case("k-means", 2**16, 64, 256, lanes=32, shared=False, bar_tf32=0.9),
}
SAMPLE = 2**12
"""Rows of a piece of the float64 check."""


class Skip(Exception):
    """Why a rival does not run a case."""


def problem(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Rows [problems, n, d] and starting means [lanes, k, d], float32."""
    rng = np.random.default_rng(0)
    centers = 1.5 * rng.normal(size=(case.k, case.d))
    problems = 1 if case.shared else case.lanes
    x = np.empty((problems, case.n, case.d), np.float32)
    for rows in x:
        z = rng.integers(0, case.k, case.n)
        rows[:] = centers[z] + rng.standard_normal((case.n, case.d), np.float32)
    pick = [rng.choice(case.n, case.k, replace=False) for _ in range(case.lanes)]
    means = np.stack([x[0 if case.shared else i][at] for i, at in enumerate(pick)])
    return x, means


Steps = Callable[[int], tuple[float, float]]
"""So many steps, each from the start, to their end: the seconds a step, and the mean log-likelihood (or
minus the inertia a row) of lane 0 there, NaN where it is not told."""


def clocked(step: Callable[[], object], wait: Callable[[object], float]) -> Steps:
    """Steps that are queued one after the other and waited for once: launches stay off the clock."""

    def run(count: int) -> tuple[float, float]:
        begin = time.perf_counter()
        for _ in range(count):
            last = step()
        value = wait(last)
        return (time.perf_counter() - begin) / count, value

    return run


def by_difference(fit: Callable[[int], None]) -> Steps:
    """For a rival that cannot be cut to a step: a longer fit less a shorter one."""

    def run(count: int) -> tuple[float, float]:
        ends = []
        for steps in (2, 2 + count):
            begin = time.perf_counter()
            fit(steps)
            ends.append(time.perf_counter() - begin)
        return (ends[1] - ends[0]) / count, float("nan")

    return run


def our_start(case: Case, mu):
    """The mixture of a case that starts at means [k, d]: equal weights, unit covariances."""
    import jax.numpy as jnp

    from gmmjax import GaussianMixture, families

    eye = jnp.broadcast_to(jnp.eye(case.d, dtype=mu.dtype), (case.k, case.d, case.d))
    factors = families.get(case.family).from_dense(eye)
    return GaussianMixture(jnp.full(case.k, -np.log(case.k), mu.dtype), mu, factors, case.family)


def our_step(case: Case, kernel: str, precision: str) -> Callable:
    """The E-step and the M-step of all lanes, by a kernel or by plain XLA in blocks; jitted."""
    import jax
    import jax.numpy as jnp

    from gmmjax import blocks, families, kernels
    from gmmjax.backend import Choice, rows_a_block
    from gmmjax.em import expect
    from gmmjax.kmeans import Assignment, KMeans

    weights = jnp.ones(case.n, jnp.float32)

    def collect(model, rows):
        if kernel == "xla":
            kind = families.get(case.family).second if case.family != "k-means" else None
            block = rows_a_block(case.d, case.k, kind, rows.dtype, case.lanes) if kind else 2**15
            how = Choice("xla", precision)
            return expect(model, blocks.split(rows, weights, min(block, case.n), how=how))
        if case.family == "k-means":
            *found, inertia = kernels.assign(
                model.centers, rows, weights, room=8, precision=precision
            )
            return Assignment(*found), -inertia
        return kernels.expect(model.prepare(), rows, weights, precision=precision)

    def one(mu, rows):
        model = KMeans(mu) if case.family == "k-means" else our_start(case, mu)
        sums, value = collect(model, rows)
        new, _ = model.maximize(sums)
        return value, new

    return jax.jit(jax.vmap(one, (0, None if case.shared else 0)))


def ours(case: Case, x: np.ndarray, means: np.ndarray, kernel: str, precision: str) -> Steps:
    """Steps of ours."""
    import jax

    data, start = jax.device_put(x[0] if case.shared else x), jax.device_put(means)
    step = our_step(case, kernel, precision)

    def wait(last) -> float:
        value, _ = jax.block_until_ready(last)
        return float(value[0]) / case.n

    run = clocked(lambda: step(start, data), wait)
    run(1)  # a launch that does not fit shows here
    return run


def our_m_step(case: Case, means: np.ndarray) -> Steps:
    """What a step takes beside its sums: the new parameters, and the next E-step's coefficients."""
    import jax
    import jax.numpy as jnp

    from gmmjax import families, moments

    second, (k, d), n = families.get(case.family).second, (case.k, case.d), case.n / case.k

    def one(mu):
        eye = jnp.broadcast_to(jnp.eye(d), (k, d, d))
        square = {"full": eye, "diag": jnp.ones((k, d)), "trace": jnp.full(k, float(d))}
        sums = moments.Moments(mu, jnp.full(k, n), 0.0 * mu, n * square[second.shape_kind], second)
        new, _ = our_start(case, mu).maximize(sums)
        return new.prepare()

    step, start = jax.jit(jax.vmap(one)), jax.device_put(means)

    def wait(last) -> float:
        jax.block_until_ready(last)
        return float("nan")

    run = clocked(lambda: step(start), wait)
    run(1)
    return run


def our_driver(case: Case, x: np.ndarray, means: np.ndarray, kernel: str, precision: str) -> Steps:
    """A step of `fit` (or `kmeans`) itself, in its loop and with its tests of convergence."""
    import jax

    from gmmjax import fit, kmeans

    key = jax.random.key(0)
    data, start = jax.device_put(x[0] if case.shared else x), jax.device_put(means)
    options = {"tol": 0.0, "kernel": kernel, "precision": precision, "throw": False}

    def of_rows(data, start, steps):
        if case.family == "k-means":
            return kmeans(key, data, case.k, init=start, max_steps=steps, **options).centers
        models = jax.vmap(lambda mu: our_start(case, mu))(start)
        return fit(
            key, data, case.k, init=models, max_steps=steps,
            family=case.family, accelerate=False, **options,
        ).log_likelihood  # fmt: skip

    run = of_rows
    if not case.shared:  # a fit a lane, in one program
        one = jax.vmap(lambda rows, mu, steps: of_rows(rows, mu[None], steps), (0, 0, None))
        run = jax.jit(one)

    def fits(steps: int) -> None:
        jax.block_until_ready(run(data, start, steps))

    fits(1)
    return by_difference(fits)


def torch_blocked(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Steps:
    """The honest baseline: the same sums by two products a block, in torch, compiled."""
    torch = _torch()
    if case.lanes > 1:
        raise Skip("runs one lane; multiply the one-lane case")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    data, mu = torch.tensor(x[0], device="cuda"), torch.tensor(means[0], device="cuda")
    a, b = np.triu_indices(case.d)
    square = np.where(a == b, -0.5, 0.0) if case.family == "full" else np.full(case.d, -0.5)
    square = torch.tensor(square, dtype=mu.dtype, device="cuda")
    coefficients = torch.cat([mu.T, square[:, None].expand(-1, case.k)], 0)
    constant = -0.5 * (mu * mu).sum(1) - np.log(case.k) - 0.5 * case.d * np.log(2 * np.pi)
    size = 2**17

    def block(rows):
        if case.family == "k-means":
            score = 0.5 * (mu * mu).sum(1) - rows @ mu.T
            label = score.argmin(1)
            sums = torch.zeros_like(mu).index_add_(0, label, rows)
            return ((rows - mu[label]) ** 2).sum(), sums
        second = rows[:, a] * rows[:, b] if case.family == "full" else rows * rows
        phi = torch.cat([rows, second], 1)
        joint = phi @ coefficients + constant
        norm = torch.logsumexp(joint, 1)
        return norm.sum(), torch.exp(joint - norm[:, None]).T @ phi

    compiled = torch.compile(block)

    def step():
        parts = [compiled(rows) for rows in data.split(size)]
        return sum(v for v, _ in parts), sum(s for _, s in parts)

    def wait(last) -> float:
        torch.cuda.synchronize()
        return float(last[0]) / case.n

    run = clocked(step, wait)
    run(1)
    return run


def torchgmm(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Steps:
    """torchgmm's trainer from the given means (its own covariances), by difference."""
    torch = _torch()
    _need("torchgmm")
    from torchgmm.bayes import GaussianMixture

    if case.family == "k-means" or case.lanes > 1:
        raise Skip("one mixture at a time")
    if case.n * case.k * case.d * case.d > 2**35:
        raise Skip("its E-step writes differences of n · k · d numbers, more than the memory")
    data, mu = torch.tensor(x[0]), torch.tensor(means[0])
    quiet = {"accelerator": "gpu", "devices": 1, "enable_progress_bar": False,
             "logger": False, "enable_checkpointing": False, "enable_model_summary": False}  # fmt: skip

    def fit(steps: int) -> None:
        GaussianMixture(
            case.k, covariance_type=case.family, init_means=mu, convergence_tolerance=0,
            trainer_params={**quiet, "max_epochs": steps},
        ).fit(data)  # fmt: skip

    fit(1)
    return by_difference(fit)


def pomegranate(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Steps:
    """pomegranate's `summarize` and `from_summaries`: one EM step."""
    torch = _torch()
    _need("pomegranate")
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    if case.family not in ("full", "diag") or case.lanes > 1:
        raise Skip("one full or diagonal mixture at a time")
    kind = case.family
    eye = torch.eye(case.d) if kind == "full" else torch.ones(case.d)
    data = torch.tensor(x[0], device="cuda")
    parts = [Normal(torch.tensor(m), eye.clone(), covariance_type=kind) for m in means[0]]
    start = GeneralMixtureModel(parts).cuda()

    def step():
        model = copy.deepcopy(start)
        value = sum(model.summarize(rows).sum() for rows in data.split(2**15))
        model.from_summaries()
        return value

    def wait(last) -> float:
        torch.cuda.synchronize()
        return float(last) / case.n

    run = clocked(step, wait)
    run(1)
    return run


def gmmx(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Steps:
    """gmmx's E-step and M-step."""
    _need("gmmx")
    import jax
    import jax.numpy as jnp
    from gmmx import EMFitter, GaussianMixtureModelJax

    if case.family != "full" or case.lanes > 1:
        raise Skip("full covariances, one mixture at a time")
    model = GaussianMixtureModelJax.from_squeezed(
        means=jnp.asarray(means[0]),
        covariances=jnp.broadcast_to(jnp.eye(case.d), (case.k, case.d, case.d)),
        weights=jnp.full(case.k, 1 / case.k),
    )
    fitter, data = EMFitter(), jax.device_put(x[0])

    @jax.jit
    def step(rows, model):
        value, resp = fitter.e_step(rows, model)
        return value, fitter.m_step(rows, model, resp)

    run = clocked(lambda: step(data, model), lambda last: float(jax.block_until_ready(last)[0]))
    run(1)
    return run


def gmm_gpu(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Steps:
    """gmm-gpu's fit of a batch of problems, by difference."""
    torch = _torch()
    _need("gmm_gpu")
    from gmm_gpu.gmm import GMM

    if case.family != "full" or (case.shared and case.lanes > 1):
        raise Skip("batches of full mixtures, each of its own rows")
    data, mu = torch.tensor(x, device="cuda"), torch.tensor(means, device="cuda")
    weights = torch.full(mu.shape[:2], 1 / case.k, device="cuda")
    eye = torch.eye(case.d, device="cuda").expand(*mu.shape, case.d).contiguous()

    def fit(steps: int) -> None:
        GMM(
            case.k, max_iter=steps, device="cuda", tol=-1.0, means_init=mu.clone(),
            weights_init=weights.clone(), precisions_init=eye.clone(), random_seed=1,
        ).fit(data)  # fmt: skip
        torch.cuda.synchronize()

    fit(1)
    return by_difference(fit)


def scikit_learn(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Steps:
    """scikit-learn's steps over its array API, on torch."""
    torch = _torch()
    _need("sklearn")
    import sklearn
    from sklearn.mixture import GaussianMixture

    if case.family == "k-means" or case.lanes > 1:
        raise Skip("K-means has no array API; one mixture at a time")
    if case.n * case.k * case.d > 2**36:
        raise Skip("too long")
    data = torch.tensor(x[0], device="cuda")
    model = GaussianMixture(case.k, covariance_type=case.family)

    def tensor(a) -> object:
        return torch.tensor(np.asarray(a, np.float32), device="cuda")

    ones = {"full": np.broadcast_to(np.eye(case.d), (case.k, case.d, case.d)).copy(),
            "diag": np.ones((case.k, case.d)), "spherical": np.ones(case.k)}  # fmt: skip

    def step():
        model.weights_, model.means_ = tensor(np.full(case.k, 1 / case.k)), tensor(means[0])
        model.precisions_cholesky_ = tensor(ones[case.family])
        with sklearn.config_context(array_api_dispatch=True):
            value, log_resp = model._e_step(data)
            model._m_step(data, log_resp)
        return value

    def wait(last) -> float:
        torch.cuda.synchronize()
        return float(last)

    run = clocked(step, wait)
    run(1)
    return run


def flash_kmeans(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Steps:
    """flash-kmeans, one Lloyd iteration from the given centres. It reports no inertia."""
    if case.family != "k-means":
        raise Skip("K-means only")
    torch = _torch()
    _need("flash_kmeans")
    from flash_kmeans import batch_kmeans_Euclid

    data, mu = torch.tensor(x, device="cuda"), torch.tensor(means, device="cuda")

    def fit(steps: int) -> None:
        _, centers, _ = batch_kmeans_Euclid(
            data, n_clusters=case.k, max_iters=steps, tol=-1.0, init_centroids=mu
        )
        torch.cuda.synchronize()
        assert bool(torch.isfinite(centers).all())

    fit(1)
    return by_difference(fit)


def _need(module: str):
    if importlib.util.find_spec(module) is None:
        raise Skip(f"{module} is not installed")
    return importlib.import_module(module)


def _torch():
    torch = _need("torch")
    if not torch.cuda.is_available():
        raise Skip("torch sees no GPU")
    return torch


RIVALS = {
    "blocked torch": torch_blocked, "gmmx": gmmx, "torchgmm": torchgmm, "pomegranate": pomegranate,
    "gmm-gpu": gmm_gpu, "scikit-learn on torch": scikit_learn, "flash-kmeans": flash_kmeans,
}  # fmt: skip


def reference(case: Case, x: np.ndarray, means: np.ndarray) -> float:
    """The mean log-likelihood of lane 0, or minus the inertia a row, in float64, in pieces of the rows."""
    mu = means[0].astype(np.float64)
    half = 0.5 * np.sum(mu * mu, axis=1)
    total = 0.0
    for rows in np.array_split(x[0], -(-case.n // SAMPLE)):
        rows = rows.astype(np.float64)
        score = rows @ mu.T - half
        square = np.sum(rows * rows, axis=1)
        top = np.max(score, axis=1)
        if case.family == "k-means":
            total -= np.sum(square - 2 * top)
        else:
            norm = top + np.log(np.sum(np.exp(score - top[:, None]), axis=1))
            constant = np.log(case.k) + 0.5 * case.d * np.log(2 * np.pi)
            total += np.sum(norm - 0.5 * square - constant)
    return float(total) / case.n


def limit() -> float:
    """TF/s of a large TF32 product on this GPU."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.float32)
    dot = jax.jit(lambda a: jnp.dot(a, a, precision=jax.lax.DotAlgorithmPreset.TF32_TF32_F32))
    dot(a).block_until_ready()
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        dot(a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * 8192**3 / statistics.median(times) / 1e12


def useful(case: Case) -> float:
    """Floating-point operations of one step: the two products, once, in one part."""
    features = {"full": case.d * (case.d + 3) // 2, "diag": 2 * case.d}.get(case.family, case.d)
    return 4.0 * case.n * case.k * features * case.lanes


def timed(runs: dict[str, Steps], repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds a step and the last value of each, in turn; slow ones are asked for less."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    seconds, values = {}, {}
    for name, run in runs.items():
        run(1)
        seconds[name], values[name] = run(2)
    for _ in range(repeats):
        for name, run in runs.items():
            if sum(times[name]) < 0.5:
                count = max(1, min(20, int(0.02 / max(seconds[name], 1e-4))))
                each, values[name] = run(count)
                times[name] += [each] * (count if each > 0.1 else 1)
    return {name: (1e3 * statistics.median(t), values[name]) for name, t in times.items()}


@contextmanager
def alone_on_the_gpu() -> Iterator[None]:
    """Processes of this script that run side by side compile together and take turns on the GPU."""
    with open(Path(tempfile.gettempdir()) / "gmmjax-gpu.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bench(name: str, repeats: int, rivals: dict) -> list[dict]:
    """All contenders of one case."""
    case = CASES[name]
    x, means = problem(case)
    truth = reference(case, x, means)
    contenders: dict[str, Callable[[], Steps]] = {}
    for kernel, precision in product(("pallas", "xla"), ("high", "tf32")):
        contenders[f"gmmjax {kernel} {precision}"] = lambda k=kernel, p=precision: ours(
            case, x, means, k, p
        )
        contenders[f"gmmjax fit {kernel} {precision}"] = lambda k=kernel, p=precision: our_driver(
            case, x, means, k, p
        )
    if case.family != "k-means":
        contenders["gmmjax M-step alone"] = lambda: our_m_step(case, means)
    for rival, adapter in rivals.items():
        contenders[rival] = lambda a=adapter: a(case, x, means, "tf32")

    def prepared(make: Callable[[], Steps]) -> Steps | Exception:
        try:
            return make()
        except Exception as error:  # one that does not run leaves the other rows wanted
            return error

    own = [label for label in contenders if label.startswith("gmmjax")]
    with ThreadPoolExecutor(len(own)) as pool:  # they compile side by side
        made = dict(zip(own, pool.map(lambda label: prepared(contenders[label]), own), strict=True))
    made |= {label: prepared(make) for label, make in contenders.items() if label not in own}
    runs, rows = {}, []
    for label, run in made.items():
        if not isinstance(run, Exception):
            runs[label] = run
            continue
        told = str(run).strip().splitlines() or [""]
        reason = told[0] if isinstance(run, Skip) else f"{type(run).__name__}: {told[0]}"
        rows.append({"case": name, "contender": label, "skipped": reason})
        print(f"{name}  {label:<26} skipped: {reason[:150]}", flush=True)
    with alone_on_the_gpu():
        peak = limit()
        times = timed(runs, repeats)
    for label, (ms, value) in times.items():
        bar = case.bar_tf32 if label.endswith("tf32") else case.bar_high
        error = value - truth
        error = error / abs(truth) if case.family == "k-means" else error
        share = useful(case) / (ms * 1e-3) / 1e12 / peak
        rows.append(
            {
                "case": name,
                "contender": label,
                "ms": ms,
                "bar": bar,
                "error": error,
                "share": share,
                "peak": peak,
            }
        )
        print(
            f"{name}  {label:<26} {ms:9.3f} ms  bar {bar or '-':>5}  error {error:+.1e}  "
            f"{share:5.1%} of {peak:.0f} TF/s",
            flush=True,
        )
    return rows


TRIED = {  # what `tune` tries of each kernel, beside the tile of the table
    "unrolled": {"rows": (64, 128), "warps": (2, 4), "programs": (2, 3, 4, 6, 8)},
    "resident": {
        "rows": (32, 64, 128), "lanes": (1, 2, 4), "warps": (4, 8), "programs": (66, 132, 264, 396),
    },
    "onepass": {
        "rows": (64, 128), "features": (32, 64, 128), "warps": (4, 8), "programs": (132, 264, 396),
    },
    "twopass": {"rows": (64, 128), "components": (64, 128), "warps": (4, 8), "programs": (16, 66)},
    "nearest": {
        "rows": (64, 128, 256), "components": (64, 128), "warps": (4, 8),
        "programs": (132, 264, 528),
    },
}  # fmt: skip


def tune(name: str, repeats: int, precision: str, compiling: float) -> None:
    """Candidate tiles of the kernels of one case, the fastest first, and what each changes in the value.

    Several cases can be tuned side by side.
    """
    import jax

    from gmmjax import kernels
    from gmmjax.kernels import tiles

    case, plain = CASES[name], tiles.of
    x, means = problem(case)
    data, start = jax.device_put(x[0] if case.shared else x), jax.device_put(means)
    kernel = "nearest"
    if case.family != "k-means":
        kernel = kernels.choose(case.family, case.k, case.d)
    sides = TRIED[kernel]
    candidates = [dict(zip(sides, values, strict=True)) for values in product(*sides.values())]
    shared = case.lanes if case.shared else 1
    candidates = [c for c in candidates if c.get("lanes", 1) <= shared]
    np.random.default_rng(0).shuffle(candidates)
    candidates, begin = [{}, *candidates], time.perf_counter()

    def lowered(changes: dict):
        jax.clear_caches()
        tiles.of = lambda kernel, size, n: replace(plain(kernel, size, n), **changes)
        return our_step(case, "pallas", precision).lower(start, data)

    def compiled(task) -> object:
        try:
            if time.perf_counter() - begin > compiling:
                raise TimeoutError
            return task.compile()
        except Exception as error:
            return error

    with ThreadPoolExecutor(3) as pool:
        tasks = []
        for changes in candidates:
            if time.perf_counter() - begin < compiling:
                tasks.append(pool.submit(compiled, lowered(changes)))
        candidates = candidates[: len(tasks)]
        tiles.of = plain
        steps = [task.result() for task in tasks]
    results, refused = [], 0
    with alone_on_the_gpu():
        for changes, step in zip(candidates, steps, strict=True):
            if isinstance(step, Exception):
                refused += 1
                continue

            def wait(last) -> float:
                return float(jax.block_until_ready(last)[0][0]) / case.n

            try:
                run = clocked(lambda step=step: step(start, data), wait)
                run(1)
                each, value = run(3)
                if not results or each < 1.5 * min(r[0] for r in results):
                    each, value = min(run(5) for _ in range(repeats))
                results.append((each, value, changes))
            except Exception:
                refused += 1
    truth = results[0][1]
    print(f"{name} {precision}: {len(results)} tiles ran, {refused} do not fit", flush=True)
    ranked = sorted(results, key=lambda r: r[0])
    for each, value, changes in [results[0], *ranked[:6]]:
        print(f"{name}  {1e3 * each:8.3f} ms  {value - truth:+.1e}  {changes}", flush=True)


def main() -> int:
    """Print a line a contender, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only these")
    parser.add_argument("--repeats", type=int, default=20, help="counted steps (default 20)")
    parser.add_argument("--tune", choices=CASES, help="time candidate tiles of this case instead")
    parser.add_argument("--precision", default="high", help="of --tune (default high)")
    parser.add_argument(
        "--compiling", type=float, default=90,
        help="seconds of --tune's compilation; candidates, in random order, that come later are left out",
    )  # fmt: skip
    parser.add_argument("--rival", choices=RIVALS, nargs="*", help="only these; none: ours alone")
    parser.add_argument("--json", help="a file for the results")
    arguments = parser.parse_args()
    import jax

    if jax.default_backend() != "gpu":
        print("no GPU: JAX's backend here is", jax.default_backend(), "- nothing was measured")
        return 1
    print(jax.devices()[0].device_kind, "jax", jax.__version__)
    if arguments.tune:
        tune(arguments.tune, min(arguments.repeats, 5), arguments.precision, arguments.compiling)
        return 0
    rivals = RIVALS if arguments.rival is None else {r: RIVALS[r] for r in arguments.rival}
    results = [row for c in arguments.case or CASES for row in bench(c, arguments.repeats, rivals)]
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"device": jax.devices()[0].device_kind, "rows": results},
                file,
                indent=1,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

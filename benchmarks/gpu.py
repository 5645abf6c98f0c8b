"""One EM or Lloyd step on a GPU, cases A to I, against plain XLA, a blocked torch baseline and the peers.

Every rival is an adapter that skips with a reason where it cannot run. Each is timed warm and blocked,
over several steps from the same parameters, in turn with the others. The table has medians, the error
of the mean log-likelihood (or the relative error of the inertia) against float64, and the share of the
machine's limit: a large TF32 product measured in the same run.
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

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


Step = Callable[[], float]
"""One step to its end; returns the mean log-likelihood (or minus the inertia a row) of lane 0."""


def ours(case: Case, x: np.ndarray, means: np.ndarray, kernel: str, precision: str) -> Step:
    """The E-step and the M-step of all lanes, by a kernel or by plain XLA in blocks."""
    import jax
    import jax.numpy as jnp

    from gmmjax import GaussianMixture, blocks, families, kernels
    from gmmjax.em import expect
    from gmmjax.kmeans import Assignment, KMeans

    data = jax.device_put(x[0] if case.shared else x)
    start = jax.device_put(means)
    weights = jnp.ones(case.n, jnp.float32)

    def collect(model, rows):
        if kernel == "xla":
            return expect(model, blocks.split(rows, weights, 2**14))
        if case.family == "k-means":
            *found, inertia = kernels.assign(
                model.centers, rows, weights, room=8, precision=precision
            )
            return Assignment(*found), -inertia
        return kernels.expect(model.prepare(), rows, weights, precision=precision)

    def one(mu, rows):
        if case.family == "k-means":
            model = KMeans(mu)
        else:
            family = families.get(case.family)
            eye = jnp.broadcast_to(jnp.eye(case.d, dtype=mu.dtype), (case.k, case.d, case.d))
            log_weights = jnp.full(case.k, -np.log(case.k), mu.dtype)
            model = GaussianMixture(log_weights, mu, family.from_dense(eye), case.family)
        sums, value = collect(model, rows)
        new, _ = model.maximize(sums)
        return value, new

    step = jax.jit(jax.vmap(one, (0, None if case.shared else 0)))
    try:
        jax.block_until_ready(step(start, data))
    except Exception as error:  # a launch that does not fit, say: the other rows are still wanted
        raise Skip(f"{type(error).__name__}: {str(error).splitlines()[0][:100]}") from error

    def run() -> float:
        value, new = step(start, data)
        jax.block_until_ready(new)
        return float(value[0]) / case.n

    return run


def torch_blocked(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Step:
    """The honest baseline: the same sums by two products a block, in torch, compiled."""
    torch = _need("torch")
    if not torch.cuda.is_available():
        raise Skip("torch sees no GPU")
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

    def run() -> float:
        parts = [compiled(rows) for rows in data.split(size)]
        value = sum(v for v, _ in parts)
        total = sum(s for _, s in parts)
        torch.cuda.synchronize()
        assert bool(torch.isfinite(total).all())
        return float(value) / case.n

    return run


def torchgmm(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Step:
    """torchgmm's trainer, a fixed number of epochs; its own initialisation is not timed."""
    _need("torchgmm")
    raise Skip(
        "its trainer takes no given start for one timed step: run its own script beside this one"
    )


def pomegranate(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Step:
    """pomegranate's `summarize` and `from_summaries`: one EM step."""
    _need("pomegranate")
    torch = _need("torch")
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    if case.family not in ("full", "diag") or case.lanes > 1:
        raise Skip("one full or diagonal mixture at a time")
    kind = case.family
    eye = torch.eye(case.d) if kind == "full" else torch.ones(case.d)
    data = torch.tensor(x[0], device="cuda")
    parts = [Normal(torch.tensor(m), eye.clone(), covariance_type=kind) for m in means[0]]
    model = GeneralMixtureModel(parts).cuda()

    def run() -> float:
        value = sum(float(model.summarize(rows).sum()) for rows in data.split(2**15))
        torch.cuda.synchronize()
        return value / case.n

    return run


def gmmx(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Step:
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

    def run() -> float:
        value, new = step(data, model)
        jax.block_until_ready(new)
        return float(value)

    return run


def gmm_gpu(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Step:
    """gmm-gpu fits batches of problems."""
    _need("gmm_gpu")
    raise Skip(
        "its fit draws its own start and cannot be cut to one step: run its own script beside this one"
    )


def flash_kmeans(case: Case, x: np.ndarray, means: np.ndarray, precision: str) -> Step:
    """flash-kmeans, one Lloyd iteration from the given centres."""
    if case.family != "k-means":
        raise Skip("K-means only")
    _need("flash_kmeans")
    torch = _need("torch")
    from flash_kmeans import batch_kmeans_Euclid

    data, mu = torch.tensor(x, device="cuda"), torch.tensor(means, device="cuda")

    def run() -> float:
        _, centers, _ = batch_kmeans_Euclid(
            data, n_clusters=case.k, max_iters=1, tol=-1.0, init_centroids=mu
        )
        torch.cuda.synchronize()
        assert bool(torch.isfinite(centers).all())
        return float("nan")  # it reports no inertia

    return run


def _need(module: str):
    if importlib.util.find_spec(module) is None:
        raise Skip(f"{module} is not installed")
    return importlib.import_module(module)


RIVALS = {
    "blocked torch": torch_blocked, "gmmx": gmmx, "torchgmm": torchgmm, "pomegranate": pomegranate,
    "gmm-gpu": gmm_gpu, "flash-kmeans": flash_kmeans,
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

    a = jnp.ones((8192, 8192), jnp.float32)
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


def timed(runs: dict[str, Step], repeats: int) -> dict[str, tuple[float, float]]:
    """Median milliseconds and the last value of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    values = {name: run() for name, run in runs.items()}  # warm
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            values[name] = run()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: (statistics.median(t), values[name]) for name, t in times.items()}


def bench(name: str, repeats: int, peak: float) -> list[dict]:
    """All contenders of one case."""
    case = CASES[name]
    x, means = problem(case)
    truth = reference(case, x, means)
    contenders: dict[str, Callable[[], Step]] = {}
    for kernel, precision in product(("pallas", "xla"), ("high", "tf32")):
        if (kernel, precision) != ("xla", "tf32"):
            contenders[f"gmmjax {kernel} {precision}"] = lambda k=kernel, p=precision: ours(
                case, x, means, k, p
            )
    for rival, adapter in RIVALS.items():
        contenders[rival] = lambda a=adapter: a(case, x, means, "tf32")
    runs, rows = {}, []
    for label, make in contenders.items():
        try:
            runs[label] = make()
        except Skip as reason:
            rows.append({"case": name, "contender": label, "skipped": str(reason)})
            print(f"{name}  {label:<22} skipped: {reason}", flush=True)
    for label, (ms, value) in timed(runs, repeats).items():
        bar = case.bar_tf32 if label.endswith("tf32") else case.bar_high
        error = value - truth
        error = error / abs(truth) if case.family == "k-means" else error
        share = useful(case) / (ms * 1e-3) / 1e12 / peak
        rows.append(
            {"case": name, "contender": label, "ms": ms, "bar": bar, "error": error, "share": share}
        )
        print(
            f"{name}  {label:<22} {ms:9.3f} ms  bar {bar or '-':>5}  error {error:+.1e}  "
            f"{share:5.1%} of {peak:.0f} TF/s",
            flush=True,
        )
    return rows


def tune(name: str, repeats: int) -> None:
    """Candidate tiles of the kernels of one case, the fastest first, each with its error."""
    from gmmjax.kernels import tiles

    case, plain = CASES[name], tiles.of
    x, means = problem(case)
    truth, results = reference(case, x, means), []
    sides = product((64, 128), (32, 64), (32, 64), (1, 2, 4), (4, 8), (1, 2), (132, 264, 528))
    for rows, components, features, lanes, warps, stages, programs in sides:
        if lanes > case.lanes:
            continue
        changes = {
            "rows": rows, "components": components, "features": features, "lanes": lanes,
            "warps": warps, "stages": stages, "programs": programs,
        }  # fmt: skip
        tiles.of = lambda kernel, size, n, c=changes: replace(plain(kernel, size, n), **c)
        try:
            import jax

            jax.clear_caches()
            run = ours(case, x, means, "pallas", "high")
            ((ms, value),) = timed({"": run}, repeats).values()
            results.append((ms, abs(abs(value) - abs(truth)), changes))
        except Skip:
            pass
        finally:
            tiles.of = plain
    for ms, error, changes in sorted(results, key=lambda r: r[0])[:10]:
        print(f"{name}  {ms:8.3f} ms  error {error:.1e}  {changes}", flush=True)


def main() -> int:
    """Print a line a contender, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, action="append", help="only these")
    parser.add_argument("--repeats", type=int, default=20, help="counted steps (default 20)")
    parser.add_argument("--tune", choices=CASES, help="time candidate tiles of this case instead")
    parser.add_argument("--json", help="a file for the results")
    arguments = parser.parse_args()
    import jax

    if jax.default_backend() != "gpu":
        print("no GPU: JAX's backend here is", jax.default_backend(), "- nothing was measured")
        return 1
    print(jax.devices()[0].device_kind, "jax", jax.__version__)
    if arguments.tune:
        tune(arguments.tune, arguments.repeats)
        return 0
    peak = limit()
    results = [row for c in arguments.case or CASES for row in bench(c, arguments.repeats, peak)]
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(
                {"device": jax.devices()[0].device_kind, "tf32": peak, "rows": results},
                file,
                indent=1,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

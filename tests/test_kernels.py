"""The Pallas kernels: interpreted against float64, lowered for CUDA, and on a GPU where there is one."""

import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest

from gmmjax import backend, expectation, families, kernels, moments
from gmmjax.backend import Choice
from gmmjax.blocks import split
from gmmjax.kernels import nearest, onepass, resident, tiles, twopass, unrolled
from gmmjax.kernels.arithmetic import parts, whole
from gmmjax.kernels.tiles import Tile
from gmmjax.kmeans import KMeans

pytestmark = pytest.mark.own_dtype

SMALL = {  # tiles that make small data odd: several programs, the last tile not full
    "unrolled": Tile(rows=16, programs=2),
    "resident": Tile(rows=16, lanes=2, programs=3),
    "onepass": Tile(rows=16, features=16, programs=3),
    "twopass": Tile(rows=16, components=16, programs=3),
    "nearest": Tile(rows=16, components=16, programs=3),
}


def as_on_a_gpu() -> AbstractContextManager:
    """From jax 0.11 on, Pallas lowers for a GPU only where it is told of one."""
    if jax.__version_info__ < (0, 11):
        return nullcontext()
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


HAS_GPU = any(d.platform == "gpu" for d in jax.devices())


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(tiles, "of", lambda kernel, size, n: SMALL[kernel.split()[0]])


def problem(n: int, d: int, k: int, family: str, dtype: type = np.float32):
    """A model, rows, and weights of which every seventh is 0."""
    with jax.enable_x64(True):
        x = problems.blobs(0, n, d, k) if d > 1 or n > 1 else np.zeros((n, d))
        model = problems.start(0, x, k, family)
        weights = np.random.default_rng(0).uniform(0, 2, n)
        weights[::7] = 0
        cast = partial(jnp.asarray, dtype=dtype)
        return jax.tree.map(cast, model), cast(x), cast(weights)


def exact(n: int, d: int, k: int, family: str):
    """By differences, in float64, then about the origin."""
    model, x, weights = problem(n, d, k, family, np.float64)
    with jax.enable_x64(True):
        joint = expectation.log_joint(model.log_weights, model.means, model.factors, x)
        top = jnp.max(joint, axis=0)
        log_prob = top + jnp.log(jnp.sum(jnp.exp(joint - top), axis=0))
        r = (jnp.exp(joint - log_prob) * weights).T
        kind = families.get(family).second
        sums = moments.from_responsibilities(x, r, jnp.zeros((k, d)), kind)
        return sums, jnp.sum(weights * log_prob), jnp.sum(weights)


def agree(found, expected, tolerance, of_sums=None):
    (sums, value), (want, log_likelihood, weight) = found, expected
    assert abs(float(value) - float(log_likelihood)) <= tolerance * float(weight)
    for name in ("weight", "first", "second"):
        a, b = np.asarray(getattr(sums, name)), np.asarray(getattr(want, name))
        assert a.shape == b.shape
        atol = (of_sums or tolerance) * np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


CASES = [
    ("full", 70, 2, 2, "unrolled", "high"),
    ("spherical", 37, 1, 1, "unrolled", "high"),
    ("full", 77, 1, 50, "resident", "high"),
    ("full", 131, 5, 20, "resident", "high"),
    ("full", 131, 5, 20, "resident", "tf32"),
    ("full", 70, 12, 3, "resident", "high"),
    ("diag", 131, 5, 20, "resident", "high"),
    ("spherical", 131, 5, 20, "resident", "tf32"),
    ("full", 131, 17, 40, "onepass", "high"),
    ("full", 131, 17, 40, "onepass", "tf32"),
    ("diag", 131, 40, 70, "twopass", "high"),
    ("diag", 131, 40, 70, "twopass", "tf32"),
    ("spherical", 131, 33, 130, "twopass", "high"),
    ("spherical", 131, 33, 130, "twopass", "tf32"),
]


@pytest.mark.parametrize(("family", "n", "d", "k", "kernel", "precision"), CASES)
def test_the_kernel_is_the_e_step(small, family, n, d, k, kernel, precision):
    assert kernels.choose(family, k, d) == kernel
    model, x, weights = problem(n, d, k, family)
    with jax.enable_x64(False):
        found = kernels.expect(model.prepare(), x, weights, precision=precision, interpret=True)
    if precision == "high":
        # A responsibility counts with 16 bits in the sums, see `arithmetic.RESPONSIBILITIES`.
        of_sums = 5e-6 if kernel == "unrolled" else 2.0**-17
        agree(found, exact(n, d, k, family), 5e-6, of_sums)
    else:
        agree(found, exact(n, d, k, family), 1e-3, of_sums=3e-4)


@pytest.mark.slow
def test_sixty_four_features(small, monkeypatch):
    monkeypatch.setitem(SMALL, "onepass", Tile(rows=64, features=64, programs=2))
    model, x, weights = problem(150, 64, 3, "full")
    with jax.enable_x64(False):
        found = kernels.expect(model.prepare(), x, weights, interpret=True)
    agree(found, exact(150, 64, 3, "full"), 1e-4)


def test_lanes_are_one_launch(small):
    """Three lanes in tiles of two, over the same rows; and problems of their own rows."""
    model, x, weights = problem(131, 5, 20, "full")
    scales = jnp.array([1.0, 1.5, 0.7], jnp.float32)
    with jax.enable_x64(False):
        lanes = jax.vmap(lambda s: model.affine(jnp.zeros(5, jnp.float32), s))(scales)
        run = partial(kernels.expect, interpret=True)
        one = jax.jit(lambda m, x, w: run(m.prepare(), x, w))
        both = jax.vmap(one, (0, None, None))
        assert str(jax.make_jaxpr(both)(lanes, x, weights)).count("pallas_call[") == 1
        together = both(lanes, x, weights)
        own = jnp.stack([x, x[::-1], x + 0.1])
        apart = jax.vmap(one, (0, 0, None))(lanes, own, weights)
        for i in range(3):
            lane = jax.tree.map(lambda a, i=i: a[i], lanes)
            for all_lanes, rows in ((together, x), (apart, own[i])):
                found = jax.tree.map(lambda a, i=i: a[i], all_lanes)
                want = expectation.by_features(lane.prepare(), rows, weights)
                agree(found, (*want, jnp.sum(weights)), 1e-5)


@pytest.mark.parametrize(
    ("lanes", "k", "expected"), [(1, 32, (1, 4, 264)), (2, 32, (2, 4, 264)), (3, 32, (4, 8, 66))]
)
def test_a_program_is_not_filled_up_with_copies(lanes, k, expected):
    """One model alone, or a `vmap` over one, took four times the work."""
    tile = tiles.of("resident high", k, 2**20)
    assert tile.lanes == 4
    found = resident._for_lanes(tile, lanes, k)
    assert (found.lanes, found.warps, found.programs) == expected
    shapes = shape(lanes, 20, 21), shape(131, 5), shape(131)  # twenty components fill up 32
    one = resident.for_one(FULL, tile, "high", interpret=True)
    text = str(jax.make_jaxpr(jax.vmap(one, (0, None, None)))(*shapes))
    assert f"f32[{found.programs},1,{found.lanes}]" in text  # the log-likelihoods


@pytest.mark.parametrize("precision", kernels.PRECISIONS)
def test_kmeans(small, precision):
    _, x, weights = problem(131, 5, 20, "diag")
    centers = x[3:23]
    with jax.enable_x64(False):
        weight, first, far, point, inertia = kernels.assign(
            centers, x, weights, room=8, precision=precision, interpret=True
        )
        want, minus = KMeans(centers).expect(x, weights)
    np.testing.assert_allclose(weight, want.weight, rtol=1e-5)
    np.testing.assert_allclose(first, want.first, atol=1e-4 if precision == "high" else 2e-2)
    np.testing.assert_allclose(inertia, -minus, rtol=1e-5)
    np.testing.assert_allclose(far[0], want.far_distance[0], rtol=1e-5)
    np.testing.assert_allclose(point[0], want.far_point[0])
    assert np.all(np.diff(far) <= 0)


def test_expectation_asks_for_the_kernel(small):
    """Blocks that name the kernel lower to it, and fall back where it cancels."""
    model, x, weights = problem(131, 5, 20, "full")

    def lowered(kernel: str) -> str:
        how = Choice(kernel, "high")
        step = jax.jit(lambda x: model.prepare().collect(split(x, weights, how=how)))
        return step.trace(x).lower(lowering_platforms=("cuda",)).as_text()

    def lowered_kmeans(kernel: str) -> str:
        how = Choice(kernel, "high")
        step = jax.jit(lambda x: KMeans(x[:9]).collect(split(x, weights, how=how)))
        return step.trace(x).lower(lowering_platforms=("cuda",)).as_text()

    with jax.enable_x64(False), as_on_a_gpu():
        for text in (lowered, lowered_kmeans):
            assert "triton" in text("pallas")
            assert "triton" not in text("xla")


def test_auto_takes_them_where_they_were_measured_faster(monkeypatch):
    n, float32 = 2**17, jnp.dtype("float32")

    def taken(n, d, k, family="full", dtype=float32, **options):
        return backend.choose(n, d, k, family, dtype, 1, **options).kernel

    assert taken(n, 4, 8) != "pallas"  # on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with monkeypatch.context() as another:
        another.setattr(backend, "MEASURED", ())
        assert taken(n, 4, 8) == "xla"
        assert backend.choose_for_kmeans(n, 16, 32, float32, 1).kernel == "xla"
        assert taken(n, 4, 8, kernel="pallas") == "pallas"
    monkeypatch.setattr(backend, "_measured_gpu", lambda: True)
    assert taken(n, 4, 8) == "pallas"
    assert taken(n, 4, 8, kernel="xla") == "xla"
    assert taken(2000, 4, 8) == "xla"
    assert taken(n, 4, 8, precision="highest") == "xla"
    assert taken(n, 4, 8, "tied") == "xla"
    assert taken(n, 4, 8, dtype=jnp.dtype("float64")) == "xla"
    for d, k in ((16, 32), (64, 64)):
        assert taken(n, d, k) == "xla"
        monkeypatch.setitem(kernels.FASTER, kernels.choose("full", k, d), ("tf32",))
        assert taken(n, d, k) == "xla"
        assert taken(n, d, k, precision="tf32") == "pallas"

    def taken_by_kmeans(n, d, **options):
        return backend.choose_for_kmeans(n, d, 32, float32, 1, **options).kernel

    assert taken_by_kmeans(n, 16) == "xla"
    assert taken_by_kmeans(n, 16, kernel="pallas") == "pallas"
    monkeypatch.setitem(kernels.FASTER, "nearest", kernels.PRECISIONS)
    assert taken_by_kmeans(n, 16) == "pallas"
    assert taken_by_kmeans(n, 200) == "xla"
    assert taken_by_kmeans(2000, 16) == "xla"
    assert taken_by_kmeans(n, 16, precision="highest") == "xla"


def test_parts():
    """Three hold a float32, two hold 16 bits of it, rounded to the nearest."""
    a = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    assert np.array_equal(whole(parts(jnp.asarray(a), "high")), a)
    b = np.asarray(whole(parts(jnp.asarray(a), "tf32")))
    assert np.all(np.abs(b - a) <= 2.0**-16 * np.abs(a))
    assert abs(np.mean((b - a) / a)) < 5e-7  # dropping the bits would give 4e-6


def test_what_no_kernel_serves():
    assert kernels.supports("diag", 1024, 128, jnp.float32) is True
    for arguments in (
        ("tied", 3, 2, "float32"), ("full", 3, 65, "float32"), ("diag", 3, 129, "float32"),
        ("full", 3, 2, "float64"),
    ):  # fmt: skip
        assert not kernels.supports(*arguments)
    model, x, weights = problem(37, 1, 1, "spherical")
    with pytest.raises(ValueError, match="precision: expected one of high, tf32"):
        kernels.expect(model.prepare(), x, weights, precision="highest")


def test_pallas_is_imported_only_when_asked_for():
    # JAX itself imports parts of it.
    names = "{'jax.experimental.pallas', 'gmmjax.kernels'}"
    code = f"import sys, gmmjax; assert not {names} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


FULL, DIAG, TRACE = moments.Second.FULL, moments.Second.DIAG, moments.Second.TRACE
MIXTURES = {  # the shapes of the benchmark: lanes, k, d, n, kind
    "A": (1, 32, 16, 2**20, FULL),
    "B": (16, 32, 16, 2**20, FULL),
    "C": (4, 64, 64, 2**17, FULL),
    "E": (1, 1024, 128, 2**20, DIAG),
    "F": (1, 1024, 128, 2**20, TRACE),
}


@pytest.mark.parametrize("precision", kernels.PRECISIONS)
@pytest.mark.parametrize("case", [*MIXTURES, "D", "G", "H", "I"])
def test_lowers_for_cuda(case, precision):
    """To Triton's IR, without a GPU: what Triton cannot express is refused here."""
    held = partial(kernels._held, precision=precision)
    if case in MIXTURES:
        lanes, k, d, n, kind = MIXTURES[case]
        arguments = shape(lanes, k, unrolled.width(d, kind)), shape(n, d), shape(n)
        if kernels.choose("full", k, d) == "resident" and kind is FULL:
            tile = tiles.of(f"resident {precision}", k, n)
            fn = partial(resident.sums, kind=kind, tile=tile, precision=precision)
        elif kind is FULL:
            tile = tiles.of("onepass", k, n)
            one = partial(onepass.sums, kind=kind, tile=tile, precision=precision)
            fn = jax.vmap(one, (0, None, None))
        else:
            tile = tiles.of("twopass", held(d), n)
            one = partial(twopass.sums, kind=kind, tile=tile, precision=precision)
            fn = jax.vmap(one, (0, None, None))
    elif case == "D":
        fn = jax.vmap(partial(unrolled.sums, kind=FULL, tile=tiles.of("unrolled", 0, 2**13)))
        arguments = shape(1024, 8, 15), shape(1024, 2**13, 4), shape(1024, 2**13)
    else:
        lanes, k, d, n = {
            "G": (1, 256, 32, 2**20),
            "H": (1, 1024, 128, 2**20),
            "I": (32, 256, 64, 2**16),
        }[case]
        fn = jax.vmap(
            partial(nearest.sums, tile=tiles.of("nearest", held(d), n), precision=precision)
        )
        arguments = shape(lanes, k, d), shape(lanes, n, d), shape(lanes, n)
    with jax.enable_x64(False), as_on_a_gpu():
        text = jax.jit(fn).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    assert "triton" in text


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here; the same kernels run in interpret mode above")
@pytest.mark.parametrize("precision", kernels.PRECISIONS)
@pytest.mark.parametrize(
    ("family", "n", "d", "k"),
    [("full", 5001, 3, 4), ("full", 5001, 16, 32), ("full", 5001, 64, 64), ("diag", 5001, 100, 300),
     ("spherical", 5001, 128, 70), ("full", 129, 1, 50)],
)  # fmt: skip
def test_on_a_gpu(family, n, d, k, precision):
    model, x, weights = problem(n, d, k, family)
    with jax.enable_x64(False):
        found = jax.jit(lambda m: kernels.expect(m.prepare(), x, weights, precision=precision))(
            model
        )
    if precision == "high":
        agree(found, exact(n, d, k, family), 1e-4)
    else:
        agree(found, exact(n, d, k, family), 1e-3, of_sums=5e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here; the same kernel runs in interpret mode above")
@pytest.mark.parametrize("precision", kernels.PRECISIONS)
@pytest.mark.parametrize(("n", "d", "k"), [(5001, 32, 256), (5001, 128, 300), (129, 1, 5)])
def test_kmeans_on_a_gpu(n, d, k, precision):
    """The sums are those of some nearest centre: their total is that of all rows, and the inertia's."""
    _, x, weights = problem(n, d, k, "diag")
    centers = x[:k]
    with jax.enable_x64(False):
        weight, first, far, _, inertia = jax.jit(
            lambda c: kernels.assign(c, x, weights, room=8, precision=precision)
        )(centers)
    rows, w, means = (np.asarray(a, np.float64) for a in (x, weights, centers))
    distance = np.sum(rows**2, 1)[:, None] - 2 * rows @ means.T + np.sum(means**2, 1)
    label = np.argmin(distance, axis=1)
    close = 1e-5 if precision == "high" else 1e-3
    np.testing.assert_allclose(inertia, np.sum(w * np.min(distance, axis=1)), rtol=close)
    np.testing.assert_allclose(np.sum(weight), w.sum(), rtol=1e-5)
    np.testing.assert_allclose(np.sum(first, axis=0), w @ rows, atol=1e-5 * np.abs(w @ rows).max())
    counts = np.bincount(label, w, k)
    wrong = np.sum(np.abs(np.asarray(weight) - counts)) / w.sum()
    assert wrong <= (1e-3 if precision == "high" else 2e-2)
    assert np.all(np.diff(np.asarray(far)) <= 0)

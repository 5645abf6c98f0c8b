"""The C++ steps for a CPU: the same functions as the plain ones, compiled here; and what goes wrong."""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import blobs, own_shape, rows, tolerance, x64

import gmmjax
from gmmjax import expectation, families, native
from gmmjax.backend import choose, choose_for_kmeans
from gmmjax.fit import _search as fit_program
from gmmjax.kmeans import KMeans

FOLDER = Path(__file__).resolve().parents[1] / ".pytest_cache" / "native"
ALL = ("full", "diag", "spherical", "tied", "EEI", "EII", "VEV")
SIZES = ((1, 1, 1), (7, 2, 3), (301, 4, 8), (1025, 8, 17), (4100, 3, 5), (777, 40, 9))


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Built once into pytest's cache, which the other tests do not see."""
    monkeypatch.setenv("GMMJAX_CACHE", str(FOLDER))
    try:
        native.build()
    except native.BuildError as error:
        if "found none" in str(error):
            pytest.skip("no C++ compiler on this machine")
        raise


def models(family, d, k, lanes=3, seed=0):
    """A batch of unlike mixtures near the origin, [lanes]."""
    rng = np.random.default_rng(seed)
    a = 0.3 * rng.normal(size=(lanes, k, d, d)) + np.eye(d)
    covariances = a @ np.swapaxes(a, -1, -2)
    factors = jax.vmap(lambda c: families.get(family).from_dense(c))(rows(covariances))
    weights = rows(np.log(rng.dirichlet(np.ones(k), lanes)))
    return gmmjax.GaussianMixture(weights, rows(rng.normal(size=(lanes, k, d))), factors, family)


def plain(prepared, x, weights):
    """What `collect` gives without native code."""
    return expectation.by_features(prepared, x, weights)


def compiled(prepared, x, weights):
    return prepared._native(x, weights)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_the_step_is_the_e_step(family, n, d, k):
    """Lanes over the same rows, weights of 0 among them, sizes that fill no tile."""
    rng = np.random.default_rng(1)
    x, w = rows(rng.normal(size=(n, d))), rows(rng.integers(0, 3, n) + (n == 1))
    m = models(family, d, k)

    def both(model):
        p = model.prepare()
        return plain(p, x, w), compiled(p, x, w)

    (expected, value), (found, mine) = jax.jit(jax.vmap(both))(m)
    tol = tolerance(1e-11, 1e-4)
    np.testing.assert_allclose(mine, value, rtol=tolerance(1e-12, 2e-5))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol * float(jnp.max(jnp.abs(b)) + 1e-3))


def test_lanes_with_rows_and_weights_of_their_own():
    """Every operand with a batch, none, or one of several, as nested `vmap`s make them."""
    rng = np.random.default_rng(2)
    x, w = rows(rng.normal(size=(2, 60, 3))), rows(rng.uniform(size=(3, 60)))
    m = models("full", 3, 4)

    def run(fn):
        inner = jax.vmap(lambda model, x, w: fn(model.prepare(), x, w)[1], (0, None, 0))
        return jax.vmap(inner, (None, 0, None))(m, x, w)

    found = jax.jit(partial(run, compiled))()
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, run(plain), rtol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize(("lanes", "d", "k"), [(1, 3, 1), (23, 4, 3), (50, 1, 1), (7, 2, 7)])
def test_small_lanes_taken_together_do_not_touch_each_other(lanes, d, k):
    """Lanes of few components are one product; a lane that is NaN stays by itself."""
    rng = np.random.default_rng(7)
    x, w = rows(rng.normal(size=(150, d))), rows(rng.uniform(size=(lanes, 150)))
    m = models("full", d, k, lanes)
    m = gmmjax.GaussianMixture(
        m.log_weights, m.means.at[lanes // 2].set(jnp.nan), m.factors, "full"
    )

    def run(fn):
        return jax.vmap(lambda model, w: fn(model.prepare(), x, w))(m, w)

    (found, mine), (expected, value) = jax.jit(partial(run, compiled))(), run(plain)
    tol = tolerance(1e-11, 1e-4)
    for a, b in zip(
        jax.tree.leaves((found, mine)), jax.tree.leaves((expected, value)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)
    assert np.flatnonzero(np.isnan(mine)).tolist() == [lanes // 2]


def test_more_components_than_a_tile_of_the_cache_holds():
    """d = 64 with full covariances: 2,145 features, and a tile of the fewest rows."""
    x, m = rows(np.random.default_rng(3).normal(size=(130, 64))), models("full", 64, 5, lanes=1)
    one = jax.tree.map(lambda a: a[0], m).prepare()
    (expected, value), (found, mine) = plain(one, x, jnp.ones(130)), compiled(one, x, jnp.ones(130))
    np.testing.assert_allclose(mine, value, rtol=tolerance(1e-12, 1e-4))
    np.testing.assert_allclose(
        found.second, expected.second, rtol=tolerance(1e-9, 1e-3), atol=tolerance(1e-9, 1e-3)
    )


def test_a_component_without_weight_takes_nothing_and_nan_stays_nan():
    x = rows(np.random.default_rng(4).normal(size=(50, 2)))
    m = jax.tree.map(lambda a: a[0], models("full", 2, 3))
    none = gmmjax.GaussianMixture(m.log_weights.at[1].set(-jnp.inf), m.means, m.factors, "full")
    sums, value = compiled(none.prepare(), x, jnp.ones(50))
    assert float(sums.weight[1]) == 0
    np.testing.assert_allclose(value, plain(none.prepare(), x, jnp.ones(50))[1], rtol=1e-5)
    broken = gmmjax.GaussianMixture(m.log_weights, m.means.at[0, 0].set(jnp.nan), m.factors, "full")
    sums, value = compiled(broken.prepare(), x, jnp.ones(50))
    assert bool(jnp.isnan(value))
    assert not bool(jnp.all(jnp.isfinite(sums.weight)))
    far = compiled(m.prepare(), x.at[0].set(jnp.inf), jnp.ones(50))[1]
    assert not bool(jnp.isfinite(far))


@pytest.mark.parametrize("payload", [0, 1, 1954])
def test_any_nan_stays_nan(payload):
    """Also one with bits of its own, such as R's NA (1954), in one component of several."""
    name, bits = ("uint64", 0x7FF8 << 48) if x64() else ("uint32", 0x7FC0 << 16)
    p = jax.tree.map(lambda a: a[0], models("full", 2, 3)).prepare()
    odd = np.array(p.coefficients)
    odd.view(name)[1] = bits + payload
    p = dataclasses.replace(p, coefficients=jnp.asarray(odd))
    x = rows(np.random.default_rng(8).normal(size=(50, 2)))
    sums, value = compiled(p, x, jnp.ones(50))
    assert bool(jnp.isnan(value))
    assert bool(jnp.all(jnp.isnan(sums.weight)))


def test_the_same_bits_again():
    """Sums do not depend on which thread was first."""
    x, m = rows(np.random.default_rng(5).normal(size=(9000, 4))), models("full", 4, 6)
    step = jax.jit(jax.vmap(lambda m: compiled(m.prepare(), x, jnp.ones(9000))))
    first = jax.tree.leaves(step(m))
    for _ in range(5):
        for a, b in zip(first, jax.tree.leaves(step(m)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("n", "d", "k"), SIZES)
def test_the_assignment_is_lloyds(n, d, k):
    rng = np.random.default_rng(6)
    x, w = rows(rng.normal(size=(n, d))), rows(rng.integers(0, 3, n))
    centers = rows(rng.normal(size=(3, k, d)))
    room = min(k, 8)
    assign = jax.jit(jax.vmap(lambda c: native.assign(c, x, w, room=room)))
    weight, first, distance, point, inertia = assign(centers)
    expected, value = jax.vmap(lambda c: KMeans(c).expect(x, w))(centers)
    tol = tolerance(1e-11, 1e-4)
    np.testing.assert_allclose(weight, expected.weight, rtol=tol)
    np.testing.assert_allclose(first, expected.first, rtol=tol, atol=10 * tol)
    np.testing.assert_allclose(inertia, -value, rtol=tol)
    np.testing.assert_allclose(distance[:, 0], expected.far_distance[:, 0], rtol=tol)
    assert bool(jnp.all(distance[:, :-1] >= distance[:, 1:]))
    for lane in range(3):  # each far row is a row, at its distance from the nearest centre
        for far, at in zip(distance[lane], point[lane], strict=True):
            if far > 0:
                gaps = np.sum((np.asarray(centers[lane]) - np.asarray(at)) ** 2, axis=1)
                np.testing.assert_allclose(far, gaps.min(), rtol=tolerance(1e-9, 1e-4))
                assert np.any(np.all(np.asarray(x) == np.asarray(at), axis=1))


@pytest.mark.parametrize(
    "family",
    ["full", *(pytest.param(f, marks=pytest.mark.slow) for f in ("tied", "diag", "spherical"))],
)
def test_a_fit_is_the_same_fit(family):
    x = rows(blobs(7, 600, 3, 4))
    options = {"family": family, "restarts": 12, "init": "k-means++"}
    key = jax.random.key(0)
    mine = gmmjax.fit(key, x, 4, kernel="native", **options)
    other = gmmjax.fit(key, x, 4, kernel="xla", **options)
    assert (mine.choice.kernel, other.choice.kernel) == ("native", "xla")
    assert bool(mine.converged)
    tol = tolerance(1e-7, 1e-5)
    np.testing.assert_allclose(mine.log_likelihood, other.log_likelihood, rtol=tol)


def test_exact_steps_from_a_given_start():
    """20 plain steps, no search: parameters, not only likelihood."""
    x = rows(blobs(8, 500, 3, 3))
    start = gmmjax.GaussianMixture.create(
        np.ones(3) / 3, np.asarray(x[:3]), own_shape("full", np.stack([np.eye(3)] * 3)), "full"
    )
    options = {"init": start, "tol": 0.0, "max_steps": 20, "accelerate": False}
    run = partial(gmmjax.fit, jax.random.key(0), x, 3, **options)
    a, b = run(kernel="native").model, run(kernel="xla").model
    np.testing.assert_allclose(a.means, b.means, atol=tolerance(1e-9, 2e-3))
    np.testing.assert_allclose(a.covariances, b.covariances, atol=tolerance(1e-9, 2e-3))


def test_far_from_the_origin_differences_take_over():
    """A component narrow beside the data cancels in the features: native code then stands aside."""
    rng = np.random.default_rng(9)
    x = np.concatenate([rng.normal(size=(200, 2)), 1e3 + 1e-3 * rng.normal(size=(200, 2))])
    fits = [
        gmmjax.fit(jax.random.key(0), rows(x), 2, kernel=kernel, restarts=4)
        for kernel in ("native", "xla")
    ]
    np.testing.assert_allclose(fits[0].log_likelihood, fits[1].log_likelihood, rtol=1e-4)


def test_kmeans_is_the_same_kmeans():
    x = rows(blobs(10, 900, 3, 5))
    a, b = (gmmjax.kmeans(jax.random.key(0), x, 5, kernel=kernel) for kernel in ("native", "xla"))
    assert (a.choice.kernel, b.choice.kernel) == ("native", "xla")
    np.testing.assert_allclose(a.inertia, b.inertia, rtol=tolerance(1e-10, 1e-5))
    ordered = [c[np.argsort(c[:, 0])] for c in (np.asarray(a.centers), np.asarray(b.centers))]
    np.testing.assert_allclose(*ordered, atol=tolerance(1e-9, 1e-4))


def test_an_emptied_cluster_is_moved_to_the_farthest_row():
    x = rows(np.array([[0.0, 0], [0.1, 0], [5, 5], [5.1, 5], [-9, 9]]))
    start = rows(np.array([[0.0, 0], [100, 100], [5, 5]]))
    found = gmmjax.kmeans(jax.random.key(0), x, 3, init=start, kernel="native")
    assert bool(found.converged)
    assert sorted(np.bincount(found.labels, minlength=3).tolist()) == [1, 2, 2]


def test_auto_takes_it_where_it_has_been_built(monkeypatch, tmp_path):
    arguments = (1000, 4, 3, "full", jnp.dtype("float32"), 1)
    assert choose(*arguments).kernel == "native"
    assert choose_for_kmeans(1000, 2, 3, jnp.dtype("float32"), 1).kernel == "native"
    monkeypatch.setenv("GMMJAX_CACHE", str(tmp_path))
    assert choose(*arguments).kernel == "xla"
    assert not any(tmp_path.iterdir())  # and builds nothing unasked


def test_what_it_does_not_serve_is_refused():
    with pytest.raises(ValueError, match="kernel: 'native' is for a CPU, in float32 or float64"):
        choose(1000, 4, 3, "full", jnp.dtype("bfloat16"), 1, kernel="native")
    with pytest.raises(ValueError, match="'pallas' has no kernel here: this backend is 'cpu'"):
        gmmjax.kmeans(jax.random.key(0), [[0.0], [1.0]], 1, kernel="pallas")


def test_a_build_that_fails_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("GMMJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(native.BuildError, match=r"false failed on steps\.cpp"):
        native.build()
    assert not list(tmp_path.glob("*.tmp"))
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    with pytest.raises(native.BuildError, match="cannot run the compiler"):
        native.build()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(native.BuildError, match="expected a C\\+\\+ compiler"):
        native.build()


def test_the_command_builds_and_says_where(monkeypatch, tmp_path, capsys):
    from gmmjax.native.__main__ import main

    assert main() == 0
    assert Path(capsys.readouterr().out.strip()) == native.library()
    monkeypatch.setenv("GMMJAX_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert main() == 1
    assert "failed" in capsys.readouterr().err


def test_a_program_is_the_same_inside_another_and_compiled_once():
    """Eager fits compile with options that JAX refuses inside `jit` (`backend.Program`)."""
    x = blobs(0, 60, 2, 2)
    options = {"restarts": 6, "max_steps": 3, "throw": False, "kernel": "native"}
    before = fit_program._cache_size()
    eager = gmmjax.fit(jax.random.key(0), x, 2, **options).log_likelihood
    gmmjax.fit(jax.random.key(1), x[:-1], 2, tol=1e-3, **options)
    assert fit_program._cache_size() == before + 1
    lanes = jax.random.split(jax.random.key(1), 2).at[0].set(jax.random.key(0))
    inside = jax.jit(lambda: gmmjax.fit(jax.random.key(0), x, 2, **options).log_likelihood)()
    mapped = jax.vmap(lambda key: gmmjax.fit(key, x, 2, **options).log_likelihood)(lanes)
    np.testing.assert_allclose([inside, mapped[0]], eager, rtol=tolerance(1e-10, 1e-5))

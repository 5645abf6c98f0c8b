"""What `fit` chooses, that it is visible, and that every choice is the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gmmjax
from gmmjax import backend, expectation, families
from gmmjax.backend import Choice, choose
from gmmjax.blocks import split
from gmmjax.fit import _search

pytestmark = pytest.mark.own_dtype


@pytest.fixture(scope="module")
def x():
    rng = np.random.default_rng(0)
    return rng.normal(size=(301, 2)) + 4 * rng.integers(0, 2, size=(301, 1))


def test_what_was_chosen_is_in_the_result(x):
    result = gmmjax.fit(jax.random.key(0), x, 2, restarts=4, max_steps=5)
    assert result.choice.kernel == "xla"
    assert result.choice.precision == ("highest" if jax.default_backend() == "cpu" else "high")
    assert result.choice.batch == 4
    named = gmmjax.fit(
        jax.random.key(0), x, 2, restarts=4, max_steps=5, kernel="xla", block=100, restart_batch=3
    )
    assert (named.choice.block, named.choice.batch) == (100, 3)
    np.testing.assert_allclose(named.log_likelihood, result.log_likelihood, rtol=1e-5)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("kernel", "cuda", "kernel: expected one of auto, xla, native, pallas; got 'cuda'"),
        ("precision", "low", "precision: expected one of highest, high, tf32; got 'low'"),
    ],
)
def test_a_choice_that_does_not_exist_is_named(x, argument, value, message):
    with pytest.raises(ValueError, match=message):
        gmmjax.fit(jax.random.key(0), x, 2, **{argument: value})


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there may be a kernel here")
def test_a_kernel_that_is_not_here_is_refused(x):
    with pytest.raises(ValueError, match="kernel: 'pallas' has no kernel"):
        gmmjax.fit(jax.random.key(0), x, 2, kernel="pallas")


def test_float64_is_at_full_precision_everywhere():
    for name in ("high", "tf32", "highest"):
        chosen = choose(1000, 4, 3, "full", jnp.dtype("float64"), 1, precision=name)
        assert chosen.precision == "highest"


@pytest.mark.parametrize("family", families.names())
def test_rows_and_lanes_are_powers_and_positive(family):
    for d, k, lanes in ((1, 1, 1), (4, 8, 100), (16, 32, 1), (64, 64, 1), (784, 10, 4)):
        for dtype in ("float32", "float64"):
            c = choose(10**6, d, k, family, jnp.dtype(dtype), lanes)
            assert c.block & (c.block - 1) == 0
            assert c.block >= 128
            assert 1 <= c.batch <= lanes


@pytest.mark.parametrize("kernel", ["xla", "auto"])
def test_a_search_by_rounds_keeps_few_lanes_at_a_time_on_a_cpu(kernel):
    """Its outcome does not depend on how many; a number that is asked for is taken."""
    many = choose(150, 4, 3, "full", jnp.dtype("float32"), 1000, kernel=kernel)
    few = choose(150, 4, 3, "full", jnp.dtype("float32"), 1000, kernel=kernel, rounds=True)
    asked = choose(
        150, 4, 3, "full", jnp.dtype("float32"), 1000, kernel=kernel, batch=9, rounds=True
    )
    assert many.batch > few.batch
    assert (few.batch, asked.batch) == (backend.SEARCHING, 9)


def test_rows_are_filled_up_to_a_round_number():
    for n in (1, 7, 8, 100, 1000, 1025, 12345, 10**6):
        m = backend.bucket(n, 1024)
        assert n <= m <= max(n + n // 8 + 8, n + 1024)
    assert len({backend.bucket(n, 1024) for n in range(961, 1025)}) == 1


def test_data_of_like_size_share_a_program(x):
    before = _search._cache_size()
    for n in (289, 295, 301):
        gmmjax.fit(jax.random.key(0), x[:n], 3, restarts=5, max_steps=2, throw=False)
    assert _search._cache_size() == before + 1


@pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="an accelerator fills the rows up itself"
)
def test_another_number_of_rows_like_it_compiles_nothing_at_all(x):
    def go(n):
        w = np.ones(n) if n % 2 else None
        gmmjax.fit(jax.random.key(0), x[:n], 3, weights=w, restarts=5, max_steps=2, throw=False)
        gmmjax.kmeans(jax.random.key(0), x[:n], 3, restarts=5, max_steps=2)
        labels = np.arange(n) % 3
        gmmjax.fit(jax.random.key(0), x[:n], 3, init=labels, weights=w, max_steps=2, throw=False)
        labels[::2] = -1
        gmmjax.classification.fit_semi_supervised(
            jax.random.key(0), x[:n], labels, 3, weights=w, restarts=5, max_steps=2, throw=False
        )

    compiled = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        go(273), go(274)
        assert compiled  # or the event has another name
        compiled.clear()
        go(275), go(276)
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_data_stay_on_the_device_that_they_were_put_on(x):
    """Filling the rows up must not bring them back to the default device."""
    there = jax.device_put(jnp.asarray(x[:290]), jax.devices()[-1])
    result = gmmjax.fit(jax.random.key(0), there, 2, restarts=4, max_steps=2)
    clusters = gmmjax.kmeans(jax.random.key(0), there, 2, restarts=4, max_steps=2)
    for array in (result.model.means, clusters.centers, clusters.labels):
        assert array.committed
        assert array.devices() == {jax.devices()[-1]}


@pytest.mark.parametrize("family", ["full", "diag", "spherical", "tied", "EEI", "EII"])
def test_the_sum_over_blocks_is_that_of_every_row(x, family):
    """`collect`, by either form and at every precision, against the plain E-step in float64."""
    means, cov = np.array([[0.0, 1.0], [4.0, 3.0]]), np.array([[1.0, 0.3], [0.3, 2.0]])
    with jax.enable_x64(True):
        m = gmmjax.GaussianMixture.create([0.3, 0.7], means, np.stack([cov, 0.5 * cov]), family)
        w = jnp.asarray(np.random.default_rng(1).integers(0, 3, len(x)), float)
        plain = expectation.by_differences(m.prepare(), jnp.asarray(x), w)
        rows = gmmjax.moments.centre(plain[0])
        choice = Choice()
        for block in (64, 301):
            blocks = split(jnp.asarray(x), w, block, choice)
            sums, log_likelihood = m.prepare().collect(blocks)
            found = gmmjax.moments.centre(sums)
            np.testing.assert_allclose(log_likelihood, plain[1], rtol=1e-12)
            np.testing.assert_allclose(found.weight, rows.weight, rtol=1e-11)
            np.testing.assert_allclose(found.mean, rows.mean, rtol=1e-11, atol=1e-11)
            np.testing.assert_allclose(found.scatter, rows.scatter, rtol=1e-9, atol=1e-9)

"""The search among many starts: how many there are, where a moved component goes, what is left out."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import blobs, rows, start

import gmmjax
from gmmjax import blocks, initialization, search
from gmmjax.lanes import default_restarts
from gmmjax.search import n_fresh
from gmmjax.status import Status

N, K = 60, 3
em = sys.modules["gmmjax.em"]  # `gmmjax.em` is the function


def laid_out(weights=None, block=16):
    x = rows(blobs(4, N, 2, 4))
    return x, blocks.split(x, weights, block)


@pytest.mark.parametrize(
    ("n", "k", "d", "expected"),
    [
        (272, 1, 2, 180), (272, 3, 2, 180), (272, 4, 2, 240), (178, 9, 13, 991), (178, 4, 13, 1040),
        (100_000, 16, 8, 4), (10_000, 8, 4, 209),
    ],
)  # fmt: skip
def test_default_number_of_starts(n, k, d, expected):
    assert default_restarts(n, k, d) == expected


@pytest.mark.parametrize(
    ("lanes", "fresh"), [(1, 1), (5, 5), (6, 3), (7, 4), (24, 12), (72, 12), (144, 24)]
)
def test_a_sixth_of_the_lanes_start_afresh_and_half_of_few(lanes, fresh):
    assert n_fresh(lanes) == fresh


@pytest.mark.parametrize("lanes", [1, 5, 6, 7, 50])
def test_every_lane_ends_with_a_status_and_steps_of_its_own(lanes):
    x, _ = laid_out()
    result = gmmjax.fit(jax.random.key(0), x, K, family="tied", restarts=lanes)
    assert result.lanes.log_likelihood.shape == (lanes,)
    assert np.all(np.asarray(result.lanes.status) != Status.RUNNING)
    assert np.all(np.asarray(result.lanes.n_steps) > 0)
    best = float(result.lanes.log_likelihood.max())
    np.testing.assert_allclose(result.log_likelihood, best, rtol=1e-6)
    assert 0 <= int(result.best) < lanes


def test_one_component_moves_to_a_row_and_the_others_stay():
    x, data = laid_out()
    model = start(0, np.asarray(x), K, "full")
    for seed in range(20):
        moved = initialization.swap(jax.random.key(seed), model, data)
        changed = np.any(np.asarray(moved.means != model.means), axis=1)
        assert changed.sum() == 1
        (j,) = np.flatnonzero(changed)
        assert np.any(np.all(np.asarray(x) == np.asarray(moved.means[j]), axis=1))
        shares = np.exp(np.asarray(model.log_weights))
        shares[j] = 1 / K
        np.testing.assert_allclose(np.exp(moved.log_weights), shares / shares.sum(), rtol=1e-5)
        np.testing.assert_array_equal(moved.factors, model.factors)


def test_masked_components_stay_masked():
    x, data = laid_out()
    model = start(0, np.asarray(x), K, "full")
    model = dataclasses.replace(model, log_weights=jnp.log(jnp.asarray([0.4, 0.6, 0.0])))
    for seed in range(20):
        moved = initialization.swap(jax.random.key(seed), model, data)
        assert float(moved.log_weights[2]) == -np.inf
        np.testing.assert_array_equal(moved.means[2], model.means[2])


def drawn(model, data, x, count=20_000):
    """How often each row is the place of the moved component."""
    keys = jax.random.split(jax.random.key(1), count)
    means = jax.jit(jax.vmap(lambda key: initialization.swap(key, model, data).means))(keys)
    moved = np.asarray(means - model.means)
    j = np.argmax(np.any(moved != 0, axis=2), axis=1)
    places = np.asarray(means)[np.arange(count), j]
    at = np.argmin(np.abs(places[:, None] - np.asarray(x)[None]).sum(axis=2), axis=1)
    return np.bincount(at, minlength=len(x))


def test_rows_are_drawn_as_badly_as_the_model_explains_them():
    w = np.tile([0.0, 1.0, 2.0], N // 3)
    x, data = laid_out(w)
    model = start(0, np.asarray(x), K, "full")
    count = drawn(model, data, x)
    log_prob = np.asarray(model.log_prob(x), float)
    mass = w * np.sqrt(log_prob[w > 0].max() - np.minimum(log_prob, log_prob[w > 0].max()))
    p = mass / mass.sum()
    assert np.all(count[w == 0] == 0)
    error = np.sqrt(count.sum() * p * (1 - p))
    assert np.all(np.abs(count - count.sum() * p) <= 5 * error + 1e-6)


def test_rows_that_are_all_explained_alike_are_drawn_by_weight():
    x = rows(np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]]))
    data = blocks.split(x, np.array([1.0, 1.0, 2.0, 0.0]))
    zero = rows(np.zeros((2, 2)))  # two components at the centre, which no row is nearer to
    model = gmmjax.GaussianMixture.create([0.5, 0.5], zero, np.tile(np.eye(2), (2, 1, 1)))
    p = np.array([0.25, 0.25, 0.5, 0.0])
    count = drawn(model, data, x, 4000)
    assert np.all(np.abs(count - 4000 * p) <= 5 * np.sqrt(4000 * p * (1 - p)))


def test_blocks_do_not_matter():
    x, small = laid_out(block=16)
    whole = blocks.split(x, None, N)
    model = start(0, np.asarray(x), K, "full")
    for seed in range(10):
        one = initialization.swap(jax.random.key(seed), model, small)
        other = initialization.swap(jax.random.key(seed), model, whole)
        np.testing.assert_array_equal(one.means, other.means)


def test_lanes_from_the_count_on_are_left_out():
    """`select` runs a program of 240 lanes for k = 4, and of them 180 for k = 2."""
    x, _ = laid_out()
    grid = gmmjax.select(jax.random.key(0), x, [2, 4], "tied")
    for k in (2, 4):
        cell = grid.cell(k, "tied")
        assert cell.lanes.status.shape == (60 * max(k, 3),)
        assert np.all(cell.lanes.status != Status.RUNNING)
        assert np.all(cell.lanes.n_steps > 0)
        np.testing.assert_allclose(cell.log_likelihood, cell.lanes.log_likelihood.max(), rtol=1e-6)


def test_an_outlier_does_not_take_all_moves():
    x, _ = laid_out()
    far = jnp.concatenate([x, jnp.full((1, 2), 1e4, x.dtype)])
    model = gmmjax.fit(jax.random.key(0), far, 2, family="tied", restarts=6).model
    count = drawn(model, blocks.split(far), far, 4000)
    assert count[-1] < 0.25 * count.sum()


def overlapping():
    """Clusters that overlap, so that lanes end in many optima and come to rest slowly."""
    rng = np.random.default_rng(3)
    return rows(rng.normal(size=(300, 2)) + 1.2 * rng.integers(0, 3, (300, 1)))


def test_lanes_far_behind_are_left_and_the_best_is_no_worse(monkeypatch):
    x = overlapping()

    def run():
        jax.clear_caches()
        return gmmjax.fit(jax.random.key(0), x, 4, restarts=72)

    raced = run()
    monkeypatch.setattr(search, "PATIENCE", np.inf)
    whole = run()
    left = np.asarray(raced.lanes.status) == Status.OVERTAKEN
    assert 0 < left.sum() < 72
    assert not np.any(np.asarray(whole.lanes.status) == Status.OVERTAKEN)
    assert int(raced.lanes.n_steps.sum()) < int(whole.lanes.n_steps.sum())
    assert raced.status != Status.OVERTAKEN
    assert np.all(np.asarray(raced.lanes.n_steps)[left] >= search.SETTLING)
    assert np.all(np.asarray(raced.lanes.log_likelihood)[left] < float(raced.log_likelihood))
    np.testing.assert_allclose(raced.log_likelihood, whole.log_likelihood, rtol=1e-5)


def test_no_lane_of_the_first_round_is_left():
    result = gmmjax.fit(jax.random.key(0), overlapping(), 4, restarts=72)
    assert np.all(np.asarray(result.lanes.status)[: 72 // search.LEAST] != Status.OVERTAKEN)


def test_who_is_left_does_not_depend_on_the_number_of_slots(float64):
    x = overlapping()
    ends = [
        gmmjax.fit(jax.random.key(0), x, 4, restarts=36, restart_batch=slots).lanes.status
        for slots in (1, 5, 36)
    ]
    for other in ends[1:]:
        np.testing.assert_array_equal(other, ends[0])


def test_with_a_tolerance_of_0_every_lane_takes_all_its_steps():
    result = gmmjax.fit(
        jax.random.key(0), overlapping(), 3, restarts=24, tol=0.0, max_steps=30, throw=False
    )
    assert np.all(np.asarray(result.lanes.n_steps) == 30)


@pytest.mark.parametrize(
    ("gap", "change", "steps", "status", "best", "left"),
    [
        (10.1, 0.01, 10, Status.RUNNING, Status.CONVERGED, True),
        (9.9, 0.01, 10, Status.RUNNING, Status.CONVERGED, False),  # 200 steps of 0.05 nats do it
        (10.1, 0.01, 9, Status.RUNNING, Status.CONVERGED, False),
        (10.1, 0.01, 10, Status.CONVERGED, Status.CONVERGED, False),
        (10.1, 0.01, 10, Status.RUNNING, Status.DEGENERATE, False),
        (0.1, -0.01, 10, Status.RUNNING, Status.CONVERGED, True),
        (-5.0, 0.0, 10, Status.RUNNING, Status.CONVERGED, False),
        (10.1, np.inf, 10, Status.RUNNING, Status.CONVERGED, False),
    ],
)
def test_when_a_lane_is_left(gap, change, steps, status, best, left):
    x, data = laid_out()
    model = start(0, np.asarray(x), K, "full")
    state = dataclasses.replace(
        em.blank(model, data), objective=jnp.asarray(-gap), change=jnp.asarray(change),
        n_steps=jnp.asarray(steps), status=jnp.asarray(status),
    )  # fmt: skip
    far = dataclasses.replace(
        em.EMResult.of(state), objective=jnp.zeros(()), status=jnp.asarray(best)
    )
    assert bool(search._left_behind(state, far, search.patience(1e-6, 5.0))) == left
    assert not search._left_behind(state, far, search.patience(0.0, 5.0))

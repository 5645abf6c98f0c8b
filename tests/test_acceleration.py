"""SQUAREM: fewer steps to the same limit, never downhill, for any model, under vmap and in lanes."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import blobs, start
from test_driver import PoissonMixture

import gmmjax
from gmmjax import Status, acceleration, models
from gmmjax.blocks import split
from gmmjax.em import blank, turn

pytestmark = pytest.mark.own_dtype


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def overlapping(apart: float, seed: int = 0) -> np.ndarray:
    """6000 rows of two unit Gaussians, `apart` standard deviations from each other."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6000, 2))
    x[:, 0] += apart * rng.integers(0, 2, 6000)
    return x


def two_rows(x: np.ndarray) -> gmmjax.GaussianMixture:
    covariance = np.cov(x.T)
    return gmmjax.GaussianMixture.create([0.5, 0.5], x[:2], np.stack([covariance] * 2))


@partial(jax.jit, static_argnames="accelerate")
def steps_to(limit, model, blocks, accelerate: bool):
    """Turns, an E-step each, until the objective is within 1e-6 of the limit."""
    once = turn(blocks, tol=0.0, max_steps=10_000)
    first = once(blank(model, blocks, accelerate=accelerate), model, jnp.asarray(True))
    end = jax.lax.while_loop(
        lambda state: (state.objective < limit - 1e-6) & (state.status == Status.RUNNING),
        lambda state: once(state, model, jnp.asarray(False)),
        first,
    )
    return end.n_steps


@pytest.mark.parametrize("apart", [3.0, 2.0])
def test_a_third_of_the_steps_where_components_overlap(apart):
    x = overlapping(apart)
    x -= x.mean(axis=0)
    model, blocks = two_rows(x), split(jnp.asarray(x))
    end = gmmjax.em(model, x, tol=1e-14, max_steps=2000, accelerate=True)
    plain = int(steps_to(end.log_likelihood, model, blocks, accelerate=False))
    assert 100 < plain < 10_000
    assert int(steps_to(end.log_likelihood, model, blocks, accelerate=True)) <= plain / 3


@pytest.mark.parametrize("family", ["full", "tied", "VEE"])
def test_the_limit_is_that_of_plain_em(family):
    x = blobs(3, 200, 2, 3, spread=1.0)
    first = gmmjax.fit(jax.random.key(0), x, 3, family=family, restarts=1, max_steps=3).model
    ends = [
        gmmjax.em(first, x, tol=1e-11, reg=1e-7, max_steps=3000, accelerate=accelerate)
        for accelerate in (False, True)
    ]
    plain, fast = (float(end.log_likelihood) for end in ends)
    assert abs(fast - plain) < 1e-5
    assert int(ends[1].n_steps) < int(ends[0].n_steps)
    assert ends[1].model.family == first.family


def test_no_turn_lowers_the_objective():
    x = blobs(0, 150, 2, 3, spread=1.0)
    blocks = split(jnp.asarray(x))
    model = start(1, x, 3, "full")
    once = jax.jit(turn(blocks, tol=0.0, max_steps=10_000))
    state = once(blank(model, blocks, accelerate=True), model, jnp.asarray(True))
    values, long, refused = [float(state.objective)], 0, 0
    for turns in range(150):
        before = state
        state = once(state, model, jnp.asarray(False))
        assert int(state.n_steps) == turns + 1
        values.append(float(state.objective))
        was_trial = int(before.memory.depth) == 2 and int(state.memory.depth) == 1
        long += was_trial
        refused += was_trial and float(state.objective) == float(before.objective)
    assert np.min(np.diff(values)) > -1e-9
    assert long > refused > 0  # trials were taken, and some were undone


def test_a_model_that_is_no_gaussian():
    rng = np.random.default_rng(0)
    counts = jnp.asarray(np.concatenate([rng.poisson(3.0, 300), rng.poisson(6.0, 300)]), float)
    model = PoissonMixture(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([2.0, 9.0])))
    plain, fast = (
        gmmjax.em(model, counts, tol=1e-13, max_steps=20_000, accelerate=accelerate)
        for accelerate in (False, True)
    )
    assert int(fast.status) == Status.CONVERGED
    assert float(fast.log_likelihood) > float(plain.log_likelihood) - 1e-6
    assert int(fast.n_steps) < int(plain.n_steps) / 3


def test_lanes_under_vmap_are_those_of_single_runs():
    x = blobs(2, 120, 2, 2, spread=1.0)
    starts = [start(seed, x, 2, "diag") for seed in range(3)]

    def fit(model):
        return gmmjax.em(model, x, tol=1e-10, max_steps=3000, accelerate=True)

    many = jax.vmap(fit)(jax.tree.map(lambda *a: jnp.stack(a), *starts))
    alone = [fit(model) for model in starts]
    assert len({int(end.n_steps) for end in alone}) > 1
    np.testing.assert_allclose(
        many.log_likelihood, [float(end.log_likelihood) for end in alone], rtol=1e-9
    )


def test_most_lanes_end_where_plain_em_does():
    x = gmmjax.datasets.load_faithful().x
    ends = [
        gmmjax.fit(
            jax.random.key(1), x, 3, restarts=30, init="random_points", tol=1e-10,
            max_steps=5000, accelerate=accelerate,
        ).lanes
        for accelerate in (False, True)
    ]  # fmt: skip
    plain, fast = (np.asarray(lanes.log_likelihood) for lanes in ends)
    assert np.mean(np.abs(plain - fast) < 1e-4) > 0.9
    assert np.sum(ends[1].n_steps) < np.sum(ends[0].n_steps) / 1.5


def slow_noise() -> tuple[np.ndarray, Callable]:
    """Two clusters close together in a bed of noise, from one start."""
    rng = np.random.default_rng(0)
    noise = rng.uniform(-6, 8, size=(300, 2))
    near = rng.normal(size=(1500, 2)) + np.array([2.0, 0.0])
    x = np.concatenate([rng.normal(size=(1500, 2)), near, noise])
    labels = np.r_[np.zeros(1500, int), np.ones(1500, int), -np.ones(300, int)]
    return x, partial(models.fit_noise, jax.random.key(0), x, 2, init=labels)


def slow_factors() -> tuple[np.ndarray, Callable]:
    """Two factor analysers of three factors in ten columns."""
    rng = np.random.default_rng(0)
    u, loadings = rng.normal(size=(2, 400, 3)), rng.normal(size=(2, 3, 10))
    x = (u @ loadings + rng.normal(size=(2, 400, 10)) + [[[0.0]], [[1.0]]]).reshape(800, 10)
    return x, partial(models.fit_factors, jax.random.key(0), x, 2, 3, restarts=1)


@pytest.mark.parametrize(("problem", "share"), [(slow_noise, 3), (slow_factors, 2)])
def test_noise_and_factors_take_fewer_steps_to_the_same_limit(problem, share):
    x, fit = problem()
    plain, fast = (
        fit(tol=1e-12, max_steps=5000, accelerate=accelerate) for accelerate in (False, True)
    )
    assert int(fast.status) == int(plain.status) == Status.CONVERGED
    assert float(fast.log_likelihood) > float(plain.log_likelihood) - 1e-5
    assert int(fast.n_steps) < int(plain.n_steps) / share
    np.testing.assert_allclose(fast.model.log_prob(x), plain.model.log_prob(x), atol=1e-3)


def test_the_first_trial_is_the_formula_of_s3():
    """On x ↦ diag(ρ) x: r = (ρ − 1) x, v = (ρ − 1)² x, and the trial x + 2a r + a² v."""
    rho, x = jnp.array([0.5, 0.8]), jnp.array([1.0, 2.0])
    memory = acceleration.blank(x, jnp.zeros(()))
    no, one = jnp.asarray(False), jnp.zeros(())
    for point in (x, rho * x):
        trial = acceleration.propose(memory, point, one)
        assert not bool(trial.extrapolated)
        memory = acceleration.learn(memory, trial, one, no, no)
    trial = acceleration.propose(memory, rho**2 * x, one)
    r, v = (rho - 1) * x, (rho - 1) ** 2 * x
    a = jnp.minimum(jnp.linalg.norm(r) / jnp.linalg.norm(v), acceleration.FIRST_REACH)
    assert bool(trial.extrapolated)
    np.testing.assert_allclose(trial.point, x + 2 * a * r + a**2 * v, rtol=1e-12)

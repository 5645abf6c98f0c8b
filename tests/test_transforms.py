"""jit, vmap and grad over fits and densities; and one compilation for all values of one shape."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import FAMILIES, blobs, rows, start, tolerance

import gmmjax

N, D, K = 60, 2, 2


@pytest.fixture
def compilations():
    """Counts the programs that JAX compiles while the test looks."""

    class Counter:
        def __enter__(self):
            self.count = 0
            jax.monitoring.register_event_duration_secs_listener(self._listen)
            return self

        def _listen(self, event, duration, **kwargs):
            self.count += event == "/jax/core/compile/backend_compile_duration"

        def __exit__(self, *exc):
            jax.monitoring.unregister_event_duration_listener(self._listen)

    return Counter


def test_new_values_of_one_shape_compile_nothing(compilations):
    x = blobs(0, 200, 2, 3)
    w = np.ones(200)
    prior = gmmjax.Prior.create(mean=np.zeros(2), scale=np.eye(2))

    def fit(key, x, w, tol, reg, max_steps, prior):
        return gmmjax.fit(
            jax.random.key(key), x, 3, weights=w, tol=tol, reg=reg, max_steps=max_steps,
            prior=prior, restarts=4, init="random_points",
        )  # fmt: skip

    first = fit(0, x, w, 1e-4, 1e-6, 50, prior)
    other_prior = gmmjax.Prior.create(mean=np.ones(2), scale=2 * np.eye(2), mean_precision=1.0)
    with compilations() as seen:
        again = fit(1, x * 2 + 1, w * 3, 1e-5, 1e-5, 60, other_prior)
    assert seen.count == 0
    assert float(again.log_likelihood) != float(first.log_likelihood)


def test_another_shape_compiles(compilations):
    """The counter above counts: more components are another program."""
    x = blobs(0, 200, 2, 3)
    with compilations() as seen:
        gmmjax.fit(jax.random.key(0), x, 7, restarts=3, init="random_points", max_steps=2)
    assert seen.count > 0


def test_new_values_with_the_default_start_compile_nothing(compilations):
    x = blobs(0, 200, 2, 3)
    gmmjax.fit(jax.random.key(0), x, 3, restarts=12)
    with compilations() as seen:
        gmmjax.fit(jax.random.key(1), x[::-1] - 3, 3, restarts=12, tol=1e-5, max_steps=70)
    assert seen.count == 0


def test_new_values_of_kmeans_compile_nothing(compilations):
    x, w = blobs(0, 200, 2, 3), np.ones(200)
    gmmjax.kmeans(jax.random.key(0), x, 3, weights=w, restarts=4)
    with compilations() as seen:
        gmmjax.kmeans(jax.random.key(1), x * 2 + 1, 3, weights=w + 1, restarts=4, tol=1e-3)
    assert seen.count == 0


def test_data_of_a_similar_size_share_a_program(compilations):
    def fit(n):
        x = jnp.asarray(np.resize(blobs(0, 200, 2, 3), (n, 2)))
        return gmmjax.fit(
            jax.random.key(0), x, 3, weights=jnp.ones(n), restarts=2, init="random_points"
        )

    fit(500)
    with compilations() as seen:
        fit(505)
    # Filling up to the common size is a program of its own, of a few operations; the fit is none.
    before = seen.count
    with compilations() as seen:
        fit(505)
    assert seen.count == 0
    assert before < 12


def test_new_values_of_em_compile_nothing(compilations):
    x = rows(blobs(0, 100, 2, 3))
    model = start(0, np.asarray(x), 3, "diag")
    w = jnp.ones(len(x), x.dtype)
    first = gmmjax.em(model, x, weights=w, tol=1e-3, reg=1e-6, max_steps=10)
    y, v, other = x + 1, w * 2, jax.tree.map(lambda a: a * 1.5, model)
    with compilations() as seen:
        second = gmmjax.em(other, y, weights=v, tol=1e-4, reg=1e-5, max_steps=20)
    assert seen.count == 0
    assert float(first.log_likelihood) != float(second.log_likelihood)


def test_a_fit_under_jit_is_the_fit():
    x = rows(blobs(1, N, D, 2))
    key = jax.random.key(3)
    plain = gmmjax.fit(key, x, K, restarts=3, tol=1e-6)
    jitted = jax.jit(lambda key, x: gmmjax.fit(key, x, K, restarts=3, tol=1e-6))(key, x)
    np.testing.assert_allclose(
        jitted.log_likelihood, plain.log_likelihood, rtol=tolerance(1e-9, 1e-4)
    )


@pytest.mark.parametrize("family", ["full", "diag"])
def test_vmap_over_256_data_sets_each_with_its_key(family):
    problems = np.stack([blobs(s, N, D, K) for s in range(256)])
    xs = rows(problems)
    keys = jax.random.split(jax.random.key(0), 256)

    def one(key, x):
        return gmmjax.fit(
            key, x, K, family=family, restarts=2, init="random_points", tol=1e-6, max_steps=100
        )

    many = jax.jit(jax.vmap(one))(keys, xs)
    assert many.log_likelihood.shape == (256,)
    assert many.lanes.status.shape == (256, 2)
    assert np.all(np.isfinite(many.log_likelihood))
    for i in (0, 100, 255):
        alone = one(keys[i], xs[i])
        np.testing.assert_allclose(
            many.log_likelihood[i], alone.log_likelihood, rtol=tolerance(1e-8, 1e-3)
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_with_respect_to_data_and_parameters(family):
    x = rows(blobs(2, 20, D, K))
    model = start(0, np.asarray(x), K, family)

    def density(model, x):
        return model.log_likelihood(x)

    gradient, slope = jax.jit(jax.grad(density, argnums=(0, 1)))(model, x)
    assert slope.shape == x.shape
    step = tolerance(1e-6, 1e-2)
    rtol = tolerance(1e-6, 2e-2)
    # Against central differences, in the direction of the gradient itself.
    norm = float(jnp.sum(slope**2))
    up, down = density(model, x + step * slope), density(model, x - step * slope)
    np.testing.assert_allclose((up - down) / (2 * step), norm, rtol=rtol)
    size = sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient))
    step = step / max(1.0, size**0.5)
    moved = [jax.tree.map(lambda a, g, s=s: a + s * step * g, model, gradient) for s in (1, -1)]
    slope = (density(moved[0], x) - density(moved[1], x)) / (2 * step)
    np.testing.assert_allclose(slope, size, rtol=tolerance(1e-5, 5e-2))


def test_a_mixture_inside_a_loss():
    """Gradient descent on the negative log-likelihood goes where EM goes: downhill to an optimum."""
    x = rows(blobs(3, 100, 1, 2))
    model = start(1, np.asarray(x), 2, "diag")

    @jax.jit
    def step(model):
        loss, g = jax.value_and_grad(lambda m: -jnp.mean(m.log_prob(x)))(model)
        model = jax.tree.map(lambda a, b: a - 0.05 * b, model, g)
        normal = jax.nn.log_softmax(model.log_weights)
        return gmmjax.GaussianMixture(normal, model.means, model.factors, model.family), loss

    losses = []
    for _i in range(200):
        model, loss = step(model)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    em = gmmjax.em(model, x)
    assert -losses[-1] * len(x) <= float(em.log_likelihood) + 1e-3


def test_densities_under_vmap_over_models():
    x = rows(blobs(4, 30, D, K))
    models = [start(s, np.asarray(x), K, "full") for s in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *models)
    together = jax.vmap(lambda m: m.log_prob(x))(stacked)
    for i, model in enumerate(models):
        np.testing.assert_allclose(together[i], model.log_prob(x), rtol=tolerance(1e-12, 1e-4))


def test_many_rows_are_taken_in_chunks():
    """Past the chunk, rows go through a loop: the same numbers, and differentiable."""
    model = start(0, blobs(0, 50, 2, 3), 3, "full")
    x = rows(np.random.default_rng(0).normal(size=(200_000, 2)))
    whole = model.log_prob(x)
    np.testing.assert_allclose(whole[:5], model.log_prob(x[:5]), rtol=tolerance(1e-12, 1e-4))
    np.testing.assert_allclose(whole[-5:], model.log_prob(x[-5:]), rtol=tolerance(1e-12, 1e-4))
    slope = jax.grad(lambda m: jnp.mean(m.log_prob(x)))(model)
    assert all(bool(jnp.all(jnp.isfinite(a))) for a in jax.tree.leaves(slope))


def test_classes_of_like_fields_are_told_apart():
    """JAX compares dataclasses by their fields alone: a jitted function then mixes up their programs."""
    from gmmjax.typing import pytree

    fields = {"__annotations__": {"value": object}}
    made = [pytree(type(f"Like{i}", (), dict(fields))) for i in range(300)]
    structures = [jax.tree.structure(cls(1.0)) for cls in made]
    assert all(a != b for a, b in pairwise(structures))
    same = jax.jit(lambda model: model)
    assert all(type(same(cls(1.0))) is cls for cls in made)
    paths = jax.tree_util.tree_flatten_with_path(made[0](1.0))[0]
    assert jax.tree_util.keystr(paths[0][0]) == ".value"

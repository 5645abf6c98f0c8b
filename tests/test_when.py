"""`linalg.when`: the value of a select, and no work where no lane asks for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import rows

from gmmjax import linalg


def square(pred, a, b):
    return linalg.when(pred, lambda: (linalg.dot(a, a), b + 1), (a, b))


def outside_conditions(jaxpr, name):
    """How often a primitive stands where it runs always."""
    found = 0
    for eqn in jaxpr.eqns:
        found += eqn.primitive.name == name
        if eqn.primitive.name != "cond":
            inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda p: hasattr(p, "eqns"))
            for p in inner:
                if hasattr(p, "eqns") or hasattr(p, "jaxpr"):
                    found += outside_conditions(getattr(p, "jaxpr", p), name)
    return found


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rows(rng.normal(size=(3, 4, 4))), rows(rng.normal(size=3))


@pytest.mark.parametrize("pred", [[True, False, True], [False, False, False]])
def test_each_lane_has_its_own_answer(problem, pred):
    a, b = problem
    pred = jnp.array(pred)
    for fn in (jax.vmap(square), jax.jit(jax.vmap(square))):
        out, other = fn(pred, a, b)
        np.testing.assert_allclose(out, jnp.where(pred[:, None, None], a @ a, a), rtol=1e-5)
        np.testing.assert_allclose(other, jnp.where(pred, b + 1, b), rtol=1e-6)


def test_lanes_of_lanes_and_shared_operands(problem):
    a, b = problem
    pred = jnp.array([[True, False, False], [False, True, True]])
    out, _ = jax.vmap(jax.vmap(square), (0, None, None))(pred, a, b)
    np.testing.assert_allclose(out, jnp.where(pred[..., None, None], a @ a, a), rtol=1e-5)
    out, _ = jax.vmap(square, (None, 0, 0))(True, a, b)
    np.testing.assert_allclose(out, a @ a, rtol=1e-5)
    out, _ = jax.vmap(square, (0, None, None))(pred[0], a[0], b[0])
    np.testing.assert_allclose(out[0], a[0] @ a[0], rtol=1e-5)
    np.testing.assert_allclose(out[1], a[0], rtol=1e-5)


def test_work_that_no_lane_asks_for_is_not_done(problem):
    a, b = problem
    pred = jnp.zeros((2, 3), bool)
    for fn, args in (
        (square, (pred[0, 0], a[0], b[0])),
        (jax.vmap(square), (pred[0], a, b)),
        (jax.vmap(jax.vmap(square), (0, None, None)), (pred, a, b)),
        (jax.vmap(jax.vmap(square, (0, None, None)), (None, 0, 0)), (pred[0], a, b)),
    ):
        jaxpr = jax.make_jaxpr(jax.jit(fn))(*args).jaxpr
        assert outside_conditions(jaxpr, "dot_general") == 0
        assert outside_conditions(jaxpr, "cond") == 1

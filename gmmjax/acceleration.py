"""SQUAREM (S3) on expected statistics: larger steps along the path that EM takes, for any model.

EM is the fixed-point iteration u → E(M(u)) on expected sufficient statistics. From three of its
points, u₀, u₁ = F(u₀), u₂ = F(u₁), with r = u₁ − u₀ and v = (u₂ − u₁) − r, the scheme S3 of Varadhan
and Roland (2008) tries u₀ + 2a r + a² v, a = ‖r‖/‖v‖; a = 1 is u₂. The driver keeps the trial only if it
raises the objective, and takes u₂ otherwise, so that the ascent of EM is kept. A trial is evaluated
by the E-step that a cycle begins with, so a cycle costs two E-steps and not three.

Statistics and not parameters, because the M-step makes valid parameters of them: weights sum to 1 and
a covariance family keeps its constraint without coordinates of its own. Statistics that are not
linear, as sums about different points are not, bring `coordinates(self) -> tree` and
`at(self, coordinates) -> statistics`; without, the leaves themselves are extrapolated. Where the M-step
depends on the model as well (factor analysers), the iterate is the model in coordinates of its own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gmmjax.typing import Array, Bool, Float, Int, pytree

FIRST_REACH = 4.0
"""The longest step a at first."""

NEAR = 1e-3
"""Nats per unit of weight. EM's first steps, which gain more, decide which optimum a lane comes to, and
are left to it: extrapolated too, they save little and one lane of 91 ended lower than by EM
(`benchmarks/acceleration.py`, docs/convergence.md)."""

GROWTH = 4.0
"""What the longest step grows by when it was used and did well, and a refused one is cut by."""


@pytree
class Memory:
    """The cycle that a lane is in."""

    earlier: Any  # coordinates of u₀
    latest: Any  # coordinates of u₁, of which the lane's model is the M-step
    depth: Int[Array, ""]  # how many of the two are points of EM in a row
    reach: Float[Array, ""]  # the longest step allowed
    before: Float[Array, ""]  # the objective one step ago


@pytree
class Trial:
    """What the next M-step is made from."""

    point: Any  # statistics or a model, as the iterate is
    coordinates: Any
    extrapolated: Bool[Array, ""]
    step: Float[Array, ""]  # a


def blank(iterate: Any, objective: Float[Array, ""]) -> Memory:
    """A memory of the right shapes that holds nothing yet."""
    here = _coordinates(iterate)
    reach = jnp.full((), FIRST_REACH, objective.dtype)
    return Memory(here, here, jnp.asarray(0, jnp.int32), reach, jnp.full_like(objective, -jnp.inf))


def propose(
    memory: Memory,
    iterate: Any,
    change: Float[Array, ""],
    at: Callable[[Any], Any] | None = None,
) -> Trial:
    """The extrapolated point where a cycle is complete, else the point that EM itself comes to.

    `change` is the last one of the objective, per unit of weight. `at` makes an iterate of coordinates;
    without, the iterate's own method does, or the coordinates are the iterate.
    """
    here = _coordinates(iterate)
    r = jax.tree.map(jnp.subtract, memory.latest, memory.earlier)
    v = jax.tree.map(lambda u2, u1, r: u2 - u1 - r, here, memory.latest, r)
    squares, curvature = _square(r), _square(v)
    ratio = jnp.sqrt(squares / jnp.where(curvature > 0, curvature, 1.0))
    step = jnp.clip(jnp.where(curvature > 0, ratio, 1.0), 1.0, memory.reach)
    ready = (memory.depth >= 2) & (step > 1.0) & (change < NEAR)
    point = jax.tree.map(
        lambda u2, u0, r, v: jnp.where(ready, u0 + 2 * step * r + step**2 * v, u2),
        here, memory.earlier, r, v,
    )  # fmt: skip
    if at is None and hasattr(iterate, "coordinates"):
        at = iterate.at
    far = point if at is None else at(point)
    source = jax.tree.map(lambda a, b: jnp.where(ready, a, b), far, iterate)
    return Trial(source, point, ready, step)


def learn(
    memory: Memory,
    trial: Trial,
    objective: Float[Array, ""],
    refused: Bool[Array, ""],
    fresh: Bool[Array, ""],
) -> Memory:
    """The memory after a turn; `objective` is that before it."""
    taken = ~refused
    grown = trial.extrapolated & taken & (trial.step >= memory.reach)
    reach = jnp.where(grown, GROWTH * memory.reach, memory.reach)
    reach = jnp.where(refused, jnp.maximum(trial.step / GROWTH, 1.0 + 1.0 / GROWTH), reach)
    depth = jnp.where(trial.extrapolated, 1, jnp.minimum(memory.depth + 1, 2))

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)

    return Memory(
        earlier=keep(memory.latest, memory.earlier),
        latest=keep(trial.coordinates, memory.latest),
        depth=jnp.where(fresh, 0, depth).astype(jnp.int32),
        reach=jnp.where(fresh, FIRST_REACH, reach),
        before=jnp.where(fresh, -jnp.inf, jnp.where(taken, objective, memory.before)),
    )


def _coordinates(iterate: Any) -> Any:
    return iterate.coordinates() if hasattr(iterate, "coordinates") else iterate


def _square(tree: Any) -> Float[Array, ""]:
    first, *rest = [jnp.sum(a * a) for a in jax.tree.leaves(tree)]
    return sum(rest, first)

"""The search for the best optimum: many starts, then swaps in the best so far.

Shared by `fit` and `select`, which differ in what a lane's model is. Most lanes end below the best, and
spend most of their steps in coming to rest there: such a lane is left once it is seen to be hopeless.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gmmjax.em import EMResult, EMState, Turn
from gmmjax.lanes import Lanes, best_of, best_of_rounds
from gmmjax.status import Status
from gmmjax.typing import Array, ArrayLike, Bool, Int, Key

LEAST = 6
"""Lanes and rounds that a search with swaps has at least."""
ROUND = 18
"""Lanes a round, where that makes from 6 to 24 rounds."""
PATIENCE = 200
"""Steps that a lane has left to draw level with the best of the rounds before."""
SETTLING = 10
"""Steps that every lane takes first."""


def n_fresh(lanes: int) -> int:
    """How many lanes of a search with swaps start afresh: a sixth, but of few lanes half, up to 12.

    Of fewer than 6 lanes all do.
    """
    return lanes if lanes < LEAST else max(-(-lanes // 6), min(-(-lanes // 2), 12))


def patience(tol: ArrayLike, weight: ArrayLike) -> Array:
    """For `search`: `PATIENCE` for rows of this weight. With `tol` 0 no lane is left."""
    return jnp.where(jnp.asarray(tol) > 0, PATIENCE * jnp.asarray(weight), jnp.inf)


def _left_behind(state: EMState, best: EMResult, patience: ArrayLike) -> Bool[Array, "..."]:
    """Whether the lane would lie below the best after `PATIENCE` more steps, each of which gains as much as
    the last: as a rule they gain less and less. Only a sound best counts."""
    gap = best.objective - state.objective
    behind = gap > patience * jnp.maximum(state.change, 0)
    sound = best.status <= Status.MAX_STEPS
    return behind & sound & (state.status == Status.RUNNING) & (state.n_steps >= SETTLING)


def search(
    key: Key[Array, ""],
    once: Turn,
    models: Any,
    swap: Callable[[Key[Array, ""], Any], Any] | None,
    empty: EMState,
    lanes: int,
    batch: int,
    patience: ArrayLike,
    count: ArrayLike | None = None,
) -> tuple[EMResult, Lanes, Int[Array, ""]]:
    """The best of the lanes, how all ended, and which it was.

    With `swap(key, model)`, the `n_fresh(lanes)` of `models` start first, and the others, in rounds, from
    the best so far with something changed; a lane that is far behind the best of the rounds before, see
    `patience`, ends as `Status.OVERTAKEN`. Lanes from `count` on are left out, which compiles nothing.
    """
    if swap is None or lanes < LEAST:
        return best_of(once, models, empty, batch, count)

    def derive(index: Array, best: Any) -> Any:
        return swap(jax.random.fold_in(key, index), best)

    def behind(state: EMState, best: EMResult) -> Bool[Array, "..."]:
        return _left_behind(state, best, patience)

    size = -(-lanes // min(max(lanes // ROUND, LEAST), 24))
    return best_of_rounds(
        once, models, derive, behind, empty, batch, lanes=lanes, size=size, count=count
    )


def wary(once: Turn, suspect: Callable[[Any], Bool[Array, ""]]) -> Turn:
    """As `once`; a lane that ends soundly with a suspect model ends as `Status.SPURIOUS`."""

    def turned(state: EMState, start: Any, fresh: Array) -> EMState:
        after = once(state, start, fresh)
        doubtful = (after.status < Status.SPURIOUS) & suspect(after.model)
        return dataclasses.replace(after, status=jnp.where(doubtful, Status.SPURIOUS, after.status))

    return turned

"""The search for the best optimum: many starts, then swaps in the best so far.

Shared by `fit` and `select`, which differ in what a lane's model is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gmmjax.em import EMResult, EMState, Turn
from gmmjax.lanes import Lanes, best_of, best_of_rounds
from gmmjax.status import Status
from gmmjax.typing import Array, Bool, Int, Key

ROUNDS = 6
"""Rounds of a search with swaps, half of them of fresh starts."""


def search(
    key: Key[Array, ""],
    once: Turn,
    models: Any,
    swap: Callable[[Key[Array, ""], Any], Any] | None,
    empty: EMState,
    lanes: int,
    batch: int,
) -> tuple[EMResult, Lanes, Int[Array, ""]]:
    """The best of the lanes, how all ended, and which it was.

    With `swap(key, model)`, half of the lanes start from `models`, and the others, in rounds, from the best
    so far with something changed.
    """
    if swap is None or lanes < ROUNDS:
        return best_of(once, models, empty, batch)

    def derive(index: Array, best: Any) -> Any:
        return swap(jax.random.fold_in(key, index), best)

    half, size = -(-lanes // 2), -(-lanes // ROUNDS)
    return best_of_rounds(once, models, derive, empty, batch, fresh=half, size=size)


def wary(once: Turn, suspect: Callable[[Any], Bool[Array, ""]]) -> Turn:
    """As `once`; a lane that ends soundly with a suspect model ends as `Status.SPURIOUS`."""

    def turned(state: EMState, start: Any, fresh: Array) -> EMState:
        after = once(state, start, fresh)
        doubtful = (after.status < Status.SPURIOUS) & suspect(after.model)
        return dataclasses.replace(after, status=jnp.where(doubtful, Status.SPURIOUS, after.status))

    return turned

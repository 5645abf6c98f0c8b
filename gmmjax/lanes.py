"""Many runs at once: a few slots step together, each taking up the next start when its lane ends.

Serves `fit` and `kmeans` alike. A plain `vmap` of a `while_loop` goes on until its slowest lane has
ended, and finished lanes compute along; here a slot whose lane has ended begins the next one, so work
is wasted only while the last lanes run out. Only the best model so far is kept.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from gmmjax import linalg
from gmmjax.em import EMResult, EMState, Turn
from gmmjax.status import Status
from gmmjax.typing import Array, ArrayLike, Bool, Float, Int, pytree


def default_restarts(n: int, k: int, d: int) -> int:
    """How many starts where the caller does not say: 60 a component, more where there are many columns.

    The more components and columns, the more optima there are (docs/optima.md). At least 180, but on data
    that take long fewer, down to 4.
    """
    return max(4, min(20 * max(k, 3) * max(d, 3), 2**28 // (n * k * d * d)))


def in_batches(fn: Callable[[Any], Any], xs: Any, batch: int) -> Any:
    """`vmap` of fn in batches of equal size, the last one filled up: `lax.map`'s `batch_size` would
    compile fn a second time for the remainder."""
    r = jax.tree.leaves(xs)[0].shape[0]
    batch = min(batch, r)
    index = jnp.minimum(jnp.arange(-(-r // batch) * batch), r - 1).reshape(-1, batch)
    out = lax.map(lambda at: jax.vmap(fn)(jax.tree.map(lambda a: a[at], xs)), index)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:r], out)


def one_by_one(fn: Callable[..., Any], *operands: Any) -> Any:
    """fn(*operands), and under `vmap` on a CPU one batch member after another.

    Data sets that step together wait for the one that takes most steps, and their slots are not taken up by
    another's starts. A GPU has room for all, so there it is the plain `vmap`. `fn` must read no tracer
    but its operands.
    """
    if jax.default_backend() != "cpu":
        return fn(*operands)

    @custom_vmap
    def call(*operands: Any) -> Any:
        return fn(*operands)

    @call.def_vmap
    def _(size: int, batched: Any, *operands: Any) -> Any:
        leaves, structure = jax.tree.flatten(operands)
        mapped = jax.tree.leaves(batched)
        varying = [leaf for leaf, moves in zip(leaves, mapped, strict=True) if moves]

        def one(mine: list[Array]) -> Any:
            own = iter(mine)
            every = [
                next(own) if moves else leaf for leaf, moves in zip(leaves, mapped, strict=True)
            ]
            return one_by_one(fn, *jax.tree.unflatten(structure, every))

        out = lax.map(one, varying)
        return out, jax.tree.map(lambda _: True, out)

    return call(*operands)


@pytree
class Lanes:
    """How every lane ended, in the order of the starts."""

    log_likelihood: Float[Array, "r"]  # nats, summed over samples
    n_steps: Int[Array, "r"]
    status: Int[Array, "r"]

    def where_best_is(self, best: Int[Array, ""], log_likelihood: Float[Array, ""]) -> "Lanes":
        """Shifted so that lane `best` has this log-likelihood: out of a frame, into the data's units."""
        shift = log_likelihood - self.log_likelihood[best]
        return dataclasses.replace(self, log_likelihood=self.log_likelihood + shift)


@pytree
class _Slots:
    state: EMState  # with a leading axis of slots
    lane: Int[Array, "s"]  # which start each slot works on; r and above: none
    start: Any  # where each begins; gathered when a slot takes up a lane, and not every step
    fresh: Bool[Array, "s"]  # whether it has yet to begin
    taken: Int[Array, ""]  # how many starts have been taken up
    endings: Lanes
    best: EMResult
    best_lane: Int[Array, ""]


def best_of(
    once: Turn, starts: Any, empty: EMState, slots: int, count: ArrayLike | None = None
) -> tuple[EMResult, Lanes, Int[Array, ""]]:
    """Run one lane per leading entry of `starts`, or the first `count`; return the best, all endings, and
    which was best.

    `once` is `em.turn(…)` and `empty` a state of its lanes, `em.blank(…)`.

    The best has the highest objective among the lanes of the best kind of ending: a lane with a
    covariance on its floor, or a component on a handful of rows, has a likelihood that can be made as
    large as one likes, and wins only where no lane ended without.
    """
    r = jax.tree.leaves(starts)[0].shape[0]
    taken = r if count is None else jnp.minimum(count, r)
    none = EMResult.of(empty)
    best, lane, endings = _round(once, starts, empty, taken, slots, none, jnp.asarray(-1), 0)
    return best, endings, lane


def best_of_rounds(
    once: Turn,
    starts: Any,
    derive: Callable[[Array, Any], Any],
    behind: Callable[[EMState, EMResult], Bool[Array, "..."]],
    empty: EMState,
    slots: int,
    *,
    lanes: int,
    size: int,
    count: ArrayLike | None = None,
) -> tuple[EMResult, Lanes, Int[Array, ""]]:
    """As `best_of`, of so many lanes, in rounds of `size`: the first from `starts`, the rest derived.

    `derive(index, model)` makes the start of lane `index` from the best model so far; a lane of which
    `behind(state, best)` says that it cannot be the best ends as `Status.OVERTAKEN`. Both see whole
    rounds only, so the outcome does not depend on the number of slots.
    """
    fresh = jax.tree.leaves(starts)[0].shape[0]
    rounds = -(-lanes // size)
    taken = lanes if count is None else jnp.minimum(count, lanes)

    def body(carry: tuple[EMResult, Array], first: Array) -> tuple[tuple[EMResult, Array], Lanes]:
        best, best_lane = carry
        index = first + jnp.arange(size)
        given = jax.tree.map(lambda a: a[jnp.minimum(index, fresh - 1)], starts)
        derived = jax.vmap(lambda i: derive(i, best.model))(index)
        mine = jax.tree.map(lambda a, b: jnp.where(_along(index < fresh, a), a, b), given, derived)
        left = jnp.minimum(size, taken - first)
        best, best_lane, endings = _round(
            once, mine, empty, left, slots, best, best_lane, first, behind
        )
        return (best, best_lane), endings

    carry = (EMResult.of(empty), jnp.asarray(-1))
    (best, lane), endings = lax.scan(body, carry, jnp.arange(rounds) * size)
    return best, jax.tree.map(lambda a: a.reshape(-1)[:lanes], endings), lane


def _round(
    once: Turn,
    starts: Any,
    empty: EMState,
    count: ArrayLike,
    slots: int,
    best: EMResult,
    best_lane: Int[Array, ""],
    offset: ArrayLike,
    behind: Callable[[EMState, EMResult], Bool[Array, "..."]] | None = None,
) -> tuple[EMResult, Int[Array, ""], Lanes]:
    """The first `count` of `starts` to their ends, against the best so far (none where its lane is −1)."""
    r = jax.tree.leaves(starts)[0].shape[0]
    slots = min(slots, r)

    def begins(lane: Int[Array, "s"]) -> Any:
        return jax.tree.map(lambda a: a[jnp.minimum(lane, r - 1)], starts)

    def hand_over(s: _Slots, ended: Bool[Array, "s"]) -> _Slots:
        at = jnp.where(ended, s.lane, r)  # r lies outside: nothing is written there
        now = Lanes(s.state.log_likelihood, s.state.n_steps, s.state.status)
        endings = jax.tree.map(lambda a, b: a.at[at].set(b, mode="drop"), s.endings, now)
        best, best_lane = _better(s.best, s.best_lane, EMResult.of(s.state), s.lane + offset, ended)
        lane = jnp.where(ended, s.taken + jnp.cumsum(ended) - 1, s.lane)
        taken = s.taken + jnp.sum(ended)
        return _Slots(s.state, lane, begins(lane), ended, taken, endings, best, best_lane)

    def body(s: _Slots) -> _Slots:
        state = jax.vmap(once)(s.state, s.start, s.fresh)
        if behind is not None:
            left = (best_lane >= 0) & behind(state, best)
            status = jnp.where(left, Status.OVERTAKEN, state.status)
            state = dataclasses.replace(state, status=status)
        s = dataclasses.replace(s, state=state, fresh=jnp.zeros_like(s.fresh))
        ended = (s.state.status != Status.RUNNING) & (s.lane < count)
        return linalg.when(jnp.any(ended), lambda: hand_over(s, ended), s)

    number = jnp.zeros(r, jnp.int32)
    begin = _Slots(
        state=jax.tree.map(lambda a: jnp.broadcast_to(a, (slots, *a.shape)), empty),
        lane=jnp.arange(slots),
        start=begins(jnp.arange(slots)),
        fresh=jnp.ones(slots, bool),
        taken=jnp.asarray(slots),
        endings=Lanes(jnp.zeros(r, best.log_likelihood.dtype), number, number),
        best=best,
        best_lane=best_lane,
    )
    end = lax.while_loop(lambda s: jnp.any(s.lane < count), body, begin)
    return end.best, end.best_lane, end.endings


def _along(pred: Bool[Array, "s"], like: Array) -> Array:
    return pred.reshape(-1, *[1] * (like.ndim - 1))


def _better(
    best: EMResult, best_lane: Array, slots: EMResult, lane: Array, ended: Bool[Array, "s"]
) -> tuple[EMResult, Int[Array, ""]]:
    """The better of the best so far (none where its lane is −1) and the slots that have ended."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), best, slots)
    lanes = jnp.concatenate([best_lane[None], lane])
    counts = jnp.concatenate([best_lane[None] >= 0, ended])
    kind = jnp.where(both.status <= Status.MAX_STEPS, 0, both.status)
    kind = jnp.where(counts, kind, max(Status) + 1)
    objective = jnp.where(jnp.isnan(both.objective), -jnp.inf, both.objective)
    at = jnp.argmax(jnp.where(kind == jnp.min(kind), objective, -jnp.inf))
    # All −inf: argmax says 0, which may be a place that does not count.
    at = jnp.where(counts[at], at, jnp.argmax(kind == jnp.min(kind)))
    return jax.tree.map(lambda a: a[at], both), lanes[at]

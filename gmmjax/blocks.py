"""Rows in equal blocks, the last one filled up with rows of weight 0; and the sum over blocks.

Memory is that of one block, whatever the number of rows. Separate from the driver because a caller
who fits the same data many times lays it out once, and because labels and starts are summed so too.
"""

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax import checks
from gmmjax.backend import Choice, bucket
from gmmjax.typing import Array, ArrayLike, Float, Shaped, pytree, static

DEFAULT_BLOCK = 1024
"""Rows a block where nothing is known of the model; `backend.choose` knows more."""

T = TypeVar("T")


@pytree
class Blocks:
    """`data` is a pytree of arrays with leading axes [number of blocks, rows a block]."""

    data: Any
    weights: Float[Array, "blocks rows"]
    how: Choice = static(default=Choice())
    """How sums over them are computed."""

    @property
    def total_weight(self) -> Float[Array, ""]:
        return jnp.sum(self.weights)

    def rows(self) -> Any:
        """`data` with one axis of rows again, the filling included."""
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), self.data)


@pytree
class Compensated:
    """A running sum and what its rounding has lost so far (Kahan).

    A float32 sum of 10⁵ blocks must still show a change of one part in 10⁶ between two steps.
    """

    value: Array
    lost: Array

    def __add__(self, other: "Compensated") -> "Compensated":
        part = other.value - self.lost
        value = self.value + part
        return Compensated(value, (value - self.value) - part)


def split(
    data: Any,
    weights: Float[Array, "n"] | None = None,
    block: int | None = None,
    how: Choice | None = None,
) -> Blocks:
    """Lay rows out in blocks.

    The filling repeats the first row, with weight 0: a row of zeros could lie so far from the data
    that its density overflows.
    """
    leaves = jax.tree.leaves(data)
    n = leaves[0].shape[0]
    floating = [a.dtype for a in leaves if jnp.issubdtype(a.dtype, jnp.floating)]
    dtype = jnp.result_type(*floating) if floating else jnp.zeros(()).dtype
    w = jnp.ones(n, dtype) if weights is None else jnp.asarray(weights, dtype)
    block = min(n, DEFAULT_BLOCK if block is None else block)
    count = -(-n // block)
    extra = count * block - n

    def lay(a: Array) -> Array:
        if extra:
            a = jnp.concatenate([a, jnp.broadcast_to(a[:1], (extra, *a.shape[1:]))])
        return a.reshape(count, block, *a.shape[1:])

    w = jnp.concatenate([w, jnp.zeros(extra, dtype)]) if extra else w
    return Blocks(jax.tree.map(lay, data), w.reshape(count, block), how or Choice())


def bucketed(
    x: Float[Array, "n d"], weights: Float[Array, "n"] | None, block: int
) -> tuple[Float[Array, "m d"], Float[Array, "m"]]:
    """Fill the rows up to a round number with weight 0, so that data of like size share a program."""
    n, xp = x.shape[0], _library(x, weights)
    m = bucket(n, block)
    w = xp.ones(n, x.dtype) if weights is None else xp.asarray(weights)
    if m > n:
        rows = xp.asarray(x)
        x = filled(rows, m, rows[0])
    return x, filled(w, m, 0)


def filled(a: Shaped[Array, "n ..."], m: int, value: ArrayLike) -> Shaped[Array, "m ..."]:
    """What belongs to the rows, such as labels, and `value` up to the m rows of `bucketed`."""
    xp = _library(a)
    rest = xp.broadcast_to(xp.asarray(value, a.dtype), (m - a.shape[0], *a.shape[1:]))
    return jnp.asarray(xp.concatenate([xp.asarray(a), rest]), a.dtype)


def unfilled(a: Shaped[Array, "m"], n: int) -> Shaped[Array, "n"]:
    """The first n again, without what was filled up."""
    return jnp.asarray(_library(a).asarray(a)[:n], a.dtype)


def _library(*arrays: Any) -> Any:
    """NumPy on a CPU: `jnp` would compile each of its calls anew for every number of rows.

    Not for arrays that the caller has put on a device of his choice.
    """
    free = checks.concrete(arrays) and not any(getattr(a, "committed", False) for a in arrays)
    return np if free and jax.default_backend() == "cpu" else jnp


CHUNK = 2**14
"""Rows of a chunk, at least, where there are several: enough to share among a CPU's cores."""


def chunked(blocks: Blocks) -> Blocks:
    """Blocks of blocks: leading axes [chunks, blocks a chunk, rows a block]."""
    count, block = blocks.weights.shape
    chunks = 1
    while count % (2 * chunks) == 0 and count // (2 * chunks) * block >= CHUNK:
        chunks *= 2
    data, weights = jax.tree.map(
        lambda a: a.reshape(chunks, count // chunks, *a.shape[1:]), (blocks.data, blocks.weights)
    )
    return Blocks(data, weights, blocks.how)


def add(a: T, b: T) -> T:
    """`+` where a part of the tree defines it, leaf by leaf elsewhere."""

    def whole(part: Any) -> bool:
        return hasattr(part, "__add__") and not isinstance(part, (tuple, list))

    return jax.tree.map(operator.add, a, b, is_leaf=whole)


def total(fn: Callable[[Any, Float[Array, "rows"]], T], blocks: Blocks) -> T:
    """Σ over blocks of fn(data, weights), by `lax.scan`. A tree of zeros must be neutral for `+`."""
    first = jax.tree.map(lambda a: a[0], blocks)
    if blocks.weights.shape[0] == 1:
        return fn(first.data, first.weights)
    shapes = jax.eval_shape(fn, first.data, first.weights)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(carry: T, block: Blocks) -> tuple[T, None]:
        return add(carry, fn(block.data, block.weights)), None

    return lax.scan(body, zero, blocks)[0]


def collect(
    expect: Callable[[Any, Float[Array, "rows"]], tuple[T, Float[Array, ""]]], blocks: Blocks
) -> tuple[T, Float[Array, ""]]:
    """Σ over blocks of (statistics, log-likelihood), the latter with the rounding made good."""

    def one(data: Any, weights: Array) -> tuple[T, Compensated]:
        statistics, log_likelihood = expect(data, weights)
        return statistics, Compensated(log_likelihood, jnp.zeros_like(log_likelihood))

    statistics, log_likelihood = total(one, blocks)
    return statistics, log_likelihood.value

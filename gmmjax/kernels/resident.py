"""E-step, softmax and moments in one launch, the features of a tile of rows made once and kept on the chip.

For problems whose features are few (`LARGEST`). A program walks over its share of the rows. Of a tile of
them it makes the quadratic features x_a·x_b by two products with matrices of zeros and ones, which pick
the parts of columns a and b exactly: no address is computed, and what comes out lies where the next product
wants it. All models of the program take their log-joints, softmax and sums from the same features.
The sums stay in registers, and those of the programs are added up outside in a fixed order, so the same
input gives the same bits.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gmmjax.kernels.arithmetic import LOWEST, RESPONSIBILITIES, parts, power_of_two, product, whole
from gmmjax.kernels.tiles import Tile
from gmmjax.moments import Second
from gmmjax.typing import Array, Float

LARGEST = 2**13
"""Sums of a model, components times features, that fit in the registers of a program."""

PROGRAMS = 264
"""Of a launch, where 64 components or fewer are summed up together: two a multiprocessor of an H100."""


def chunks(d: int, kind: Second) -> list[int]:
    """How the second-order features are cut: sides that are powers of two, 16 at least."""
    if kind is not Second.FULL:
        return [power_of_two(d)]
    left, out = d * (d + 1) // 2, []
    while left > 0:
        side = min(64, max(16, 1 << (left.bit_length() - 1)))
        if left > side and power_of_two(left) - left < 16:
            side = power_of_two(left)
        out.append(side)
        left -= side
    return out


def size(k: int, d: int, kind: Second) -> int:
    """Sums that a program holds for one model."""
    return power_of_two(k) * (power_of_two(d) + sum(chunks(d, kind)))


def picks(d: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each chunk two matrices [width, side] of zeros and ones: x @ picks are the columns a, and b."""
    a, b = np.triu_indices(d)
    out, begin = [], 0
    for side in chunks(d, Second.FULL):
        both = []
        for index in (a[begin : begin + side], b[begin : begin + side]):
            pick = np.zeros((power_of_two(d), side), np.float32)
            pick[index, np.arange(len(index))] = 1
            both.append(pick)
        out.append(tuple(both))
        begin += side
    return out


def _kernel(x_ref, w_ref, constant_ref, *refs, n, d, kind, tile, precision, n_chunks, n_parts):
    """One program: `tile.lanes` models, every `tile.programs`-th tile of rows."""
    refs = list(refs)
    pick_refs = [(refs.pop(0), refs.pop(0)) for _ in range(n_chunks)] if kind is Second.FULL else []
    coefficient_refs = [[refs.pop(0) for _ in range(n_parts)] for _ in range(1 + n_chunks)]
    weight_ref, *sums_refs, log_likelihood_ref = refs
    columns = constant_ref.shape[0]  # of all lanes, one after the other
    k = columns // tile.lanes
    steps = -(-n // (tile.rows * tile.programs))
    program, within = pl.program_id(0), jnp.arange(tile.rows, dtype=jnp.int32)
    axes = jnp.arange(power_of_two(d), dtype=jnp.int32)
    picked = [tuple(ref[...] for ref in pair) for pair in pick_refs]

    def features(rows: Array) -> list[tuple[Array, ...]]:
        mask = (rows < n)[:, None] & (axes < d)[None, :]
        x = plgpu.load(x_ref.at[rows[:, None], axes[None, :]], mask=mask, other=0.0)
        first = parts(x, precision)
        if kind is Second.FULL:
            second = [product(first, (a,)) * product(first, (b,)) for a, b in picked]
        else:
            second = [x * x]
        return [first, *(parts(s, precision) for s in second)]

    def by_lane(a: Float[Array, "columns rows"]) -> Float[Array, "lanes k rows"]:
        return a.reshape(tile.lanes, k, tile.rows)

    def step(i: Array, carry):
        weight, totals, log_likelihood = carry
        rows = (i * tile.programs + program) * tile.rows + within
        w = plgpu.load(w_ref.at[rows], mask=rows < n, other=0.0)
        phi = features(rows)
        joint = jnp.broadcast_to(constant_ref[...][:, None], (columns, tile.rows))
        for chunk, refs in zip(phi, coefficient_refs, strict=True):
            joint = joint + product(
                tuple(ref[...] for ref in refs), tuple(part.T for part in chunk)
            )
        joint = by_lane(joint)
        largest = jnp.max(joint, axis=1)
        shifted = jnp.exp(joint - largest[:, None, :])
        total = jnp.sum(shifted, axis=1)
        log_likelihood = log_likelihood + w[None, :] * (largest + jnp.log(total))
        r = (shifted * (w[None, :] / total)[:, None, :]).reshape(columns, tile.rows)
        r = parts(r, RESPONSIBILITIES)
        weight = weight + jnp.sum(whole(r), axis=1)
        # Each tile's product begins at 0 and is added in float32: a tensor core's own running sum
        # drops what it cannot hold, which over many rows is a bias.
        totals = [total + product(r, chunk) for total, chunk in zip(totals, phi, strict=True)]
        return weight, totals, log_likelihood

    begin = (
        jnp.zeros(columns, jnp.float32),
        [jnp.zeros(ref.shape, jnp.float32) for ref in sums_refs],
        jnp.zeros((tile.lanes, tile.rows), jnp.float32),
    )
    weight, totals, log_likelihood = lax.fori_loop(0, steps, step, begin)
    weight_ref[...] = weight
    log_likelihood_ref[...] = jnp.sum(log_likelihood, axis=1)
    for ref, total in zip(sums_refs, totals, strict=True):
        ref[...] = total


@partial(jax.jit, static_argnames=("kind", "tile", "precision", "interpret"))
def sums(
    coefficients: Float[Array, "lanes k p"],
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    *,
    kind: Second,
    tile: Tile,
    precision: str,
    interpret: bool = False,
) -> tuple[Float[Array, "lanes k p"], Float[Array, "lanes"]]:
    """Σ_i w_i r_ij φ(x_i) of several models over the same rows, and their log-likelihoods.

    `coefficients` are those of `expectation.prepare`, `precision` is "high" or "tf32".
    """
    lanes, k, _ = coefficients.shape
    n, d = x.shape
    wide, width = power_of_two(k), power_of_two(d)
    groups = -(-lanes // tile.lanes)
    sides = [width, *chunks(d, kind)]
    n_second = {Second.FULL: d * (d + 1) // 2, Second.DIAG: d, Second.TRACE: d}[kind]

    constant, linear, second = (
        coefficients[..., 0], coefficients[..., 1 : d + 1], coefficients[..., d + 1 :],
    )  # fmt: skip
    if kind is Second.TRACE:
        second = jnp.broadcast_to(second, (lanes, k, d))
    # Lanes repeat the first, components have density 0, features a coefficient of 0.
    constant = jnp.pad(constant, ((0, 0), (0, wide - k)), constant_values=LOWEST)
    linear = jnp.pad(linear, ((0, 0), (0, wide - k), (0, width - d)))
    second = jnp.pad(second, ((0, 0), (0, wide - k), (0, sum(sides[1:]) - n_second)))
    fill = groups * tile.lanes - lanes

    def columns(a: Float[Array, "lanes k ..."]) -> Float[Array, "groups columns ..."]:
        a = jnp.concatenate([a, jnp.broadcast_to(a[:1], (fill, *a.shape[1:]))])
        return a.reshape(groups, tile.lanes * wide, *a.shape[2:])

    cuts = np.cumsum(sides[1:])[:-1].tolist()
    pieces = [linear, *jnp.split(second, cuts, axis=-1)]
    split = [parts(columns(a), precision) for a in pieces]
    tables = [part for piece in split for part in piece]
    picked = [p for pair in picks(d) for p in pair] if kind is Second.FULL else []
    picked = [jnp.asarray(p, jnp.bfloat16) for p in picked]

    def all_of(*arrays: Array) -> list[pl.BlockSpec]:
        return [pl.BlockSpec(a.shape, lambda i, g, rank=a.ndim: (0,) * rank) for a in arrays]

    out, programs, width = jax.ShapeDtypeStruct, tile.programs, tile.lanes * wide
    weight, *totals, log_likelihood = pl.pallas_call(
        partial(
            _kernel, n=n, d=d, kind=kind, tile=tile, precision=precision,
            n_chunks=len(sides) - 1, n_parts=len(split[0]),
        ),
        grid=(programs, groups),
        in_specs=[
            *all_of(x, weights),
            pl.BlockSpec((None, width), lambda i, g: (g, 0)),
            *all_of(*picked),
            *(pl.BlockSpec((None, *a.shape[1:]), lambda i, g: (g, 0, 0)) for a in tables),
        ],
        out_specs=[
            pl.BlockSpec((None, None, width), lambda i, g: (i, g, 0)),
            *(
                pl.BlockSpec((None, None, width, side), lambda i, g: (i, g, 0, 0))
                for side in sides
            ),
            pl.BlockSpec((None, None, tile.lanes), lambda i, g: (i, g, 0)),
        ],
        out_shape=[
            out((programs, groups, width), jnp.float32),
            *(out((programs, groups, width, side), jnp.float32) for side in sides),
            out((programs, groups, tile.lanes), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="gmm_resident",
    )(x, weights, columns(constant), *picked, *tables)  # fmt: skip

    def models(a: Float[Array, "programs groups columns ..."]) -> Float[Array, "lanes k ..."]:
        a = jnp.sum(a, axis=0)
        return a.reshape(groups * tile.lanes, wide, *a.shape[2:])[:lanes, :k]

    first, *rest = (models(total) for total in totals)
    second = jnp.concatenate(rest, axis=-1)[..., :n_second]
    if kind is Second.TRACE:
        second = jnp.sum(second, axis=-1, keepdims=True)
    total = jnp.concatenate([models(weight)[..., None], first[..., :d], second], axis=-1)
    return total, jnp.sum(log_likelihood, axis=0).reshape(-1)[:lanes]


def _for_lanes(tile: Tile, lanes: int, k: int) -> Tile:
    """The tile with no more lanes than there are, and warps and programs to suit."""
    lanes = min(tile.lanes, power_of_two(lanes, least=1))
    if lanes * k >= 128:
        return replace(tile, lanes=lanes)
    return replace(tile, lanes=lanes, warps=4, programs=max(tile.programs, PROGRAMS))


def for_one(
    kind: Second, tile: Tile, precision: str, interpret: bool
) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    """The same for one model, which under `vmap` over models takes up the axis as lanes.

    Lanes over the same rows share their features; problems of their own rows become one launch too, by
    Pallas' own batching.
    """
    options = {"kind": kind, "precision": precision, "interpret": interpret}

    def together(lanes: int, coefficients: Array, x: Array, weights: Array):
        some = _for_lanes(tile, lanes, power_of_two(coefficients.shape[1]))
        return sums(coefficients, x, weights, tile=some, **options)

    def alone(coefficients: Array, x: Array, weights: Array) -> tuple[Array, Array]:
        total, log_likelihood = together(1, coefficients[None], x, weights)
        return total[0], log_likelihood[0]

    one = jax.custom_batching.custom_vmap(alone)

    @one.def_vmap
    def over_lanes(size: int, batched: list[bool], coefficients: Array, x: Array, weights: Array):
        if batched[1] or batched[2]:
            axes = tuple(0 if b else None for b in batched)
            out = jax.vmap(alone, axes, axis_size=size)(coefficients, x, weights)
        else:
            out = together(size, coefficients, x, weights)
        return out, (True, True)

    return one

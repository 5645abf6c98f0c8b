"""E-step, softmax and moments in one launch: nothing of size n is written.

A program walks over its share of the rows. For a tile of them it builds features chunk by chunk, adds
up their products with the coefficients, takes the softmax in registers, builds the chunks again, and adds
their products with the responsibilities to sums of its own, which stay in the L2 cache: in registers
they would leave no room for the products (at d = 64, k = 64 they are half a megabyte). The programs'
sums are added up outside in a fixed order, so the same input gives the same bits.

Features are built from x by two loads, x_a and x_b, along a table of pairs (a, b) in the order of
`moments.features`; an index of d stands for the constant 1. So one kernel serves every family.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gmmjax.kernels.arithmetic import LOWEST, parts, power_of_two, product
from gmmjax.kernels.tiles import Tile
from gmmjax.moments import Second
from gmmjax.typing import Array, Float


def pairs(d: int, kind: Second) -> tuple[np.ndarray, np.ndarray]:
    """The factors of every feature but the constant: φ_q = x_a(q) · x_b(q), x_d = 1.

    For `TRACE` the squares stay apart, and their sums are added up at the end.
    """
    one = np.arange(d)
    if kind is Second.FULL:
        a, b = np.triu_indices(d)
    else:
        a = b = one
    left, right = np.concatenate([one, a]), np.concatenate([np.full(d, d), b])
    return left.astype(np.int32), right.astype(np.int32)


def size(k: int, d: int, kind: Second) -> int:
    """Numbers that a program holds for one model: its sums, components and features padded."""
    return power_of_two(k) * len(pairs(d, kind)[0])


def _kernel(
    x_ref, w_ref, left_ref, right_ref, constant_ref, *refs, n: int, d: int, tile: Tile, precision
):  # fmt: skip
    """One program: `tile.lanes` models, every `tile.programs`-th tile of rows."""
    *coefficient_refs, weight_ref, sums_ref, log_likelihood_ref = refs
    k = constant_ref.shape[-1]
    lanes = range(tile.lanes)
    n_chunks = left_ref.shape[0] // tile.features
    steps = -(-n // (tile.rows * tile.programs))
    program, within = pl.program_id(0), jnp.arange(tile.rows, dtype=jnp.int32)

    def features(rows: Array, chunk: Any) -> Float[Array, "rows q"]:
        left, right = left_ref[chunk][None, :], right_ref[chunk][None, :]
        rows = rows[:, None]
        x_a = plgpu.load(x_ref.at[rows, left], mask=rows < n, other=0.0)
        x_b = plgpu.load(x_ref.at[rows, right], mask=(rows < n) & (right < d), other=1.0)
        return x_a * x_b

    def step(i: Array, carry: tuple[list[Array], list[Array]]) -> tuple[list[Array], list[Array]]:
        weights, log_likelihood = carry
        rows = (i * tile.programs + program) * tile.rows + within
        w = plgpu.load(w_ref.at[rows], mask=rows < n, other=0.0)

        def e(c: Array, joint: list[Array]) -> list[Array]:
            chunk = pl.ds(c * tile.features, tile.features)
            # In three parts always: the quadratic form cancels, and TF32 alone shifts
            # log-densities by 1e-2.
            phi = parts(features(rows, chunk), "high")
            coefficients = [
                tuple(ref[lane, chunk, :] for ref in coefficient_refs) for lane in lanes
            ]
            return [j + product(phi, b) for j, b in zip(joint, coefficients, strict=True)]

        joint = [jnp.broadcast_to(constant_ref[lane, :], (tile.rows, k)) for lane in lanes]
        joint = lax.fori_loop(0, n_chunks, e, joint)

        responsibilities = []
        for lane in lanes:
            largest = jnp.max(joint[lane], axis=1)
            shifted = jnp.exp(joint[lane] - largest[:, None])
            total = jnp.sum(shifted, axis=1)
            log_likelihood[lane] = log_likelihood[lane] + w * (largest + jnp.log(total))
            r = parts(shifted * (w / total)[:, None], precision)
            responsibilities.append(r)
            weights[lane] = weights[lane] + jnp.sum(sum(r), axis=0)

        def m(c: Array, _: Array) -> Array:
            chunk = pl.ds(c * tile.features, tile.features)
            phi = tuple(part.T for part in parts(features(rows, chunk), precision))
            for lane, r in zip(lanes, responsibilities, strict=True):
                at = sums_ref.at[jnp.int32(lane), chunk, :]
                before = plgpu.load(at, mask=jnp.broadcast_to(i > 0, at.shape), other=0.0)
                # Each tile's product begins at 0 and is added in float32: a tensor core's own
                # running sum drops what it cannot hold, which over many rows is a bias.
                plgpu.store(at, before + product(phi, r))
            return _

        lax.fori_loop(0, n_chunks, m, jnp.int32(0))
        return weights, log_likelihood

    begin = (
        [jnp.zeros(k, jnp.float32) for _ in lanes],
        [jnp.zeros(tile.rows, jnp.float32) for _ in lanes],
    )
    weights, log_likelihood = lax.fori_loop(0, steps, step, begin)
    for lane in lanes:
        weight_ref[lane, :] = weights[lane]
        log_likelihood_ref[lane] = jnp.sum(log_likelihood[lane])


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
    left, right = pairs(d, kind)
    width = power_of_two(k)
    extra = -len(left) % tile.features
    groups = -(-lanes // tile.lanes)

    constant, rest = coefficients[..., 0], coefficients[..., 1:]
    if kind is Second.TRACE:
        rest = jnp.concatenate(
            [rest[..., :d], jnp.broadcast_to(rest[..., d:], (*rest.shape[:2], d))], axis=-1
        )
    # Lanes repeat the first, components have density 0, features a coefficient of 0.
    fill = groups * tile.lanes - lanes
    constant = jnp.pad(constant, ((0, 0), (0, width - k)), constant_values=LOWEST)
    rest = jnp.pad(rest, ((0, 0), (0, width - k), (0, extra)))
    constant, rest = (
        jnp.concatenate([a, jnp.broadcast_to(a[:1], (fill, *a.shape[1:]))])
        for a in (constant, jnp.swapaxes(rest, 1, 2))
    )
    table = [jnp.asarray(np.pad(a, (0, extra))) for a in (left, right)]
    p = len(left) + extra
    split = parts(rest, "high")

    whole = [
        pl.BlockSpec(a.shape, lambda i, g, rank=a.ndim: (0,) * rank) for a in (x, weights, *table)
    ]
    of_lane = pl.BlockSpec((tile.lanes, p, width), lambda i, g: (g, 0, 0))
    out = jax.ShapeDtypeStruct
    programs = tile.programs
    weight, total, log_likelihood = pl.pallas_call(
        partial(_kernel, n=n, d=d, tile=tile, precision=precision),
        grid=(programs, groups),
        in_specs=[
            *whole,
            pl.BlockSpec((tile.lanes, width), lambda i, g: (g, 0)),
            *[of_lane for _ in split],
        ],
        out_specs=[
            pl.BlockSpec((None, tile.lanes, width), lambda i, g: (i, g, 0)),
            pl.BlockSpec((None, tile.lanes, p, width), lambda i, g: (i, g, 0, 0)),
            pl.BlockSpec((None, tile.lanes), lambda i, g: (i, g)),
        ],
        out_shape=[
            out((programs, groups * tile.lanes, width), jnp.float32),
            out((programs, groups * tile.lanes, p, width), jnp.float32),
            out((programs, groups * tile.lanes), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="gmm_onepass",
    )(x, weights, *table, constant, *split)
    total = jnp.swapaxes(jnp.sum(total, axis=0), 1, 2)[:lanes, :k, : len(left)]
    if kind is Second.TRACE:
        total = jnp.concatenate(
            [total[..., :d], jnp.sum(total[..., d:], axis=-1, keepdims=True)], axis=-1
        )
    weight = jnp.sum(weight, axis=0)[:lanes, :k, None]
    return jnp.concatenate([weight, total], axis=-1), jnp.sum(log_likelihood, axis=0)[:lanes]


def for_one(
    kind: Second, tile: Tile, precision: str, interpret: bool
) -> Callable[[Array, Array, Array], tuple[Array, Array]]:
    """The same for one model, which under `vmap` over models takes up the axis as lanes.

    Lanes over the same rows share their features; problems of their own rows become one launch too, by
    Pallas' own batching.
    """
    options = {"kind": kind, "precision": precision, "interpret": interpret}

    def alone(coefficients: Array, x: Array, weights: Array) -> tuple[Array, Array]:
        total, log_likelihood = sums(
            coefficients[None], x, weights, tile=replace(tile, lanes=1), **options
        )
        return total[0], log_likelihood[0]

    one = jax.custom_batching.custom_vmap(alone)

    @one.def_vmap
    def over_lanes(size: int, batched: list[bool], coefficients: Array, x: Array, weights: Array):
        if batched[1] or batched[2]:
            axes = tuple(0 if b else None for b in batched)
            out = jax.vmap(alone, axes, axis_size=size)(coefficients, x, weights)
        else:
            out = sums(coefficients, x, weights, tile=tile, **options)
        return out, (True, True)

    return one

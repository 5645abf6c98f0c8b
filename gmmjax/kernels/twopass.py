"""Diagonal and spherical mixtures of many components, in two launches that meet in n numbers.

The first walks over the components of a tile of rows with a running softmax (Milakov and Gimelshein
2018) and leaves log p(x_i); the second gives each program a tile of components, whose sums stay in its
registers while it walks over rows: r_ij = exp(log-joint − log p), computed again. A third of the work is
done twice, and neither responsibilities nor log-joints are ever written.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gmmjax.kernels.arithmetic import LOWEST, RESPONSIBILITIES, parts, power_of_two, product, whole
from gmmjax.kernels.tiles import Tile
from gmmjax.moments import Second
from gmmjax.typing import Array, Float


def _rows(x_ref, start, *, n: int, tile: Tile, width: int) -> tuple[Array, Array]:
    """Which rows, and a tile of them, 0 outside."""
    d = x_ref.shape[1]
    rows = start + jnp.arange(tile.rows, dtype=jnp.int32)
    columns = jnp.arange(width, dtype=jnp.int32)
    mask = (rows < n)[:, None] & (columns < d)[None, :]
    return rows, plgpu.load(x_ref.at[rows[:, None], columns[None, :]], mask=mask, other=0.0)


def _features(x: Array, kind: Second, precision: str) -> tuple[tuple[Array, ...], Any]:
    """The rows in parts, and their squares in parts, or the sum of these."""
    square = x * x
    second = parts(square, precision) if kind is Second.DIAG else jnp.sum(square, axis=1)
    return parts(x, precision), second


def _joint(phi: tuple, constant: Array, refs: list, chunk, kind: Second) -> Array:
    """The log-joint of a tile of rows and one of components."""
    first, second = phi
    linear = tuple(ref[chunk, :].T for ref in refs[: len(first)])
    joint = constant[None, :] + product(first, linear)
    if kind is Second.DIAG:
        return joint + product(second, tuple(ref[chunk, :].T for ref in refs[len(first) :]))
    return joint + second[:, None] * refs[-1][chunk][None, :]


def _normaliser(x_ref, w_ref, constant_ref, *refs, n, kind, tile, width, precision):
    *refs, log_prob_ref, log_likelihood_ref = refs
    rows, x = _rows(x_ref, pl.program_id(0) * tile.rows, n=n, tile=tile, width=width)
    phi = _features(x, kind, precision)

    def step(c: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        largest, total = carry
        chunk = pl.ds(c * tile.components, tile.components)
        joint = _joint(phi, constant_ref[chunk], refs, chunk, kind)
        new = jnp.maximum(largest, jnp.max(joint, axis=1))
        total = total * jnp.exp(largest - new) + jnp.sum(jnp.exp(joint - new[:, None]), axis=1)
        return new, total

    begin = (jnp.full(tile.rows, LOWEST), jnp.zeros(tile.rows, jnp.float32))
    chunks = constant_ref.shape[0] // tile.components
    largest, total = lax.fori_loop(0, chunks, step, begin)
    log_prob = largest + jnp.log(total)
    plgpu.store(log_prob_ref.at[rows], log_prob, mask=rows < n)
    w = plgpu.load(w_ref.at[rows], mask=rows < n, other=0.0)
    log_likelihood_ref[0] = jnp.sum(w * log_prob)


def _sums(x_ref, w_ref, log_prob_ref, constant_ref, *refs, n, kind, tile, width, precision):
    *refs, weight_ref, first_ref, second_ref = refs
    chunk = pl.ds(pl.program_id(0) * tile.components, tile.components)
    program = pl.program_id(1)
    constant = constant_ref[chunk]

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        weight, first, second = carry
        start = (i * tile.programs + program) * tile.rows
        rows, x = _rows(x_ref, start, n=n, tile=tile, width=width)
        w = plgpu.load(w_ref.at[rows], mask=rows < n, other=0.0)
        log_prob = plgpu.load(log_prob_ref.at[rows], mask=rows < n, other=0.0)
        phi = _features(x, kind, precision)
        joint = _joint(phi, constant, refs, chunk, kind)
        # A row outside, or an absent one, may lie where the difference overflows.
        r = jnp.where(w[:, None] > 0, w[:, None] * jnp.exp(joint - log_prob[:, None]), 0.0)
        cut = parts(r, RESPONSIBILITIES)
        turned, used = tuple(part.T for part in cut), whole(cut)
        weight = weight + jnp.sum(used, axis=0)
        first = first + product(turned, phi[0])
        if kind is Second.DIAG:
            second = second + product(turned, phi[1])
        else:
            second = second + jnp.sum(used * phi[1][:, None], axis=0)
        return weight, first, second

    zero = partial(jnp.zeros, dtype=jnp.float32)
    k = tile.components
    begin = (zero(k), zero((k, width)), zero((k, width) if kind is Second.DIAG else k))
    steps = -(-n // (tile.rows * tile.programs))
    weight, first, second = lax.fori_loop(0, steps, step, begin)
    weight_ref[...], first_ref[...], second_ref[...] = weight, first, second


@partial(jax.jit, static_argnames=("kind", "tile", "precision", "interpret"))
def sums(
    coefficients: Float[Array, "k p"],
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    *,
    kind: Second,
    tile: Tile,
    precision: str,
    interpret: bool = False,
) -> tuple[Float[Array, "k p"], Float[Array, ""]]:
    """Σ_i w_i r_ij φ(x_i) and the log-likelihood; under `vmap`, one launch each for all models."""
    k = coefficients.shape[0]
    n, d = x.shape
    width = power_of_two(d)
    extra = -k % tile.components
    constant, linear, square = jnp.split(coefficients, [1, d + 1], axis=1)
    constant = jnp.pad(constant[:, 0], (0, extra), constant_values=LOWEST)
    linear = jnp.pad(linear, ((0, extra), (0, width - d)))
    if kind is Second.DIAG:
        squares = parts(jnp.pad(square, ((0, extra), (0, width - d))), precision)
    else:
        squares = (jnp.pad(square[:, 0], (0, extra)),)
    tables = (constant, *parts(linear, precision), *squares)

    def whole(*arrays: Array) -> list[pl.BlockSpec]:
        return [pl.BlockSpec(a.shape, lambda *i, r=a.ndim: (0,) * r) for a in arrays]

    out = jax.ShapeDtypeStruct
    options = {
        "compiler_params": plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        "interpret": interpret,
    }
    static = {"n": n, "kind": kind, "tile": tile, "width": width, "precision": precision}
    row_tiles = -(-n // tile.rows)
    log_prob, log_likelihood = pl.pallas_call(
        partial(_normaliser, **static),
        grid=(row_tiles,),
        in_specs=whole(x, weights, *tables),
        out_specs=[pl.BlockSpec((n,), lambda i: (0,)), pl.BlockSpec((1,), lambda i: (i,))],
        out_shape=[out((n,), jnp.float32), out((row_tiles,), jnp.float32)],
        name="gmm_normaliser",
        **options,
    )(x, weights, *tables)

    kt, padded = tile.components, k + extra
    second_shape = (width,) if kind is Second.DIAG else ()
    weight, first, second = pl.pallas_call(
        partial(_sums, **static),
        grid=(padded // kt, tile.programs),
        in_specs=whole(x, weights, log_prob, *tables),
        out_specs=[
            pl.BlockSpec((None, kt), lambda j, i: (i, j)),
            pl.BlockSpec((None, kt, width), lambda j, i: (i, j, 0)),
            pl.BlockSpec(
                (None, kt, *second_shape), lambda j, i: (i, j, 0)[: 2 + len(second_shape)]
            ),
        ],
        out_shape=[
            out((tile.programs, padded), jnp.float32),
            out((tile.programs, padded, width), jnp.float32),
            out((tile.programs, padded, *second_shape), jnp.float32),
        ],
        name="gmm_sums",
        **options,
    )(x, weights, log_prob, *tables)
    weight, first, second = (jnp.sum(a, axis=0)[:k] for a in (weight, first, second))
    second = second[:, :d] if kind is Second.DIAG else second[:, None]
    return jnp.concatenate([weight[:, None], first[:, :d], second], axis=1), jnp.sum(log_likelihood)

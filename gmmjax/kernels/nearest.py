"""K-means in two launches and a sort between them: the nearest centres, then the sums of each cluster.

The running argmin over tiles of centres stays in registers; a label a row is written. Rows are then sorted
by label, and a program adds up a share of one cluster's rows: half the arithmetic of a product with the
one-hot matrix, which in the same launch as the search was no faster at 256 clusters. No atomics, and the
same bits each time.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gmmjax.kernels.arithmetic import parts, power_of_two, product, rounded
from gmmjax.kernels.tiles import Tile
from gmmjax.typing import Array, Float, Int

FARTHEST = 1e30
"""½‖c‖² of a centre that is only filling: no row chooses it."""


SHARES = 4
"""Programs a cluster, so that a large one does not hold up the others for long."""


def _operand(a: Array, precision: str) -> tuple[Array, ...]:
    """Of the product that searches. In TF32 a near tie may fall either way; all else follows the label."""
    return (rounded(a),) if precision == "tf32" else parts(a, precision)


def _rows(x_ref: Any, rows: Array, valid: Array, width: int) -> Float[Array, "rows width"]:
    """A tile of rows, 0 where not valid."""
    d = x_ref.shape[1]
    columns = jnp.arange(width, dtype=jnp.int32)
    mask = valid[:, None] & (columns < d)[None, :]
    return plgpu.load(x_ref.at[rows[:, None], columns[None, :]], mask=mask, other=0.0)


def _search(x_ref, w_ref, half_ref, centers_ref, *refs, n, tile, precision):
    """One program: every `tile.programs`-th tile of rows."""
    *part_refs, label_ref, inertia_ref, reach_ref, row_ref = refs
    width = part_refs[0].shape[1]
    program = pl.program_id(0)
    within = jnp.arange(tile.rows, dtype=jnp.int32)
    chunks = half_ref.shape[0] // tile.components
    steps = -(-n // (tile.rows * tile.programs))

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        inertia, reach, farthest = carry
        rows = (i * tile.programs + program) * tile.rows + within
        x = _rows(x_ref, rows, rows < n, width)
        w = plgpu.load(w_ref.at[rows], mask=rows < n, other=0.0)
        operand = _operand(x, precision)

        def search(c: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
            least, label = best
            chunk = pl.ds(c * tile.components, tile.components)
            centers = tuple(ref[chunk, :].T for ref in part_refs)
            score = half_ref[chunk][None, :] - product(operand, centers)
            here = jnp.min(score, axis=1)
            at = jnp.argmin(score, axis=1).astype(jnp.int32) + c * tile.components
            # Strictly less: the first of equals, as in the plain path.
            return jnp.minimum(least, here), jnp.where(here < least, at, label)

        begin = (jnp.full(tile.rows, jnp.inf, jnp.float32), jnp.zeros(tile.rows, jnp.int32))
        _, label = lax.fori_loop(0, chunks, search, begin)
        plgpu.store(label_ref.at[rows], label, mask=rows < n)

        # By differences: never negative, and no cancellation.
        mine = _rows(centers_ref, label, rows < n, width)
        distance = jnp.sum((x - mine) ** 2, axis=1)
        inertia = inertia + w * distance
        seen = jnp.where(w > 0, distance, -1.0)
        farthest = jnp.where(seen > reach, rows, farthest)
        return inertia, jnp.maximum(reach, seen), farthest

    begin = (
        jnp.zeros(tile.rows, jnp.float32),
        jnp.full(tile.rows, -1.0, jnp.float32),
        jnp.zeros(tile.rows, jnp.int32),
    )
    inertia, reach, farthest = lax.fori_loop(0, steps, step, begin)
    inertia_ref[0] = jnp.sum(inertia)
    reach_ref[...], row_ref[...] = reach, farthest


def _add_up(x_ref, w_ref, order_ref, begin_ref, weight_ref, first_ref, *, tile: Tile):
    """The rows begin[j] to begin[j + 1] of the order, a share of them."""
    cluster, share = pl.program_id(0), pl.program_id(1)
    begin, end = begin_ref[cluster], begin_ref[cluster + 1]
    per_share = (end - begin + SHARES - 1) // SHARES
    begin = begin + share * per_share
    end = jnp.minimum(begin + per_share, end)
    within = jnp.arange(tile.rows, dtype=jnp.int32)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        weight, first = carry
        at = begin + i * tile.rows + within
        rows = plgpu.load(order_ref.at[at], mask=at < end, other=0)
        w = plgpu.load(w_ref.at[rows], mask=at < end, other=0.0)
        x = _rows(x_ref, rows, at < end, first.shape[1])
        return weight + w, first + w[:, None] * x

    zero = (
        jnp.zeros(tile.rows, jnp.float32),
        jnp.zeros((tile.rows, first_ref.shape[-1]), jnp.float32),
    )
    steps = jnp.maximum(end - begin + tile.rows - 1, 0) // tile.rows
    weight, first = lax.fori_loop(0, steps, step, zero)
    weight_ref[0], first_ref[...] = jnp.sum(weight), jnp.sum(first, axis=0)


@partial(jax.jit, static_argnames=("tile", "precision", "interpret"))
def sums(
    centers: Float[Array, "k d"],
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    *,
    tile: Tile,
    precision: str,
    interpret: bool = False,
) -> tuple[Float[Array, "k"], Float[Array, "k d"], Array, Float[Array, "m"], Int[Array, "m"]]:
    """Weight and sum of each cluster, the inertia, and the distance and index of far rows.

    Far rows: one of each residue class of a program's rows, the distance −1 where none counts.
    """
    k, d = centers.shape
    n = x.shape[0]
    width = power_of_two(d)
    extra = -k % tile.components
    half = 0.5 * jnp.sum(centers * centers, axis=1)
    half = jnp.pad(half, (0, extra), constant_values=FARTHEST)
    split = _operand(jnp.pad(centers, ((0, extra), (0, width - d))), precision)
    out, programs = jax.ShapeDtypeStruct, tile.programs
    arrays = (x, weights, half, centers, *split)
    label, inertia, reach, row = pl.pallas_call(
        partial(_search, n=n, tile=tile, precision=precision),
        grid=(programs,),
        in_specs=[pl.BlockSpec(a.shape, lambda i, r=a.ndim: (0,) * r) for a in arrays],
        out_specs=[
            pl.BlockSpec((n,), lambda i: (0,)),
            pl.BlockSpec((1,), lambda i: (i,)),
            pl.BlockSpec((tile.rows,), lambda i: (i,)),
            pl.BlockSpec((tile.rows,), lambda i: (i,)),
        ],
        out_shape=[
            out((n,), jnp.int32),
            out((programs,), jnp.float32),
            out((programs * tile.rows,), jnp.float32),
            out((programs * tile.rows,), jnp.int32),
        ],
        name="kmeans_nearest",
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
    )(*arrays)
    weight, first = _by_label(x, weights, label, k, width, interpret)
    return weight, first[:, :d], jnp.sum(inertia), reach, row


def _by_label(
    x: Array, weights: Array, label: Array, k: int, width: int, interpret: bool
) -> tuple[Float[Array, "k"], Float[Array, "k width"]]:
    """Weight and sum of each label's rows."""
    label, order = lax.sort_key_val(label, jnp.arange(len(label), dtype=jnp.int32))
    begin = jnp.searchsorted(label, jnp.arange(k + 1, dtype=jnp.int32), method="scan_unrolled")
    arrays = (x, weights, order, begin.astype(jnp.int32))
    out = jax.ShapeDtypeStruct
    weight, first = pl.pallas_call(
        partial(_add_up, tile=Tile(rows=max(8, 2**12 // width))),
        grid=(k, SHARES),
        in_specs=[pl.BlockSpec(a.shape, lambda *i, r=a.ndim: (0,) * r) for a in arrays],
        out_specs=[
            pl.BlockSpec((None, 1), lambda j, s: (s, j)),
            pl.BlockSpec((None, None, width), lambda j, s: (s, j, 0)),
        ],
        out_shape=[out((SHARES, k), jnp.float32), out((SHARES, k, width), jnp.float32)],
        name="kmeans_add_up",
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(*arrays)
    return jnp.sum(weight, axis=0), jnp.sum(first, axis=0)

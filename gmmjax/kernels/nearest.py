"""K-means: the nearest centre, the sums of each cluster and the inertia, in one launch.

The running argmin over tiles of centres stays in registers; the one-hot matrix of a tile of rows is
made there too and multiplied with the rows, which is exact in bfloat16 for the one-hot side. As in
`onepass`, the sums of a program stay in its own slice of the L2 cache: no atomics, the same bits each time.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gmmjax.kernels.arithmetic import parts, power_of_two, product
from gmmjax.kernels.tiles import Tile
from gmmjax.typing import Array, Float, Int

FARTHEST = 1e30
"""½‖c‖² of a centre that is only filling: no row chooses it."""


def _kernel(x_ref, w_ref, half_ref, centers_ref, *refs, n, d, tile, precision):
    *part_refs, weight_ref, first_ref, inertia_ref, reach_ref, row_ref = refs
    width = part_refs[0].shape[1]
    program = pl.program_id(0)
    within = jnp.arange(tile.rows, dtype=jnp.int32)
    columns = jnp.arange(width, dtype=jnp.int32)
    component = jnp.arange(tile.components, dtype=jnp.int32)
    chunks = half_ref.shape[0] // tile.components
    steps = -(-n // (tile.rows * tile.programs))

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        inertia, reach, farthest = carry
        rows = (i * tile.programs + program) * tile.rows + within
        mask = (rows < n)[:, None] & (columns < d)[None, :]
        x = plgpu.load(x_ref.at[rows[:, None], columns[None, :]], mask=mask, other=0.0)
        w = plgpu.load(w_ref.at[rows], mask=rows < n, other=0.0)
        x_parts, weighted = parts(x, precision), parts(x * w[:, None], precision)

        def search(c: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
            least, label = best
            chunk = pl.ds(c * tile.components, tile.components)
            centers = tuple(ref[chunk, :].T for ref in part_refs)
            score = half_ref[chunk][None, :] - product(x_parts, centers)
            here = jnp.min(score, axis=1)
            at = jnp.argmin(score, axis=1).astype(jnp.int32) + c * tile.components
            # Strictly less: the first of equals, as in the plain path.
            return jnp.minimum(least, here), jnp.where(here < least, at, label)

        begin = (jnp.full(tile.rows, jnp.inf, jnp.float32), jnp.zeros(tile.rows, jnp.int32))
        _, label = lax.fori_loop(0, chunks, search, begin)

        # By differences: never negative, and no cancellation.
        mine = plgpu.load(centers_ref.at[label[:, None], columns[None, :]], mask=mask, other=0.0)
        distance = jnp.sum((x - mine) ** 2, axis=1)
        inertia = inertia + w * distance
        seen = jnp.where(w > 0, distance, -1.0)
        farthest = jnp.where(seen > reach, rows, farthest)
        reach = jnp.maximum(reach, seen)

        def add(c: Array, _: Array) -> Array:
            chunk = pl.ds(c * tile.components, tile.components)
            hot = label[:, None] == (component + c * tile.components)[None, :]
            weight, first = weight_ref.at[chunk], first_ref.at[chunk, :]
            later = i > 0
            before = plgpu.load(weight, mask=jnp.broadcast_to(later, weight.shape), other=0.0)
            plgpu.store(weight, before + jnp.sum(jnp.where(hot, w[:, None], 0.0), axis=0))
            before = plgpu.load(first, mask=jnp.broadcast_to(later, first.shape), other=0.0)
            turned = hot.astype(jnp.bfloat16).T
            plgpu.store(first, before + product((turned,), weighted))
            return _

        lax.fori_loop(0, chunks, add, jnp.int32(0))
        return inertia, reach, farthest

    begin = (
        jnp.zeros(tile.rows, jnp.float32),
        jnp.full(tile.rows, -1.0, jnp.float32),
        jnp.zeros(tile.rows, jnp.int32),
    )
    inertia, reach, farthest = lax.fori_loop(0, steps, step, begin)
    inertia_ref[0] = jnp.sum(inertia)
    reach_ref[...], row_ref[...] = reach, farthest


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
    split = parts(jnp.pad(centers, ((0, extra), (0, width - d))), precision)
    arrays = (x, weights, half, centers, *split)
    out = jax.ShapeDtypeStruct
    programs, padded = tile.programs, k + extra
    weight, first, inertia, reach, row = pl.pallas_call(
        partial(_kernel, n=n, d=d, tile=tile, precision=precision),
        grid=(programs,),
        in_specs=[pl.BlockSpec(a.shape, lambda i, r=a.ndim: (0,) * r) for a in arrays],
        out_specs=[
            pl.BlockSpec((None, padded), lambda i: (i, 0)),
            pl.BlockSpec((None, padded, width), lambda i: (i, 0, 0)),
            pl.BlockSpec((1,), lambda i: (i,)),
            pl.BlockSpec((tile.rows,), lambda i: (i,)),
            pl.BlockSpec((tile.rows,), lambda i: (i,)),
        ],
        out_shape=[
            out((programs, padded), jnp.float32),
            out((programs, padded, width), jnp.float32),
            out((programs,), jnp.float32),
            out((programs * tile.rows,), jnp.float32),
            out((programs * tile.rows,), jnp.int32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="kmeans_nearest",
    )(*arrays)
    return (
        jnp.sum(weight, axis=0)[:k], jnp.sum(first, axis=0)[:k, :d], jnp.sum(inertia), reach, row,
    )  # fmt: skip

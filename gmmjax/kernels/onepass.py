"""E-step, softmax and moments in one launch: nothing of size n is written.

For many features (`resident` serves the few). A program walks over its share of the rows. For a tile of
them it builds features chunk by chunk, adds up their products with the coefficients, takes the softmax in
registers, builds the chunks again, and adds their products with the responsibilities to sums of its own,
which stay in the L2 cache: in registers they would leave no room for the products (at d = 64, k = 64 they
are half a megabyte). The programs' sums are added up outside in a fixed order, so the same input gives the
same bits.

Everything lies with the rows last: features [features, rows] come from xᵀ by loads of several rows at a
time, and no operand of a product has to be turned. A feature is x_a·x_b, by a table of pairs (a, b) in the
order of `moments.features`; an index of d stands for the constant 1, a row of ones under xᵀ.
"""

from functools import partial
from typing import Any

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


def _kernel(
    x_ref, w_ref, left_ref, right_ref, constant_ref, *refs, tile: Tile, steps: int, precision
):  # fmt: skip
    """One program: every `tile.programs`-th tile of rows."""
    *coefficient_refs, weight_ref, sums_ref, log_likelihood_ref = refs
    k = constant_ref.shape[0]
    n_chunks = left_ref.shape[0] // tile.features
    program, within = pl.program_id(0), jnp.arange(tile.rows, dtype=jnp.int32)

    def features(rows: Array, chunk: Any) -> tuple[Array, ...]:
        left, right = left_ref[chunk][:, None], right_ref[chunk][:, None]
        rows = rows[None, :]
        phi = plgpu.load(x_ref.at[left, rows]) * plgpu.load(x_ref.at[right, rows])
        return parts(phi, precision)

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        weight, log_likelihood = carry
        rows = (i * tile.programs + program) * tile.rows + within
        w = plgpu.load(w_ref.at[rows])

        def e(c: Array, joint: Array) -> Array:
            chunk = pl.ds(c * tile.features, tile.features)
            coefficients = tuple(ref[:, chunk] for ref in coefficient_refs)
            return joint + product(coefficients, features(rows, chunk))

        joint = jnp.broadcast_to(constant_ref[...][:, None], (k, tile.rows))
        joint = lax.fori_loop(0, n_chunks, e, joint)
        largest = jnp.max(joint, axis=0)
        shifted = jnp.exp(joint - largest[None, :])
        total = jnp.sum(shifted, axis=0)
        log_likelihood = log_likelihood + w * (largest + jnp.log(total))
        r = shifted * (w / total)[None, :]
        r = parts(r, RESPONSIBILITIES)
        weight = weight + jnp.sum(whole(r), axis=1)

        def m(c: Array, _: Array) -> Array:
            chunk = pl.ds(c * tile.features, tile.features)
            phi = tuple(part.T for part in features(rows, chunk))
            at = sums_ref.at[:, chunk]
            before = plgpu.load(at, mask=jnp.broadcast_to(i > 0, at.shape), other=0.0)
            # Each tile's product begins at 0 and is added in float32: a tensor core's own running
            # sum drops what it cannot hold, which over many rows is a bias.
            plgpu.store(at, before + product(r, phi))
            return _

        lax.fori_loop(0, n_chunks, m, jnp.int32(0))
        return weight, log_likelihood

    begin = (jnp.zeros(k, jnp.float32), jnp.zeros(tile.rows, jnp.float32))
    weight, log_likelihood = lax.fori_loop(0, steps, step, begin)
    weight_ref[...] = weight
    log_likelihood_ref[0] = jnp.sum(log_likelihood)


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
    """Σ_i w_i r_ij φ(x_i) and the log-likelihood; under `vmap`, one launch for all models.

    `coefficients` are those of `expectation.prepare`, `precision` is "high" or "tf32".
    """
    k = coefficients.shape[0]
    n, d = x.shape
    left, right = pairs(d, kind)
    wide, extra = power_of_two(k), -len(left) % tile.features
    p = len(left) + extra

    constant, rest = coefficients[:, 0], coefficients[:, 1:]
    if kind is Second.TRACE:
        rest = jnp.concatenate([rest[:, :d], jnp.broadcast_to(rest[:, d:], (k, d))], axis=1)
    # Components have density 0, features a coefficient of 0, rows a weight of 0.
    constant = jnp.pad(constant, (0, wide - k), constant_values=LOWEST)
    split = parts(jnp.pad(rest, ((0, wide - k), (0, extra))), precision)
    steps = -(-n // (tile.rows * tile.programs))
    fill = steps * tile.rows * tile.programs - n
    turned = jnp.pad(jnp.concatenate([x, jnp.ones((n, 1), x.dtype)], axis=1).T, ((0, 0), (0, fill)))
    table = [jnp.asarray(np.pad(a, (0, extra))) for a in (left, right)]
    arrays = (turned, jnp.pad(weights, (0, fill)), *table, constant, *split)

    out, programs = jax.ShapeDtypeStruct, tile.programs
    weight, total, log_likelihood = pl.pallas_call(
        partial(_kernel, tile=tile, steps=steps, precision=precision),
        grid=(programs,),
        in_specs=[pl.BlockSpec(a.shape, lambda i, rank=a.ndim: (0,) * rank) for a in arrays],
        out_specs=[
            pl.BlockSpec((None, wide), lambda i: (i, 0)),
            pl.BlockSpec((None, wide, p), lambda i: (i, 0, 0)),
            pl.BlockSpec((1,), lambda i: (i,)),
        ],
        out_shape=[
            out((programs, wide), jnp.float32),
            out((programs, wide, p), jnp.float32),
            out((programs,), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="gmm_onepass",
    )(*arrays)
    total = jnp.sum(total, axis=0)[:k, : len(left)]
    if kind is Second.TRACE:
        total = jnp.concatenate(
            [total[:, :d], jnp.sum(total[:, d:], axis=1, keepdims=True)], axis=1
        )
    weight = jnp.sum(weight, axis=0)[:k, None]
    return jnp.concatenate([weight, total], axis=1), jnp.sum(log_likelihood)

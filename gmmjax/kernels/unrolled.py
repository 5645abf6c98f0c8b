"""Small problems in plain float32: a few components of a few features, a row a thread.

For k·(features) up to a hundred or so a tensor core's tiles of 16 would be mostly filling, while all
coefficients, features and sums fit in a thread's registers. So everything is written out: no product of
matrices, no rounding to TF32, and the sum over threads is taken once, at the end of a program.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from gmmjax.kernels.tiles import Tile
from gmmjax.moments import Second
from gmmjax.typing import Array, Float

LARGEST = 128
"""Sums that fit in the registers of a thread, beside the features of two rows."""


def width(d: int, kind: Second) -> int:
    """Features, the constant included."""
    return 1 + d + {"full": d * (d + 1) // 2, "diag": d, "trace": 1}[kind.shape_kind]


def size(k: int, d: int, kind: Second) -> int:
    """Sums that a thread holds."""
    return k * width(d, kind)


def _features(x: list[Array], kind: Second) -> list[Array]:
    """As `moments.features`, without the constant, for columns."""
    if kind is Second.FULL:
        return x + [x[a] * x[b] for a in range(len(x)) for b in range(a, len(x))]
    squares = [a * a for a in x]
    return x + (squares if kind is Second.DIAG else [sum(squares[1:], squares[0])])


def _kernel(x_ref, w_ref, coefficient_ref, out_ref, *, n, d, k, kind, tile):
    program, within = pl.program_id(0), jnp.arange(tile.rows, dtype=jnp.int32)
    steps = -(-n // (2 * tile.rows * tile.programs))
    p = width(d, kind)

    def load(start: Array) -> tuple[list[Array], Array]:
        rows = start + within
        valid = rows < n
        x = [
            plgpu.load(x_ref.at[rows, jnp.full_like(rows, a)], mask=valid, other=0.0)
            for a in range(d)
        ]
        return _features(x, kind), plgpu.load(w_ref.at[rows], mask=valid, other=0.0)

    def step(i: Array, carry: list[Array]) -> list[Array]:
        start = (i * tile.programs + program) * 2 * tile.rows
        # Two rows a thread: a coefficient is loaded once for both.
        both = [load(start), load(start + tile.rows)]
        phis, ws = [phi for phi, _ in both], [w for _, w in both]
        joint: list[list[Array]] = [[], []]
        for j in range(k):
            coefficients = [coefficient_ref[j, q] for q in range(p)]
            for row in range(2):
                value = jnp.full((tile.rows,), coefficients[0])
                for c, phi in zip(coefficients[1:], phis[row], strict=True):
                    value = value + c * phi
                joint[row].append(value)
        carry = list(carry)
        for row in range(2):
            largest = joint[row][0]
            for value in joint[row][1:]:
                largest = jnp.maximum(largest, value)
            shifted = [jnp.exp(value - largest) for value in joint[row]]
            total = shifted[0]
            for value in shifted[1:]:
                total = total + value
            carry[-1] = carry[-1] + ws[row] * (largest + jnp.log(total))
            scale = ws[row] / total
            for j in range(k):
                r = shifted[j] * scale
                carry[j * p] = carry[j * p] + r
                for q, phi in enumerate(phis[row]):
                    carry[j * p + 1 + q] = carry[j * p + 1 + q] + r * phi
        return carry

    begin = [jnp.zeros(tile.rows, jnp.float32) for _ in range(k * p + 1)]
    for at, total in enumerate(lax.fori_loop(0, steps, step, begin)):
        out_ref[at] = jnp.sum(total)


@partial(jax.jit, static_argnames=("kind", "tile", "interpret"))
def sums(
    coefficients: Float[Array, "k p"],
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    *,
    kind: Second,
    tile: Tile,
    interpret: bool = False,
) -> tuple[Float[Array, "k p"], Float[Array, ""]]:
    """Σ_i w_i r_ij φ(x_i) and the log-likelihood; under `vmap`, one launch for all problems."""
    k, p = coefficients.shape
    n, d = x.shape
    whole = [
        pl.BlockSpec(a.shape, lambda i, r=a.ndim: (0,) * r) for a in (x, weights, coefficients)
    ]
    out = pl.pallas_call(
        partial(_kernel, n=n, d=d, k=k, kind=kind, tile=tile),
        grid=(tile.programs,),
        in_specs=whole,
        out_specs=pl.BlockSpec((None, k * p + 1), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((tile.programs, k * p + 1), jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret,
        name="gmm_unrolled",
    )(x, weights, coefficients)
    total = jnp.sum(out, axis=0)
    return total[:-1].reshape(k, p), total[-1]

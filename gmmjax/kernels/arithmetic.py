"""What the kernels' products are made of: float32 numbers cut into bfloat16 parts, and products of parts.

A tensor core multiplies two bfloat16 numbers exactly and at twice the rate of TF32, and reads them from
shared memory in either order, which it does not for 32-bit operands: there a transposed operand costs
hundreds of loads. So a float32 is the sum of three parts of 8 bits, and a product of two is that of the
pairs of parts that matter: six for what float32 can hold ("high"), three for 16 bits ("tf32": no less
accurate than TF32, which has 11). All rounding is done here, so the same kernel on a CPU, in Pallas'
interpret mode, shows the accuracy that it has on a GPU.
"""

import jax.numpy as jnp
from jax import lax

from gmmjax.typing import Array, Float

LOWEST = -1e30
"""Stands for −∞ where −∞ − −∞ would be NaN."""

PARTS = {"high": 3, "tf32": 2}

RESPONSIBILITIES = "tf32"
"""Their precision in the sums over rows, in either mode: 16 bits, in a component's weight as in its other
sums. So these are the sums of rows that count by up to 2⁻¹⁷ more or less, and nothing cancels."""


def parts(a: Float[Array, "..."], precision: str) -> tuple[Array, ...]:
    """The operand of a product as bfloat16 numbers, the largest first: three for "high", two for "tf32".

    Cut by their bits, which a GPU does at four times the rate of its conversions. The last part is
    rounded: cutting it off would make sums of positive terms small.
    """
    out = []
    for last in [False] * (PARTS[precision] - 1) + [True]:
        bits = lax.bitcast_convert_type(a, jnp.int32)
        bits = bits + 0x8000 if last else bits
        out.append(_upper_half(bits))
        if not last:
            a = a - lax.bitcast_convert_type(bits & -0x10000, jnp.float32)
    return tuple(out)


def _upper_half(bits: Array) -> Array:
    half = lax.shift_right_logical(bits, jnp.full_like(bits, 16)).astype(jnp.int16)
    return lax.bitcast_convert_type(half, jnp.bfloat16)


def rounded(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """To the nearest of TF32's numbers, 11 bits: what a tensor core takes of a float32, but for its cut."""
    bits = lax.bitcast_convert_type(a, jnp.int32) + 0x1000
    return lax.bitcast_convert_type(bits & -0x2000, jnp.float32)


def whole(a: tuple[Array, ...]) -> Float[Array, "..."]:
    """What the parts stand for."""
    total = a[-1].astype(jnp.float32)
    for part in reversed(a[:-1]):
        total = total + part.astype(jnp.float32)
    return total


def product(a: tuple[Array, ...], b: tuple[Array, ...]) -> Float[Array, "m n"]:
    """Σ of the products of parts, the smallest first, without those below the last part's rounding."""
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if i + j < max(len(a), len(b))]
    terms = [_dot(a[i], b[j]) for i, j in sorted(pairs, key=lambda p: -sum(p))]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _dot(a: Float[Array, "m p"], b: Float[Array, "p n"]) -> Float[Array, "m n"]:
    return jnp.dot(a, b, precision=lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


def power_of_two(n: int, least: int = 16) -> int:
    """The least power of two from n on. Triton's tiles have such sides, 16 at least in a product."""
    return max(least, 1 << (n - 1).bit_length())

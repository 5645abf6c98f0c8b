"""What the kernels' products are made of: rounding to TF32, and products of one or three parts.

A tensor core reads 10 bits of a float32's mantissa and drops the rest. Dropping is biased: every sum of
positive terms comes out small by one part in 3000. So operands are rounded to nearest here, before the
product; and as the product of two such numbers is exact in float32, the same kernel on a CPU, in Pallas'
interpret mode, shows the accuracy that it has on a GPU.
"""

import jax.numpy as jnp
from jax import lax

from gmmjax.typing import Array, Float

LOWEST = -1e30
"""Stands for −∞ where −∞ − −∞ would be NaN."""


def to_tf32(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest number with 10 bits of mantissa. Infinities stay."""
    bits = lax.bitcast_convert_type(a, jnp.int32)
    return lax.bitcast_convert_type((bits + 0x1000) & -0x2000, jnp.float32)


def parts(a: Float[Array, "..."], precision: str) -> tuple[Array, ...]:
    """The operand of a product as TF32 numbers: one for "tf32", a large and a small one for "high"."""
    large = to_tf32(a)
    return (large,) if precision == "tf32" else (large, a - large)


def product(a: tuple[Array, ...], b: tuple[Array, ...]) -> Float[Array, "m n"]:
    """Σ of the products of parts, the smallest first; small times small is below float32's rounding."""
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if i + j < max(len(a), len(b))]
    terms = [_dot(a[i], b[j]) for i, j in sorted(pairs, key=lambda p: -sum(p))]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _dot(a: Float[Array, "m p"], b: Float[Array, "p n"]) -> Float[Array, "m n"]:
    # On Triton the default precision is TF32; on a CPU, in interpret mode, float32.
    return jnp.dot(a, b, precision=lax.Precision.DEFAULT, preferred_element_type=jnp.float32)


def power_of_two(n: int, least: int = 16) -> int:
    """The least power of two from n on. Triton's tiles have such sides, 16 at least in a product."""
    return max(least, 1 << (n - 1).bit_length())

"""The few matrix operations that accuracy depends on: products, triangular solves, the floor.

Separate from the families so that each numerical trick stands once, beside the failure it prevents.
"""

import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from gmmjax.typing import Array, Bool, Float

T = TypeVar("T")

HIGHEST = lax.Precision.HIGHEST
"""Full float32 products. JAX's default on recent GPUs is TF32, whose 10-bit mantissa is lost to
cancellation in Σ r x xᵀ − N μ μᵀ and in the expanded quadratic form."""


PRECISIONS = {
    "highest": HIGHEST,
    "high": lax.DotAlgorithmPreset.TF32_TF32_F32_X3,
    "tf32": lax.DotAlgorithmPreset.TF32_TF32_F32,
}
"""For float32 on a GPU, by name. "high" is three TF32 products on the tensor cores in place of one in
float32: a log-density from features is within 3e-5 nats of it, where one TF32 product is off by 1e-2."""

SMALL = 8
"""Sides of a matrix up to which a batch of products is plain arithmetic: a product costs tens of
nanoseconds to call on a CPU, and with a thousand lanes of 4 × 4 matrices little else was done."""


LEAF = 8
"""Sides of a triangular matrix up to which it is inverted by halves of its own."""

UNROLLED = 4
"""Sides of a matrix up to which its Cholesky factor is plain arithmetic."""

AT_ONCE = 8
"""Lanes of a rare repair that are worked on together, see `when`."""


def dot(a: Array, b: Array, precision: str = "highest") -> Array:
    """Matrix product, at full precision unless one of `PRECISIONS` is named."""
    if max(a.ndim, b.ndim) > 2 <= min(a.ndim, b.ndim) and max(*a.shape[-2:], b.shape[-1]) <= SMALL:
        terms = (a[..., :, i, None] * b[..., None, i, :] for i in range(a.shape[-1]))
        return reduce(operator.add, terms)
    return jnp.matmul(a, b, precision=PRECISIONS[precision])


def einsum(subscripts: str, *operands: Array) -> Array:
    """Einstein sum at full precision."""
    return jnp.einsum(subscripts, *operands, precision=HIGHEST)


def when(pred: Bool[Array, ""], fn: Callable[[], T], otherwise: T) -> T:
    """`fn()` where `pred`, else `otherwise`, and skip the work if no lane asks for it.

    `lax.cond` under `vmap` becomes a select that always runs both sides. Here a batch of lanes asks
    whether *any* of them needs the work, and that question is a `lax.cond` again, so a rare repair
    costs nothing in the common case; and of many lanes only those that ask are worked on. (Not
    reverse-differentiable: for E and M steps only. A
    `while_loop` of at most one turn does not serve: nothing in its body depends on the turn, so XLA
    moves the work out of the loop and does it always. It made a step of `fit` seven times as slow.)
    """
    closed, shape = jax.make_jaxpr(fn, return_shape=True)()

    def work(operands: list[Array]) -> T:
        leaves = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, operands))()
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return _choose(jnp.asarray(pred), work, otherwise, closed.consts)


def _choose(pred: Array, work: Callable[[Any], T], otherwise: T, operands: Any) -> T:
    """`when`, with all that the work reads as arguments, so that a batch of it can be made."""

    @custom_vmap
    def choose(pred: Array, otherwise: T, operands: Any) -> T:
        return lax.cond(pred, work, lambda _: otherwise, operands)

    @choose.def_vmap
    def _(size: int, batched: Any, pred: Array, otherwise: T, operands: Any) -> Any:
        axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))

        def one(pred: Array, otherwise: T, operands: Any) -> T:
            return jax.tree.map(partial(jnp.where, pred), work(operands), otherwise)

        def lanes(everything: Any) -> T:
            if size <= AT_ONCE or not batched[0]:
                return jax.vmap(one, axes, axis_size=size)(*everything)
            return _in_turn(one, tuple(batched), *everything)

        same = jax.vmap(lambda a: a, axes[1:2], axis_size=size)(otherwise)  # a lane each
        out = _choose(jnp.any(pred), lanes, same, (pred, otherwise, operands))
        return out, jax.tree.map(lambda _: True, out)

    return choose(pred, otherwise, operands)


def _in_turn(one: Callable[..., T], batched: Any, pred: Array, otherwise: T, operands: Any) -> T:
    """The lanes that ask, `AT_ONCE` at a time: one lane of a thousand does not make all of them work."""
    size = pred.shape[0]
    order = jnp.argsort(~pred)
    asking = jnp.sum(pred)
    axes = jax.tree.map(lambda b: 0 if b else None, batched)
    each = jax.vmap(lambda a: a, axes[1:2], axis_size=size)(otherwise)  # a lane each

    def body(carry: tuple[Array, T]) -> tuple[Array, T]:
        done, out = carry
        at = lax.dynamic_slice(order, (jnp.minimum(done, size - AT_ONCE),), (AT_ONCE,))
        mine = jax.tree.map(lambda b, a: a[at] if b else a, batched, (pred, otherwise, operands))
        new = jax.vmap(one, axes, axis_size=AT_ONCE)(*mine)
        return done + AT_ONCE, jax.tree.map(lambda o, n: o.at[at].set(n), out, new)

    start = (jnp.zeros_like(asking), each)
    return lax.while_loop(lambda carry: carry[0] < asking, body, start)[1]


def solve_lower(lower: Float[Array, "*b d d"], x: Float[Array, "*b d m"]) -> Float[Array, "*b d m"]:
    """Solve L y = x for lower-triangular L, batched over leading axes, by forward substitution.

    A loop over rows, vectorised over the batch: `lax.linalg.triangular_solve` on a CPU took 0.2 s
    for 20 matrices of 32 × 32 with 400 right-hand sides (its threads wait for each other), this
    takes 0.5 ms.
    """
    shape = jnp.broadcast_shapes(lower.shape[:-2], x.shape[:-2]) + x.shape[-2:]

    def body(i: Array, y: Array) -> Array:
        left = x[..., i, :] - einsum("...a,...am->...m", lower[..., i, :], y)
        return y.at[..., i, :].set(left / lower[..., i, i, None])

    return lax.fori_loop(0, lower.shape[-1], body, jnp.zeros(shape, x.dtype))


def lower_factor(root: Float[Array, "*b m d"]) -> Float[Array, "*b m m"]:
    """The Cholesky factor of R Rᵀ, for R of m ≤ d rows and full rank, without forming R Rᵀ.

    Householder reflections from the right, R = [L 0] Q: the error is that of R and not its square,
    so float32 factors matrices that `cholesky` could not. A loop over rows, vectorised over the
    batch, because LAPACK's QR costs microseconds a call; large matrices are left to LAPACK, which
    keeps them in its cache.
    """
    m, d = root.shape[-2:]
    if m > 128:
        lower = jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(root, -1, -2), mode="r"), -1, -2)
        return _positive(lower)
    axis = jnp.arange(d)

    def body(i: Array, a: Array) -> Array:
        row = jnp.where(axis >= i, a[..., i, :], 0.0)
        # Scaled first: the square of a small row would underflow.
        scale = jnp.max(jnp.abs(row), axis=-1, keepdims=True)
        row = row / jnp.where(scale > 0, scale, 1.0)
        length = jnp.sqrt(jnp.sum(row * row, axis=-1, keepdims=True))
        # Away from the pivot, so that nothing cancels.
        u = row + jnp.where(axis == i, jnp.where(row[..., i, None] < 0, -length, length), 0.0)
        norm = jnp.sum(u * u, axis=-1, keepdims=True)
        u = u * jnp.sqrt(2.0 / jnp.where(norm > 0, norm, 1.0))
        return a - einsum("...ab,...b->...a", a, u)[..., None] * u[..., None, :]

    return _positive(jnp.tril(lax.fori_loop(0, m, body, root)[..., :m]))


def _positive(lower: Float[Array, "*b d d"]) -> Float[Array, "*b d d"]:
    """The factor of the same matrix whose diagonal is positive."""
    sign = jnp.where(jnp.diagonal(lower, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return lower * sign[..., None, :].astype(lower.dtype)


def inverse_lower(lower: Float[Array, "*b d d"]) -> Float[Array, "*b d d"]:
    """Inverse of a lower-triangular matrix by halves.

    inv [[A, 0], [B, C]] = [[A⁻¹, 0], [−C⁻¹ B A⁻¹, C⁻¹]]: products only. A batched triangular solve
    on a CPU took 700 ms for 64 matrices of 64 × 64; this takes under 1 ms.
    """
    d = lower.shape[-1]
    if d == 1:
        return 1.0 / lower
    if d > LEAF:
        return _inverse_of_many(lower)
    h = d // 2
    a = inverse_lower(lower[..., :h, :h])
    c = inverse_lower(lower[..., h:, h:])
    return _join(a, lower[..., h:, :h], c)


def _inverse_of_many(lower: Float[Array, "*b d d"]) -> Float[Array, "*b d d"]:
    """The same from small blocks up, all pairs of neighbours at once.

    Halving down to single numbers writes 2d matrices into the program: at d = 392 it compiled for 12 s,
    this for 2.
    """
    d = lower.shape[-1]
    batch = lower.shape[:-2]
    levels = math.ceil(math.log2(d / LEAF))
    size = -(-d // 2**levels)
    extra = size * 2**levels - d
    lower = jnp.pad(lower, [(0, 0)] * len(batch) + [(0, extra), (0, extra)])
    filling = jnp.arange(d + extra) >= d  # ones on the diagonal there
    lower = lower + jnp.diag(filling.astype(lower.dtype))

    def along_diagonal(step: int) -> Float[Array, "*b blocks s s"]:
        blocks = lower.reshape(*batch, -1, step, lower.shape[-1] // step, step)
        return jnp.moveaxis(jnp.diagonal(blocks, axis1=-4, axis2=-2), -1, -3)

    inverse = inverse_lower(along_diagonal(size))
    while size < d:
        between = along_diagonal(2 * size)[..., size:, :size]
        inverse = _join(inverse[..., 0::2, :, :], between, inverse[..., 1::2, :, :])
        size *= 2
    return inverse[..., 0, :d, :d]


def _join(a: Array, b: Array, c: Array) -> Array:
    """inv [[A, 0], [B, C]] from a = A⁻¹, B and c = C⁻¹."""
    left = -dot(dot(c, b), a)
    zero = jnp.zeros((*a.shape[:-1], c.shape[-1]), a.dtype)
    top = jnp.concatenate([a, zero], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([left, c], axis=-1)], axis=-2)


def half_log_det(lower: Float[Array, "*b d d"]) -> Float[Array, "*b"]:
    """½ log|L Lᵀ| = Σ_a log L_aa."""
    return jnp.sum(jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1)), axis=-1)


def symmetrize(a: Float[Array, "*b d d"]) -> Float[Array, "*b d d"]:
    """(A + Aᵀ)/2: a sum of products is symmetric only to rounding."""
    return 0.5 * (a + jnp.swapaxes(a, -1, -2))


def cholesky(a: Float[Array, "*b d d"]) -> Float[Array, "*b d d"]:
    """Lower Cholesky factor; NaN where the matrix is not positive definite.

    LAPACK and cuSOLVER cost microseconds a call, so small matrices are factorised by unrolled
    arithmetic that XLA fuses over the batch.
    """
    d = a.shape[-1]
    if d > UNROLLED:
        return lax.linalg.cholesky(a, symmetrize_input=False)
    rows = _unrolled_cholesky(a)
    zero = jnp.zeros_like(a[..., 0, 0])
    return jnp.stack([jnp.stack(row + [zero] * (d - len(row)), axis=-1) for row in rows], axis=-2)


def _unrolled_cholesky(a: Float[Array, "*b d d"]) -> list[list[Float[Array, "*b"]]]:
    """The rows of the lower factor, up to the diagonal."""
    rows: list[list[Array]] = []
    for i in range(a.shape[-1]):
        row: list[Array] = []
        for j in range(i + 1):
            left = a[..., i, j]
            for m in range(j):
                left = left - row[m] * (row[m] if i == j else rows[j][m])
            row.append(jnp.sqrt(left) if i == j else left / rows[j][j])
        rows.append(row)
    return rows


def floored_cholesky(
    a: Float[Array, "k d d"], floor: Float[Array, "d"]
) -> tuple[Float[Array, "k d d"], Bool[Array, "k"]]:
    """Factor of the matrix nearest in likelihood to `a` whose eigenvalues respect a floor.

    The constraint is A ⪰ diag(floor). Where it holds, the factor is plain Cholesky. Elsewhere the
    eigenvalues of diag(floor)^-½ A diag(floor)^-½ are clipped at 1, which is the exact maximiser of
    −log|Σ| − tr(Σ⁻¹A) under the constraint, so EM stays monotone (adding `floor` to the diagonal
    would not). The eigenvectors are computed only when some matrix needs them.

    **Returns** the lower factors, NaN where a matrix cannot be repaired (floor 0 in a direction
    without variance, or input not finite), and whether the floor was active.
    """
    d = a.shape[-1]
    diagonal = jnp.diagonal(a, axis1=-2, axis2=-1)
    above = a - floor[:, None] * jnp.eye(d, dtype=a.dtype)
    if d > UNROLLED:
        # One call: two batches that LAPACK factors at once wait for each other's threads on a machine of
        # two cores, and a fit of 64 components in 64 features hung (jaxlib 0.10.2, `ParallelBatchMap`).
        factor, margin = cholesky(jnp.stack([a, above]))
        pivots = jnp.diagonal(margin, axis1=-2, axis2=-1)
    else:
        factor = cholesky(a)
        pivots = jnp.stack([row[-1] for row in _unrolled_cholesky(above)], axis=-1)
    # A pivot at the size of rounding carries no digit, whatever the floor.
    noise = d * jnp.finfo(a.dtype).eps * diagonal
    fine = jnp.all(pivots**2 > jnp.where(floor > 0, 0.0, noise), axis=-1)
    repairable = jnp.all(floor > 0) & jnp.all(jnp.isfinite(a), axis=(-2, -1))

    def repaired() -> Array:
        unit = jnp.sqrt(jnp.where(floor > 0, floor, 1.0))
        scaled = jnp.where(repairable[:, None, None], a, jnp.eye(d)) / (unit[:, None] * unit)
        values, vectors = jnp.linalg.eigh(symmetrize(scaled))
        root = vectors * jnp.sqrt(jnp.maximum(values, 1.0))[:, None, :]
        # Rᵀ of QR(rootᵀ) is the Cholesky factor of root rootᵀ, and cannot fail.
        r = jnp.linalg.qr(jnp.swapaxes(root, -1, -2), mode="r")
        lower = jnp.swapaxes(r, -1, -2)
        sign = jnp.where(jnp.diagonal(lower, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
        return (lower * sign[:, None, :] * unit[:, None]).astype(a.dtype)

    repaired_factor = when(~jnp.all(fine) & jnp.any(repairable), repaired, factor)
    singular = jnp.full_like(factor, jnp.nan)
    out = jnp.where((repairable & ~fine)[:, None, None], repaired_factor, factor)
    out = jnp.where((~fine & ~repairable)[:, None, None], singular, out)
    return out, ~fine

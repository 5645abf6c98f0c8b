"""Fused E-steps for a GPU, written in Pallas for Triton: the functions of the plain path, in fewer bytes.

Nothing here is imported by `import gmmjax`: `expectation` asks for it when a kernel is wanted. Which kernel
serves which shape is decided by `choose`, its tiles stand in `tiles`. docs/kernels.md has the dataflow.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gmmjax import families, moments
from gmmjax.moments import Moments, Second
from gmmjax.typing import Array, Float

PRECISIONS = ("high", "tf32")
"""Products in six pairs of bfloat16 parts, as accurate as float32; or in three, to 16 bits."""


FASTER = {"unrolled": PRECISIONS}
"""What "auto" takes on a GPU of `backend.MEASURED`: kernels that were faster than XLA there, and whose sums
passed the tests marked `gpu` as they are now. The others have changed since, or have no such test yet."""


class Unsupported(str):
    """Why no kernel serves a shape. False in a condition."""

    def __bool__(self) -> bool:
        return False


def supports(family: str, k: int, d: int, dtype: Any) -> bool | Unsupported:
    """Whether a kernel serves k components of a family in d features; if not, a falsy reason.

    >>> from gmmjax import kernels
    >>> kernels.supports("full", 8, 4, "float32")
    True
    >>> print(kernels.supports("full", 8, 4, "float64"))
    kernels compute in float32, not in float64
    """
    kind = families.get(family).second
    if jnp.dtype(dtype) != jnp.float32:
        return Unsupported(f"kernels compute in float32, not in {jnp.dtype(dtype).name}")
    if kind.pooled:
        return Unsupported(f"no kernel for the pooled moments of family {family!r}")
    if kind is Second.FULL and (d > 64 or k > 128):
        return Unsupported(f"full moments: at most 128 components of 64 features; got {k}, {d}")
    if d > 128:
        return Unsupported(f"at most 128 features; got {d}")
    return True


def supports_kmeans(d: int, dtype: Any) -> bool | Unsupported:
    """The same for K-means in d features."""
    if jnp.dtype(dtype) != jnp.float32:
        return Unsupported(f"kernels compute in float32, not in {jnp.dtype(dtype).name}")
    return True if d <= 128 else Unsupported(f"at most 128 features; got {d}")


def choose(family: str, k: int, d: int) -> str:
    """The kernel for a shape that `supports` accepts: "unrolled", "resident", "onepass" or "twopass"."""
    from gmmjax.kernels import resident, unrolled

    kind = families.get(family).second
    if unrolled.size(k, d, kind) <= unrolled.LARGEST:
        return "unrolled"
    if resident.size(k, d, kind) <= resident.LARGEST:
        return "resident"
    return "onepass" if kind is Second.FULL else "twopass"


def expect(
    prepared: Any,
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    *,
    precision: str = "high",
    interpret: bool = False,
) -> tuple[Moments, Float[Array, ""]]:
    """Moments and log-likelihood of a block of rows: `expectation.by_features` by a fused kernel.

    `prepared` is an `expectation.Prepared`. Under `vmap` all lanes are one launch. `precision` is "high"
    or "tf32" (docs/kernels.md); `interpret` runs the kernel on any backend, slowly, for tests.
    Like the plain features it cancels where `prepared.cancels`. Not differentiable.

    **Raises** `ValueError` where no kernel serves the shape, or the precision is another.

    >>> import jax.numpy as jnp, gmmjax
    >>> from gmmjax import expectation, families, kernels
    >>> one, x = jnp.ones(2, "float32"), jnp.array([[0.0], [0.2], [4.0]], "float32")
    >>> log_weights, means = jnp.log(one / 2), jnp.array([[0.0], [4.0]], "float32")
    >>> p = expectation.prepare(log_weights, means, families.Spherical(one, 1), "spherical")
    >>> sums, log_likelihood = kernels.expect(p, x, jnp.ones(3, "float32"), interpret=True)
    >>> [round(float(n), 2) for n in sums.weight]
    [2.0, 1.0]
    """
    from gmmjax.kernels import onepass, resident, tiles, twopass, unrolled
    from gmmjax.kernels.arithmetic import power_of_two

    check_precision(precision)
    k, d = prepared.means.shape
    answer = supports(prepared.family, k, d, x.dtype)
    if not answer:
        raise ValueError(
            f"kernel: expected a shape that a kernel serves; {answer}. Use kernel='xla'."
        )
    kind = families.get(prepared.family).second
    coefficients, n = prepared.coefficients, x.shape[0]
    match choose(prepared.family, k, d):
        case "unrolled":
            tile = tiles.of("unrolled", 0, n)
            total = unrolled.sums(
                coefficients, x, weights, kind=kind, tile=tile, interpret=interpret
            )
        case "resident":
            tile = tiles.of(f"resident {precision}", power_of_two(k), n)
            total = resident.for_one(kind, tile, precision, interpret)(coefficients, x, weights)
        case "onepass":
            tile = tiles.of("onepass", power_of_two(k), n)
            total = onepass.sums(
                coefficients, x, weights,
                kind=kind, tile=tile, precision=precision, interpret=interpret,
            )  # fmt: skip
        case _:
            tile = tiles.of("twopass", _held(d, precision), n)
            total = twopass.sums(
                coefficients, x, weights,
                kind=kind, tile=tile, precision=precision, interpret=interpret,
            )  # fmt: skip
    return moments.from_features(total[0], None, kind), total[1]


def assign(
    centers: Float[Array, "k d"],
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    *,
    room: int,
    precision: str = "high",
    interpret: bool = False,
) -> tuple[Array, Array, Array, Array, Array]:
    """Hard assignment of a block: what `KMeans.expect` collects, by one kernel.

    **Returns** the clusters' weights [k] and sums [k, d], the squared distances [room] and rows
    [room, d] of far rows, descending and 0 where there is none, and the inertia.
    """
    from gmmjax.kernels import nearest, tiles

    check_precision(precision)
    d = centers.shape[1]
    answer = supports_kmeans(d, x.dtype)
    if not answer:
        raise ValueError(f"kernel: expected rows that a kernel serves; {answer}. Use kernel='xla'.")
    tile = tiles.of("nearest", _held(d, precision), x.shape[0])
    weight, first, inertia, reach, row = nearest.sums(
        centers, x, weights, tile=tile, precision=precision, interpret=interpret
    )
    distance, at = jax.lax.top_k(reach, min(room, reach.shape[0]))
    found = (distance > 0)[:, None]
    far = jnp.where(found, x[row[at]], 0.0)
    short = room - far.shape[0]
    return (
        weight,
        first,
        jnp.pad(jnp.maximum(distance, 0.0), (0, short)),
        jnp.pad(far, ((0, short), (0, 0))),
        inertia,
    )


def _held(d: int, precision: str) -> int:
    from gmmjax.kernels.arithmetic import power_of_two

    return power_of_two(d) * (2 if precision == "high" else 1)


def check_precision(precision: str) -> None:
    """Raises `ValueError` for a precision that the kernels do not have."""
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision: expected one of {', '.join(PRECISIONS)} for a kernel; got {precision!r}. "
            "Use kernel='xla' for others."
        )

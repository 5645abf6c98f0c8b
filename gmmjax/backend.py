"""How a fit is computed: which kernel, at which precision, how many rows and lanes at a time.

The one place that knows the machine. Results do not depend on it, but for rounding; what was chosen is
in the result. The numbers were found by timing, on CPUs, an NVIDIA H100 and an H200.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import jaxlib.version

from gmmjax import checks, families
from gmmjax.linalg import PRECISIONS
from gmmjax.moments import Second

KERNELS = ("auto", "xla", "native", "pallas")

CACHE = 2**18
"""Bytes of features, log-densities and responsibilities of one block: they stay in a core's L2."""

LANES = 80 * 2**10
"""Bytes of the responsibilities of one block and all lanes, on a CPU."""

SEARCHING = 4
"""Lanes that step together in a search by rounds, on a CPU, at most. Most lanes of a round are soon left,
and slots without one compute along until the last has ended: whole fits took half again as long with 16."""


P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """What `choose` chose. Structure: another choice is another program."""

    kernel: str = "xla"
    """ "xla"; "native" for C++ on a CPU; "pallas" for the fused kernels on a GPU."""
    precision: str = "highest"
    """Of the two matrix products, see `linalg.dot`."""
    block: int = 0
    """Rows a block; 0 where the caller laid them out."""
    batch: int = 0
    """Lanes that step together; 0 where the caller batches them."""


def choose(
    n: int,
    d: int,
    k: int,
    family: str,
    dtype: jnp.dtype,
    lanes: int,
    *,
    kernel: str = "auto",
    precision: str = "high",
    block: int | None = None,
    batch: int | None = None,
    rounds: bool = False,
) -> Choice:
    """From backend, shape and dtype to a `Choice`; what the caller names is taken. `rounds` says that the
    lanes come a few at a time, see `search`.

    "auto" is "native" on a CPU where it has been built, "pallas" on a GPU that is `MEASURED`, for the
    shapes where its kernels were faster, and "xla" elsewhere.

    Raises `ValueError` for a kernel or a precision that does not exist, or not here.
    """
    second = families.get(family).second
    _check_precision(precision)
    chosen = _kernel(kernel, dtype)

    def ask(kernels: Any) -> tuple[object, str]:
        served = kernels.supports(family, k, d, dtype)
        return served, kernels.choose(family, k, d) if served else ""

    if _takes_pallas(kernel, n, precision, ask):
        chosen = "pallas"
    precision = _on_this_backend(precision, dtype)
    block = rows_a_block(d, k, second, dtype, lanes) if block is None else block
    if batch is None:
        batch = _batch(chosen, n, k, block, dtype)
        batch = searching(batch) if rounds else batch
    return Choice(chosen, precision, block, min(batch, lanes))


def choose_for_kmeans(
    n: int,
    d: int,
    k: int,
    dtype: jnp.dtype,
    lanes: int,
    *,
    kernel: str = "auto",
    precision: str = "high",
    block: int | None = None,
    batch: int | None = None,
) -> Choice:
    """As `choose`, for K-means in d features."""
    _check_precision(precision)
    chosen = _kernel(kernel, dtype)

    def ask(kernels: Any) -> tuple[object, str]:
        return kernels.supports_kmeans(d, dtype), "nearest"

    if _takes_pallas(kernel, n, precision, ask):
        chosen = "pallas"
    precision = _on_this_backend(precision, dtype)
    if block is None:
        block = 2**10 if jax.default_backend() == "cpu" else 2**15
    batch = _batch(chosen, n, k, block, dtype) if batch is None else batch
    return Choice(chosen, precision, min(block, bucket(n, block)), min(batch, lanes))


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}; got {precision!r}.")


def _takes_pallas(
    kernel: str, n: int, precision: str, ask: Callable[[Any], tuple[object, str]]
) -> bool:
    """Whether a fused kernel computes it: by name, or where "auto" knows one to be faster.

    `ask(kernels)` says whether one serves the shape, and which. The module is imported only here.
    """
    auto = kernel == "auto" and n >= LEAST_ROWS and _measured_gpu()
    if kernel != "pallas" and not auto:
        return False
    from gmmjax import kernels

    served, name = ask(kernels)
    if auto:
        return bool(served) and precision in kernels.FASTER.get(name, ())
    _refuse_unless(served)
    kernels.check_precision(precision)
    return True


def _on_this_backend(precision: str, dtype: jnp.dtype) -> str:
    """On a CPU, and in float64, there is none but the highest."""
    on_gpu = jax.default_backend() == "gpu" and jnp.dtype(dtype) == jnp.float32
    return precision if on_gpu else "highest"


def _kernel(kernel: str, dtype: jnp.dtype) -> str:
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}; got {kernel!r}.")
    if kernel in ("xla", "pallas"):
        return kernel
    from gmmjax import native

    if native.supports(dtype):
        if kernel == "native":
            native.build()
        return "native" if native.built() else "xla"
    if kernel == "native":
        raise ValueError(
            f"kernel: 'native' is for a CPU, in float32 or float64; got {jax.default_backend()!r} and "
            f"{jnp.dtype(dtype).name}. Use 'auto'."
        )
    return "xla"


MEASURED = ("9.0",)
"""CUDA compute capabilities of the GPUs on which the kernels were measured: an H100's and an H200's. Which
beat XLA there, `kernels.FASTER` says."""

LEAST_ROWS = 2**13
"""Rows from which they were faster. A few thousand leave a GPU idle either way, and XLA's step has less
to set up."""


def _measured_gpu() -> bool:
    if jax.default_backend() != "gpu":
        return False
    return getattr(jax.devices()[0], "compute_capability", "") in MEASURED


def _refuse_unless(served: object) -> None:
    """That kernel="pallas" cannot be had: no GPU, or a shape (`served` then says why) without a kernel."""
    on_gpu = jax.default_backend() == "gpu"
    if not on_gpu or not served:
        why = served if on_gpu else f"this backend is {jax.default_backend()!r}, not 'gpu'"
        raise ValueError(f"kernel: 'pallas' has no kernel here: {why}. Use 'auto'.")


def _batch(kernel: str, n: int, k: int, block: int, dtype: jnp.dtype) -> int:
    """Lanes that step together; from the round number of rows, so that like data share a program."""
    if kernel == "native":
        # It shares the cores out by itself; on small data more lanes share the calls of an M-step.
        return max(4, min(512, 2**18 // (bucket(n, block) * k)))
    if kernel == "pallas":  # it writes nothing of size n · k, and one launch serves all lanes
        return max(8, min(1024, 2**26 // (n * k)))
    return lanes_a_batch(bucket(n, block), k, block, dtype)


def bucket(n: int, block: int) -> int:
    """The round number of rows to which n are filled up, see `blocks.bucketed`.

    At most one part in eight is added, and whole blocks where there is more than one.
    """
    step = max(8, 2 ** max(n.bit_length() - 4, 0))
    step = max(step, block) if n > block else step
    return n + -n % step


def rows_a_block(d: int, k: int, second: Second, dtype: jnp.dtype, lanes: int) -> int:
    """A power of two. One lane wants long rows, many lanes share the features and want short ones."""
    p = 1 + d + {"full": d * (d + 1) // 2, "diag": d, "trace": 1}[second.shape_kind]
    size = jnp.dtype(dtype).itemsize
    if jax.default_backend() != "cpu":
        return _power_of_two(2**28 // ((p + 2 * k) * size), 2**10, 2**17)
    return _power_of_two(CACHE // ((p + 2 * k) * size), 128, 256 if lanes > 1 else 1024)


def lanes_a_batch(n: int, k: int, block: int, dtype: jnp.dtype = jnp.float32) -> int:
    """As many as keep a block's responsibilities in the cache of a CPU, or fill an accelerator."""
    room = LANES // jnp.dtype(dtype).itemsize if jax.default_backend() == "cpu" else 2**26
    return max(1, room // (min(n, block) * k))


def searching(batch: int) -> int:
    """As many of a batch as a search by rounds keeps busy."""
    return min(batch, SEARCHING) if jax.default_backend() == "cpu" else batch


def _power_of_two(value: int, low: int, high: int) -> int:
    """The largest that is not above `value`, between `low` and `high`."""
    return max(low, min(high, 2 ** max(value.bit_length() - 1, 0)))


class Program(Generic[P, T]):
    """`jax.jit` of a function of a static `choice`, compiled in less time where that costs nothing.

    XLA's CPU compiler spends some 20 ms on each of a fit's hundreds of loops. With the native kernel
    none of them is hot, so they get LLVM's first level of optimisation and, where jaxlib still has it
    (before 0.11), the older code generator: half of the time (docs/speed.md); and no calls of YNNPACK,
    which for small matrices take longer than loops. Inside another jitted function the options are the
    caller's.
    """

    def __init__(self, fn: Callable[P, T], *, static_argnames: tuple[str, ...]) -> None:
        self._fn = fn
        self._static = static_argnames
        self._full = jax.jit(fn, static_argnames=static_argnames)
        self.__doc__ = fn.__doc__

    @cached_property
    def _light(self) -> Callable[P, T]:
        options: dict[str, bool | int | str] = {"xla_backend_optimization_level": 1}
        if tuple(map(int, jaxlib.version.__version__.split(".")[:2])) < (0, 11):
            options["xla_cpu_use_fusion_emitters"] = False
            options["xla_cpu_experimental_ynn_fusion_type"] = ""
        return jax.jit(self._fn, static_argnames=self._static, compiler_options=options)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        choice: Any = kwargs["choice"]
        light = choice.kernel == "native" and checks.concrete(args, jnp.zeros(()))
        return (self._light if light else self._full)(*args, **kwargs)

    def _cache_size(self) -> int:
        """How many programs there are, as of a jitted function."""
        return sum(f._cache_size() for f in (self._full, self._light))  # type: ignore[attr-defined]


def program(*static_argnames: str) -> Callable[[Callable[P, T]], Program[P, T]]:
    """The decorator that makes a `Program`."""
    return lambda fn: Program(fn, static_argnames=static_argnames)

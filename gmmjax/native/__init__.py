"""The E-step and K-means' assignment as C++ for a CPU, called through `jax.ffi`.

XLA's CPU code runs a step whose blocks stay in the cache on one core, and each block as a dozen separate
loops; `steps.cpp` does a tile in one, on all cores. It is compiled on the user's machine, for its
processor, and never without being asked: `build()`, `python -m gmmjax.native`, or `fit(kernel="native")`.
Once it is there `kernel="auto"` takes it. Nothing here is imported by `import gmmjax`.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib.version

from gmmjax.moments import Second
from gmmjax.typing import Array, Float

SOURCE = Path(__file__).with_name("steps.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
KINDS = {"trace": 1, "diag": 2, "full": 3}
"""The features' second-order terms by `Second.shape_kind`; a pooled kind has none, 0."""


class BuildError(RuntimeError):
    """The library could not be compiled or loaded; the message says why and what to do."""


def folder() -> Path:
    """Where the compiled library lies: $GMMJAX_CACHE, or gmmjax in the user's cache."""
    given = os.environ.get("GMMJAX_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gmmjax"


def library() -> Path:
    """The file for this source, jaxlib and processor: a shared home may serve several machines."""
    return folder() / f"steps-{_fingerprint()}.so"


@lru_cache
def _fingerprint() -> str:
    parts = [SOURCE.read_text(), jaxlib.version.__version__, platform.machine(), " ".join(FLAGS)]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        parts.append(next(line for line in lines if line.startswith(("flags", "Features"))))
    except (OSError, StopIteration):
        parts.append(platform.processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def built() -> bool:
    """Whether the library is there for this machine, without building it."""
    return library().exists()


def build() -> Path:
    """Compile the library unless it is there, and return its path. It takes about ten seconds.

    The compiler is $CXX, or the first of c++, g++ and clang++. **Raises** `BuildError`.
    """
    path = library()
    if path.exists():
        return path
    named = os.environ.get("CXX")
    compiler = named or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise BuildError(
            "native: expected a C++ compiler (c++, g++ or clang++) on the path, or in $CXX; found none. "
            "Install one, or use kernel='xla'."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    command = [compiler, *FLAGS, "-I", jax.ffi.include_dir(), str(SOURCE), "-o", str(aside)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(
            f"native: cannot run the compiler {compiler!r}: {error}. Set $CXX, or use kernel='xla'."
        ) from error
    if done.returncode:
        aside.unlink(missing_ok=True)
        raise BuildError(
            f"native: {compiler} failed on {SOURCE.name}:\n{done.stderr[-2000:]}\nUse kernel='xla'."
        )
    os.replace(aside, path)  # whole or not at all, also where two processes build at once
    return path


@lru_cache
def _register() -> None:
    path = build()
    try:
        loaded = ctypes.cdll.LoadLibrary(str(path))
    except OSError as error:
        raise BuildError(
            f"native: {path} cannot be loaded: {error}. Remove it and build it again, or use kernel='xla'."
        ) from error
    for step in ("expect", "assign"):
        for dtype in ("float32", "float64"):
            name = f"gmmjax_{step}_{dtype}"
            jax.ffi.register_ffi_target(
                name, jax.ffi.pycapsule(getattr(loaded, name)), platform="cpu"
            )


def feature_sums(
    coefficients: Float[Array, "k p"],
    whitening: Float[Array, "q d"],
    x: Float[Array, "n d"],
    weights: Float[Array, "n"],
    kind: Second,
) -> tuple[Float[Array, "k p"], Float[Array, ""]]:
    """Σ_i w_i r_ij φ(x_i), and Σ_i w_i (log Σ_j exp(coefficients_j · φ(x_i)) − ½ ‖U x_i‖²).

    `whitening` is U, the square root of the precision that all components of a pooled kind share; without
    rows for other kinds. Lanes share the features. Not differentiable; `vmap` it at will.
    """
    _register()
    k, p = coefficients.shape
    dtype = x.dtype
    out = (jax.ShapeDtypeStruct((k, p), dtype), jax.ShapeDtypeStruct((), dtype))
    call = jax.ffi.ffi_call(f"gmmjax_expect_{dtype}", out, vmap_method="expand_dims")
    number = 0 if kind.pooled else KINDS[kind.shape_kind]
    sums, log_likelihood = call(coefficients, whitening, x, weights, kind=number)
    return sums, log_likelihood


def assign(
    centers: Float[Array, "k d"], x: Float[Array, "n d"], weights: Float[Array, "n"], *, room: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Hard assignment: what `KMeans.expect` collects.

    **Returns** the clusters' weights [k] and sums [k, d], the squared distances [room] and rows
    [room, d] of far rows, descending and 0 where there is none, and the inertia.
    """
    _register()
    k, d = centers.shape
    shapes = ((k,), (k, d), (room,), (room, d), ())
    out: Any = tuple(jax.ShapeDtypeStruct(s, x.dtype) for s in shapes)
    call = jax.ffi.ffi_call(f"gmmjax_assign_{x.dtype}", out, vmap_method="expand_dims")
    weight, first, distance, point, inertia = call(centers, x, weights)
    return weight, first, distance, point, inertia


def supports(dtype: Any) -> bool:
    """Whether there is native code for the dtype on this backend."""
    return jax.default_backend() == "cpu" and jnp.dtype(dtype).name in ("float32", "float64")

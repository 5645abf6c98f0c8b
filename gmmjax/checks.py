"""Arguments at the public edge, and how a fit ended: each fault is an exception that says what to do.

Values can only be looked at outside `jit` and `vmap`. Under a trace shapes and dtypes are still
checked, and what is wrong with the values shows in the status of the result.
"""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gmmjax.status import FitError, Status, summarize
from gmmjax.typing import Array, ArrayLike, Float, Int

Dims = Sequence[int] | np.ndarray
"""Which coordinates."""


def concrete(*values: Any) -> bool:
    """Whether every leaf holds numbers that can be looked at."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(values))


def to_jax(array: Any, dtype: Any) -> Array:
    """`jnp.asarray`; NumPy converts what is NumPy's, as `jnp` would compile a program for its shape."""
    if isinstance(array, np.ndarray):
        with np.errstate(over="ignore"):
            array = array.astype(dtype, copy=False)
    return jnp.asarray(array, dtype)


def rows(x: ArrayLike, name: str = "x", *, finite: bool = True) -> Float[Array, "n d"]:
    """Data as a floating array [n, d], n ≥ 1, d ≥ 1, finite. Integers are converted."""
    array = x if isinstance(x, jax.Array) else _numpy(x, name)
    if array.dtype == bool:
        raise TypeError(
            f"{name}: expected real numbers; got booleans. Convert with {name}.astype(float) if that "
            "is what you mean; a Gaussian does not describe them well."
        )
    if not (np.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, jnp.floating)):
        raise TypeError(
            f"{name}: expected real numbers; got dtype {array.dtype}. Select the numeric columns and "
            f"convert with {name}.astype(float)."
        )
    if array.ndim != 2:
        remedy = f" Use {name}[:, None] for one feature." if array.ndim == 1 else ""
        raise ValueError(f"{name}: expected shape [n, d]; got {array.shape}.{remedy}")
    if 0 in array.shape:
        raise ValueError(f"{name}: expected at least one row and one column; got {array.shape}.")
    dtype = array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else float
    array = to_jax(array, jax.dtypes.canonicalize_dtype(dtype))
    if array.dtype in (jnp.float16, jnp.bfloat16):
        array = array.astype(jnp.float32)
    if finite:
        all_finite(array, name, remedy="Drop those rows, or impute them.")
    return array


def points(
    x: ArrayLike, d: int, dtype: Any, name: str = "x", *, finite: bool = True
) -> Float[Array, "*batch d"]:
    """Where a model of d features is to be evaluated: [..., d], finite. Integers become `dtype`."""
    array = x if isinstance(x, jax.Array) else _numpy(x, name)
    if array.ndim == 0 or array.shape[-1] != d:
        raise ValueError(
            f"{name}: expected shape [..., {d}], the model's features on the last axis; got "
            f"{array.shape}."
        )
    own = array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else dtype
    array = to_jax(array, jax.dtypes.canonicalize_dtype(own))
    if finite:
        remedy = (
            f"Drop those rows; a Gaussian mixture takes missing.mask({name}) with NaN for missing."
        )
        all_finite(array, name, remedy=remedy)
    return array


def dims(dims: Dims, d: int) -> np.ndarray:
    """Coordinates as distinct integers from 0 to d − 1, at least one."""
    if not concrete(dims):
        raise TypeError(
            "dims: expected integers known before compilation; got a traced array. Pass a tuple, "
            "and mark it as static."
        )
    a = np.asarray(dims)
    if a.ndim != 1 or a.size == 0:
        raise ValueError(f"dims: expected a list of at least one coordinate; got {dims!r}.")
    if not np.issubdtype(a.dtype, np.integer):
        raise TypeError(
            f"dims: expected integers; got dtype {a.dtype}. np.flatnonzero turns a mask into them."
        )
    if a.min() < 0 or a.max() >= d:
        raise ValueError(f"dims: expected integers from 0 to {d - 1}; got {a.min()} to {a.max()}.")
    if np.unique(a).size < a.size:
        twice = sorted({int(i) for i in a if np.sum(a == i) > 1})
        raise ValueError(f"dims: expected each coordinate once; got {twice} more than once.")
    return a


def other_dims(dims: np.ndarray, d: int) -> np.ndarray:
    """The coordinates not in `dims`, ascending: at least one."""
    rest = np.setdiff1d(np.arange(d), dims)
    if rest.size == 0:
        raise ValueError(
            f"dims: expected at most {d - 1} of the {d} coordinates; got all. Nothing is left to "
            "predict: use log_prob for the density there."
        )
    return rest


def given(values: ArrayLike, m: int, dtype: Any) -> Array:
    """What is known of the coordinates `dims`: [..., m], finite, in the dtype of the model."""
    array = jnp.asarray(values)
    if array.ndim == 0 or array.shape[-1] != m:
        raise ValueError(
            f"values: expected shape [..., {m}], one number for each of dims on the last axis; got "
            f"{array.shape}."
        )
    array = array.astype(dtype)
    if concrete(array) and not np.all(np.isfinite(np.asarray(array))):
        raise ValueError(
            "values: expected finite numbers; got NaN or infinity. Leave unknown coordinates out "
            "of dims, or use impute, which takes NaN for missing."
        )
    return array


def all_finite(array: Array, name: str, *, remedy: str) -> None:
    """No NaN and no infinity, where values can be looked at."""
    if not concrete(array):
        return
    values = np.asarray(
        array
    )  # under `jit` jax.numpy would trace even an array whose values are known
    finite = np.isfinite(values)
    if not finite.all():
        bad = np.argwhere(~finite)
        *row, column = (int(i) for i in bad[0])
        where = f"row {', '.join(map(str, row))}, column {column}" if row else f"column {column}"
        raise ValueError(
            f"{name}: expected finite numbers; got {values[tuple(bad[0])]} at {where}, and {len(bad)} "
            f"such in all. {remedy}"
        )


def weights(w: ArrayLike | None, n: int, dtype: Any) -> Float[Array, "n"] | None:
    """Sample weights [n]: finite, non-negative, not all zero."""
    if w is None:
        return None
    array = np.asarray(w) if concrete(w) and not isinstance(w, jax.Array) else jnp.asarray(w)
    if array.shape != (n,):
        raise ValueError(f"weights: expected shape [{n}], one a row of x; got {array.shape}.")
    array = to_jax(array, dtype)
    if concrete(array):
        values = np.asarray(array)
        if not np.all(np.isfinite(values)):
            raise ValueError("weights: expected finite numbers; got NaN or infinity.")
        if np.any(values < 0):
            raise ValueError(
                f"weights: expected non-negative numbers; got a minimum of {values.min():g}."
            )
        if not np.any(values > 0):
            raise ValueError("weights: expected at least one positive number; got all 0.")
    return array


def count(value: Any, name: str, *, least: int = 1) -> int:
    """A whole number of at least `least`, as a Python int."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a whole number; got {value!r}.")
    if number < least:
        raise ValueError(f"{name}: expected at least {least}; got {number}.")
    return number


def labels(
    y: ArrayLike, name: str, n_classes: int | None = None, *, n: int | None = None, least: int = 0
) -> tuple[Int[Array, "n"], int]:
    """Integer labels [n] from `least` to k − 1, and k: `n_classes`, or the largest label + 1."""
    array = y if isinstance(y, jax.Array) else _numpy(y, name)
    if array.ndim != 1 or array.shape[0] == 0 or n not in (None, array.shape[0]):
        expected = "[n], n ≥ 1" if n is None else f"[{n}], one a row"
        raise ValueError(f"{name}: expected shape {expected}; got {array.shape}.")
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(
            f"{name}: expected integer labels; got dtype {array.dtype}. Number the classes from 0, "
            f"for instance with np.unique({name}, return_inverse=True)[1]."
        )
    if not concrete(array):
        if n_classes is None:
            raise ValueError(f"{name}: under jit the number of classes must be given.")
        return to_jax(array, jnp.int32), count(n_classes, "n_classes")
    low, high = int(array.min()), int(array.max())
    k = max(high + 1, 1) if n_classes is None else count(n_classes, "n_classes")
    if low < least or high >= k:
        raise ValueError(
            f"{name}: expected labels from {least} to {k - 1}; got {low} to {high}. Number the "
            f"classes from 0, for instance with np.unique({name}, return_inverse=True)[1]."
        )
    return to_jax(array, jnp.int32), k


def every_class(labels: Array, w: Array | None, k: int, name: str) -> None:
    """A row (of positive weight) for each label from 0 to k − 1."""
    if concrete(labels, w):
        seen = np.asarray(labels) if w is None else np.asarray(labels)[np.asarray(w) > 0]
        missing = sorted(set(range(k)) - set(seen.tolist()))
        if missing:
            raise ValueError(f"{name}: expected each class at least once; {missing} have no row.")


def enough_rows(n: int, k: int, w: Array | None, what: str = "n_components") -> None:
    """At least one row (of positive weight) for each component."""
    if w is not None and concrete(w):
        n = int(np.count_nonzero(np.asarray(w)))
    if n < k:
        raise ValueError(
            f"{what}: expected at most the number of rows of x that count; got {k} for {n} rows. "
            f"Use a smaller {what}, or more data."
        )


def nonnegative(value: ArrayLike, name: str) -> None:
    """A finite number ≥ 0."""
    if concrete(value):
        number = np.asarray(value)
        if number.shape != () or not np.isfinite(number) or number < 0:
            raise ValueError(f"{name}: expected one finite number ≥ 0; got {value!r}.")


def varying(x: Float[Array, "n d"], w: Array | None) -> None:
    """Data that hold something to fit: not all rows equal."""
    if not concrete(x, w):
        return
    values = np.asarray(x) if w is None else np.asarray(x)[np.asarray(w) > 0]
    if len(values) > 1 and np.all(values == values[0]):
        raise ValueError(
            "x: expected rows that differ; got one point repeated. Its density is a point mass, "
            "which no Gaussian has."
        )


def ended(status: Array, context: str, lanes: Array | None = None) -> None:
    """Raise `FitError` where the best lane has no finite model, with how all `lanes` ended."""
    if concrete(status) and int(status) > Status.DEGENERATE:
        summary = "" if lanes is None else f" ({summarize(lanes)})"
        raise FitError(Status(int(status)), context + summary)


def _numpy(x: ArrayLike, name: str) -> np.ndarray:
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name}: expected rows of equal length; {error}.") from error

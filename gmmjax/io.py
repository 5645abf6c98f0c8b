"""Models on disk: one safetensors file, with a versioned header and no pickle.

The header is the file's own metadata: `format` ("gmmjax"), `version`, `kind` (the class) and
`family`. The arrays are the model's own leaves, so that what is loaded is what was saved to the
last bit. Reading a file from a stranger runs none of its content.
"""

import os
import re
import secrets
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import families
from gmmjax._optional import optional_import
from gmmjax.mixture import GaussianMixture
from gmmjax.status import GmmjaxError

_FORMAT = "gmmjax"
_VERSION = 1
_KIND = "GaussianMixture"


class ModelFileError(GmmjaxError, ValueError):
    """A file that holds no usable model. The text names the file, what is wrong and the remedy."""


def save(path: str | os.PathLike[str], model: GaussianMixture) -> None:
    """Write the model to `path`, whole or not at all.

    The bytes go to a new file in the same folder, which is renamed over `path` once they are on
    the disk: whenever this is interrupted, an older file there stays as it was.

    Raises:
        ValueError: the model is a batch of models, or `load` would refuse it (NaN, infinity).
        OSError: the folder is missing, full, or not to be written to.
        ImportError: without the extra `io`.
    """
    with optional_import("io"):
        import safetensors.numpy
    path = Path(path)
    if not isinstance(model, GaussianMixture):
        raise TypeError(f"model: expected a GaussianMixture; got {type(model).__name__}.")
    arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(model)}
    try:
        _assemble(arrays, model.family)
    except _Fault as fault:
        raise ValueError(f"model: {fault}, so it cannot be saved to {path}.") from None
    header = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "kind": _KIND,
        "family": model.family,
    }
    # safetensors takes the bytes as they lie: a transposed view would be written permuted.
    # (`ascontiguousarray` would give a number an axis.)
    contiguous = {name: np.array(array, order="C") for name, array in arrays.items()}
    _replace(path, safetensors.numpy.save(contiguous, metadata=header))


def load(path: str | os.PathLike[str]) -> GaussianMixture:
    """Read a model that `save` wrote.

    Arrays saved in float64 come back in float64 when JAX's x64 mode is on, else in float32.

    Raises:
        ModelFileError: the file is missing, cut short, of another format or a newer version, or
            its arrays are missing, of wrong shapes, or not finite.
        ImportError: without the extra `io`.
    """
    with optional_import("io"):
        import safetensors
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path}: there is no such file. Check the name and the folder.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            family = _check_header(path, header)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: this is not a safetensors file, or it was cut short ({error}). "
            "Fetch or save it again."
        ) from None
    try:
        return _assemble(arrays, family)
    except _Fault as fault:
        raise ModelFileError(
            f"{path}: {fault}. Save the model again with gmmjax.io.save."
        ) from None


# ---- what is checked ----


class _Fault(Exception):
    """Why some arrays are not a model; the caller knows where they come from."""


def _check_header(path: Path, header: dict[str, str]) -> str:
    """The family that the header names, once it is known to be one that can be read."""
    if header.get("format") != _FORMAT:
        raise ModelFileError(
            f"{path}: a safetensors file, but not one of gmmjax (its header names the format "
            f"{header.get('format')!r}). Give a file that gmmjax.io.save wrote."
        )
    version = header.get("version", "")
    if not re.fullmatch("[1-9][0-9]{0,99}", version):
        raise ModelFileError(
            f"{path}: the header names the version {version!r}; expected a whole number. "
            "Save the model again."
        )
    if int(version) > _VERSION:
        raise ModelFileError(
            f"{path}: written in version {version} of the format; this gmmjax reads up to "
            f"{_VERSION}. Install a newer gmmjax."
        )
    if header.get("kind") != _KIND:
        raise ModelFileError(
            f"{path}: holds a {header.get('kind')!r}; expected a {_KIND!r}. Give another file."
        )
    family = header.get("family", "")
    if family not in families.names():
        raise ModelFileError(
            f"{path}: the covariance family is {family!r}; this gmmjax knows "
            f"{', '.join(families.names())}. Install a newer gmmjax, or save the model again."
        )
    return family


def _template(family: str, k: int, d: int) -> GaussianMixture:
    """A mixture of shapes instead of arrays: the structure that a file must fill."""
    dense, means, weights = (
        jax.ShapeDtypeStruct(shape, np.float32) for shape in ((k, d, d), (k, d), (k,))
    )
    # The family itself says what arrays it has, so that a new one needs no line here.
    factors = jax.eval_shape(families.get(family).covariance.from_dense, dense)
    return GaussianMixture(weights, means, factors, family)  # type: ignore[arg-type]


def _named_leaves(model: GaussianMixture) -> list[tuple[str, Any]]:
    """The leaves in order, by the names they have in the file, such as `factors.scale_tril`."""
    leaves, _ = jax.tree.flatten_with_path(model)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in leaves]


def _assemble(arrays: dict[str, np.ndarray], family: str) -> GaussianMixture:
    """The model of these arrays, or a `_Fault`."""
    means = arrays.get("means")
    if means is None:
        raise _Fault("the array 'means' is missing")
    if means.ndim != 2 or means.size == 0:
        raise _Fault(f"'means' has shape {means.shape}; expected [components, features]")
    template = _template(family, *means.shape)
    expected = {name: leaf.shape for name, leaf in _named_leaves(template)}
    if missing := sorted(expected.keys() - arrays.keys()):
        raise _Fault(f"the arrays {missing} are missing")
    if unknown := sorted(arrays.keys() - expected.keys()):
        raise _Fault(f"the arrays {unknown} do not belong to the family {family!r}")
    for name, shape in expected.items():
        _check_array(name, arrays[name], shape, family)
    total = np.exp(arrays["log_weights"].astype(np.float64)).sum()
    if not abs(total - 1) < 1e-3:
        raise _Fault(f"the weights add up to {total:.6g}; expected 1")
    leaves = [jnp.asarray(arrays[name]) for name in expected]
    model = jax.tree.unflatten(jax.tree.structure(template), leaves)
    if not np.isfinite(model.factors.half_log_det()).all():
        raise _Fault("a covariance is not positive definite")
    return model


def _check_array(name: str, array: np.ndarray, shape: tuple[int, ...], family: str) -> None:
    if array.shape != shape:
        raise _Fault(f"{name!r} has shape {array.shape}; expected {shape} for family {family!r}")
    if array.dtype not in (np.float32, np.float64):
        raise _Fault(f"{name!r} holds {array.dtype}; expected float32 or float64")
    # A weight of zero is a component that takes no part; its logarithm is no fault.
    finite = np.isfinite(array) | ((array == -np.inf) & (name == "log_weights"))
    if not finite.all():
        raise _Fault(f"{name!r} holds {array[~finite][0]}; expected finite numbers")


# ---- the file ----


def _replace(path: Path, content: bytes) -> None:
    """Put the content at `path` in one step."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with aside.open("xb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise

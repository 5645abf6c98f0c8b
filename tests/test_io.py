"""Models on disk: what is loaded is what was saved, and a bad file says what is wrong."""

import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from gmmjax import families, io
from gmmjax.io import ModelFileError, load, save
from gmmjax.mixture import GaussianMixture

FAMILIES = families.names()


def mixture(family="full", k=3, d=2, seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(k))
    root = rng.standard_normal((k, d, d))
    covariances = root @ root.transpose(0, 2, 1) + np.eye(d)
    return GaussianMixture.create(weights, rng.standard_normal((k, d)), covariances, family)


def header(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length])


def rewrite(path, *, metadata=None, drop=(), **arrays):
    """The file again, with some of it changed."""
    held = {name: a for name, a in safetensors.numpy.load_file(path).items() if name not in drop}
    held |= {name.replace("__", "."): a for name, a in arrays.items()}
    meta = header(path)["__metadata__"] | (metadata or {})
    meta = {name: value for name, value in meta.items() if value is not None}
    path.write_bytes(safetensors.numpy.save(held, metadata=meta))


def fault(path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    """A good file of a full mixture, three components in two features."""
    save(tmp_path / "model.safetensors", mixture())
    return tmp_path / "model.safetensors"


# ---- what is loaded is what was saved ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("k", "d"), [(3, 2), (1, 1), (2, 2), (4, 3)])
def test_round_trip_keeps_every_bit(tmp_path, family, k, d):
    model = mixture(family, k, d)
    save(tmp_path / "m.safetensors", model)
    again = load(tmp_path / "m.safetensors")
    assert jax.tree.structure(again) == jax.tree.structure(model)
    for old, new in zip(jax.tree.leaves(model), jax.tree.leaves(again), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, old)


def test_path_as_text_and_no_suffix_needed(tmp_path):
    save(str(tmp_path / "m"), mixture())
    assert load(str(tmp_path / "m")).family == "full"


def test_header(path):
    assert header(path)["__metadata__"] == {
        "format": "gmmjax",
        "version": "1",
        "kind": "GaussianMixture",
        "family": "full",
    }


def test_float64_file_in_either_mode(tmp_path):
    with jax.enable_x64(True):
        model = mixture()
        save(tmp_path / "m.safetensors", model)
        assert load(tmp_path / "m.safetensors").means.dtype == jnp.float64
    with jax.enable_x64(False):
        narrow = load(tmp_path / "m.safetensors")
        assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(narrow.means, model.means, rtol=1e-6)


def test_a_component_of_weight_zero_is_kept(tmp_path):
    model = GaussianMixture.create([1.0, 0.0], [[0.0], [1.0]], [1.0, 1.0], "spherical")
    save(tmp_path / "m.safetensors", model)
    np.testing.assert_array_equal(load(tmp_path / "m.safetensors").weights, [1.0, 0.0])


def test_a_transposed_view_is_saved_as_it_reads(tmp_path):
    model = mixture(k=3, d=3)
    leaves = jax.tree.map(lambda leaf: np.asarray(leaf).T.copy().T, model)
    save(tmp_path / "m.safetensors", leaves)
    np.testing.assert_array_equal(load(tmp_path / "m.safetensors").means, model.means)


# ---- what is not saved ----


def test_save_refuses_what_load_would(tmp_path):
    target = tmp_path / "m.safetensors"
    model = mixture()
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), model)
    with pytest.raises(ValueError, match=r"\[components, features\]"):
        save(target, batch)
    nan = jax.tree.map(lambda leaf: leaf * jnp.nan, model)
    with pytest.raises(ValueError, match="holds nan"):
        save(target, nan)
    with pytest.raises(TypeError, match="GaussianMixture; got dict"):
        save(target, {"means": 1})
    assert list(tmp_path.iterdir()) == []


def test_save_into_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        save(tmp_path / "nowhere" / "m.safetensors", mixture())


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_save_leaves_the_old_file(path, monkeypatch, step):
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io.os, step, full)
    with pytest.raises(OSError, match="No space"):
        save(path, mixture(seed=1))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_save_replaces_an_older_file_in_one_step(path, monkeypatch):
    """The new bytes are complete, and on the disk, in the same folder, before the rename."""
    seen = []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setattr(io.os, "fsync", lambda fd: (seen.append("fsync"), fsync(fd)))

    def watch(source, target):
        seen.append("replace")
        assert os.path.dirname(source) == os.path.dirname(target)
        assert load(source).n_components == 4
        assert load(target).n_components == 3
        replace(source, target)

    monkeypatch.setattr(io.os, "replace", watch)
    save(path, mixture(k=4))
    assert seen == ["fsync", "replace"]
    assert load(path).n_components == 4
    assert list(path.parent.iterdir()) == [path]


# ---- bad files ----


def test_missing_file_and_folder(tmp_path):
    assert "no such file" in fault(tmp_path / "m.safetensors")
    assert "no such file" in fault(tmp_path)


def test_every_file_cut_short_is_refused(path):
    whole = path.read_bytes()
    for length in {0, 4, 8, 20, len(whole) // 2, len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert "cut short" in fault(path)


@pytest.mark.parametrize(
    "content", [b"k,log\n1,2\n" * 30, b"\x80\x04\x95" + b"\0" * 100, b"\xff" * 64]
)
def test_other_formats(path, content):
    path.write_bytes(content)
    assert "not a safetensors file" in fault(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"format": None}, ["not one of gmmjax"]),
        ({"format": "pt"}, ["not one of gmmjax", "'pt'"]),
        ({"version": "2"}, ["version 2", "reads up to 1", "newer gmmjax"]),
        ({"version": "1000000000000000000000"}, ["newer gmmjax"]),
        ({"version": None}, ["version"]),
        ({"version": "one"}, ["'one'", "whole number"]),
        ({"version": "0"}, ["'0'"]),
        ({"kind": "KMeans"}, ["'KMeans'"]),
        ({"family": "banana"}, ["'banana'", "full"]),
        ({"family": None}, ["family"]),
        ({"family": "diag"}, ["missing", "factors.scale"]),
        ({"family": "tied"}, ["factors.scale_tril", "(3, 2, 2)", "(2, 2)"]),
    ],
)
def test_bad_header(path, metadata, words):
    rewrite(path, metadata=metadata)
    message = fault(path)
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["log_weights", "means", "factors.scale_tril"])
def test_missing_array(path, name):
    rewrite(path, drop=[name])
    message = fault(path)
    assert "missing" in message
    assert name in message


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"means": np.zeros((3, 5), np.float32)}, ["factors.scale_tril", "(3, 5, 5)"]),
        ({"means": np.zeros(3, np.float32)}, ["'means'", "(3,)"]),
        ({"means": np.zeros((3, 0), np.float32)}, ["'means'", "(3, 0)"]),
        ({"log_weights": np.zeros(2, np.float32)}, ["'log_weights'", "(2,)", "(3,)"]),
        ({"log_weights": np.zeros(3, np.float32)}, ["add up to 3"]),
        ({"log_weights": np.full(3, -np.inf, np.float32)}, ["add up to 0"]),
        ({"log_weights": np.full(3, np.inf, np.float32)}, ["holds inf"]),
        ({"means": np.full((3, 2), np.nan, np.float32)}, ["'means'", "holds nan"]),
        ({"means": np.zeros((3, 2), np.int32)}, ["'means'", "int32"]),
        ({"factors__scale_tril": np.zeros((3, 2, 2), np.float32)}, ["not positive definite"]),
        ({"factors__scale_tril": -np.ones((3, 2, 2), np.float32)}, ["not positive definite"]),
        ({"surprise": np.zeros(1, np.float32)}, ["'surprise'"]),
    ],
)
def test_bad_arrays(path, arrays, words):
    rewrite(path, **arrays)
    message = fault(path)
    for word in words:
        assert word in message


def test_a_number_type_that_numpy_lacks(path):
    rewrite(path, means=np.zeros((3, 2), jnp.bfloat16))
    assert "bfloat16" in fault(path)

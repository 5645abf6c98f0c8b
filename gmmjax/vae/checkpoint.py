"""Checkpoints of a run by Orbax: whole or not at all, the last two kept, and checked when read."""

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from gmmjax.status import GmmjaxError

T = TypeVar("T")


class CheckpointError(GmmjaxError, ValueError):
    """A checkpoint that cannot be used. The text names it, what is wrong and the remedy."""


class Checkpoints:
    """Checkpoints of one run in a folder, numbered by epoch.

    `about` is what the run must agree with to go on: sizes, likelihood, settings, the data's shape. It
    is stored beside the arrays.
    """

    def __init__(self, folder: str | os.PathLike[str], about: dict[str, Any]) -> None:
        self.folder = Path(folder).resolve()
        self.about = json.loads(json.dumps(about))
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: expected a folder for checkpoints; got a file.")
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, number: int, tree: Any) -> None:
        """Write a tree of arrays; an older checkpoint stays until this one is whole."""
        self._manager.save(
            number,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(_named(tree)), about=ocp.args.JsonSave(self.about)
            ),
        )

    def latest(self, template: T) -> T | None:
        """The newest checkpoint, in the structure of `template`; None where there is none yet.

        Raises `CheckpointError` where it belongs to another run, or is damaged.
        """
        number = self._manager.latest_step()
        if number is None:
            return None
        path = self.folder / str(number)
        older = [step for step in self._manager.all_steps() if step != number]
        remedy = (
            f"Delete {path} to go on from epoch {max(older)}, which is whole."
            if older
            else f"Delete {path} to start anew."
        )
        try:
            about = self._manager.restore(
                number, args=ocp.args.Composite(about=ocp.args.JsonRestore())
            )["about"]
        except Exception as error:  # Orbax has no class of its own for a damaged file
            raise CheckpointError(
                f"{path}: damaged or cut short ({_first(error)}). {remedy}"
            ) from None
        if about != self.about:
            names = sorted(
                name
                for name in about.keys() | self.about.keys()
                if about.get(name) != self.about.get(name)
            )
            told = "; ".join(
                f"{name} is {about.get(name)!r} there and {self.about.get(name)!r} here"
                for name in names
            )
            raise CheckpointError(
                f"{path}: of another run: {told}. Give the settings of that run, or another folder."
            )
        shapes = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for name, leaf in _named(template).items()
        }
        try:
            arrays = self._manager.restore(
                number, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(shapes))
            )["arrays"]
        except Exception as error:
            raise CheckpointError(
                f"{path}: damaged or cut short ({_first(error)}). {remedy}"
            ) from None
        return _rebuilt(template, arrays)

    def close(self) -> None:
        """Let go of the folder."""
        self._manager.close()


def _named(tree: Any) -> dict[str, Any]:
    """Leaves by number; keys as the integers behind them."""
    return {
        f"{i:04d}": np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for i, leaf in enumerate(jax.tree.leaves(tree))
    }


def _rebuilt(template: T, arrays: dict[str, Any]) -> T:
    leaves, structure = jax.tree.flatten(template)
    new = []
    for i, leaf in enumerate(leaves):
        value = jnp.asarray(arrays[f"{i:04d}"])
        if _is_key(leaf):
            value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        new.append(value)
    return jax.tree.unflatten(structure, new)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _first(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__

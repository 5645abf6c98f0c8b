"""Array types of the public surface, and the one decorator that makes a pytree.

Shapes are written in the letters of the mathematics: n samples, d features, k components.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

__all__ = ["Array", "ArrayLike", "Bool", "Float", "Int", "Key", "Shaped", "pytree", "static"]

T = TypeVar("T")


def static(**kwargs: Any) -> Any:
    """A field that belongs to the structure (part of the compilation key), not to the leaves."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and register it as a JAX pytree.

    Nothing is checked when JAX rebuilds an object from its leaves: under `vmap` the leaves carry a
    leading axis, and under tree transformations they need not be arrays at all.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)
    return cls

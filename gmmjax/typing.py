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

    The class itself is part of the structure. `jax.tree_util.register_dataclass` leaves it out: in jax
    0.10 and 0.11 two dataclasses with as many fields have equal structures, and a jitted function that
    had seen 300 such classes gave 41 of them back as another (0.10.2).
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    meta = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    names = [jax.tree_util.GetAttrKey(name) for name in data]

    def structure(node: T) -> tuple[Any, ...]:
        return (cls, *(getattr(node, name) for name in meta))

    def flatten(node: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(node, name) for name in data), structure(node)

    def flatten_with_keys(node: T) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        leaves = (getattr(node, name) for name in data)
        return tuple(zip(names, leaves, strict=True)), structure(node)

    def unflatten(structure: tuple[Any, ...], leaves: Any) -> T:
        fields = dict(zip(data, leaves, strict=True)) | dict(zip(meta, structure[1:], strict=True))
        return cls(**fields)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls

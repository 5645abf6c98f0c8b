"""The families by name."""

from gmmjax.families.common_axes import EVE, VVE
from gmmjax.families.diag import DIAG
from gmmjax.families.equal_volume import EVI, EVV
from gmmjax.families.family import Family
from gmmjax.families.full import FULL
from gmmjax.families.proportional import VEE, VEI
from gmmjax.families.rotated import EEV, VEV
from gmmjax.families.spherical import SPHERICAL
from gmmjax.families.tied import TIED
from gmmjax.families.tied_diag import TIED_DIAG
from gmmjax.families.tied_spherical import TIED_SPHERICAL

_EVERYDAY = (FULL, TIED, DIAG, SPHERICAL, TIED_DIAG, TIED_SPHERICAL)
_FURTHER = (EVV, VEV, EEV, VVE, EVE, VEE, EVI, VEI)
_REGISTRY: dict[str, Family] = {f.name: f for f in (*_EVERYDAY, *_FURTHER)}
# In one dimension every family is one of two, which mclust calls E and V.
_ALIASES = {f.mclust: f.name for f in _EVERYDAY} | {"E": "tied-spherical", "V": "spherical"}


def names() -> tuple[str, ...]:
    """The registered names: those with an everyday name, then the others by mclust's letters."""
    return tuple(_REGISTRY)


def get(name: str) -> Family:
    """The family called `name` (its everyday name, or mclust's letters).

    Raises `ValueError` naming the valid ones.
    """
    family = _REGISTRY.get(_ALIASES.get(name, name))
    if family is None:
        valid = ", ".join([*_REGISTRY, *_ALIASES])
        raise ValueError(f"family: expected one of {valid}; got {name!r}.")
    return family

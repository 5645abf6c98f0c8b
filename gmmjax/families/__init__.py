"""Covariance families by name: the 14 of Celeux and Govaert (1995), as mclust letters them.

Σ_j = λ_j D_j A_j D_jᵀ: the letters say of volume λ, shape A and orientation D, in this order, whether
they are equal for all components (E), vary (V), or are the identity (I). Six have everyday names too.
"""

from gmmjax.families.decomposition import Decomposition, decompose
from gmmjax.families.diag import Diag
from gmmjax.families.family import Covariance, Family
from gmmjax.families.full import Full
from gmmjax.families.registry import get, names
from gmmjax.families.spherical import Spherical
from gmmjax.families.tied import Tied
from gmmjax.families.tied_diag import TiedDiag
from gmmjax.families.tied_spherical import TiedSpherical

__all__ = [
    "Covariance",
    "Decomposition",
    "Diag",
    "Family",
    "Full",
    "Spherical",
    "Tied",
    "TiedDiag",
    "TiedSpherical",
    "decompose",
    "get",
    "names",
]

"""How far to trust a fitted mixture: standard errors, how many components, which of them are one cluster."""

from gmmjax.inference.coordinates import Parameters, coordinates
from gmmjax.inference.information import StandardErrors, standard_errors
from gmmjax.inference.resampling import Replicates, bootstrap, jackknife

__all__ = [
    "Parameters",
    "Replicates",
    "StandardErrors",
    "bootstrap",
    "coordinates",
    "jackknife",
    "standard_errors",
]

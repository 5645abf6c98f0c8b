"""How far to trust a fitted mixture: standard errors, tests of k, components merged into clusters."""

from gmmjax.inference.coordinates import Parameters, coordinates
from gmmjax.inference.information import StandardErrors, standard_errors
from gmmjax.inference.likelihood_ratio import (
    ComponentTests,
    LikelihoodRatio,
    bootstrap_lrt,
    likelihood_ratio,
)
from gmmjax.inference.merging import Merging, merge_components
from gmmjax.inference.resampling import METHODS, Replicates, bootstrap, jackknife

__all__ = [
    "METHODS",
    "ComponentTests",
    "LikelihoodRatio",
    "Merging",
    "Parameters",
    "Replicates",
    "StandardErrors",
    "bootstrap",
    "bootstrap_lrt",
    "coordinates",
    "jackknife",
    "likelihood_ratio",
    "merge_components",
    "standard_errors",
]

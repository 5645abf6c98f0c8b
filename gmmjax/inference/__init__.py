"""How far to trust a fitted mixture: standard errors, how many components, which of them are one cluster."""

from gmmjax.inference.coordinates import Parameters, coordinates
from gmmjax.inference.information import StandardErrors, standard_errors

__all__ = ["Parameters", "StandardErrors", "coordinates", "standard_errors"]

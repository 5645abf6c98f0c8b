"""Latent-variable models other than the Gaussian mixture, on the same EM driver."""

from gmmjax.models.factor_analysis import FactorMixture
from gmmjax.models.factor_fit import fit_factors

__all__ = ["FactorMixture", "fit_factors"]

"""Latent-variable models other than the Gaussian mixture, on the same EM driver."""

from gmmjax.models.factor_analysis import FactorMixture
from gmmjax.models.factor_fit import fit_factors
from gmmjax.models.noise import NoisyMixture, log_hypervolume
from gmmjax.models.noise_fit import NoiseResult, fit_noise

__all__ = [
    "FactorMixture",
    "NoiseResult",
    "NoisyMixture",
    "fit_factors",
    "fit_noise",
    "log_hypervolume",
]

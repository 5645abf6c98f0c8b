"""Latent-variable models other than the Gaussian mixture, on the same EM driver."""

from gmmjax.models.factor_analysis import FactorMixture

__all__ = ["FactorMixture"]

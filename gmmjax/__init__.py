"""Gaussian mixtures and the EM algorithm, as pure functions on JAX."""

from gmmjax import (
    classification,
    datasets,
    families,
    generation,
    inference,
    io,
    metrics,
    mle,
    models,
)
from gmmjax.em import EMResult, EMState, LatentVariableModel, elbo, em
from gmmjax.fit import FitResult, fit
from gmmjax.kmeans import KMeans, KMeansResult, kmeans
from gmmjax.mixture import GaussianMixture
from gmmjax.priors import Prior
from gmmjax.selection import SelectionResult, select
from gmmjax.status import FitError, GmmjaxError, Status

__all__ = [
    "EMResult",
    "EMState",
    "FitError",
    "FitResult",
    "GaussianMixture",
    "GmmjaxError",
    "KMeans",
    "KMeansResult",
    "LatentVariableModel",
    "Prior",
    "SelectionResult",
    "Status",
    "classification",
    "datasets",
    "elbo",
    "em",
    "families",
    "fit",
    "generation",
    "inference",
    "io",
    "kmeans",
    "metrics",
    "mle",
    "models",
    "select",
]

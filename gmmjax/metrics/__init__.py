"""Scores of clusterings, classifiers and their probabilities, equal to scikit-learn's.

Scores of generated samples have no counterpart there; see `metrics.generation`.

Comparisons of labellings are exact outside `jit`, in float64 whatever JAX's mode. What reads data
or probabilities is computed in JAX's precision: float64 needs its x64 mode.
"""

from gmmjax.metrics.agreement import (
    adjusted_rand,
    completeness,
    homogeneity,
    normalized_mutual_information,
    purity,
    v_measure,
)
from gmmjax.metrics.contingency import contingency
from gmmjax.metrics.generation import (
    GenerationScores,
    NearestNeighbours,
    frechet_distance,
    nearest_neighbours,
    score_generation,
    transfer_accuracy,
)
from gmmjax.metrics.matching import matched_accuracy, matched_confusion, matching
from gmmjax.metrics.probabilistic import accuracy, brier_score, log_loss
from gmmjax.metrics.silhouette import silhouette, silhouette_samples

__all__ = [
    "GenerationScores",
    "NearestNeighbours",
    "accuracy",
    "adjusted_rand",
    "brier_score",
    "completeness",
    "contingency",
    "frechet_distance",
    "homogeneity",
    "log_loss",
    "matched_accuracy",
    "matched_confusion",
    "matching",
    "nearest_neighbours",
    "normalized_mutual_information",
    "purity",
    "score_generation",
    "silhouette",
    "silhouette_samples",
    "transfer_accuracy",
    "v_measure",
]

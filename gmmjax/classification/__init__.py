"""Mixtures with labels: discriminant analysis, semi-supervised fits, cross-validation, outliers.

Where every label is seen and a class is one normal, nothing iterates: `mle.mixture` is linear
discriminant analysis with the tied family, quadratic with the full one, naive Bayes with the
diagonal one, and its `predict` and `responsibilities` are the class and its posterior.
"""

from gmmjax.classification.conditional import ClassConditionalMixture
from gmmjax.classification.discriminant import (
    DiscriminantResult,
    EDDAResult,
    fit_discriminant,
    fit_edda,
)
from gmmjax.classification.labelled import LabelledMixture
from gmmjax.classification.outliers import empirical_threshold, is_outlier, sampled_threshold
from gmmjax.classification.semi_supervised import SemiSupervisedResult, fit_semi_supervised
from gmmjax.classification.validation import CrossValidation, cross_validate, stratified_folds

__all__ = [
    "ClassConditionalMixture",
    "CrossValidation",
    "DiscriminantResult",
    "EDDAResult",
    "LabelledMixture",
    "SemiSupervisedResult",
    "cross_validate",
    "empirical_threshold",
    "fit_discriminant",
    "fit_edda",
    "fit_semi_supervised",
    "is_outlier",
    "sampled_threshold",
    "stratified_folds",
]

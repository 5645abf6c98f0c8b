"""Data, starts and tolerances that several test files share."""

import jax
import jax.numpy as jnp
import numpy as np

import gmmjax

FAMILIES = ("full", "tied", "diag", "spherical")


def x64() -> bool:
    """Whether this run of the suite is the float64 one."""
    return bool(jax.config.jax_enable_x64)


def tolerance(double: float, single: float) -> float:
    """The tolerance for the dtype of this run."""
    return double if x64() else single


def blobs(seed: int, n: int, d: int, k: int, spread: float = 4.0) -> np.ndarray:
    """Rows of k Gaussian clusters of random, well-conditioned covariances."""
    rng = np.random.default_rng(seed)
    z = rng.integers(0, k, n)
    a = 0.3 * rng.normal(size=(k, d, d)) + np.eye(d) * rng.uniform(0.5, 1.5, (k, 1, 1))
    centers = spread * rng.normal(size=(k, d))
    x = centers[z] + np.einsum("nab,nb->na", a[z], rng.normal(size=(n, d)))
    return (x - x.mean(0)) / x.std(0)


def own_shape(family: str, covariances: np.ndarray) -> np.ndarray:
    """Dense covariances in the shape that scikit-learn and `create` use for a family."""
    if family == "full":
        return covariances
    if family == "tied":
        return covariances.mean(0)
    diagonal = np.diagonal(covariances, axis1=1, axis2=2)
    return diagonal if family == "diag" else diagonal.mean(1)


def start(seed: int, x: np.ndarray, k: int, family: str) -> gmmjax.GaussianMixture:
    """A mixture to start from: unequal weights, rows as means, the data's own covariance."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(5 * np.ones(k))
    means = x[rng.choice(len(x), k, replace=False)]
    covariance = np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1])
    dense = np.stack([covariance * s for s in rng.uniform(0.3, 1.0, k)])
    return gmmjax.GaussianMixture.create(weights, means, own_shape(family, dense), family)


def rows(x: np.ndarray) -> jax.Array:
    """Data in the dtype of this run."""
    return jnp.asarray(x, float)

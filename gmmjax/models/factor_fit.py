"""`fit_factors`: a mixture of factor analysers from data, the best of several starts."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from gmmjax import checks
from gmmjax.blocks import split
from gmmjax.em import EMResult, blank, turn
from gmmjax.frame import Frame
from gmmjax.lanes import best_of
from gmmjax.models.factor_analysis import FactorMixture
from gmmjax.typing import Array, ArrayLike, Key

_SLOTS = 2**22
"""Components × factors × features of the lanes that step together."""


def fit_factors(
    key: Key[Array, ""],
    x: ArrayLike,
    n_components: int,
    n_factors: int,
    *,
    noise: Literal["diag", "spherical"] = "diag",
    restarts: int = 4,
    weights: ArrayLike | None = None,
    reg: ArrayLike = 1e-4,
    tol: ArrayLike = 1e-6,
    max_steps: ArrayLike = 1000,
    accelerate: bool = True,
    throw: bool = True,
) -> EMResult[FactorMixture]:
    """Fit a mixture of factor analysers by EM from several K-means starts, and keep the best.

    - `x`: [n, d], finite. `n_factors`: q ≤ d, the rank of each covariance before the noise.
    - `noise`: "diag" for factor analysis, "spherical" for probabilistic PCA.
    - `reg`: the floor of the noise, as a fraction of each column's variance. It matters more than
      for full covariances: a column that never varies within a component has no noise of its own.
    - `weights`, `tol`, `max_steps`, `accelerate`, `throw`: as in `gmmjax.fit`.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError`.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_iris().x
    >>> result = gmmjax.models.fit_factors(jax.random.key(0), x, 3, 1, restarts=2)
    >>> bool(result.converged), result.model.loadings.shape
    (True, (3, 4, 1))
    """
    rows = checks.rows(x)
    n, d = rows.shape
    w = checks.weights(weights, n, rows.dtype)
    checks.enough_rows(n, checks.count(n_components, "n_components"), w)
    checks.varying(rows, w)
    for value, label in ((reg, "reg"), (tol, "tol"), (max_steps, "max_steps")):
        checks.nonnegative(value, label)
    keys = jax.random.split(key, checks.count(restarts, "restarts"))
    starts = [
        FactorMixture.start(one, rows, n_components, n_factors, noise=noise, weights=w)
        for one in keys
    ]
    models = jax.tree.map(lambda *a: jnp.stack(a), *starts)
    slots = max(1, _SLOTS // (n_components * n_factors * d))
    result, status = _fit(models, rows, w, reg, tol, max_steps, min(slots, len(starts)), accelerate)
    if throw:
        checks.ended(
            result.status,
            f"fit_factors: none of {restarts} starts of {n_components} components with {n_factors} "
            "factors ended with a finite model",
            status,
        )
    return result


@partial(jax.jit, static_argnums=(6, 7))
def _fit(
    models: FactorMixture, x: Array, w: Array | None, reg: ArrayLike, tol: ArrayLike,
    max_steps: ArrayLike, slots: int, accelerate: bool,
) -> tuple[EMResult[FactorMixture], Array]:  # fmt: skip
    frame = Frame.of(x, w)
    local = jax.vmap(lambda model: model.into(frame))(models)
    blocks = split(frame.enter(x), w)
    once = turn(blocks, reg=reg, tol=tol, max_steps=max_steps)
    empty = blank(jax.tree.map(lambda a: a[0], local), blocks, accelerate=accelerate)
    result, endings, _ = best_of(once, local, empty, slots)
    return frame.leave(result, blocks.total_weight), endings.status

"""Discriminant analysis: the classes' densities are fitted apart, and Bayes' rule classifies.

Two ways that differ in what the classes share. *EDDA* (Bensmail and Celeux 1996): one normal a
class, and a covariance family over all classes, so that they may share shape or orientation; in
closed form. *Mixture discriminant analysis* (Hastie and Tibshirani 1996; MclustDA, Fraley and
Raftery 2002): a mixture for each class, nothing shared, family and number of components by BIC.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks, families, mle
from gmmjax.classification.conditional import ClassConditionalMixture
from gmmjax.fit import FitResult, fit
from gmmjax.mixture import GaussianMixture
from gmmjax.priors import Prior
from gmmjax.status import Status
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree, static


@pytree
class DiscriminantResult:
    """A mixture per class, and how each candidate did. Holds no data."""

    model: ClassConditionalMixture
    log_likelihood: Float[Array, ""]  # Σ_i w_i log p(x_i, y_i), nats
    bic: Float[Array, "c m"]  # of each class and candidate, smaller is better; NaN where unusable
    status: Int[Array, "c"]  # a `Status`: how the fit of each class ended
    candidates: tuple[tuple[str, int], ...] = static()  # (family, number of components), m of them
    chosen: tuple[int, ...] = static()  # which candidate each class took


@pytree
class EDDAResult:
    """A mixture whose component j is class j, and how each family did. Holds no data."""

    model: GaussianMixture
    log_likelihood: Float[Array, ""]  # Σ_i w_i log p(x_i, y_i), nats
    bic: Float[
        Array, "m"
    ]  # of each family, smaller is better; NaN where its covariance is singular
    families: tuple[str, ...] = static()


def fit_edda(
    x: ArrayLike,
    y: ArrayLike,
    n_classes: int | None = None,
    *,
    family: str | Sequence[str] | None = None,
    weights: ArrayLike | None = None,
    prior: Prior | None = None,
    reg: ArrayLike = 0.0,
) -> EDDAResult:
    """One normal a class, the covariance family chosen by BIC: LDA, QDA, naive Bayes and between.

    The maximum of the joint likelihood Σ log p(x_i, y_i), in closed form where the family's M-step
    is. BIC is −2 Σ log p(x_i, y_i) + p log n, priors of the classes counted among the p.

    - `x`: [n, d]; `y`: integers 0 … c − 1, [n]; `weights`: how often each row counts.
    - `family`: a name, or several to choose from; all of them by default.
    - `prior`, `reg`: as in `mle.mixture`.

    Raises `ValueError` as `mle.mixture` does: a class without rows, every family singular.

    >>> import gmmjax
    >>> iris = gmmjax.datasets.load_iris()
    >>> result = gmmjax.classification.fit_edda(iris.x, iris.labels, family=["full", "tied"])
    >>> result.model.family, int((result.model.predict(iris.x) != iris.labels).sum())
    ('full', 3)
    """
    rows = checks.rows(x)
    labels, c = checks.labels(y, "y", n_classes, n=rows.shape[0])
    w = checks.weights(weights, rows.shape[0], rows.dtype)
    checks.every_class(labels, w, c, "y")
    names = _names(families.names() if family is None else family)
    size = _total(rows, w)

    def score(model: GaussianMixture) -> tuple[Array, Array]:
        log_likelihood = _joint(model.log_joint(rows), labels, w)
        return log_likelihood, -2 * log_likelihood + model.n_parameters() * jnp.log(size)

    models: list[GaussianMixture | None] = []
    for name in names:
        try:
            models.append(
                mle.mixture(rows, labels, c, family=name, weights=w, prior=prior, reg=reg)
            )
        except ValueError:  # singular: everything else has been checked above
            if len(names) == 1:
                raise
            models.append(None)
    nan = jnp.asarray(jnp.nan, rows.dtype)
    scores = [(nan, nan) if model is None else score(model) for model in models]
    bics = jnp.stack([bic for _, bic in scores])
    best = 0
    if len(names) > 1:
        _concrete_choice(bics, "family")
        if bool(jnp.all(jnp.isnan(bics))):
            raise ValueError(
                f"family: the covariance of some class is singular in each of {', '.join(names)}. "
                "Set reg above 0, pass a prior, or add a simpler family."
            )
        best = int(jnp.nanargmin(bics))
    model = models[best]
    assert model is not None
    return EDDAResult(model, scores[best][0], bics, names)


def fit_discriminant(
    key: Key[Array, ""],
    x: ArrayLike,
    y: ArrayLike,
    n_classes: int | None = None,
    *,
    family: str | Sequence[str] = "full",
    n_components: int | Sequence[int] = 1,
    weights: ArrayLike | None = None,
    throw: bool = True,
    **options: Any,
) -> DiscriminantResult:
    """A mixture for each class, its family and number of components chosen by BIC.

    **Arguments**

    - `key`: a `jax.random.key`; `x`: [n, d]; `y`: integers 0 … c − 1, [n].
    - `family`, `n_components`: one, or several to choose from, for each class by itself; every pair
      is a candidate. A candidate with more components than the class has rows is left out, and one
      that lies on its covariance floor wins only where no other is left.
    - `weights`: how often each row counts, [n].
    - `throw`: raise `FitError` where a class has no finite fit; otherwise the status says so.
    - `options`: passed to `fit`: `restarts`, `init`, `prior`, `reg`, `tol`, `max_steps`, `block`,
      `restart_batch`.

    With one candidate it may run under `jit` and `vmap`: over weights, as `cross_validate` does.

    **Raises** `ValueError` for arguments that cannot be used (a class without rows); `FitError`.

    >>> import jax, gmmjax
    >>> iris = gmmjax.datasets.load_iris()
    >>> result = gmmjax.classification.fit_discriminant(
    ...     jax.random.key(0), iris.x, iris.labels, family=["spherical", "diag"]
    ... )
    >>> [result.candidates[c] for c in result.chosen]
    [('diag', 1), ('diag', 1), ('diag', 1)]
    """
    rows = checks.rows(x)
    n = rows.shape[0]
    labels, c = checks.labels(y, "y", n_classes, n=n)
    w = checks.weights(weights, n, rows.dtype)
    checks.every_class(labels, w, c, "y")
    names = _names(family)
    ks = [n_components] if np.ndim(n_components) == 0 else list(n_components)  # type: ignore[arg-type]
    candidates = tuple((name, checks.count(k, "n_components")) for name in names for k in ks)
    if not candidates:
        raise ValueError("n_components: expected at least one number; got none.")
    keys = jax.random.split(key, (c, len(candidates)))

    chosen, densities, statuses, table = [], [], [], []

    def candidate(
        key: Array, part: Array, part_weights: Array | None, family: str, k: int
    ) -> FitResult | None:
        if k > _count_rows(part, part_weights):
            return None
        extra: dict[str, Any] = dict(options)
        if k == 1:  # one normal has one maximum, and no start to choose
            extra["init"] = jnp.zeros(part.shape[0], jnp.int32)
        return fit(key, part, k, family=family, weights=part_weights, throw=False, **extra)

    parts = [_rows_of_class(rows, labels, w, j) for j in range(c)]
    fewest = min(k for _, k in candidates)
    for j, part in enumerate(parts):
        if fewest > _count_rows(*part):
            raise ValueError(
                f"n_components: expected at most the {_count_rows(*part)} rows of class {j}; got "
                f"{fewest}."
            )
    for j, (part, part_weights) in enumerate(parts):
        results = [
            candidate(one, part, part_weights, name, k)
            for one, (name, k) in zip(keys[j], candidates, strict=True)
        ]
        size = _total(part, part_weights)
        bics = jnp.stack([_bic(result, size) for result in results])
        at = _best(results, bics)
        result = results[at]
        assert result is not None
        if throw:
            checks.ended(result.status, f"fit_discriminant: class {j}")
        chosen.append(at)
        densities.append(result.model)
        statuses.append(result.status)
        table.append(bics)

    mass = jnp.ones(n, rows.dtype) if w is None else w
    counts = jnp.zeros(c, rows.dtype).at[labels].add(mass)
    model = ClassConditionalMixture(jnp.log(counts / jnp.sum(counts)), tuple(densities))
    return DiscriminantResult(
        model=model,
        log_likelihood=_joint(model.log_joint(rows), labels, w),
        bic=jnp.stack(table),
        status=jnp.stack(statuses),
        candidates=candidates,
        chosen=tuple(chosen),
    )


def _names(family: str | Sequence[str]) -> tuple[str, ...]:
    names = [family] if isinstance(family, str) else list(family)
    if not names:
        raise ValueError("family: expected at least one name; got none.")
    return tuple(families.get(name).name for name in names)


def _rows_of_class(
    x: Array, labels: Array, w: Array | None, c: int
) -> tuple[Float[Array, "m d"], Float[Array, "m"] | None]:
    """The class's rows; under a trace of the labels all rows, the others with weight 0."""
    if checks.concrete(labels):
        mine = np.flatnonzero(np.asarray(labels) == c)
        return x[mine], None if w is None else w[mine]
    inside = (labels == c).astype(x.dtype)
    return x, inside if w is None else inside * w


def _count_rows(x: Array, w: Array | None) -> int:
    if w is None or not checks.concrete(w):
        return x.shape[0]
    return int(jnp.sum(w > 0))


def _total(x: Array, w: Array | None) -> Float[Array, ""]:
    return jnp.asarray(x.shape[0], x.dtype) if w is None else jnp.sum(w)


def _joint(log_joint: Float[Array, "n c"], labels: Array, w: Array | None) -> Float[Array, ""]:
    """Σ_i w_i log p(x_i, y_i)."""
    each = jnp.take_along_axis(log_joint, labels[:, None], axis=1)[:, 0]
    return jnp.sum(each if w is None else w * jnp.where(w > 0, each, 0.0))


def _bic(result: FitResult | None, size: Array) -> Float[Array, ""]:
    if result is None:
        return jnp.full_like(size, jnp.nan)
    bic = -2 * result.log_likelihood + result.model.n_parameters() * jnp.log(size)
    return jnp.where(result.status <= Status.DEGENERATE, bic, jnp.nan)


def _best(results: list[FitResult | None], bics: Array) -> int:
    """The least BIC among the best kind of ending, as `lanes.best_of` chooses among lanes."""
    if len(results) == 1:
        return 0
    _concrete_choice(bics, "family, n_components")
    kinds = [len(Status) if r is None else max(int(r.status), Status.MAX_STEPS) for r in results]
    values = np.where(np.asarray(kinds) == min(kinds), np.asarray(bics), np.inf)
    return int(np.argmin(np.where(np.isnan(values), np.inf, values)))


def _concrete_choice(bics: Array, name: str) -> None:
    if not checks.concrete(bics):
        raise ValueError(
            f"{name}: under jit and vmap expected one candidate, because the choice changes the "
            f"structure of the result; got {bics.shape[0]}."
        )

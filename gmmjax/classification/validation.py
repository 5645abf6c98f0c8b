"""Cross-validation with all folds in one program: a held-out row is a row of weight 0."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks, metrics
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree


@pytree
class CrossValidation:
    """Every row as predicted by the model that has not seen it."""

    log_posterior: Float[Array, "n c"]  # log p(y | x_i), nats
    error: Float[Array, "f"]  # share of wrong classes in each fold
    log_loss: Float[Array, "f"]  # −mean log p(y_i | x_i) in each fold, nats
    brier_score: Float[Array, "f"]  # mean Σ_c (p_c − 1{y = c})² in each fold, from 0 to 2

    @property
    def labels(self) -> Int[Array, "n"]:
        """The most probable class of each row."""
        return jnp.argmax(self.log_posterior, axis=-1)


def stratified_folds(key: Key[Array, ""], y: ArrayLike, n_folds: int) -> Int[Array, "n"]:
    """A fold 0 … n_folds − 1 for each row, at random; each class is spread evenly over the folds.

    The sizes of the folds differ by at most 1, as do the counts of each class in them.

    >>> import jax, gmmjax
    >>> y = [0, 0, 0, 0, 1, 1]
    >>> folds = gmmjax.classification.stratified_folds(jax.random.key(0), y, 2)
    >>> sorted(folds[:4].tolist()), sorted(folds[4:].tolist())
    ([0, 0, 1, 1], [0, 1])
    """
    n = len(y)  # type: ignore[arg-type]
    labels, _ = checks.labels(y, "y", None if checks.concrete(y) else n)
    f = checks.count(n_folds, "n_folds", least=2)
    if f > n:
        raise ValueError(f"n_folds: expected at most the {n} rows; got {f}.")
    # Rows in the order of their classes, at random within each, are dealt like cards.
    order = jnp.lexsort((jax.random.uniform(key, (n,)), labels))
    return jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32) % f)


def cross_validate(
    fit: Callable[[Float[Array, "n"]], Any],
    x: ArrayLike,
    y: ArrayLike,
    folds: ArrayLike,
    *,
    n_classes: int | None = None,
) -> CrossValidation:
    """Fit without each fold in turn, and predict it. All folds are one vmapped, compiled call.

    **Arguments**

    - `fit`: weights [n] → a classifier: a `ClassConditionalMixture`, or a `GaussianMixture` whose
      component j is class j. It is traced, so it may raise for shapes only; a fit that fails
      inside gives scores of NaN.
    - `x`: [n, d]; `y`: integers 0 … c − 1, [n]; `folds`: the fold of each row, integers 0 … f − 1,
      [n], as from `stratified_folds`.

    **Raises** `ValueError` where a fold is empty, or holds all rows of a class.

    >>> import jax, gmmjax
    >>> data = gmmjax.datasets.load_iris()
    >>> x, y = data.x, data.labels
    >>> folds = gmmjax.classification.stratified_folds(jax.random.key(0), y, 10)
    >>> def lda(weights):
    ...     return gmmjax.mle.mixture(x, y, 3, family="tied", weights=weights)
    >>> result = gmmjax.classification.cross_validate(lda, x, y, folds)
    >>> round(float(result.error.mean()), 2)
    0.02
    """
    rows = checks.rows(x)
    n = rows.shape[0]
    labels, c = checks.labels(y, "y", n_classes, n=n)
    fold, f = checks.labels(folds, "folds", n=n)
    table = metrics.contingency(fold, labels, n_clusters=c)
    for number in range(f):
        if table[number].sum() == 0:
            raise ValueError(f"folds: expected a row in each of {f} folds; fold {number} has none.")
        gone = np.flatnonzero((table[number] == table.sum(axis=0)) & (table[number] > 0))
        if gone.size:
            raise ValueError(
                f"folds: fold {number} holds all rows of class {gone.tolist()}, so nothing is left "
                "to fit that class to. Use `stratified_folds`, or fewer folds."
            )

    @jax.jit
    def run(rows: Array, labels: Array, fold: Array) -> CrossValidation:
        held_out = (fold == jnp.arange(f)[:, None]).astype(rows.dtype)

        def one(out: Float[Array, "n"]) -> Float[Array, "n c"]:
            return log_posterior(fit(1.0 - out), rows)

        each = jax.vmap(one)(held_out)
        picked = jnp.take_along_axis(each, fold[None, :, None], axis=0)[0]

        def scores(out: Array) -> tuple[Array, Array, Array]:
            right = metrics.accuracy(labels, jnp.argmax(picked, axis=-1), weights=out)
            finite = jnp.all(jnp.where(out[:, None] > 0, ~jnp.isnan(picked), True))
            return (
                jnp.where(finite, 1.0 - right, jnp.nan),
                metrics.log_loss(labels, picked, weights=out, log=True),
                metrics.brier_score(labels, jnp.exp(picked), weights=out),
            )

        return CrossValidation(picked, *jax.vmap(scores)(held_out))

    return run(rows, labels, fold)


def log_posterior(model: Any, x: ArrayLike) -> Float[Array, "*batch c"]:
    """log p(y | x), of a `ClassConditionalMixture` or of a mixture whose components are classes."""
    return jax.nn.log_softmax(model.log_joint(x), axis=-1)

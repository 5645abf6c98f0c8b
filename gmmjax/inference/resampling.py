"""The bootstrap and the jackknife: the model refitted to many variants of its data, in one program.

A variant is a weight for each row, so that all refits read the same data: counts of draws (Efron 1979),
exponential weights (the weighted-likelihood bootstrap of Newton and Raftery 1994), a row left out;
only the parametric bootstrap draws new rows. O'Hagan, Murphy, Scrucca and Gormley (2019) for mixtures.

Labels: each refit starts from the fitted model, so that a component remains the one that it was, unless
a variant moves it past another. There is no other remedy for label switching here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import blocks as blocks_
from gmmjax import checks
from gmmjax.backend import lanes_a_batch
from gmmjax.em import LatentVariableModel, run
from gmmjax.inference.coordinates import Parameters
from gmmjax.inference.information import check_level
from gmmjax.lanes import in_batches
from gmmjax.status import FitError, Status
from gmmjax.typing import Array, ArrayLike, Bool, Float, Int, Key, pytree, static

Method = Literal["nonparametric", "weighted", "parametric", "jackknife"]
METHODS = ("nonparametric", "weighted", "parametric")
Statistic = Callable[[Any], Any]
"""From a model to a tree of numbers, for instance `Parameters.of`."""


@pytree
class Replicates:
    """The refits. Holds no data.

    Where a refit has no usable estimate (a component without rows, a covariance on its floor, a value
    that is not finite) it is left out; `usable` says which are not.
    """

    estimate: Any  # the model that was resampled
    models: Any  # the refits, with a leading axis
    status: Int[Array, "b"]  # a `Status` each
    n_steps: Int[Array, "b"]
    method: Method = static()

    @property
    def usable(self) -> Bool[Array, "b"]:
        """Which refits count. A component on few rows (`SPURIOUS`) is an estimate like any other."""
        return (self.status <= Status.MAX_STEPS) | (self.status == Status.SPURIOUS)

    def standard_errors(self, statistic: Statistic = Parameters.of) -> Any:
        """The standard deviation of a statistic over the refits, (b − 1) times their mean square for the
        jackknife; by default that of weights, means and covariances, as `Parameters`."""
        used = self.usable
        b = jnp.sum(used)
        # Var of the jackknife: (b − 1)/b Σ (t − t̄)².
        factor = (b - 1) / b if self.method == "jackknife" else 1 / (b - 1)

        def error(values: Float[Array, "b ..."]) -> Float[Array, "..."]:
            w = used.reshape(-1, *[1] * (values.ndim - 1))
            values = jnp.where(w, values, 0.0)
            delta = jnp.where(w, values - jnp.sum(values, axis=0) / b, 0.0)
            return jnp.sqrt(factor * jnp.sum(delta**2, axis=0))

        return jax.tree.map(error, jax.vmap(statistic)(self.models))

    def intervals(
        self, level: ArrayLike = 0.95, statistic: Statistic = Parameters.of
    ) -> tuple[Any, Any]:
        """Confidence limits, lower and upper: percentiles of the refits; for the jackknife, whose refits
        scatter too little for that, the estimate and a multiple of its standard error."""
        check_level(level)
        half = 0.5 + 0.5 * jnp.asarray(level)
        if self.method == "jackknife":
            z, at = jax.scipy.special.ndtri(half), statistic(self.estimate)
            errors = self.standard_errors(statistic)
            low = jax.tree.map(lambda a, e: a - z * e, at, errors)
            return low, jax.tree.map(lambda a, e: a + z * e, at, errors)

        def percentile(q: Array) -> Any:
            def one(values: Float[Array, "b ..."]) -> Float[Array, "..."]:
                used = self.usable.reshape(-1, *[1] * (values.ndim - 1))
                return jnp.nanquantile(jnp.where(used, values, jnp.nan), q, axis=0)

            return jax.tree.map(one, jax.vmap(statistic)(self.models))

        return percentile(1 - half), percentile(half)


def bootstrap(
    key: Key[Array, ""],
    model: LatentVariableModel,
    x: ArrayLike,
    *,
    method: str = "nonparametric",
    replicates: int = 999,
    prior: Any = None,
    reg: ArrayLike = 1e-7,
    tol: ArrayLike | None = None,
    max_steps: ArrayLike = 1000,
    batch: int | None = None,
) -> Replicates:
    """Refit a model to resamples of its data, each refit from the model as its start.

    **Arguments**

    - `key`: a `jax.random.key`.
    - `model`: a `GaussianMixture` fitted to x, or another model of `gmmjax.models`.
    - `x`: the data of that fit, [n, d].
    - `method`: "nonparametric" draws n rows with replacement; "weighted" gives each row an
      exponential weight, so that every row counts in every refit and none is a duplicate; "parametric"
      draws n rows from the model (which then has a `sample`), as if it were true.
    - `replicates`: how many.
    - `prior`, `reg`, `max_steps`: those of the fit, see `fit`.
    - `tol`: as in `fit`; `None` for 1e-8, in float32 1e-6, below which rounding hides the change.
    - `batch`: refits that step together; `None` chooses.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError` where fewer than two
    refits are usable.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_faithful().x
    >>> model = gmmjax.fit(jax.random.key(0), x, 2, restarts=6).model
    >>> found = gmmjax.inference.bootstrap(jax.random.key(1), model, x, replicates=50)
    >>> bool(0.02 < found.standard_errors().weights[0] < 0.04)
    True
    """
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}; got {method!r}.")
    if method == "parametric" and not hasattr(model, "sample"):
        raise TypeError(
            f"model: expected one with a method `sample` for the parametric bootstrap; got "
            f"{type(model).__name__}. Use another method."
        )
    b = checks.count(replicates, "replicates", least=2)
    keys = jax.random.split(key, b)
    return _replicates(keys, model, x, method, prior, reg, tol, max_steps, batch)


def jackknife(
    model: LatentVariableModel,
    x: ArrayLike,
    *,
    prior: Any = None,
    reg: ArrayLike = 1e-7,
    tol: ArrayLike | None = None,
    max_steps: ArrayLike = 1000,
    batch: int | None = None,
) -> Replicates:
    """Refit a model n times, each time without one row (Efron 1979). Arguments as in `bootstrap`.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_faithful().x[:40]
    >>> model = gmmjax.fit(jax.random.key(0), x, 1, family="spherical", restarts=1).model
    >>> error = gmmjax.inference.jackknife(model, x).standard_errors().means[0]
    >>> bool(abs(error[1] - x[:, 1].std(ddof=1) / 40**0.5) < 1e-4)
    True
    """
    rows = jnp.arange(np.shape(x)[0] if np.ndim(x) else 0)
    return _replicates(rows, model, x, "jackknife", prior, reg, tol, max_steps, batch)


def _replicates(
    seeds: Array, model: Any, x: ArrayLike, method: str, prior: Any,
    reg: ArrayLike, tol: ArrayLike | None, max_steps: ArrayLike, batch: int | None,
) -> Replicates:  # fmt: skip
    x = checks.rows(x)
    for name in ("expect", "maximize", "localize"):
        if not hasattr(model, name):
            raise TypeError(
                "model: expected a GaussianMixture or a model of gmmjax.models; got "
                f"{type(model).__name__}."
            )
    if x.shape[1] != model.n_features:
        raise ValueError(f"x: expected shape [n, {model.n_features}], as the model; got {x.shape}.")
    if x.shape[0] < 2:
        raise ValueError(f"x: expected at least 2 rows; got {x.shape[0]}.")
    if tol is None:
        tol = 1e-6 if x.dtype == jnp.float32 else 1e-8
    for value, label in ((reg, "reg"), (tol, "tol"), (max_steps, "max_steps")):
        checks.nonnegative(value, label)
    if batch is None:
        batch = 4 * lanes_a_batch(len(x), model.n_components, blocks_.DEFAULT_BLOCK, x.dtype)
    out = _refit(
        seeds, model, x, prior,
        jnp.asarray(reg, x.dtype), jnp.asarray(tol, x.dtype), jnp.asarray(max_steps, jnp.int32),
        method=method, batch=checks.count(batch, "batch"),
    )  # fmt: skip
    if checks.concrete(out.status) and int(np.sum(out.usable)) < 2:
        best = Status(int(np.min(out.status)))
        raise FitError(best, f"{method}: fewer than two of {len(out.status)} refits are usable")
    return out


@partial(jax.jit, static_argnames=("method", "batch"))
def _refit(
    seeds: Array, model: Any, x: Array, prior: Any,
    reg: Array, tol: Array, max_steps: Array, *, method: Method, batch: int,
) -> Replicates:  # fmt: skip
    n = x.shape[0]
    local, rows, prior, restore = model.localize(x, None, prior)

    def variant(seed: Array) -> tuple[Array, Array]:
        one = jnp.ones(n, x.dtype)
        match method:
            case "nonparametric":
                return rows, jnp.zeros_like(one).at[jax.random.randint(seed, (n,), 0, n)].add(1.0)
            case "weighted":
                w = jax.random.exponential(seed, (n,), x.dtype)
                return rows, w / jnp.mean(w)
            case "parametric":
                return local.sample(seed, n)[0], one
            case _:
                return rows, one.at[seed].set(0.0)

    def one(seed: Array) -> tuple[Any, Array, Array]:
        data = blocks_.split(*variant(seed))
        result = restore(run(local, data, prior=prior, reg=reg, tol=tol, max_steps=max_steps))
        return result.model, result.status, result.n_steps

    models, status, n_steps = in_batches(one, seeds, batch)
    return Replicates(model, models, status, n_steps, method)

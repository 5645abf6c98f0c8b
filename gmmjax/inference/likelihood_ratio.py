"""How many components: the bootstrap likelihood-ratio test of k against k + 1 (McLachlan 1987).

T = 2 (ℓ_{k+1} − ℓ_k) has no χ² limit, as k components lie on the edge of k + 1; so its distribution is that
in samples of the fitted k components. Every sample, the data among them, goes through one search: EM
from k components, and from those k with one split, or with one more at some row. The k components
themselves, one of them counted twice, are among the candidates for k + 1, and T is never negative. A
likelihood that comes from a covariance on its floor or from a handful of rows is not among them.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from gmmjax import blocks as blocks_
from gmmjax import checks, families
from gmmjax.backend import lanes_a_batch
from gmmjax.blocks import Blocks
from gmmjax.em import EMResult, run
from gmmjax.fit import FitResult, fit
from gmmjax.frame import Frame
from gmmjax.inference.information import check
from gmmjax.lanes import in_batches
from gmmjax.mixture import GaussianMixture
from gmmjax.status import Status, is_success
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree


@pytree
class LikelihoodRatio:
    """A test of k components against k + 1. Holds no data."""

    null: GaussianMixture  # k components
    alternative: GaussianMixture  # the best of k + 1 that the search found
    statistic: Float[Array, ""]  # 2 (ℓ_{k+1} − ℓ_k) ≥ 0
    replicates: Float[Array, "b"]  # the same in samples of the null; NaN where a fit failed
    p_value: Float[Array, ""]  # (1 + number of replicates at least as large) / (1 + number)


@pytree
class ComponentTests:
    """Tests of 1 against 2 components, 2 against 3, …, up to the first that does not reject."""

    tests: tuple[LikelihoodRatio, ...]
    level: float

    @property
    def p_values(self) -> list[float]:
        """One a test, the first that of k = 1."""
        return [float(t.p_value) for t in self.tests]

    @property
    def n_components(self) -> int:
        """The smallest k that is not rejected; one more than the last where all are."""
        accepted = self.p_values[-1] > self.level
        return len(self.tests) + (0 if accepted else 1)


def likelihood_ratio(
    key: Key[Array, ""],
    null: GaussianMixture,
    x: ArrayLike,
    *,
    replicates: int = 199,
    starts: int = 10,
    reg: ArrayLike = 1e-7,
    tol: ArrayLike | None = None,
    max_steps: ArrayLike = 1000,
    batch: int | None = None,
) -> LikelihoodRatio:
    """Test the k components of a fitted mixture against k + 1 of the same family.

    **Arguments**

    - `key`: a `jax.random.key`.
    - `null`: k components fitted to x; `x`: the data, [n, d].
    - `replicates`: how many samples of the null; the smallest p-value is 1 / (1 + replicates).
    - `starts`: how many starts of k + 1 components, in the data and in every sample: the test has its
      level with few, and more power with more.
    - `reg`, `max_steps`: as in `fit`. `tol` too; `None` for 1e-7, in float32 1e-6.
    - `batch`: samples that are fitted together; `None` chooses.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_faithful().x
    >>> one = gmmjax.fit(jax.random.key(0), x, 1, restarts=1).model
    >>> test = gmmjax.inference.likelihood_ratio(jax.random.key(1), one, x, replicates=19, starts=2)
    >>> float(test.p_value)
    0.05
    """
    x = check(null, x)
    n, _ = x.shape
    checks.enough_rows(n, null.n_components + 1, None, "the number of components of null, plus 1")
    checks.varying(x, None)
    b = checks.count(replicates, "replicates")
    lanes = checks.count(starts, "starts")
    if tol is None:
        tol = 1e-6 if x.dtype == jnp.float32 else 1e-7
    for value, label in ((reg, "reg"), (tol, "tol"), (max_steps, "max_steps")):
        checks.nonnegative(value, label)
    if batch is None:
        slots = 4 * lanes_a_batch(n, null.n_components + 1, blocks_.DEFAULT_BLOCK, x.dtype)
        batch = max(1, slots // lanes)
    return _test(
        key, null, x,
        jnp.asarray(reg, x.dtype), jnp.asarray(tol, x.dtype), jnp.asarray(max_steps, jnp.int32),
        replicates=b, lanes=lanes, batch=checks.count(batch, "batch"),
    )  # fmt: skip


def bootstrap_lrt(
    key: Key[Array, ""],
    x: ArrayLike,
    *,
    max_components: int = 9,
    family: str = "full",
    level: float = 0.05,
    replicates: int = 199,
    starts: int = 10,
    restarts: int | None = None,
    reg: ArrayLike = 1e-7,
    tol: ArrayLike | None = None,
    max_steps: ArrayLike = 1000,
) -> ComponentTests:
    """Test k = 1 against 2, 2 against 3, … until a test does not reject, or k reaches `max_components`.

    mclust's `mclustBootstrapLRT`. The null of k components is the better of `fit`, with `restarts`
    starts, and of what the test before found, so that its likelihood never falls in k. `level` is that
    of each test. The other arguments are those of `likelihood_ratio`.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError`.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_faithful().x
    >>> key = jax.random.key(0)
    >>> tests = gmmjax.inference.bootstrap_lrt(
    ...     key, x, max_components=1, level=0.1, replicates=19, starts=2, restarts=1
    ... )
    >>> tests.p_values, tests.n_components
    ([0.05], 2)
    """
    x = checks.rows(x)
    last = checks.count(max_components, "max_components")
    checks.enough_rows(x.shape[0], last + 1, None, "max_components, plus 1,")
    if not isinstance(level, (int, float)) or not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, e.g. 0.05; got {level!r}.")
    if checks.count(replicates, "replicates") < 1 / level - 1:
        raise ValueError(
            f"replicates: expected at least {math.ceil(1 / level - 1)} for a level of {level:g}, "
            f"which p-values could not reach otherwise; got {replicates}."
        )
    tests: list[LikelihoodRatio] = []
    for k in range(1, last + 1):
        key, key_fit, key_test = jax.random.split(key, 3)
        found = fit(key_fit, x, k, family=family, restarts=restarts, reg=reg, max_steps=max_steps)
        if tests:
            before = tests[-1].alternative
            grown = fit(key_fit, x, k, family=family, init=before, reg=reg, max_steps=max_steps)
            found = max(found, grown, key=_standing)
        tests.append(
            likelihood_ratio(
                key_test, found.model, x, replicates=replicates, starts=starts, reg=reg, tol=tol,
                max_steps=max_steps,
            )
        )  # fmt: skip
        if float(tests[-1].p_value) > level:
            break
    return ComponentTests(tuple(tests), level)


def _standing(result: FitResult) -> tuple[int, float]:
    """How fits are ranked: by how they ended, and then by likelihood."""
    return -int(_kind(result.status)), float(result.log_likelihood)


def _kind(status: ArrayLike) -> Int[Array, "..."]:
    """A `Status`, with those that are sound as one."""
    return jnp.where(jnp.asarray(status) <= Status.MAX_STEPS, 0, status)


@partial(jax.jit, static_argnames=("replicates", "lanes", "batch"))
def _test(
    key: Array, null: GaussianMixture, x: Array, reg: Array, tol: Array, max_steps: Array, *,
    replicates: int, lanes: int, batch: int,
) -> LikelihoodRatio:  # fmt: skip
    n = x.shape[0]
    frame = Frame.of(x, None)
    local, rows = null.into(frame), frame.enter(x)

    def search(at: tuple[Array, Array]) -> tuple[EMResult, EMResult, Array]:
        """Number 0 is the data, the others are samples of the null."""
        number, key = at
        key_sample, key_starts = jax.random.split(key)
        drawn = jnp.where(number == 0, rows, local.sample(key_sample, n)[0])
        data = blocks_.split(drawn)
        small = run(local, data, reg=reg, tol=tol, max_steps=max_steps)
        starts = jax.vmap(lambda i: grown(jax.random.fold_in(key_starts, i), small.model, data, i))
        large = jax.vmap(lambda m: run(m, data, reg=reg, tol=tol, max_steps=max_steps))(
            starts(jnp.arange(lanes))
        )
        best = _better(small, large)
        statistic = 2 * (best.log_likelihood - small.log_likelihood)
        return small, best, jnp.where(is_success(small.status), statistic, jnp.nan)

    numbers = jnp.arange(replicates + 1)
    small, large, statistics = in_batches(
        search, (numbers, jax.random.split(key, len(numbers))), batch
    )
    statistic, others = statistics[0], statistics[1:]

    def of_data(results: EMResult) -> GaussianMixture:
        return jax.tree.map(lambda a: a[0], results.model).affine(frame.centre, frame.unit)

    return LikelihoodRatio(
        null=of_data(small),
        alternative=of_data(large),
        statistic=statistic,
        replicates=others,
        p_value=(1 + jnp.sum(others >= statistic)) / (1 + jnp.sum(~jnp.isnan(others))),
    )


def grown(key: Array, model: GaussianMixture, blocks: Blocks, lane: ArrayLike) -> GaussianMixture:
    """A start of k + 1 components: on even lanes one component is split in two along a random
    direction, the components in turn; on odd lanes one comes in at a random row."""
    key_direction, key_size, key_row = jax.random.split(key, 3)
    k, d = model.means.shape
    rows = blocks.rows()
    row = rows[jax.random.categorical(key_row, jnp.log(blocks.weights.reshape(-1)))]
    split = jnp.asarray(lane) % 2 == 0
    j = jnp.where(split, jnp.asarray(lane) // 2 % k, model.predict(row))
    direction = jax.random.normal(key_direction, (1, d), row.dtype)
    direction = direction / jnp.linalg.norm(direction)
    size = jax.random.uniform(key_size, (), row.dtype, 0.5, 1.5)
    step = size * model.factors.color(direction, j[None])[0]
    mean = model.means[j]
    larger = duplicated(model, j, jnp.where(split, 0.5, 0.1))
    means = larger.means.at[j].set(jnp.where(split, mean - step, mean))
    return dataclasses.replace(larger, means=means.at[k].set(jnp.where(split, mean + step, row)))


def duplicated(model: GaussianMixture, j: ArrayLike, share: ArrayLike) -> GaussianMixture:
    """The same distribution with k + 1 components: the last has a share of component j's weight."""
    index = jnp.append(jnp.arange(model.n_components), jnp.asarray(j))
    factors = model.factors
    if not families.get(model.family).second.pooled:
        factors = jax.tree.map(lambda a: a[index], factors)
    log_weights = model.log_weights[index].at[-1].add(jnp.log(share))
    log_weights = log_weights.at[j].add(jnp.log1p(-jnp.asarray(share)))
    return dataclasses.replace(
        model, log_weights=log_weights, means=model.means[index], factors=factors
    )


def _better(small: EMResult, large: EMResult) -> EMResult:
    """The best of the larger fits that ended no worse than the smaller one, or the smaller one itself."""
    same = dataclasses.replace(small, model=duplicated(small.model, 0, 0.5))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), same, large)
    counts = _kind(both.status) <= _kind(small.status)
    at = jnp.argmax(jnp.where(counts, both.log_likelihood, -jnp.inf))
    return jax.tree.map(lambda a: a[at], both)

"""`select`: how many components, and of which covariance family, by BIC, ICL, AIC or cross-validation.

The whole grid is fitted by one compiled program for each group of families that store their
covariances alike (`candidate`): the number of components and the family are data there, and the
components beyond a cell's own are masked. On Old Faithful, 14 families × k = 1 to 9, that is 6
programs and not 126.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import blocks as blocks_
from gmmjax import checks, initialization
from gmmjax import families as families_
from gmmjax._optional import optional_import
from gmmjax.candidate import Candidate, Choice, extract, groups
from gmmjax.em import blank, turn
from gmmjax.frame import Frame
from gmmjax.lanes import Lanes, default_restarts
from gmmjax.mixture import GaussianMixture
from gmmjax.rounding import resolution, too_narrow
from gmmjax.search import n_fresh, patience, search, wary
from gmmjax.status import FitError, Status, is_success
from gmmjax.typing import Array, ArrayLike, Float, Key, pytree

CRITERIA = ("bic", "icl", "aic", "cv")
THREADS = 2
"""Groups of families that are fitted at once: a program of a fit keeps one core of a CPU busy."""
_SLOTS = 2**13
"""Responsibilities of a block in the lanes that step together. Fewer than in a fit: lanes wait for the one
whose inner iteration is longest, and on Old Faithful 8 lanes took a third more time than 3."""


@dataclass(frozen=True)
class Cell:
    """One fit of the grid. Nothing in it is NaN: a cell that failed has −inf and inf."""

    n_components: int
    family: str
    n_parameters: int
    log_likelihood: float  # of the best lane, nats, summed over rows
    criterion: float  # smaller is better
    status: Status  # of the best lane
    lanes: Lanes  # how every lane ended, as numpy arrays
    model: GaussianMixture

    @property
    def usable(self) -> bool:
        """Whether the fit ended with a finite model."""
        return bool(is_success(int(self.status)))

    @property
    def sound(self) -> bool:
        """Usable, and not at a maximum that exists in any data (`SPURIOUS`, `DEGENERATE`)."""
        return self.status < Status.SPURIOUS


@dataclass(frozen=True)
class SelectionResult:
    """The grid, and the cell that the criterion chooses."""

    criterion: str
    cells: tuple[Cell, ...]  # by family, then by number of components

    @property
    def best(self) -> Cell:
        """The least criterion among the sound cells; among the usable ones where none is sound.

        Families that coincide, as some do at one component, differ by rounding: the first is taken.
        """
        usable = [cell for cell in self.cells if cell.usable]
        sound = [cell for cell in usable if cell.sound]
        return min(sound or usable or self.cells, key=lambda cell: round(cell.criterion, 6))

    @property
    def model(self) -> GaussianMixture:
        """The mixture of the best cell."""
        return self.best.model

    def cell(self, n_components: int, family: str) -> Cell:
        """The cell of that number of components and family; `KeyError` where it is not in the grid."""
        name = families_.get(family).name
        for cell in self.cells:
            if (cell.n_components, cell.family) == (n_components, name):
                return cell
        raise KeyError(f"no cell of {n_components} components and family {family!r}")

    @property
    def message(self) -> str:
        """How many cells are sound, and the others by name."""
        lines = [f"{sum(cell.sound for cell in self.cells)} of {len(self.cells)} cells are sound"]
        for status in Status:
            named = [c for c in self.cells if c.status is status and not c.sound]
            if named:
                cells = ", ".join(f"{c.family} k={c.n_components}" for c in named)
                lines.append(f"{cells}: {status.message}")
        return "; ".join(lines) + "."

    def table(self) -> str:
        """The criterion by number of components (rows) and family (columns).

        `*` marks the best, `!` a cell that is not sound, `-` one without a model.
        """
        names = list(dict.fromkeys(cell.family for cell in self.cells))
        letters = [name if len(name) < 10 else families_.get(name).mclust for name in names]
        ks = sorted({cell.n_components for cell in self.cells})
        best = self.best
        lines = [f"{self.criterion.upper()}: smaller is better"]
        lines.append("  k" + "".join(f"{name:>12}" for name in letters))
        for k in ks:
            row = [self.cell(k, name) for name in names]
            lines.append(f"{k:>3}" + "".join(f"{_entry(c, c is best):>12}" for c in row))
        return "\n".join(lines)

    def __str__(self) -> str:
        return f"{self.table()}\n{self.message}"


def select(
    key: Key[Array, ""],
    x: ArrayLike,
    n_components: int | Iterable[int] = range(1, 10),
    families: str | Iterable[str] | None = None,
    criterion: str = "bic",
    *,
    restarts: int | None = None,
    folds: int = 5,
    reg: ArrayLike = 1e-7,
    tol: ArrayLike = 1e-8,
    max_steps: ArrayLike = 1000,
    block: int | None = None,
    accelerate: bool = True,
    progress: bool = False,
    throw: bool = True,
) -> SelectionResult:
    """Fit a grid of numbers of components and covariance families, and choose among them.

    **Arguments**

    - `key`: a `jax.random.key`; `x`: data [n, d], finite.
    - `n_components`: the numbers of components, each from 1 to the number of distinct rows.
    - `families`: names (`gmmjax.families.names()`, or mclust's letters); `None` for all 14, or for the two
      of one dimension.
    - `criterion`, smaller is better: "bic", "icl", "aic" (mclust prints the negatives of the first two),
      or "cv": minus twice the log-likelihood of rows held out, each fold fitted without them.
    - `restarts`: starts of each cell; `None` for as many as `fit` takes there.
    - `folds`: of "cv"; rows are dealt to them at random.
    - `reg`, `tol`, `max_steps`, `block`, `accelerate`: as in `fit`.
    - `progress`: a bar on stderr (needs `tqdm`, of the extra `cli`).
    - `throw`: raise `FitError` where no cell has a finite model; otherwise the cells say so.

    A cell that the data do not identify (a constant column, collinear columns, components on too few
    rows) has a status, and the grid goes on. Such a cell wins only where there is no other.

    **Raises** `TypeError`, `ValueError` for arguments that cannot be used; `FitError`.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_faithful().x
    >>> result = gmmjax.select(jax.random.key(0), x, range(1, 4), ["tied"], restarts=6)
    >>> result.best.n_components, round(result.best.criterion)
    (3, 2314)
    """
    x = checks.rows(x)
    ks = _numbers(n_components)
    names = _names(families, x.shape[1])
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}; got {criterion!r}.")
    distinct = len(np.unique(np.asarray(x), axis=0))
    if ks[-1] > distinct:
        raise ValueError(
            f"n_components: expected at most the number of distinct rows of x; got {ks[-1]} for "
            f"{distinct} distinct rows. Use a smaller range, or more data."
        )
    n, d = x.shape
    if restarts is None:
        each = {k: default_restarts(n, k, d) for k in ks}
    else:
        each = dict.fromkeys(ks, checks.count(restarts, "restarts"))
    lanes = max(each.values())
    for value, label in ((reg, "reg"), (tol, "tol"), (max_steps, "max_steps")):
        checks.nonnegative(value, label)
    block = blocks_.DEFAULT_BLOCK if block is None else checks.count(block, "block")
    splits = None
    if criterion == "cv":
        folds = checks.count(folds, "folds", least=2)
        if folds > n:
            raise ValueError(f"folds: expected at most the number of rows of x, {n}; got {folds}.")
        splits = _training(jax.random.fold_in(key, 0), n, folds)

    x, w = blocks_.bucketed(x, None, block)
    if splits is not None:
        splits = jnp.pad(splits, ((0, 0), (0, x.shape[0] - n))).astype(x.dtype)
    capacity = ks[-1]
    batch = min(max(1, _SLOTS // (min(n, block) * capacity)), lanes)
    options = (
        jnp.asarray(reg, x.dtype),
        jnp.asarray(tol, x.dtype),
        jnp.asarray(max_steps, jnp.int32),
    )
    order = list(families_.names())
    x64 = bool(jnp.result_type(float) == jnp.float64)

    def fitted(group: tuple[str, ...], update: Callable[[], object]) -> dict[tuple, Cell]:
        found = {}
        with jax.enable_x64(x64):  # a thread begins in the default mode
            for index, name in enumerate(group):
                for k in ks:
                    choice = Choice(jnp.asarray(k, jnp.int32), jnp.asarray(index, jnp.int32))
                    # A key of its own for each cell: what one finds does not hang on the others.
                    mine = jax.random.fold_in(jax.random.fold_in(key, k), order.index(name))
                    out = _fit(
                        mine, x, w, splits, choice, jnp.asarray(each[k], jnp.int32), *options,
                        names=group, capacity=capacity, lanes=lanes, block=min(block, x.shape[0]),
                        batch=batch, accelerate=bool(accelerate),
                    )  # fmt: skip
                    found[k, name] = _cell(out, k, name, d, n, each[k], criterion)
                    update()
        return found

    # A group compiles while another runs. The largest takes longest, and comes first.
    parts = sorted(groups(names), key=len, reverse=True)
    with _bar(len(ks) * len(names), progress) as update, ThreadPoolExecutor(THREADS) as pool:
        every = pool.map(lambda group: fitted(group, update), parts)
        found = {at: cell for part in every for at, cell in part.items()}
    cells = tuple(found[k, name] for name in names for k in ks)
    result = SelectionResult(criterion, cells)
    if throw and not any(cell.usable for cell in cells):
        raise FitError(
            result.best.status, f"select: no cell ended with a finite model. {result.message}"
        )
    return result


@pytree
class _Fitted:
    """What the program of a group gives for one cell."""

    model: GaussianMixture  # of `capacity` components
    log_likelihood: Float[Array, ""]
    uncertainty: Float[Array, ""]  # −Σ_i log max_j r_ij
    held_out: Float[Array, ""]  # Σ of the log-likelihoods of the rows held out; 0 without folds
    status: Array
    lanes: Lanes


@partial(jax.jit, static_argnames=("names", "capacity", "lanes", "block", "batch", "accelerate"))
def _fit(
    key: Array, x: Array, w: Array, splits: Array | None, choice: Choice,
    count: Array, reg: Array, tol: Array, max_steps: Array, *,
    names: tuple[str, ...], capacity: int, lanes: int, block: int, batch: int, accelerate: bool,
) -> _Fitted:  # fmt: skip
    def one(weights: Array) -> tuple[GaussianMixture, Array, Array, Lanes]:
        frame = Frame.of(x, weights)
        data = blocks_.split(frame.enter(x), weights, block)
        factor = initialization.overall(data)
        starts = initialization.starts(
            key, "mixed", n_fresh(lanes), batch, data, capacity, names[0], prior=None, reg=reg,
            coordinates=_metric(factor, names, choice), n_used=choice.n_components,
        )  # fmt: skip
        own = jnp.asarray([families_.get(name).rows_needed(x.shape[1]) > 0 for name in names])
        least = jnp.where(own[choice.family], resolution(data), 0.0)
        once = turn(data, prior=choice, reg=reg, tol=tol, max_steps=max_steps)
        once = wary(once, lambda candidate: too_narrow(candidate.mixture, least))
        models = Candidate(starts, names)
        empty = blank(jax.tree.map(lambda a: a[0], models), data, accelerate=accelerate)

        def swap(key: Array, best: Candidate) -> Candidate:
            return Candidate(initialization.swap(key, best.mixture, data), names)

        result, endings, best = search(
            key, once, models, swap, empty, lanes, batch, patience(tol, data.total_weight), count
        )
        result = frame.leave(result, data.total_weight)
        endings = endings.where_best_is(best, result.log_likelihood)
        return result.model.mixture, result.log_likelihood, result.status, endings

    if splits is None:
        model, log_likelihood, status, endings = one(w)
        held_out = jnp.zeros((), x.dtype)
    else:
        every = jax.vmap(one)(jnp.concatenate([w[None], w * splits]))
        rows = jax.vmap(lambda model: model.log_prob(x))(every[0])[1:]
        held = (splits == 0) & (w > 0)
        held_out = jnp.sum(jnp.where(held, rows, 0.0))
        model, log_likelihood, status, endings = jax.tree.map(lambda a: a[0], every)
    certainty = model.log_certainty(x)
    return _Fitted(
        model, log_likelihood, -jnp.sum(jnp.where(w > 0, certainty, 0.0)), held_out, status, endings
    )


def _metric(factor: Array, names: tuple[str, ...], choice: Choice) -> tuple[Array, Array]:
    """Coordinates in which the chosen family is at home."""
    each = [initialization.metric(factor, name) for name in names]
    return jax.tree.map(lambda *a: jnp.stack(a)[choice.family], *each)


def _cell(fitted: _Fitted, k: int, name: str, d: int, n: int, lanes: int, criterion: str) -> Cell:
    # By numpy: a slice of every k would be a program of its own.
    fitted = jax.tree.map(np.asarray, fitted)
    model = extract(fitted.model, k, name)
    p = model.n_parameters()
    log_likelihood = float(fitted.log_likelihood)
    values = {
        "bic": -2 * log_likelihood + p * np.log(n),
        "icl": -2 * log_likelihood + p * np.log(n) + 2 * float(fitted.uncertainty),
        "aic": -2 * log_likelihood + 2 * p,
        "cv": -2 * float(fitted.held_out),
    }
    value, status = float(values[criterion]), Status(int(fitted.status))
    if not (bool(is_success(int(status))) and np.isfinite(log_likelihood)):
        status, log_likelihood, value = max(status, Status.NONFINITE_INPUT), -np.inf, np.inf
    return Cell(
        k, name, p, log_likelihood, value if np.isfinite(value) else np.inf, Status(status),
        jax.tree.map(lambda a: a[:lanes], fitted.lanes), model,
    )  # fmt: skip


def _entry(cell: Cell, best: bool) -> str:
    if not cell.usable:
        return "-"
    return f"{cell.criterion:.2f}" + ("*" if best else " " if cell.sound else "!")


def _numbers(n_components: int | Iterable[int]) -> list[int]:
    given = [n_components] if isinstance(n_components, int) else list(n_components)
    ks = sorted({checks.count(k, "n_components") for k in given})
    if not ks:
        raise ValueError("n_components: expected at least one number of components; got none.")
    return ks


def _names(families: str | Iterable[str] | None, d: int) -> tuple[str, ...]:
    if families is None:
        return ("tied-spherical", "spherical") if d == 1 else families_.names()
    given = [families] if isinstance(families, str) else list(families)
    if not given:
        raise ValueError(
            f"families: expected at least one of {', '.join(families_.names())}; got none."
        )
    return tuple(dict.fromkeys(families_.get(name).name for name in given))


def _training(key: Array, n: int, folds: int) -> Float[Array, "folds n"]:
    """Weights of the rows that each fold is fitted to: 0 for those that it holds out."""
    fold = np.argsort(np.asarray(jax.random.permutation(key, n))) % folds
    return jnp.asarray(fold != np.arange(folds)[:, None], float)


@contextmanager
def _bar(total: int, progress: bool) -> Iterator[Callable[[], object]]:
    if not progress:
        yield lambda: None
        return
    with optional_import("cli"):
        from tqdm import tqdm
    with tqdm(total=total, desc="fitting", unit="cell", leave=False) as bar:
        yield bar.update

"""The command line: `gmmjax fit DATA` fits, compares numbers of components, and writes the result.

Everything here is an edge: the numbers come from `fit` and from the mixture's own methods. The
computing is done in float64, switched on for the length of the command only.
"""

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from gmmjax import datasets, families
from gmmjax._optional import MissingExtraError, optional_import
from gmmjax.fit import FitResult, fit
from gmmjax.mixture import GaussianMixture
from gmmjax.status import FitError, Status, is_success
from gmmjax.tables import DataError, Table, read_table

_REACHED = 1e-3
"""Nats: a restart that ends this close to the best has reached it."""
_SHOWN = 8
"""Features whose parameters are printed; the model file has them all."""


class UsageError(Exception):
    """What was asked cannot be done; the text says why and what to ask instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: the data were read but no fit succeeded. 2: a bad argument or a bad file, with one
    paragraph on stderr. 130: interrupted. 141: nobody reads what is printed.
    """
    args = _parser().parse_args(argv)
    try:
        # For the length of the command only: a program that calls `main` keeps its own mode.
        with jax.enable_x64(True):
            code = _fit(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has had enough. What is still buffered must go nowhere, or
        # the interpreter would complain of it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UsageError, DataError, MissingExtraError) as error:
        print(f"gmmjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gmmjax: interrupted.", file=sys.stderr)
        return 130
    return code


# ---- arguments ----

_DESCRIPTION = """\
Fit Gaussian mixtures to a table of numbers by EM with many random restarts, compare numbers of
components by BIC, and print the model that BIC chooses.

DATA is one of
  a .csv file      one sample a line, commas between numbers, with or without a header line
  a .parquet file  every column numeric
  a .npy file      an array of two axes, samples by features
  a data set that comes with gmmjax: {datasets}
It must hold finite numbers only; every column is used as it is, in its own unit.

The table has a line for each k: the log-likelihood of the best restart (nats, summed over rows),
its BIC, how many restarts ended within {reached} nats of the best, and how the best one ended.
BIC = -2 log-likelihood + parameters x log(rows), so SMALLER is better (mclust prints its negative).
A fit whose status is "degenerate" sits on the edge of what the likelihood allows (a component on
few or repeated points) and is chosen only where there is no other.
"""

_EPILOG = """\
with --out DIR, it writes
  DIR/labels.csv         row (from 0), label (component, from 0) and the label's probability
  DIR/model.safetensors  the chosen model, for gmmjax.io.load
  DIR/fit.png            data with ellipses at 1, 2 and 3 sigma, and the BIC curve

examples
  gmmjax fit faithful                            Old Faithful, k = 1 to 9
  gmmjax fit data.csv -k 3 --out result          three components, results in result/
  gmmjax fit data.parquet -k 2,4,8 --family diag
  gmmjax fit data.npy -k 1:20 --family tied --restarts 200 --seed 7

exit codes
  0  done
  1  the data were read, but no fit succeeded
  2  a bad argument or a bad file: one paragraph on stderr says what to mend
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gmmjax", description="Gaussian mixtures by EM, on JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"gmmjax {version('gmmjax')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "fit",
        help="fit mixtures to a table of numbers and choose k by BIC",
        description=_DESCRIPTION.format(datasets=", ".join(datasets.LOADERS), reached=_REACHED),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("data", metavar="DATA", help="a file, or the name of a shipped data set")
    command.add_argument(
        "-k",
        type=_parse_ks,
        default="1:9",
        metavar="K",
        help="numbers of components: 3, or 1:9 (both ends included), or 2,4,8 (default 1:9)",
    )
    command.add_argument(
        "--family",
        choices=families.names(),
        default="full",
        metavar="NAME",
        help="covariances: "
        + "; ".join(f"{name}, {families.get(name).summary}" for name in families.names())
        + " (default full)",
    )
    command.add_argument(
        "--restarts",
        type=_positive,
        default=64,
        metavar="R",
        help="random starts for each k; the best is kept (default 64)",
    )
    command.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="the same seed, data and settings give the same result (default 0)",
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write the results here (default: only print)"
    )
    return parser


def _parse_ks(text: str) -> tuple[int, ...]:
    """`3`, `1:9` or `2,4,8`, also mixed, as increasing numbers.

    >>> _parse_ks("1:3,8")
    (1, 2, 3, 8)
    """
    ks: set[int] = set()
    for part in text.split(","):
        first, colon, last = part.partition(":")
        if not (first.isdecimal() and (last.isdecimal() if colon else True)):
            raise argparse.ArgumentTypeError(f"{text!r} is none of 3, 1:9 or 2,4,8")
        low, high = int(first), int(last or first)
        if low < 1:
            raise argparse.ArgumentTypeError(f"{text!r}: a mixture has at least 1 component")
        if high < low:
            raise argparse.ArgumentTypeError(f"{text!r}: {low}:{high} is empty; write {high}:{low}")
        if high > _MAX_K:
            raise argparse.ArgumentTypeError(f"{text!r}: at most {_MAX_K:,} components")
        ks.update(range(low, high + 1))
    return tuple(sorted(ks))


_MAX_K = 100_000


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1; got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number below 2**32; got {text!r}")
    return int(text)


# ---- the command ----


@dataclass(frozen=True)
class _Row:
    """One line of the table."""

    k: int
    result: FitResult
    log_likelihood: float
    bic: float  # NaN where every restart failed
    reached: int
    status: Status

    @property
    def usable(self) -> bool:
        return bool(np.isfinite(self.bic))


def _fit(args: argparse.Namespace) -> int:
    table = _read(args.data)
    n, d = table.x.shape
    if n < args.k[-1]:
        raise UsageError(
            f"{args.data}: {n} rows are too few for k = {args.k[-1]}, which needs at least one row "
            f"for each component. Give more rows or ask for fewer components: -k 1:{n} at most."
        )
    # Before the long work, so that a missing library or folder costs no fit.
    if args.out is not None:
        _prepare(args.out)
    with optional_import("cli"):
        from tqdm import tqdm

    print(f"{args.data}: {n} rows, {d} columns ({_join(table.columns)})")
    print(f"family {args.family}, {args.restarts} restarts for each k, seed {args.seed}")
    key = jax.random.key(args.seed)
    # On a terminal only, and on stderr, so that a redirected table stays clean.
    progress = tqdm(args.k, desc="fitting", unit="k", disable=None, leave=False)
    rows = [_row(key, table, k, args) for k in progress]
    _print_rows(rows, args.restarts)

    best = _choose(rows)
    if best is None:
        print(
            f"gmmjax: no fit succeeded: {rows[0].status.message}. {args.data} was read well.",
            file=sys.stderr,
        )
        return 1
    model = best.result.model
    _print_model(model, table.columns, chosen=len(rows) > 1)
    if best.status is not Status.CONVERGED:
        print(f"\nNote: {best.status.message}.")
    if args.out is not None:
        _write(args.out, model, table, rows)
    return 0


def _read(data: str) -> Table:
    """A shipped data set by its name, else a file."""
    if data in datasets.LOADERS and not Path(data).exists():
        shipped = datasets.load(data)
        return Table(shipped.x, shipped.feature_names)
    if not Path(data).exists():
        raise UsageError(
            f"{data}: there is no such file, and no shipped data set of that name. "
            f"Check the path, or choose from {', '.join(datasets.LOADERS)}."
        )
    return read_table(data)


def _row(key: jax.Array, table: Table, k: int, args: argparse.Namespace) -> _Row:
    try:
        # A key of its own for each k: what one finds does not hang on which others are asked.
        result = fit(
            jax.random.fold_in(key, k),
            table.x,
            k,
            family=args.family,
            restarts=args.restarts,
            throw=False,
        )
    except (ValueError, FitError) as error:
        raise UsageError(f"{args.data}: {error}") from error
    lanes = np.asarray(result.lanes.log_likelihood)
    log_likelihood = float(result.log_likelihood)
    usable = np.isfinite(log_likelihood) and bool(is_success(result.status))
    return _Row(
        k=k,
        result=result,
        log_likelihood=log_likelihood,
        bic=float(result.model.bic(table.x)) if usable else float("nan"),
        # Degenerate lanes may lie above the best sound one; they have not reached it.
        reached=int(np.sum(np.abs(lanes - log_likelihood) <= _REACHED)),
        status=Status(int(result.status)),
    )


def _choose(rows: Sequence[_Row]) -> _Row | None:
    """The smallest BIC, of the degenerate fits only where there is no other."""
    usable = [row for row in rows if row.usable]
    sound = [row for row in usable if row.status < Status.SPURIOUS]
    return min(sound or usable, key=lambda row: row.bic, default=None)


# ---- what is printed ----


def _print_rows(rows: Sequence[_Row], restarts: int) -> None:
    print("\nBIC = -2 log-likelihood + parameters x log(rows): smaller is better")
    print(f"best = restarts, of {restarts}, that ended within {_REACHED} nats of the best\n")
    print(f"  {'k':>3}  {'log-likelihood':>16}  {'BIC':>14}  {'best':>6}  status")
    best = _choose(rows)
    for row in rows:
        mark = "*" if row is best else " "
        name = row.status.name.lower().replace("_", " ")
        if row.usable:
            numbers = f"{row.log_likelihood:>16.3f}  {row.bic:>14.3f}  {row.reached:>6}"
        else:
            numbers = f"{'-':>16}  {'-':>14}  {'-':>6}"
        print(f"{mark} {row.k:>3}  {numbers}  {name}")


def _print_model(model: GaussianMixture, columns: Sequence[str], *, chosen: bool) -> None:
    k, d = model.n_components, model.n_features
    how = "* chosen by BIC: " if chosen else ""
    print(f"\n{how}k = {k}, family {model.family}, {model.n_parameters()} parameters")
    shown = min(d, _SHOWN)
    if shown < d:
        print(f"(the first {shown} of {d} features; the model file has them all)")
    names = [_shorten(name) for name in columns[:shown]]
    weights = np.asarray(model.weights)
    means = np.asarray(model.means)[:, :shown]
    covariances = np.asarray(model.covariances)[:, :shown, :shown]
    common = model.family == "tied"
    for j in range(k):
        print(f"\ncomponent {j}: weight {weights[j]:.4f}")
        _print_line("", names)
        _print_line("mean", _numbers(means[j]))
        if not common:
            _print_matrix(covariances[j])
    if common:
        print("\nthe covariance of every component")
        _print_line("", names)
        _print_matrix(covariances[0])


def _print_matrix(matrix: np.ndarray) -> None:
    for i, row in enumerate(matrix):
        _print_line("covariance" if i == 0 else "", _numbers(row))


def _print_line(name: str, cells: Sequence[str]) -> None:
    print(f"  {name:<10}" + "".join(f"  {cell:>12}" for cell in cells))


def _numbers(values: np.ndarray) -> list[str]:
    return [f"{value:.6g}" for value in values]


def _shorten(name: str, limit: int = 12) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "~"


def _join(columns: Sequence[str]) -> str:
    more = ", ..." if len(columns) > _SHOWN else ""
    return ", ".join(columns[:_SHOWN]) + more


# ---- what is written ----


def _prepare(folder: Path) -> None:
    with optional_import("cli"):
        import matplotlib  # noqa: F401
        import safetensors  # noqa: F401
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {folder}: the folder cannot be made ({error.strerror}). Name another."
        ) from error


def _write(folder: Path, model: GaussianMixture, table: Table, rows: Sequence[_Row]) -> None:
    from gmmjax import io

    try:
        labels = _write_labels(folder / "labels.csv", model, table.x)
        io.save(folder / "model.safetensors", model)
        _draw(folder / "fit.png", model, table, labels, rows)
    except OSError as error:
        raise UsageError(
            f"--out {folder}: cannot write there ({error.strerror or error}). Name another folder."
        ) from error
    print(f"\nwrote {folder}/labels.csv, {folder}/model.safetensors and {folder}/fit.png")


def _write_labels(path: Path, model: GaussianMixture, x: np.ndarray) -> np.ndarray:
    responsibilities = np.asarray(model.responsibilities(x))
    labels = responsibilities.argmax(axis=1)
    probabilities = responsibilities[np.arange(len(labels)), labels]
    with path.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["row", "label", "probability"])
        for row, (label, probability) in enumerate(zip(labels, probabilities, strict=True)):
            writer.writerow([row, label, f"{probability:.9g}"])
    return labels


def _draw(
    path: Path, model: GaussianMixture, table: Table, labels: np.ndarray, rows: Sequence[_Row]
) -> None:
    from matplotlib.figure import Figure

    from gmmjax.plot import plot_criterion, plot_mixture

    figure = Figure(figsize=(11, 4.5), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    plot_mixture(left, model, table.x, labels, feature_names=table.columns)
    plot_criterion(right, [row.k for row in rows], [row.bic for row in rows])
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())

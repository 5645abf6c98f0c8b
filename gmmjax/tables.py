"""Tables of numbers from files: CSV, Parquet and NumPy's .npy.

One function, `read_table`, and one exception, `DataError`, whose text names the file, what was
expected, what came and the remedy. What it returns is ready to fit: two axes, float64, finite.
"""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from gmmjax._optional import optional_import
from gmmjax.status import GmmjaxError

# What people and programs write where a number is missing.
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "?"})
# Python's float() also takes 1_000, which no other reader of CSV does.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|infinity)|nan", re.IGNORECASE)


class DataError(GmmjaxError, ValueError):
    """A file that holds no table of finite numbers. The text says where, what and the remedy."""


class Table(NamedTuple):
    """What `read_table` returns; unpacks as `x, columns`."""

    x: np.ndarray  # [n, d], float64, finite, n >= 1 and d >= 1
    columns: tuple[str, ...]  # d names: the file's own, or x1, x2, ...


def read_table(path: str | Path) -> Table:
    """Read a table of numbers: rows are samples, columns are features.

    Args:
        path: a file whose name ends in
            `.csv`: commas between columns; the first line is a header if none of its cells is a
            number;
            `.parquet`: every column numeric, without nulls; needs the extra `io`;
            `.npy`: an array of two axes, real numbers, not pickled.

    Raises:
        DataError: the file is missing, empty, of another format, ragged, of the wrong rank, or
            holds text, a missing value, NaN or infinity.
        ImportError: for Parquet without the library that reads it.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        suffix = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise DataError(
            f"{path}: the name has {suffix}, and the suffix tells the format: {known}. "
            "Convert or rename the file."
        )
    try:
        return reader(path)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file. Check the name and the folder.") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{path}: the file cannot be read ({reason}). "
            "Check that it is a file and that you may read it."
        ) from error


# ---- CSV ----


def _read_csv(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            first = _first_row(csv.reader(handle, strict=True))
            if first is None:
                raise DataError(f"{path}: the file is empty. {_CSV_EXPECTED}")
            has_header = not any(_is_number(cell) for cell in first)
            if not has_header:
                handle.seek(0)
            columns = _names(first) if has_header else _default_names(len(first))
            x = _parse(handle)
        # NumPy's parser is fast and says little. A table that it refuses, or that is not what was
        # asked, is read once more, slowly, to say which line is at fault.
        if x is None or x.shape[1] != len(columns) or not np.isfinite(x).all():
            _explain_csv(path, columns, has_header)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path}: this is not a CSV file in UTF-8 ({error}). {_CSV_EXPECTED}"
        ) from None
    return Table(x, columns)


_CSV_EXPECTED = "Expected one sample a line, its numbers separated by commas."


def _first_row(rows) -> list[str] | None:
    return next((row for row in rows if row), None)


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell.strip()) is not None


def _default_names(n_columns: int) -> tuple[str, ...]:
    return tuple(f"x{i + 1}" for i in range(n_columns))


def _names(header: list[str]) -> tuple[str, ...]:
    return tuple(cell.strip() or f"x{i + 1}" for i, cell in enumerate(header))


def _parse(handle) -> np.ndarray | None:
    """The rest of an open file as [n, d], or None where it is no table of numbers."""
    lines = (line for line in handle if line.strip())
    first = next(lines, None)
    if first is None:
        return None
    try:
        return np.loadtxt(
            _chain(first, lines), delimiter=",", quotechar='"', comments=None, ndmin=2
        )
    except ValueError:
        return None


def _chain(first: str, rest):
    yield first
    yield from rest


def _explain_csv(path: Path, columns: tuple[str, ...], has_header: bool) -> NoReturn:
    """Find the first fault and raise it."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        if has_header:
            _first_row(reader)
        n_rows = 0
        for row in reader:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue
            n_rows += 1
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(columns):
                raise DataError(
                    f"{where}: {len(row)} columns, where the first line has {len(columns)}. "
                    "Expected the same number on every line; mend or delete this one."
                )
            for name, cell in zip(columns, row, strict=True):
                _check_cell(where, name, cell.strip())
    if n_rows == 0:
        raise DataError(f"{path}: there is a header and no row of data. {_CSV_EXPECTED}")
    raise DataError(f"{path}: the file cannot be read as a table of numbers. {_CSV_EXPECTED}")


def _check_cell(where: str, column: str, cell: str) -> None:
    if cell.lower() in _MISSING:
        what = f"is {cell!r}" if cell else "is empty"
        raise DataError(
            f"{where}: the value of column {column!r} {what}, so it is missing. "
            "Expected a finite number; fill it in or delete the line."
        )
    if not _is_number(cell):
        raise DataError(
            f"{where}: column {column!r} holds text, such as {_shorten(cell)!r}. "
            "Expected a number in every column; delete this column or code it as numbers"
            + (", and separate columns by commas." if ";" in cell or "\t" in cell else ".")
        )
    if not np.isfinite(float(cell)):
        raise DataError(
            f"{where}: the value of column {column!r} is {cell}. "
            "Expected a finite number; mend it or delete the line."
        )


def _shorten(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


# ---- Parquet ----


def _read_parquet(path: Path) -> Table:
    with optional_import("io"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    with path.open("rb") as handle:
        try:
            table = pq.read_table(handle)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{path}: this is not a readable Parquet file ({reason}). "
                "Write it again, or convert it to CSV."
            ) from None
    if table.num_columns == 0 or table.num_rows == 0:
        raise DataError(
            f"{path}: the table is empty, {table.num_rows} rows of {table.num_columns} columns. "
            "Expected at least one of each."
        )
    x = np.empty((table.num_rows, table.num_columns))
    for j, name in enumerate(table.column_names):
        column = table.column(j)
        kind = column.type
        if not (
            pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        ):
            example = next(iter(column.drop_null().slice(0, 1).to_pylist()), None)
            raise DataError(
                f"{path}: column {name!r} has type {kind}, such as {_shorten(str(example))!r}. "
                "Expected a number in every column; drop this column or code it as numbers."
            )
        if column.null_count:
            row = column.is_null().to_numpy().argmax()
            raise DataError(
                f"{path}: the value of column {name!r} in row {row} (the first is 0) is missing. "
                "Expected a finite number; fill it in or drop the row."
            )
        x[:, j] = column.cast(pa.float64(), safe=False).to_numpy()
    columns = _names(table.column_names)
    _check_finite(path, x, columns)
    return Table(x, columns)


# ---- NumPy ----


def _read_npy(path: Path) -> Table:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(
            f"{path}: this is not a readable .npy file ({_shorten(str(error), 120)}). Expected an "
            "array of numbers written by numpy.save; object arrays are not read, for safety."
        ) from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: this is an .npz archive. Save one array with numpy.save.")
    if array.dtype.kind not in "iuf":
        example = _shorten(str(array.flat[0])) if array.size else ""
        raise DataError(
            f"{path}: the array holds {array.dtype}, such as {example!r}. "
            "Expected real numbers; convert it with astype(float)."
        )
    if array.ndim != 2:
        remedy = "; for one feature save x[:, None]" if array.ndim == 1 else ""
        raise DataError(
            f"{path}: the array has {array.ndim} axes, shape {array.shape}. "
            f"Expected two, samples by features{remedy}."
        )
    if array.size == 0:
        raise DataError(
            f"{path}: the array is empty, shape {array.shape}. "
            "Expected at least one row and one column."
        )
    x = array.astype(np.float64)
    columns = _default_names(x.shape[1])
    _check_finite(path, x, columns)
    return Table(x, columns)


def _check_finite(path: Path, x: np.ndarray, columns: tuple[str, ...]) -> None:
    bad = ~np.isfinite(x)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(
            f"{path}: the value of column {columns[column]!r} in row {row} (the first is 0) is "
            f"{x[row, column]}, one of {bad.sum()} that are not finite. "
            "Expected finite numbers; mend them or drop the rows."
        )


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".npy": _read_npy,
}

"""Tables from files: what is read, and what each fault says."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmmjax.tables import DataError, read_table

X = np.array([[1.5, -2.0], [3.0, 4e-3], [0.25, 1e6]])


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def fault(path) -> str:
    """The text of the DataError that reading raises; it always names the file."""
    with pytest.raises(DataError) as caught:
        read_table(path)
    text = str(caught.value)
    assert str(path) in text
    assert text.endswith(".")
    return text


# ---- CSV ----


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1.5,-2\n3,4e-3\n.25,1E6\n",
        '"a","b"\r\n"1.5","-2.0"\r\n3.,+0.004\r\n0.25,1000000',
        "\n a , b \n\n1.5, -2.0\n 3.0 ,0.004\n\n0.25,1e6\n  \n",
        "\ufeffa,b\n1.5,-2\n3,0.004\n0.25,1e6\n",
    ],
    ids=["plain", "quoted, CRLF, no last newline", "blanks", "byte-order mark"],
)
def test_csv_with_a_header(tmp_path, text):
    x, columns = read_table(write(tmp_path / "t.csv", text))
    assert columns == ("a", "b")
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, X)


def test_csv_without_a_header(tmp_path):
    x, columns = read_table(write(tmp_path / "t.CSV", "1.5,-2\n3,4e-3\n0.25,1e6\n"))
    assert columns == ("x1", "x2")
    np.testing.assert_array_equal(x, X)


def test_csv_of_one_column_and_of_one_row(tmp_path):
    assert read_table(write(tmp_path / "column.csv", "h\n1\n2\n")).x.shape == (2, 1)
    assert read_table(write(tmp_path / "row.csv", "1,2,3\n")).x.shape == (1, 3)


def test_csv_keeps_every_bit_of_float64(tmp_path):
    x = np.random.default_rng(0).standard_normal((50, 3)) * 1e-7
    text = "\n".join(",".join(repr(float(v)) for v in row) for row in x)
    np.testing.assert_array_equal(read_table(write(tmp_path / "t.csv", text)).x, x)


def test_csv_header_with_an_empty_name(tmp_path):
    assert read_table(write(tmp_path / "t.csv", ",b\n1,2\n")).columns == ("x1", "b")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["empty", "separated by commas"]),
        ("\n\n", ["empty"]),
        ("a,b\n", ["header", "no row"]),
        ("a,b\n1,2\n3,setosa\n", ["line 3", "column 'b'", "text", "'setosa'", "delete"]),
        ("1,2,setosa\n3,4,setosa\n", ["line 1", "column 'x3'", "'setosa'"]),
        ("a;b\n1;2\n", ["line 2", "'1;2'", "commas"]),
        ("a,b\n1,2\n\n3,nan\n", ["line 4", "column 'b'", "missing"]),
        ("a,b\n1,\n3,4\n", ["line 2", "column 'b'", "empty"]),
        ("a,b\nNA,1\n", ["line 2", "column 'a'", "'NA'", "missing"]),
        ("a,b\n1,2\n3,-inf\n", ["line 3", "column 'b'", "-inf"]),
        ("a,b\n1,1e999\n", ["line 2", "column 'b'", "1e999"]),
        ("a,b\n1,2\n3\n", ["line 3", "1 columns", "has 2"]),
        ("a,b\n1,2\n3,4,5\n", ["line 3", "3 columns", "has 2"]),
        ("a,b,c\n1,2\n3,4\n", ["line 2", "2 columns", "has 3"]),
        ("a,b\n1,1_000\n", ["line 2", "'1_000'"]),
        ("a,b\n1,0x10\n", ["line 2", "'0x10'"]),
        ('a,b\n1,2\n"3,4\n', ["CSV"]),
        ("a\n" + "z" * 500 + "\n", ["zzz..."]),
    ],
)
def test_csv_faults(tmp_path, text, words):
    message = fault(write(tmp_path / "t.csv", text))
    for word in words:
        assert word in message
    assert len(message) < 500 + len(str(tmp_path))


def test_csv_of_another_encoding(tmp_path):
    assert "UTF-8" in fault(write(tmp_path / "t.csv", "é,b\n1,2\n", encoding="latin-1"))
    assert "UTF-8" in fault(write(tmp_path / "u.csv", "a,b\n1,2\n1,é\n", encoding="latin-1"))


# ---- Parquet ----


def test_parquet(tmp_path):
    table = pa.table(
        {
            "f64": pa.array([1.5, 2.5]),
            "f32": pa.array([0.1, 0.2], pa.float32()),
            "int": pa.array([3, -4], pa.int16()),
            "dec": pa.array([Decimal("1.25"), Decimal("2.50")]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    x, columns = read_table(tmp_path / "t.parquet")
    assert columns == ("f64", "f32", "int", "dec")
    assert x.dtype == np.float64
    f32 = np.float32([0.1, 0.2]).astype(float)
    np.testing.assert_array_equal(x, np.transpose([[1.5, 2.5], f32, [3, -4], [1.25, 2.5]]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": [1.0, 2.0], "kind": [None, "setosa"]}, ["'kind'", "string", "'setosa'", "drop"]),
        ({"flag": [True, False]}, ["'flag'", "bool", "'True'"]),
        ({"a": [1.0, None]}, ["'a'", "row 1", "missing"]),
        ({"a": [1.0, 2.0], "b": [0.0, float("nan")]}, ["'b'", "row 1", "nan"]),
        ({"a": [float("inf"), 2.0]}, ["'a'", "row 0", "inf"]),
        ({"a": pa.array([], pa.float64())}, ["empty", "0 rows"]),
        ({}, ["empty"]),
    ],
)
def test_parquet_faults(tmp_path, columns, words):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    message = fault(tmp_path / "t.parquet")
    for word in words:
        assert word in message


def test_parquet_that_is_something_else_or_cut_short(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"")
    assert "Parquet" in fault(path)
    path.write_bytes(b"a,b\n1,2\n" * 10)
    assert "Parquet" in fault(path)
    pq.write_table(pa.table({"a": np.arange(1000.0)}), path)
    path.write_bytes(path.read_bytes()[:-200])
    assert "Parquet" in fault(path)


# ---- NumPy ----


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8, np.uint64, ">f4"])
def test_npy(tmp_path, dtype):
    x = np.arange(6).reshape(3, 2).astype(dtype)
    np.save(tmp_path / "t.npy", x)
    y, columns = read_table(tmp_path / "t.npy")
    assert y.dtype == np.float64
    assert columns == ("x1", "x2")
    np.testing.assert_array_equal(y, x.astype(float))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones(5), ["1 axes", "(5,)", "x[:, None]"]),
        (np.ones((2, 2, 2)), ["3 axes", "(2, 2, 2)"]),
        (np.float64(3), ["0 axes"]),
        (np.ones((0, 3)), ["empty", "(0, 3)"]),
        (np.ones((3, 0)), ["empty", "(3, 0)"]),
        (np.array([["a", "b"]]), ["<U1", "'a'"]),
        (np.ones((2, 2), bool), ["bool"]),
        (np.ones((2, 2), complex), ["complex"]),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), ["'x2'", "row 1", "nan", "one of 1"]),
        (np.array([[1.0, np.inf], [-np.inf, 2.0]]), ["'x2'", "row 0", "inf", "one of 2"]),
    ],
)
def test_npy_faults(tmp_path, array, words):
    np.save(tmp_path / "t.npy", array)
    message = fault(tmp_path / "t.npy")
    for word in words:
        assert word in message


def test_npy_runs_no_pickle(tmp_path):
    np.save(tmp_path / "t.npy", np.array([[object()]]), allow_pickle=True)
    assert "object arrays" in fault(tmp_path / "t.npy")


def test_npy_that_is_something_else_or_cut_short(tmp_path):
    path = tmp_path / "t.npy"
    path.write_bytes(b"")
    assert ".npy" in fault(path)
    path.write_bytes(b"a,b\n1,2\n")
    assert "not a readable .npy" in fault(path)
    np.save(path, np.ones((100, 2)))
    path.write_bytes(path.read_bytes()[:-50])
    assert "not a readable .npy" in fault(path)
    np.savez(tmp_path / "t.npz", a=np.ones((2, 2)))
    path.write_bytes((tmp_path / "t.npz").read_bytes())
    assert ".npz" in fault(path)


# ---- any format ----


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_missing_file_and_folder(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    assert "no such file" in fault(path)
    path.mkdir()
    assert "cannot be read" in fault(path)


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.csv.gz"])
def test_unknown_suffix(tmp_path, name):
    message = fault(write(tmp_path / name, "1,2\n"))
    assert "suffix" in message
    assert ".csv, .parquet, .npy" in message

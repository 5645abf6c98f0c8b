"""`gmmjax fit`: what it prints and writes, and what it says when it cannot."""

import csv
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import jax
import numpy as np
import pytest

from gmmjax import cli, datasets, io


def run(capsys, *argv) -> tuple[int, str, str]:
    """Exit code, stdout, stderr, as a shell would see them."""
    try:
        code = cli.main([str(arg) for arg in argv])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def table(text: str) -> dict[int, tuple[float, float, int, str, bool]]:
    """k to log-likelihood, BIC, restarts that reached the best, status, chosen."""
    line = re.compile(r"([* ]) +(\d+) +(-?[\d.]+) +(-?[\d.]+) +(\d+)  (.+)")
    found = [match for match in map(line.fullmatch, text.splitlines()) if match]
    return {
        int(k): (float(ll), float(bic), int(reached), status, mark == "*")
        for mark, k, ll, bic, reached, status in (match.groups() for match in found)
    }


@pytest.fixture(scope="module")
def faithful(tmp_path_factory):
    """One run on Old Faithful, shared: its folder and what it printed."""
    out = tmp_path_factory.mktemp("faithful") / "new" / "folder"
    argv = [
        "fit",
        "faithful",
        "-k",
        "1:3",
        "--family",
        "tied",
        "--restarts",
        "8",
        "--out",
        str(out),
    ]
    stdout, stderr = StringIO(), StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        assert cli.main(argv) == 0
    return out, stdout.getvalue(), stderr.getvalue()


# ---- a run that goes well ----


def test_the_table_has_the_known_optimum(faithful):
    """EEE on Old Faithful, k = 3, 11 parameters.

    The best of 200 starts in R's mclust is -1126.31593 (its default, which stops earlier, publishes
    -1126.326).
    """
    rows = table(faithful[1])
    assert list(rows) == [1, 2, 3]
    log_likelihood, bic, reached, status, chosen = rows[3]
    assert log_likelihood == pytest.approx(-1126.31593, abs=1e-3)
    assert bic == pytest.approx(2314.29568, abs=2e-3)
    assert 1 <= reached <= 8
    assert status == "converged"
    assert chosen
    assert not rows[1][4]
    assert not rows[2][4]
    assert rows[1][2] == 8


def test_the_header_says_what_was_done_and_which_sign(faithful):
    assert "faithful: 272 rows, 2 columns (eruptions, waiting)" in faithful[1]
    assert "family tied, 8 restarts for each k, seed 0" in faithful[1]
    assert "smaller is better" in faithful[1]
    assert "11 parameters" in faithful[1]


def test_no_progress_bar_where_nobody_watches(faithful):
    assert faithful[2] == ""


def test_the_model_is_written_in_float64(faithful):
    with jax.enable_x64(True):
        model = io.load(faithful[0] / "model.safetensors")
        assert model.means.dtype == np.float64
        assert (model.family, model.n_components) == ("tied", 3)
        total = float(model.log_prob(datasets.load_faithful().x).sum())
    assert total == pytest.approx(table(faithful[1])[3][0], abs=1e-3)


def test_the_labels_are_those_of_the_model(faithful):
    with (faithful[0] / "labels.csv").open(newline="") as handle:
        header, *rows = csv.reader(handle)
    assert header == ["row", "label", "probability"]
    assert [int(row[0]) for row in rows] == list(range(272))
    with jax.enable_x64(True):
        model = io.load(faithful[0] / "model.safetensors")
        responsibilities = np.asarray(model.responsibilities(datasets.load_faithful().x))
    assert [int(row[1]) for row in rows] == responsibilities.argmax(axis=1).tolist()
    probabilities = [float(row[2]) for row in rows]
    np.testing.assert_allclose(probabilities, responsibilities.max(axis=1), rtol=1e-8)


def test_the_picture_is_written(faithful):
    content = (faithful[0] / "fit.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
    assert sorted(path.name for path in faithful[0].iterdir()) == [
        "fit.png",
        "labels.csv",
        "model.safetensors",
    ]


def test_the_parameters_are_printed(faithful):
    with jax.enable_x64(True):
        model = io.load(faithful[0] / "model.safetensors")
        weights, means = np.asarray(model.weights), np.asarray(model.means)
    for j in range(3):
        assert f"component {j}: weight {weights[j]:.4f}" in faithful[1]
        assert f"{means[j, 0]:.6g}" in faithful[1]
    assert faithful[1].count("covariance ") == 2  # tied: once, in its title and its first line


def test_without_out_nothing_is_written_and_x64_mode_is_left_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_enable_x64
    code, out, err = run(
        capsys, "fit", "faithful", "-k", "2", "--restarts", "2", "--family", "tied"
    )
    assert (code, err) == (0, "")
    assert list(table(out)) == [2]
    assert "wrote" not in out
    assert list(tmp_path.iterdir()) == []
    assert jax.config.jax_enable_x64 == before


def test_a_k_finds_the_same_alone_and_among_others(capsys, faithful):
    _, out, _ = run(capsys, "fit", "faithful", "-k", "3", "--family", "tied", "--restarts", "8")
    assert table(out)[3] == table(faithful[1])[3]


def test_a_file_of_one_column(capsys, tmp_path):
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, 60), rng.normal(9, 1, 40)])[:, None]
    np.save(tmp_path / "x.npy", x)
    code, out, err = run(
        capsys, "fit", tmp_path / "x.npy", "-k", "1,2", "--restarts", "4", "--out", tmp_path / "o"
    )
    assert (code, err) == (0, "")
    assert "100 rows, 1 columns (x1)" in out
    assert table(out)[2][4]
    assert (tmp_path / "o" / "fit.png").exists()


def test_many_columns_are_printed_in_part(capsys, tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 11))
    np.save(tmp_path / "x.npy", x)
    code, out, _ = run(
        capsys, "fit", tmp_path / "x.npy", "-k", "1", "--restarts", "1", "--family", "diag"
    )
    assert code == 0
    assert "the first 8 of 11 features" in out
    assert "x8" in out
    assert "x9" not in out


# ---- help ----


def test_help_is_worth_reading(capsys):
    code, out, _ = run(capsys, "fit", "--help")
    assert code == 0
    for word in [
        ".csv",
        ".parquet",
        ".npy",
        "faithful",
        "1:9",
        "smaller",
        "examples",
        "exit codes",
    ]:
        assert word.lower() in out.lower()
    assert max(map(len, out.splitlines())) <= 100


def test_version(capsys):
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(r"gmmjax \d+\.\d+\.\d+\S*\n", out)


# ---- bad arguments ----


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["COMMAND"]),
        (["fly"], ["fly"]),
        (["fit"], ["DATA"]),
        (["fit", "faithful", "-k", "0"], ["at least 1"]),
        (["fit", "faithful", "-k", "-1"], ["-k"]),
        (["fit", "faithful", "-k", "3:1"], ["empty", "1:3"]),
        (["fit", "faithful", "-k", "two"], ["'two'", "1:9"]),
        (["fit", "faithful", "-k", "1:"], ["'1:'"]),
        (["fit", "faithful", "-k", "1:999999999"], ["at most"]),
        (
            ["fit", "faithful", "--family", "banana"],
            ["banana", "full", "tied", "diag", "spherical"],
        ),
        (["fit", "faithful", "--restarts", "0"], ["--restarts", "at least 1"]),
        (["fit", "faithful", "--restarts", "1.5"], ["--restarts"]),
        (["fit", "faithful", "--seed", "-3"], ["--seed"]),
        (["fit", "faithful", "--seed", "9999999999"], ["--seed", "2**32"]),
        (["fit", "faithful", "--speed", "9"], ["--speed"]),
        (["fit", "faithfull"], ["faithfull", "no such file", "faithful, iris, diabetes"]),
        (["fit", "faithful", "-k", "1:300"], ["272 rows", "k = 300", "-k 1:272"]),
    ],
)
def test_bad_arguments(capsys, argv, words):
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("text", "ks"),
    [("3", (3,)), ("1:4", (1, 2, 3, 4)), ("8,2,4", (2, 4, 8)), ("5:5,1:2,2", (1, 2, 5))],
)
def test_ks(text, ks):
    assert cli._parse_ks(text) == ks


# ---- bad files ----


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("missing.csv", None, ["missing.csv", "no such file"]),
        ("empty.csv", "", ["empty"]),
        ("text.csv", "a,b\n1,red\n", ["'b'", "'red'"]),
        ("nan.csv", "a,b\n1,nan\n", ["line 2", "'b'", "missing"]),
        ("ragged.csv", "a,b\n1,2\n3\n", ["line 3"]),
        ("few.csv", "a,b\n1,2\n3,5\n", ["2 rows", "k = 9", "-k 1:2"]),
        ("data.xlsx", "PK", ["suffix", ".parquet"]),
        ("bad.npy", "numpy?", [".npy"]),
    ],
)
def test_bad_files(capsys, tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    code, out, err = run(capsys, "fit", tmp_path / name)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("gmmjax: ")
    for word in words:
        assert word in err


def test_out_that_is_a_file(capsys, tmp_path):
    (tmp_path / "o").write_text("mine")
    code, out, err = run(capsys, "fit", "faithful", "--out", tmp_path / "o")
    assert (code, out) == (2, "")
    assert "--out" in err
    assert (tmp_path / "o").read_text() == "mine"


def test_a_file_hides_a_shipped_data_set_of_that_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").write_text("1,2\n")
    code, _, err = run(capsys, "fit", "iris")
    assert code == 2
    assert "no suffix" in err


@pytest.mark.parametrize("missing", ["tqdm", "matplotlib", "safetensors"])
def test_a_missing_library_names_its_extra(capsys, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    code, out, err = run(capsys, "fit", "faithful", "-k", "1", "--out", tmp_path / "o")
    assert (code, out) == (2, "")
    assert missing in err
    assert "pip install 'gmmjax[cli]'" in err


# ---- data that no mixture fits ----


def test_rows_that_are_all_equal(capsys, tmp_path):
    """Never a traceback, and never a NaN printed as a fit."""
    np.save(tmp_path / "x.npy", np.ones((20, 2)))
    code, out, err = run(capsys, "fit", tmp_path / "x.npy", "-k", "1:2", "--restarts", "2")
    assert code in (0, 1, 2)
    assert "nan" not in out.lower()
    if code:
        assert err.startswith("gmmjax: ")
        assert len(err.strip().splitlines()) == 1


# ---- as a command ----


def test_the_installed_command(tmp_path):
    command = os.path.join(os.path.dirname(sys.executable), "gmmjax")
    if not os.path.exists(command):
        pytest.skip("the package is not installed in this environment")
    done = subprocess.run(
        [command, "fit", "nothing.csv"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no such file" in done.stderr


def test_a_reader_that_stops_early_gets_no_traceback():
    """As in `gmmjax fit data.csv | head -1`."""
    code = (
        "import sys\n"
        "from gmmjax import cli\n"
        "cli._fit = lambda args: print('line\\n' * 100_000) or 0\n"
        "sys.exit(cli.main(['fit', 'faithful']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_progress_bar_where_somebody_watches(capsys):
    class Terminal(StringIO):
        def isatty(self):
            return True

    with redirect_stderr(Terminal()) as stderr:
        argv = ["fit", "faithful", "-k", "2", "--restarts", "2", "--family", "tied"]
        assert cli.main(argv) == 0
    assert "fitting" in stderr.getvalue()
    assert "0/1" in stderr.getvalue()  # a short run may end before the bar moves
    assert "fitting" not in capsys.readouterr().out

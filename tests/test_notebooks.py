"""Every notebook runs from a clean kernel, and its executed copy holds the same cells."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
MEGABYTE = 2**20


@pytest.mark.skipif(
    bool(jax.config.jax_enable_x64), reason="a notebook runs in JAX's default mode, once"
)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_runs_from_a_clean_kernel(path, tmp_path):
    environment = {
        **os.environ,
        "GMMJAX_NOTEBOOK_QUICK": "1",
        "PYTHONPATH": str(FOLDER.parent),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    environment.pop("JAX_ENABLE_X64", None)
    out = tmp_path / "executed.ipynb"
    command = [sys.executable, "-m", "jupytext", "--to", "ipynb", "--execute"]
    done = subprocess.run(
        [*command, "--output", str(out), str(path)],
        capture_output=True, text=True, check=False, env=environment, cwd=path.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    outputs = [o for c in json.loads(out.read_text())["cells"] for o in c.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)
    errors = [o.get("text", "") for o in outputs if o.get("name") == "stderr"]
    assert not errors, errors


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_its_executed_copy_holds_the_same_cells(path):
    copy = path.with_suffix(".ipynb")
    assert copy.exists(), f"run: jupytext --to ipynb --execute {path.name}"
    written = [(c.cell_type, c.source.strip()) for c in jupytext.read(path).cells]
    executed = json.loads(copy.read_text(encoding="utf-8"))
    kept = [(c["cell_type"], "".join(c["source"]).strip()) for c in executed["cells"]]
    assert kept == written, f"run: jupytext --to ipynb --execute {path.name}"
    code = [c for c in executed["cells"] if c["cell_type"] == "code"]
    assert all(c["execution_count"] for c in code)
    assert not any(o["output_type"] == "error" for c in code for o in c["outputs"])
    assert copy.stat().st_size < 2 * MEGABYTE


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 3

"""Promises of the package as a whole: what importing it does not do, and what it ships."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gmmjax

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]

OPTIONAL = [
    "sklearn",
    "matplotlib",
    "safetensors",
    "pyarrow",
    "tqdm",
    "flax",
    "optax",
    "orbax",
    "pandas",
    "beartype",
]

CODE = """
import json, sys, warnings
import jax
def flags():
    return {name: str(value) for name, value in jax.config.values.items()}
before = flags(), list(warnings.filters), jax.config.jax_enable_x64
import gmmjax
after = flags(), list(warnings.filters), jax.config.jax_enable_x64
print(json.dumps({
    "flags": [name for name in after[0] if before[0].get(name) != after[0][name]],
    "filters": len(after[1]) - len(before[1]) if before[1] == after[1] else "changed",
    "loaded": sorted({name.partition(".")[0] for name in sys.modules}),
    "backend": "jax._src.xla_bridge" in sys.modules
    and bool(sys.modules["jax._src.xla_bridge"]._backends),
}))
"""


@pytest.fixture(scope="module")
def imported():
    """What a fresh interpreter finds after `import gmmjax`, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_sets_no_flag(imported):
    assert imported["flags"] == []


def test_import_sets_no_warning_filter(imported):
    assert imported["filters"] == 0


def test_import_needs_no_optional_library(imported):
    assert not set(OPTIONAL) & set(imported["loaded"])


def test_import_starts_no_backend(imported):
    """A program must be able to choose its device after the import."""
    assert imported["backend"] is False


def requirements() -> list[str]:
    return importlib.metadata.requires("gmmjax") or []


def test_the_core_needs_only_these():
    core = {re.split(r"[<>=!~\[; ]", line)[0] for line in requirements() if "extra ==" not in line}
    assert core == {"jax", "jaxlib", "numpy", "chex", "jaxtyping"}


def test_the_extras():
    extras = set(importlib.metadata.metadata("gmmjax").get_all("Provides-Extra") or [])
    assert {"gpu", "sklearn", "plot", "vae", "io", "cli", "docs", "test", "lint", "all"} <= extras


def test_the_command_is_declared():
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="gmmjax")
    assert command.value == "gmmjax.cli:main"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_that_are_there(page):
    targets = re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text())
    inside = [t for t in targets if "://" not in t]
    assert [t for t in inside if not ((ROOT / page).parent / t).exists()] == []


def test_models_are_saved_and_loaded_from_the_top():
    assert gmmjax.io.load.__module__ == "gmmjax.io"

"""What every test of the suite runs under.

The suite runs twice, in JAX's default mode and with x64 on. What sets its own dtype runs once.
Compiled programs are kept on disk, in pytest's cache, so that workers and processes share them and a second
run compiles next to nothing; jax reads these variables when it is imported, and passes them on.
"""

import os
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

EDGES = {"test_cli", "test_tables", "test_plot", "test_datasets", "test_idx", "test_project"}
EDGES |= {"test_architecture", "test_notebooks", "test_compare"}

MAPS = Path("/proc/self/maps")
MOST_MAPS = 40_000
"""Linux gives a process 65,530 memory maps by default, and each compiled program takes several."""


@pytest.fixture
def float64() -> Iterator[None]:
    """x64 for one test, whatever the mode of the run."""
    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what the mode does not touch: float64 of its own accord, and the edges."""
    for item in items:
        if "float64" in getattr(item, "fixturenames", ()) or item.path.stem in EDGES:
            item.add_marker("own_dtype")


@pytest.fixture(autouse=True)
def room_for_programs() -> Iterator[None]:
    """Forget compiled programs before the process runs out of memory maps, where LLVM would crash."""
    yield
    if MAPS.exists():
        with MAPS.open("rb") as file:
            maps = sum(1 for _ in file)
        if maps > MOST_MAPS:
            jax.clear_caches()

"""What every test of the suite runs under.

The suite runs twice, in JAX's default mode and with x64 on. What sets its own dtype runs once.
Compiled programs are kept on disk, in pytest's cache, so that workers and processes share them and a second
run compiles next to nothing. Most of a test is compilation: LLVM without its optimisations, and jaxlib
0.10's older emitter, take half the time and leave XLA's own passes as they are. With `XLA_FLAGS=` in the
environment tests compile as users do. jax reads these variables when it is imported, and passes them on.
"""

import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# What this user has built of `gmmjax.native` is not what is tested; test_native builds its own.
os.environ["GMMJAX_CACHE"] = str(PROGRAMS.parent / "nothing-built")

QUICK = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)

import jax
import pytest

EDGES = {"test_cli", "test_tables", "test_plot", "test_datasets", "test_idx", "test_project"}
EDGES |= {"test_architecture", "test_notebooks", "test_compare", "test_gmvae_digits"}
STATUSES = {"test_hard_inputs"}  # of which none hangs on the mode
FIGURES = {"test_inference", "test_noise", "test_semi_supervised", "test_classification"}
FIGURES |= {"test_mclust_discriminant", "test_factor_analysis", "test_generation"}
FIGURES |= {"test_factor_conditioning", "test_rounding", "test_io"}
"""What stands on the core, and whose figures are float64's: in float32 they are long tests."""

MAPS = Path("/proc/self/maps")
MOST_MAPS = 40_000
"""Linux gives a process 65,530 memory maps by default, and each compiled program takes several."""


@pytest.fixture
def float64() -> Iterator[None]:
    """x64 for one test, whatever the mode of the run."""
    with jax.enable_x64(True):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what the mode does not touch, and what is for one mode."""
    for item in items:
        doctest = not item.path.is_relative_to(Path(__file__).parent)
        if (
            doctest
            or "float64" in getattr(item, "fixturenames", ())
            or item.path.stem in EDGES | STATUSES
        ):
            item.add_marker("own_dtype")
        elif item.path.stem in FIGURES and not jax.config.jax_enable_x64:
            item.add_marker("slow")


@pytest.fixture(autouse=True)
def room_for_programs() -> Iterator[None]:
    """Forget compiled programs before the process runs out of memory maps, where LLVM would crash."""
    yield
    if MAPS.exists():
        with MAPS.open("rb") as file:
            maps = sum(1 for _ in file)
        if maps > MOST_MAPS:
            jax.clear_caches()

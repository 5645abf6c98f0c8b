"""What every test of the suite runs under."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

MAPS = Path("/proc/self/maps")
MOST_MAPS = 40_000
"""Linux gives a process 65,530 memory maps by default, and each compiled program takes several."""


@pytest.fixture(autouse=True)
def room_for_programs() -> Iterator[None]:
    """Forget compiled programs before the process runs out of memory maps, where LLVM would crash."""
    yield
    if MAPS.exists():
        with MAPS.open("rb") as file:
            maps = sum(1 for _ in file)
        if maps > MOST_MAPS:
            jax.clear_caches()

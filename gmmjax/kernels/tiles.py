"""Tile sizes of every kernel, in one table.

Separate from the kernels because they are a matter of the machine and not of the mathematics:
`python -m benchmarks gpu --tune` measures candidates on the GPU at hand and prints rows for this table.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work, in numbers that are powers of two but for `programs`."""

    rows: int
    """Rows that a program takes at a time."""
    components: int = 64
    """Components of a tile, where a kernel cuts them."""
    features: int = 32
    """Features of a tile, where a kernel cuts them."""
    lanes: int = 1
    """Restarts that share a program, and so the features of its rows."""
    warps: int = 4
    stages: int = 2
    """Depth of Triton's software pipeline."""
    programs: int = 264
    """Programs of a launch for one model: twice an H100's 132 multiprocessors."""


TABLE: dict[str, list[tuple[int, Tile]]] = {
    # kernel: [(largest size, tile), …] in rising order; `size` is what `of` is given.
    "unrolled": [(1 << 30, Tile(rows=128))],
    "onepass": [(1 << 30, Tile(rows=128, warps=8))],
    "twopass": [(1 << 30, Tile(rows=128, warps=8))],
    "triangular": [(1 << 30, Tile(rows=128, warps=8))],
    "nearest": [(1 << 30, Tile(rows=128, warps=8))],
}


def of(kernel: str, size: int, n: int) -> Tile:
    """The tile for `size` (what a kernel's registers grow with) and n rows."""
    tile = next(tile for largest, tile in TABLE[kernel] if size <= largest)
    return replace(tile, programs=max(1, min(tile.programs, -(-n // tile.rows))))

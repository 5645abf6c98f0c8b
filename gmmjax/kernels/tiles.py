"""Tile sizes of every kernel, in one table.

Separate from the kernels because they are a matter of the machine and not of the mathematics:
`python -m benchmarks gpu --tune CASE` measures candidates on the GPU at hand. Those of cases A to D and G
to I were measured on an H100; the others follow what ptxas says of registers and shared memory.
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
    # kernel: [(largest size, tile), …] in rising order; what "size" means stands beside each.
    "unrolled": [(1 << 30, Tile(rows=64, warps=2, programs=4))],  # any
    # components, padded; 128 or 64 columns of components and lanes
    "resident high": [
        (16, Tile(rows=64, lanes=8, warps=8, stages=1, programs=66)),
        (32, Tile(rows=64, lanes=4, warps=8, stages=1, programs=66)),
        (64, Tile(rows=64, lanes=2, warps=8, stages=1, programs=66)),
        (1 << 30, Tile(rows=64, warps=8, stages=1, programs=66)),
    ],
    "resident tf32": [
        (16, Tile(rows=64, lanes=4, stages=1)),
        (32, Tile(rows=64, lanes=2, stages=1)),
        (1 << 30, Tile(rows=64, stages=1)),
    ],
    "onepass": [
        (64, Tile(rows=128, features=64, stages=1)),
        (128, Tile(rows=64, features=64, stages=1)),
    ],
    # features, padded, times the parts of a product: shared memory holds rows and components of so many
    "twopass": [
        (64, Tile(rows=128, components=64, warps=8)),
        (128, Tile(rows=128, components=32, warps=8)),
        (256, Tile(rows=64, components=32, stages=1, programs=66)),
    ],
    "nearest": [
        (64, Tile(rows=128, components=64, stages=1)),
        (128, Tile(rows=128, components=128, warps=8, stages=1)),
        (256, Tile(rows=128, components=128, warps=8, stages=1, programs=132)),
    ],
}


def of(kernel: str, size: int, n: int) -> Tile:
    """The tile for `size` (what a kernel's registers grow with) and n rows."""
    tile = next(tile for largest, tile in TABLE[kernel] if size <= largest)
    return replace(tile, programs=max(1, min(tile.programs, -(-n // tile.rows))))

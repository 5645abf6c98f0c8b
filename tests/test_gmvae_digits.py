"""The bar of the Gaussian-mixture VAE on digits: seeds in one program, no label in any choice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("seeds", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_seeds_on_digits_pass_the_bar(seeds):
    """In a process of its own, compiled as users compile: as tests are, it takes thrice as long."""
    flags = {"XLA_FLAGS": "", "JAX_ENABLE_X64": "0"}
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gmvae_digits", "--alone", "--seeds", str(seeds)],
        cwd=ROOT, env={**os.environ, **flags}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"1437 rows trained on, 360 held out; {seeds} seeds in one program" in out
    for part in ("transductive", "held-out"):
        (line,) = re.findall(rf"GMVAE, {part} \| (.*) \|", out)
        accuracy, information, rand = (float(cell.split(" ± ")[0]) for cell in line.split(" | "))
        assert accuracy >= 84, out
        assert information >= 83, out
        assert rand >= 76, out

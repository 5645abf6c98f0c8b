"""The bar of the Gaussian-mixture VAE on digits: ten seeds in one program, no label in any choice."""

import numpy as np

from benchmarks import gmvae_digits


def test_ten_seeds_on_digits_pass_the_bar(capsys):
    every = gmvae_digits.main(["--alone"])
    for part in ("transductive", "held-out"):
        assert every[part].shape == (10, 3)
        accuracy, information, rand = np.mean(every[part], axis=0)
        assert accuracy >= 84
        assert information >= 83
        assert rand >= 76
    assert "10 seeds in one program" in capsys.readouterr().out

"""Which covariances a mixture of a VAE's codes should have: accuracy, likelihood and agreement by family.

A VAE with a standard normal prior is trained once for all families; EM with many starts then fits each
family to its codes, as at the hand-over of `fit_gmvae`, before any joint training. Of the test rows:
accuracy one-to-one and normalised mutual information, mean ± standard deviation over the seeds. Without
labels: the log-likelihood and BIC a row of the training codes, and how far the seeds agree on the training
rows (the mean adjusted Rand index of two seeds).

    bash benchmarks/get_mnist.sh
    python -m benchmarks.gmvae_families
    python -m benchmarks.gmvae_families --data data/fashion-mnist
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.gmvae_digits import consensus, scores
from benchmarks.gmvae_mnist import load
from gmmjax.vae import Training, fit_gmvae
from gmmjax.vae.run import mixture_of_codes


def main(arguments: list[str] | None = None) -> None:
    """Print a line a family."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/mnist"), help="a folder of IDX files"
    )
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--latent", type=int, default=10)
    parser.add_argument("--shift", type=float, default=1.0)
    parser.add_argument("--restarts", type=int, default=24)
    parser.add_argument("--families", default="EEV,EVV,VEV,VVV,EEE,VVI")
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(arguments)
    pictures = load(options.data)
    x = pictures.train_x[: options.rows] / np.float32(255)
    test_x, test_y = pictures.test_x / np.float32(255), pictures.test_y
    settings = Training(
        pretrain_epochs=options.epochs, epochs=0, batch=256, shift=options.shift,
        restarts=options.restarts,
    )  # fmt: skip
    trained = fit_gmvae(
        jax.random.key(0), x, 10, latent=options.latent, hidden=tuple(options.hidden),
        validation=0.02, seeds=options.seeds, training=settings, progress=options.progress,
    )  # fmt: skip
    seeds = [(m.posterior(x).uncertain(), m.posterior(test_x).uncertain()) for m in trained.seeds()]
    print(
        f"{options.data.name}: {len(x)} rows, {options.seeds} seeds, {options.restarts} starts of EM"
    )
    print(
        "\n| family | ACC | NMI | log-likelihood | BIC | agreement | s |\n|---|---|---|---|---|---|---|"
    )
    for family in options.families.split(","):
        begin, held_out, own, likelihood, bic = time.perf_counter(), [], [], [], []
        for seed, (codes, test) in enumerate(seeds):
            mixture, _ = mixture_of_codes(jax.random.key(seed), codes, 10, family, settings)
            held_out.append(scores(test_y, np.asarray(mixture.predict(test))))
            own.append(np.asarray(mixture.predict(codes)))
            likelihood.append(float(np.mean(mixture.log_prob(codes))))
            bic.append(mixture.n_parameters() * np.log(len(x)) / len(x) - 2 * likelihood[-1])
        agreement = np.mean(consensus(own))
        mean, spread = np.mean(held_out, axis=0), np.std(held_out, axis=0, ddof=1)
        print(
            f"| {family} | {mean[0]:.1f} ± {spread[0]:.1f} | {mean[1]:.1f} ± {spread[1]:.1f} | "
            f"{np.mean(likelihood):.2f} | {np.mean(bic):.2f} | {agreement:.3f} | "
            f"{time.perf_counter() - begin:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

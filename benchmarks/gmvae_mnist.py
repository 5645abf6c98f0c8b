"""MNIST or Fashion-MNIST by a Gaussian-mixture VAE: clustering, test likelihood, generation, time an epoch.

    bash benchmarks/get_mnist.sh
    python -m benchmarks.gmvae_mnist --only clustering              # 15 minutes on two cores
    python -m benchmarks.gmvae_mnist --only likelihood --hidden 500 500 --epochs 100 20 --batch 128
    python -m benchmarks.gmvae_mnist --data data/fashion-mnist --family full --only clustering

Clustering with the calibrated normal likelihood; K = 10 with a one-to-one matching and K = 30 by purity,
held-out (fitted on the training rows, scored on the 10,000 test rows). The likelihood is that of
dynamically binarised pixels, by importance samples. Generation by cluster is scored by a classifier that
knows nothing of the model. The PyTorch loop is left out, with the reason, where torch is missing.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gmvae_digits import line, scores
from gmmjax import metrics
from gmmjax.idx import Pictures, load_fashion_mnist, load_mnist
from gmmjax.vae import GMVAEResult, Training, fit_gmvae


def load(folder: Path) -> Pictures:
    """MNIST, or Fashion-MNIST where the folder's name says so."""
    return (load_fashion_mnist if "fashion" in folder.name else load_mnist)(folder)


def train(
    seed: int, pictures: Pictures, options: argparse.Namespace, k: int, likelihood: str, seeds: int
) -> tuple[GMVAEResult, float]:
    """A training, and its seconds, compilation included."""
    settings = Training(
        pretrain_epochs=options.epochs[0], epochs=options.epochs[1], batch=options.batch,
        shift=0.0 if likelihood == "bernoulli" else options.shift, restarts=options.restarts,
        patience=10,
    )  # fmt: skip
    begin = time.perf_counter()
    result = fit_gmvae(
        jax.random.key(seed), pictures.train_x[: options.rows] / np.float32(255), k,
        latent=options.latent, hidden=tuple(options.hidden), likelihood=likelihood,
        family=options.family, seeds=seeds, training=settings, progress=options.progress,
    )  # fmt: skip
    jax.block_until_ready(result.elbo)
    return result, time.perf_counter() - begin


def generation(result: GMVAEResult, pictures: Pictures, rows: int) -> tuple[float, float]:
    """How often an independent classifier reads a sample as the name of its cluster, and real pictures.

    A cluster is named by the majority of its training rows. The classifier is a network of pixels
    trained on real pictures: a random forest, nearly as good on those, fails on strokes without noise.
    """
    from sklearn.neural_network import MLPClassifier

    x, y = pictures.train_x[:rows] / np.float32(255), pictures.train_y[:rows]
    judge = MLPClassifier((256,), early_stopping=True, random_state=0).fit(x.reshape(len(x), -1), y)
    names = np.asarray(result.model.name_clusters(x, y))
    samples, c = result.model.sample(jax.random.key(9), 2000, mean=True)
    read = judge.predict(np.asarray(samples).reshape(2000, -1))
    real = judge.score((pictures.test_x / np.float32(255)).reshape(-1, x[0].size), pictures.test_y)
    return float(np.mean(read == names[c])), float(real)


def torch_epoch(
    x: np.ndarray, hidden: list[int], latent: int, batch: int, seeds: int
) -> Callable[[], float] | None:
    """Runs and times an epoch of a plain PyTorch loop: the same nets, batch, optimiser and data."""
    try:
        import torch
    except ImportError:
        print("PyTorch loop: left out, torch is not installed (pip install torch)")
        return None
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    data = torch.as_tensor(x.reshape(len(x), -1), device=device)
    widths = [data.shape[1], *hidden]

    def dense(sizes: list[int]) -> list:
        return [m for i, o in itertools.pairwise(sizes)
                for m in (torch.nn.Linear(i, o), torch.nn.ReLU())]  # fmt: skip

    def one_epoch(parts: tuple) -> None:
        encoder, heads, decoder, optimizer = parts
        for index in torch.randperm(len(data), device=device).split(batch)[: len(data) // batch]:
            rows = data[index]
            mean, raw = heads(encoder(rows)).chunk(2, dim=-1)
            z = mean + torch.exp(0.5 * raw) * torch.randn_like(mean)
            out = decoder(z)
            kl = 0.5 * (mean**2 + raw.exp() - 1 - raw).sum(-1)
            loss = (0.5 * ((rows - out) ** 2).sum(-1) * 10 + kl).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    models = []
    for _ in range(seeds):
        encoder = torch.nn.Sequential(*dense(widths)).to(device)
        heads = torch.nn.Linear(hidden[-1], 2 * latent).to(device)
        back = [*dense([latent, *reversed(hidden)]), torch.nn.Linear(hidden[0], data.shape[1])]
        decoder = torch.nn.Sequential(*back).to(device)
        parameters = [p for m in (encoder, heads, decoder) for p in m.parameters()]
        optimizer = torch.optim.Adam(parameters, 1e-3, fused=True)
        models.append((encoder, heads, decoder, optimizer))

    def epoch() -> float:
        begin = time.perf_counter()
        for parts in models:
            one_epoch(parts)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    return epoch


def our_epoch(x: np.ndarray, options: argparse.Namespace, seeds: int) -> float:
    """Seconds an epoch of pretraining, by the difference of a long and a short training."""
    settings = Training(pretrain_epochs=2, epochs=0, batch=options.batch, warm_up=0)
    ends = []
    for epochs in (2, 6):
        begin = time.perf_counter()
        result = fit_gmvae(
            jax.random.key(0), x, 10, latent=options.latent, hidden=tuple(options.hidden),
            seeds=seeds, validation=x[:128],
            training=dataclasses.replace(settings, pretrain_epochs=epochs),
        )  # fmt: skip
        jax.block_until_ready(result.elbo)
        ends.append(time.perf_counter() - begin)
    return (ends[1] - ends[0]) / 4


def speed(x: np.ndarray, options: argparse.Namespace, seeds: int, pairs: int = 5) -> str:
    """An epoch of ours and of PyTorch in turn: the medians, and the median ratio of the pairs."""
    rival = torch_epoch(x, options.hidden, options.latent, options.batch, seeds)
    our_epoch(x, options, seeds)  # compiles
    if rival is not None:
        rival()
    times = np.array([
        [our_epoch(x, options, seeds), np.nan if rival is None else rival()] for _ in range(pairs)
    ])  # fmt: skip
    ours, theirs = np.median(times, axis=0)
    told = f"one epoch, {seeds} seed(s), {len(x)} rows: {ours:.3f} s"
    if rival is None:
        return told
    ratio = np.median(times[:, 1] / times[:, 0])
    return f"{told}, PyTorch {theirs:.3f} s, {ratio:.2f} times (median of {pairs} pairs)"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("data/mnist"), help="a folder of IDX files"
    )
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, nargs=2, default=[40, 10], help="pretraining, joint")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--latent", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--shift", type=float, default=1.0)
    parser.add_argument("--family", default="EEV", help="of the prior's covariances")
    parser.add_argument("--restarts", type=int, default=48)
    parser.add_argument("--importance", type=int, default=5000)
    parser.add_argument("--test-rows", type=int, default=10_000, help="of the likelihood")
    parser.add_argument(
        "--only", choices=("clustering", "purity", "likelihood", "speed"), nargs="+"
    )
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(arguments)
    wanted = options.only or ["clustering", "purity", "likelihood", "speed"]
    pictures = load(options.data)
    test_x, test_y = pictures.test_x / np.float32(255), pictures.test_y
    print(f"{options.data.name}: {options.rows} rows, {options.seeds} seeds, on {jax.devices()[0]}")
    if "clustering" in wanted:
        result, seconds = train(0, pictures, options, 10, "normal", options.seeds)
        every = np.array([scores(test_y, m.predict(test_x)) for m in result.seeds()])
        print("\n| held-out, K = 10 | ACC | NMI | ARI |\n|---|---|---|---|")
        print(line("GMVAE", every))
        print(line("GMVAE, chosen by ELBO", every[[int(result.best)]]))
        if len(every) > 2:
            print(
                f"correlation of ELBO and accuracy: {np.corrcoef(result.elbo, every[:, 0])[0, 1]:+.2f}"
            )
        read, real = generation(result, pictures, options.rows)
        print(
            f"generation by cluster, classifier's accuracy: {read:.3f} (real pictures {real:.3f})"
        )
        print(f"{seconds:.0f} s for the training of all seeds")
    if "purity" in wanted:
        result, _ = train(1, pictures, options, 30, "normal", options.seeds)
        purity = [
            100 * float(metrics.purity(test_y, np.asarray(m.predict(test_x))))
            for m in result.seeds()
        ]
        print(
            f"K = 30, held-out purity: {np.mean(purity):.1f}, from {min(purity):.1f} to {max(purity):.1f}"
        )
    if "likelihood" in wanted:
        # 40 dimensions, 30 full covariances: a start of EM takes a minute on two cores.
        wide = changed(options, latent=40, family="full", restarts=min(options.restarts, 4))
        result, _ = train(2, pictures, wide, 30, "bernoulli", 1)
        binary = jax.random.bernoulli(jax.random.key(3), jnp.asarray(test_x[: options.test_rows]))
        binary = binary.astype(jnp.float32)
        values = result.model.log_likelihood(jax.random.key(4), binary, options.importance)
        error = float(jnp.std(values)) / np.sqrt(len(values))
        print(
            f"test log-likelihood, dynamically binarised, {len(binary)} rows, "
            f"{options.importance} importance samples: {float(jnp.mean(values)):.2f} ± {error:.2f} nats"
        )
    if "speed" in wanted:
        x = pictures.train_x[: options.rows] / np.float32(255)
        for seeds in (1, 10):
            print(speed(x, options, seeds), flush=True)


def changed(options: argparse.Namespace, **changes: object) -> argparse.Namespace:
    """The options with some changed."""
    return argparse.Namespace(**{**vars(options), **changes})


if __name__ == "__main__":
    main()

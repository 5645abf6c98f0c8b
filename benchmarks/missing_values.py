"""Missing values: EM that integrates them out, against filling them in first and fitting then.

30 % of the training values are hidden at random. "marginalize" fits a mixture to what is left and fills
in by its conditional means; the rivals fill in first (with the mean of the column, the nearest rows,
or scikit-learn's IterativeImputer, a chain of ridge regressions), and the same mixture is fitted to
the filled rows. Scores are means over splits ± one standard error: the log-likelihood of held-out rows
that are complete, in nats a row, and the root mean squared error of the hidden values, in standard
deviations of their columns.

Where there are few rows for the columns, every method has the same prior: an inverse Wishart centred on
half of the columns' variance and worth a share of the rows that are fitted: a third for wine, and 3 in
100 for breast cancer, whose columns are nearly collinear, which a heavier prior denies. Without one the
likelihood of wine has no maximum: at 13 columns one row in 100 is complete, a covariance may be singular
along a direction in which all the others have a hole, and there it grows without bound (the fit's
status is `DEGENERATE`, and its message names a prior as a remedy).

`--cost` measures one EM step instead, by the number of masks in the data: rows grouped by their mask, as
`fit` lays them out, against a factorisation for each row (a fit under `jit`, where masks cannot be
looked at), and against the plain step on complete rows.

    python -m benchmarks.missing_values
    python -m benchmarks.missing_values --quick
    python -m benchmarks.missing_values --cost
"""

import argparse
import time
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

import gmmjax
from gmmjax import blocks, missing
from gmmjax.em import expect

Load = Callable[[], np.ndarray]
# Rows, components, a family that some hundred rows of it can carry, and the weight of the prior as a
# share of the rows.
PROBLEMS: dict[str, tuple[Load, int, str, float]] = {
    "faithful": (lambda: gmmjax.datasets.load_faithful().x, 2, "full", 0.0),
    "iris": (lambda: gmmjax.datasets.load_iris().x, 3, "tied", 0.0),
    "wine": (lambda: datasets.load_wine().data, 3, "tied", 1 / 3),
    "breast cancer": (lambda: np.log1p(datasets.load_breast_cancer().data), 3, "tied", 0.03),
}
IMPUTERS = {
    "mean of the column": lambda seed: SimpleImputer(),
    "5 nearest rows": lambda seed: KNNImputer(n_neighbors=5),
    "IterativeImputer": lambda seed: IterativeImputer(max_iter=20, random_state=seed),
    "IterativeImputer, drawn": lambda seed: IterativeImputer(
        max_iter=20, random_state=seed, sample_posterior=True
    ),
}
OURS, COMPLETE = "marginalize", "nothing hidden"


def split(x: np.ndarray, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised training rows, the same with gaps, and held-out rows."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    n = int(0.7 * len(x))
    train, test = x[order[:n]], x[order[n:]]
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    seen = np.where(rng.random(train.shape) < rate, np.nan, train)
    return train, seen, test


def prior_worth(rows: float, d: int) -> gmmjax.Prior | None:
    """An inverse Wishart on standardised columns, worth so many rows; the means are free."""
    if rows == 0:
        return None
    return gmmjax.Prior.create(
        mean=np.zeros(d), scale=0.5 * rows * np.eye(d), dof=d + 1 + rows, mean_precision=0.01
    )


def scores(
    x: np.ndarray, k: int, family: str, share: float, rate: float, seed: int, restarts: int
) -> dict:
    """Held-out log-likelihood and RMSE of every method on one split."""
    train, seen, test = split(x, rate, seed)
    prior = prior_worth(share * len(train), x.shape[1])
    hidden = np.isnan(seen)
    key = jax.random.key(seed)
    degenerate = []

    def fitted(rows: np.ndarray, **options: str) -> gmmjax.GaussianMixture:
        found = gmmjax.fit(key, rows, k, family=family, restarts=restarts, prior=prior, **options)
        if found.status == gmmjax.Status.DEGENERATE:
            degenerate.append(found.message)
        return found.model

    def held_out(model: gmmjax.GaussianMixture) -> float:
        return float(model.log_prob(test).mean())

    model = fitted(seen, missing="marginalize")
    filled = {OURS: np.asarray(model.impute(key, seen))}
    found = {OURS: held_out(model), COMPLETE: held_out(fitted(train))}
    for name, make in IMPUTERS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 20 rounds may not be enough for its tolerance
            filled[name] = make(seed).fit_transform(seen)
        found[name] = held_out(fitted(filled[name]))
    if degenerate:
        print(f"split {seed}: {len(degenerate)} fits are degenerate")
    rmse = {name: np.sqrt(np.mean((rows - train)[hidden] ** 2)) for name, rows in filled.items()}
    return {name: (value, rmse.get(name, 0.0)) for name, value in found.items()}


def milliseconds(model: gmmjax.GaussianMixture, data: blocks.Blocks) -> float:
    """One E-step and one M-step, compiled: the best of 7."""

    @jax.jit
    def step(model: gmmjax.GaussianMixture, data: blocks.Blocks) -> gmmjax.GaussianMixture:
        return model.maximize(expect(model, data)[0])[0]

    jax.block_until_ready(step(model, data))
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        jax.block_until_ready(step(model, data))
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def cost(n: int = 8192, k: int = 4) -> list[tuple]:
    """Print what a step costs by the number of masks; returns the rows of the table."""
    print(f"{n} rows, {k} full components, 30 % missing: ms a step")
    print(f"  {'d':>3}{'masks':>8}{'grouped':>10}{'a mask a row':>14}{'complete rows':>15}")
    table = []
    for d in (4, 8, 16):
        rng = np.random.default_rng(d)
        x = rng.normal(size=(n, d)).astype(np.float32)
        x += 3 * rng.integers(0, k, (n, 1)).astype(np.float32)
        model = gmmjax.mle.mixture(x, np.arange(n) % k)
        ones = jnp.ones(n, x.dtype)
        plain = milliseconds(model, blocks.split(jnp.asarray(x), ones, blocks.DEFAULT_BLOCK))
        lay = jax.jit(lambda rows, w: missing.lay(rows, w, n_components=k, family="full"))
        for masks in (1, 16, 256, n):
            if masks > 2**d:
                continue
            holes = np.unique(rng.random((64 * masks, d)) < 0.3, axis=0)
            holes = holes[rng.permutation(len(holes))[:masks]]
            seen = np.where(holes[rng.integers(0, len(holes), n)], np.nan, x)
            rows = missing.mask(seen)
            found = len(np.unique(np.isnan(seen), axis=0))
            grouped = milliseconds(model, missing.lay(rows, ones, n_components=k, family="full"))
            single = milliseconds(model, lay(rows, ones))
            table.append((d, found, grouped, single, plain))
            print(f"  {d:>3}{found:>8}{grouped:>10.2f}{single:>14.2f}{plain:>15.2f}", flush=True)
    return table


def main(arguments: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Print the table; returns for each data set and method the scores [splits, 2]."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small data set, two splits")
    parser.add_argument("--only", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=12)
    parser.add_argument("--rate", type=float, default=0.3, help="the share of values hidden")
    parser.add_argument("--cost", action="store_true", help="what a step costs, by number of masks")
    options = parser.parse_args(arguments)
    if options.cost:
        cost()
        return {}
    splits = 2 if options.quick else options.splits
    table = {}
    for problem in ["iris"] if options.quick else options.only:
        load, k, family, share = PROBLEMS[problem]
        x = load()
        runs = [
            scores(x, k, family, share, options.rate, seed, options.restarts)
            for seed in range(splits)
        ]
        table[problem] = {name: np.array([run[name] for run in runs]) for name in runs[0]}
        print(f"\n{problem}: {x.shape[0]} × {x.shape[1]}, {k} components, {family}")
        print(f"  {'':<26}{'held-out log-likelihood':>26}{'ahead of it':>20}{'RMSE':>18}")
        ours = table[problem][OURS]
        for name, values in table[problem].items():
            mean = values.mean(axis=0)
            error = values.std(axis=0, ddof=1) / np.sqrt(splits)
            gap = ours[:, 0] - values[:, 0]
            ahead = f"{gap.mean():+.3f} ± {gap.std(ddof=1) / np.sqrt(splits):.3f}"
            rmse = "" if name == COMPLETE else f"{mean[1]:.3f} ± {error[1]:.3f}"
            ahead = "" if name == OURS else ahead
            print(f"  {name:<26}{f'{mean[0]:.3f} ± {error[0]:.3f}':>26}{ahead:>20}{rmse:>18}")
    return table


if __name__ == "__main__":
    main()

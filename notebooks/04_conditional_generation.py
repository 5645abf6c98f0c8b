# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Conditional generation
#
# A mixture is a density of all features at once. From it follow, without a further fit, the density
# of some features, the density of the others given those, predictions with their uncertainty, values
# for what is missing, and new samples of a chosen class. Every formula names the function that
# computes it.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import gmmjax
from gmmjax import metrics, missing
from gmmjax.classification import ClassConditionalMixture
from gmmjax.datasets import load_mnist
from gmmjax.generation import PrincipalAxes, tile
from gmmjax.plot import PALETTE, plot_mixture

QUICK = bool(os.environ.get("GMMJAX_NOTEBOOK_QUICK"))  # small settings, for a check
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN = PALETTE[:3]

# %% [markdown]
# ## Some features given others
#
# Split $x = (a, b)$. The marginal of $a$ is a mixture with the same weights, and the rows of the
# means and covariances that belong to $a$ (`model.marginal`). Dividing the joint density by it leaves
# a mixture again (`model.condition`):
#
# $$p(b \mid a) = \sum_j \phi_j(a)\, \mathcal N\!\left(b;\;
#   \mu_{jb} + \Sigma_{jba} \Sigma_{jaa}^{-1} (a - \mu_{ja}),\;
#   \Sigma_{jbb} - \Sigma_{jba} \Sigma_{jaa}^{-1} \Sigma_{jab}\right),
#   \qquad \phi_j(a) \propto \phi_j\, \mathcal N(a; \mu_{ja}, \Sigma_{jaa}).$$
#
# Each component is a linear regression of its own. The weights say which of them is in charge at
# $a$, and they change with $a$: the prediction bends. Old Faithful, the wait given the eruption:

# %%
faithful = gmmjax.datasets.load_faithful()
x = jnp.asarray(faithful.x)
model = gmmjax.fit(jax.random.key(0), x, 2, restarts=4 if QUICK else 32).model

given = jnp.linspace(1.2, 5.6, 150)
wait = model.regress([0], given[:, None])
low, middle, high = wait.quantiles(jnp.array([0.05, 0.5, 0.95]))[:, :, 0]

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained")
plot_mixture(left, model, x, feature_names=faithful.feature_names)
left.get_legend().remove()
left.plot(given, wait.mean[:, 0], color="black", label="mean")
left.fill_between(
    given, low, high, color=GREEN, alpha=0.25, label="from the 5 to the 95 % quantile"
)
left.legend(fontsize="small")
grid = jnp.linspace(35, 105, 300)
for value, color, style in ((2.0, BLUE, "-"), (3.0, ORANGE, "--"), (4.5, GREEN, "-.")):
    density = jnp.exp(model.condition([0], [value]).log_prob(grid[:, None]))
    right.plot(grid, density, color=color, linestyle=style, label=f"after {value} minutes")
right.set_xlabel("wait (minutes)")
right.set_ylabel("density")
right.legend()
plt.show()

# %% [markdown]
# `model.regress` gives the mean $\sum_j \phi_j(a) \mu_{jb|a}$, the covariance (within the components
# plus between them) and quantiles, which have no closed form and are bisected. After an eruption of
# 3 minutes the density has two humps, and no single number stands for it.
#
# The identity behind it, checked: $\log p(a) + \log p(b \mid a) = \log p(a, b)$.

# %%
each = model.condition([0], x[:, :1])  # 272 mixtures: a leading axis on every leaf
conditional = jax.vmap(lambda m, b: m.log_prob(b))(each, x[:, 1:])
gap = model.marginal([0]).log_prob(x[:, :1]) + conditional - model.log_prob(x)
print(f"largest difference: {float(jnp.max(jnp.abs(gap))):.1e} nats")
assert float(jnp.max(jnp.abs(gap))) < 1e-3

# %% [markdown]
# ## Values that are missing
#
# The same two formulas fit a model to rows with holes. Given what is known of row $i$, $o$, and what
# is missing, $m$:
#
# - **E-step**: $r_{ij} \propto \phi_j \mathcal N(x_{io}; \mu_{jo}, \Sigma_{joo})$, and the moments of
#   what is missing, $\hat x_{ijm} = E[x_m \mid x_o, j]$ and its covariance $C_{ijm}$ (zero elsewhere).
# - **M-step**: as ever, with $\sum_i r_{ij} \left[(\hat x_{ij} - \mu_j)(\hat x_{ij} - \mu_j)^\top +
#   C_{ij}\right]$ for the scatter.
#
# Without $C$ each covariance would shrink, as it does when holes are filled in beforehand.
# `gmmjax.fit(..., missing="marginalize")` does this (`gmmjax.incomplete.expect` is the E-step). Below,
# 40 % of the values of Old Faithful are hidden, each with the same probability: *at random*, which
# is what the method assumes.

# %%
rng = np.random.default_rng(0)
hidden = rng.random(x.shape) < 0.4
seen = np.where(hidden, np.nan, np.asarray(x))
filled = np.where(hidden, np.nanmean(seen, axis=0), np.asarray(x))
restarts = 4 if QUICK else 16
ours = gmmjax.fit(jax.random.key(0), seen, 2, restarts=restarts, missing="marginalize").model
theirs = gmmjax.fit(jax.random.key(0), filled, 2, restarts=restarts, throw=False).model

figure, row = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained", sharex=True, sharey=True)
for axes, fitted, data, title in (
    (row[0], model, x, "nothing missing"),
    (row[1], ours, x, "40 % missing, integrated out"),
    (row[2], theirs, filled, "40 % missing, filled with the mean"),
):
    plot_mixture(axes, fitted, data, feature_names=faithful.feature_names)
    axes.set_title(f"{title}\n{float(fitted.log_prob(x).mean()):.2f} nats a row")
    axes.get_legend().remove()
plt.show()

# %% [markdown]
# The nats are of the complete rows, which the second and third fit never saw. The densities of a
# mixture take rows with holes too, as `missing.mask(rows)`: the known part counts.
#
# `model.impute(key, rows, how)` fills in: the conditional mean (least squared error), the mode, or a
# draw, which keeps the spread. The mean of a density with two humps may lie where there are no data:

# %%
figure, row = plt.subplots(1, 3, figsize=(14, 3.6), layout="constrained", sharex=True, sharey=True)
for axes, how in zip(row, ("mean", "mode", "draw"), strict=True):
    value = np.asarray(ours.impute(jax.random.key(1), seen, how))
    touched = hidden.any(axis=1)
    error = np.sqrt(np.mean(((value - np.asarray(x)) / np.std(x, axis=0))[hidden] ** 2))
    axes.plot(*value[~touched].T, ".", color="0.7", label="complete row")
    axes.plot(*value[touched].T, ".", color=ORANGE, label="row with a value filled in")
    axes.set_title(f"{how}: error {error:.2f} standard deviations")
    axes.set_xlabel(faithful.feature_names[0])
row[0].set_ylabel(faithful.feature_names[1])
row[0].legend(fontsize="small")
plt.show()
log_likelihood = float(ours.log_likelihood(missing.mask(seen)))
print(f"log-likelihood of what was seen: {log_likelihood:.1f} nats")

# %% [markdown]
# ## Digits of a chosen class
#
# With labels $y$, one mixture for each class is a generator that takes orders: draw $z \mid y$, then
# $x \mid z, y$ (`ClassConditionalMixture.sample`). Pictures of 8 × 8 pixels have 64 features and some
# 120 rows a class: too few for full covariances of the pixels. In the first $m$ principal axes they
# are affordable, and one variance stands for all other directions,
#
# $$x = \bar x + B z + \varepsilon, \qquad z \mid y \sim \text{mixture in } \mathbb R^m, \qquad
#   \varepsilon \sim \mathcal N(0, \sigma^2 (I - B B^\top)),$$
#
# which is a mixture of the pixels again: `PrincipalAxes.lift`. Greys are integers, and a density at
# integers can be made as large as one likes; so uniform noise of one step is added before the fit.

# %%
pictures, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(pictures))
pictures, y = pictures[order], y[order]
train_x, train_y, test_x, test_y = pictures[:1200], y[:1200], pictures[1200:], y[1200:]


def continuous(greys, seed):
    """Integers 0 to 16 as numbers in [0, 1)."""
    return (greys + np.random.default_rng(seed).random(greys.shape)) / 17


def grey(values):
    """The way back."""
    return np.clip(np.floor(np.asarray(values) * 17), 0, 16)


rows = continuous(train_x, 0)
axes_of_digits = PrincipalAxes.of(rows, 20)
codes = axes_of_digits.encode(rows)
densities = [
    axes_of_digits.lift(gmmjax.mle.mixture(codes[train_y == c], np.zeros(sum(train_y == c), int)))
    for c in range(10)
]
generator = ClassConditionalMixture.create(np.bincount(train_y) / len(train_y), densities)


def show(axes, grid, title):
    """A grid of pictures, dark on white."""
    axes.imshow(grid, cmap="gray_r", vmin=0, vmax=16, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize="medium")


wanted = np.repeat(np.arange(10), 8)
samples = grey(generator.sample(jax.random.key(0), wanted))
real = np.concatenate([train_x[train_y == c][:8] for c in range(10)])
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 6.5), layout="constrained")
show(left, tile(real, 8, shape=(8, 8)), "training data")
show(right, tile(samples, 8, shape=(8, 8)), "generated, a row a class")
plt.show()

# %% [markdown]
# ## Given half of the picture
#
# Conditioning on pixels instead of a class: `generator.mixture()` is $p(x)$ over all classes, and
# `impute` puts the lower half where it is missing. Which digit it is has to be inferred from the
# upper half, by the same $\phi_j(a)$ as above. Last row: half of the pixels hidden, restored.

# %%
whole = generator.mixture()
chosen = np.array([np.flatnonzero(test_y == c)[0] for c in range(10)])
shown = test_x[chosen]
upper_only = continuous(shown, 1)
upper_only[:, 32:] = np.nan
scattered = np.where(
    np.random.default_rng(2).random(shown.shape) < 0.5, np.nan, continuous(shown, 1)
)


def with_holes(values):
    """What is known, the holes blank."""
    return np.where(np.isnan(values), np.nan, shown)


panels = {
    "the picture": shown,
    "its upper half": with_holes(upper_only),
    "completed by the mean": grey(whole.impute(jax.random.key(0), upper_only)),
    "by a draw": grey(whole.impute(jax.random.key(1), upper_only, "draw")),
    "by another": grey(whole.impute(jax.random.key(2), upper_only, "draw")),
    "half of its pixels": with_holes(scattered),
    "restored by the mean": grey(whole.impute(jax.random.key(0), scattered)),
}
figure, column = plt.subplots(len(panels), 1, figsize=(8, 7.5), layout="constrained")
for axes, (title, row) in zip(column, panels.items(), strict=True):
    show(axes, tile(row, 10, shape=(8, 8)), title)
plt.show()

upper, lower = np.arange(32), np.arange(32, 64)
held_out = continuous(test_x[: 100 if QUICK else 300], 3)
predicted = np.asarray(whole.regress(upper, held_out[:, upper]).mean)
error = np.sqrt(np.mean((predicted - held_out[:, lower]) ** 2))
plain = np.sqrt(np.mean((rows.mean(axis=0)[lower] - held_out[:, lower]) ** 2))
print(f"error of the lower half: {error:.3f} (the mean picture: {plain:.3f})")
assert error < plain

# %% [markdown]
# ## The same on MNIST
#
# 28 × 28 pixels, 256 greys. Only the covariances are written differently: principal axes times their
# deviations are loadings, $\Sigma = \Lambda\Lambda^\top + \psi I$ (`lift_factors`), and conditioning works
# on 40 × 40 matrices, where it would take one of 784 × 784 for every pattern of missing pixels. The files
# are not part of the library: `bash benchmarks/get_mnist.sh` puts them into `data/mnist`, and
# `gmmjax.datasets.load_mnist` reads them.

# %%
root = Path.cwd() if (Path.cwd() / "benchmarks").is_dir() else Path.cwd().parent
folder = Path(os.environ.get("GMMJAX_MNIST", root / "data" / "mnist"))
if QUICK or not folder.is_dir():
    print("left out: small settings, or no MNIST here")
else:
    mnist = load_mnist(folder)
    few_x, few_y = mnist.train_x[:10_000].reshape(-1, 784) / 256.0, mnist.train_y[:10_000]
    axes_of_mnist = PrincipalAxes.of(few_x, 40)
    codes = axes_of_mnist.encode(few_x)
    classes = [
        gmmjax.mle.mixture(codes[few_y == c], np.zeros(sum(few_y == c), int)) for c in range(10)
    ]
    writer = ClassConditionalMixture.create(
        np.bincount(few_y) / len(few_y),
        [axes_of_mnist.lift_factors(m, floor=0.02**2) for m in classes],
    )
    made = np.asarray(writer.sample(jax.random.key(0), wanted))
    seen = np.stack([mnist.test_x[mnist.test_y == c][0].ravel() / 256.0 for c in range(10)])
    half = seen.copy()
    half[:, 392:] = np.nan
    dots = np.where(np.random.default_rng(3).random(seen.shape) < 0.5, np.nan, seen)
    every = gmmjax.models.FactorMixture.join(writer.priors, writer.densities)
    rows_of_ten = np.concatenate(
        [seen, half, every.impute(jax.random.key(0), half), dots,
         every.impute(jax.random.key(0), dots)]
    )  # fmt: skip
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for axes, pictures_of_it, title in (
        (left, made, "generated, a row a class"),
        (right, rows_of_ten, "held out; its upper half, completed; half its pixels, restored"),
    ):
        grid = tile(pictures_of_it, 8 if axes is left else 10, shape=(28, 28))
        axes.imshow(grid, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize="medium")
    plt.show()

# %% [markdown]
# ## How good is it?
#
# Pictures please the eye, and the eye does not see what is absent. `metrics.score_generation`
# measures what a generator may lack, next to what real data would get in its place: *recognised*,
# the accuracy on its samples of a classifier trained on real digits; *useful*, the accuracy on real
# digits of one trained on its samples (low also when samples lack variety); the Fréchet distance of
# features; and whether samples lie closer to the training data than held-out digits do, that is,
# whether they are copies. The last generator below copies on purpose.

# %%
generators = {
    "a normal a class": grey(generator.sample(jax.random.key(7), train_y)),
    "the mean of its class": np.stack([train_x[train_y == c].mean(axis=0) for c in train_y]),
    "copies with a little noise": train_x + np.random.default_rng(0).normal(0, 0.3, train_x.shape),
}
features = PrincipalAxes.of(train_x, 20)
print(f"{'':<28}{'recognised':>11}{'useful':>8}{'Fréchet':>9}{'neighbour ratio':>17}")
for name, made in generators.items():
    s = metrics.score_generation(
        lambda: SVC(C=10.0), (train_x, train_y), (test_x, test_y), (made, train_y),
        lambda greys: np.asarray(features.encode(greys)),
    )  # fmt: skip
    print(
        f"{name:<28}{s.recognised:11.3f}{s.useful:8.3f}{s.frechet:9.1f}{s.neighbours.ratio:17.2f}"
    )
print(
    f"{'real data':<28}{s.accuracy_real:11.3f}{s.accuracy_real:8.3f}{s.frechet_real:9.1f}{1:17.2f}"
)

# %% [markdown]
# The class means are always recognised and teach almost no variety: the Fréchet distance shows it. The
# copies win every column but the last. No single number will do.
#
# A mixture also has what many generators lack, the likelihood of data that it has not seen:

# %%
log_prob = np.asarray(generator.log_prob(continuous(test_x, 4), test_y))
error = log_prob.std(ddof=1) / np.sqrt(len(log_prob))
bits = np.log2(17) - log_prob.mean() / 64 / np.log(2)
print(f"held-out log-likelihood: {log_prob.mean():.1f} ± {error:.1f} nats a picture")
print(f"that is at most {bits:.2f} bits a pixel")

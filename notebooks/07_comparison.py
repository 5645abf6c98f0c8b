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
# # 7. Mixtures and the Gaussian-mixture VAE, side by side
#
# Both are $p(c)\,p(z \mid c)$ with something that carries $z$ to a row: for a mixture in principal
# axes it is linear and known after one decomposition, for the VAE it is a network. The same rows, the
# same split, the same scores (`gmmjax.metrics.score_generation`): how likely held-out rows are,
# whether clusters are classes, and what samples are worth.

# %%
import os
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import gmmjax
from gmmjax import metrics
from gmmjax.generation import PrincipalAxes, tile
from gmmjax.vae import Training, fit_gmvae

QUICK = bool(os.environ.get("GMMJAX_NOTEBOOK_QUICK"))  # small settings, for a check
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})

grey, y = load_digits(return_X_y=True)
rng = np.random.default_rng(0)
# Grey values become continuous by uniform noise of one step, so that a density is a density.
x = ((grey + rng.random(grey.shape)) / 17).astype(np.float32)
order = rng.permutation(len(x))
train, test = order[:1200], order[1200:]
key = jax.random.key(0)
restarts = 2 if QUICK else 16

# %% [markdown]
# ## Five models
#
# | model | codes | clusters | a density of pixels |
# |---|---|---|---|
# | K-means | pixels | `kmeans` | no |
# | PCA + mixture | 16 principal axes | `fit`, full covariances, MAP | `PrincipalAxes.lift` |
# | factor analysers | 8 factors a component | `models.fit_factors` | itself |
# | autoencoder + K-means | a network's, no mixture | `kmeans` | no |
# | GMVAE | a network's | its prior, a `GaussianMixture` | `GMVAE.log_likelihood` |
#
# None of them sees a class. Clusters are named by the majority of the training rows in them.

# %%
clusters, seconds, parameters = {}, {}, {}


def timed(name, run):
    """run(), and its seconds with compilation."""
    begin = time.perf_counter()
    out = run()
    jax.block_until_ready(jax.tree.leaves(out))
    seconds[name] = time.perf_counter() - begin
    return out


centres = timed("K-means", lambda: gmmjax.kmeans(key, x[train], 10, restarts=restarts).model)
clusters["K-means"] = centres.predict(x)
parameters["K-means"] = 10 * x.shape[1]

axes = PrincipalAxes.of(x[train], 16)
codes = axes.encode(x)
prior = gmmjax.Prior.default(codes[train], 10, "full")
mixture = timed(
    "PCA + mixture",
    lambda: (
        gmmjax.fit(key, codes[train], 10, restarts=restarts, prior=prior, reg=1e-3, tol=1e-5).model
    ),
)
clusters["PCA + mixture"] = mixture.predict(codes)
lifted = axes.lift(mixture)
parameters["PCA + mixture"] = mixture.n_parameters() + 16 * x.shape[1]

factors = timed(
    "factor analysers",
    lambda: (
        gmmjax.models.fit_factors(
            key, x[train], 10, 8, restarts=max(1, restarts // 4), reg=0.05, tol=1e-5
        ).model
    ),
)
clusters["factor analysers"] = factors.predict(x)
parameters["factor analysers"] = factors.n_parameters()

# %%
settings = Training(pretrain_epochs=150, epochs=10, shift=0.6, restarts=96, prior_update="epoch")
plain = Training(pretrain="autoencoder", pretrain_epochs=100, epochs=0, shift=0.6)
if QUICK:
    settings = Training(pretrain_epochs=4, epochs=1, restarts=2)
    plain = Training(pretrain="autoencoder", pretrain_epochs=5, epochs=0)
sizes = {"shape": (8, 8), "latent": 16, "seeds": 1 if QUICK else 3}

auto = fit_gmvae(key, x[train], 10, training=plain, **sizes).model.encode(x)
clusters["autoencoder + K-means"] = gmmjax.kmeans(
    key, auto[train], 10, restarts=restarts
).model.predict(auto)
result = timed("GMVAE", lambda: fit_gmvae(key, x[train], 10, training=settings, **sizes))
model = result.model
clusters["GMVAE"] = model.predict(x)
parameters["GMVAE"] = model.network.n_parameters() + model.prior.n_parameters()

# %% [markdown]
# ## Clusters against classes
#
# Held-out rows; one-to-one accuracy (`metrics.matched_accuracy`), normalised mutual information,
# adjusted Rand index.

# %%
print(f"{'':24}{'ACC':>7}{'NMI':>7}{'ARI':>7}")
for name, labels in clusters.items():
    found = np.asarray(labels)[test]
    row = [
        float(score(y[test], found))
        for score in (
            metrics.matched_accuracy, metrics.normalized_mutual_information, metrics.adjusted_rand,
        )
    ]  # fmt: skip
    print(f"{name:24}" + "".join(f"{100 * value:7.1f}" for value in row))

# %% [markdown]
# ## Held-out likelihood
#
# In nats a picture of 64 continuous pixels. The mixtures' are exact; that of the VAE is an estimate
# by importance samples (`GMVAE.log_likelihood`), below the truth on average.

# %%
likelihood = {
    "PCA + mixture": lifted.log_prob(x[test]),
    "factor analysers": factors.log_prob(x[test]),
    "GMVAE": model.log_likelihood(jax.random.key(1), x[test], 20 if QUICK else 1000),
}
for name, values in likelihood.items():
    values = np.asarray(values)
    print(
        f"{name:24}{values.mean():8.1f} ± {values.std() / np.sqrt(len(values)):.1f}"
        f"{parameters[name]:10,} parameters{seconds[name]:8.1f} s"
    )

# %% [markdown]
# ## What samples are worth
#
# Each model draws as many rows as it was trained on, and a row is named by its cluster. *Recognised*:
# a classifier trained on real digits reads the sample as its name. *Useful*: a classifier trained on
# the samples reads real held-out digits. *Fréchet*: between pixels of samples and of held-out rows.
# *Neighbours*: how far the nearest training row is, against held-out rows; well below 1 would be a
# copy.


# %%
def names_of(labels):
    """The commonest class among the training rows of each cluster."""
    table = np.zeros((10, 10))
    np.add.at(table, (np.asarray(labels)[train], y[train]), 1)
    return table.argmax(axis=1)


def drawn(name, sample):
    rows, c = sample(jax.random.key(2), len(train))
    rows = np.clip(np.asarray(rows).reshape(-1, 64), 0, 1)
    return rows, names_of(clusters[name])[np.asarray(c)]


samples = {
    "PCA + mixture": drawn("PCA + mixture", lifted.sample),
    "factor analysers": drawn("factor analysers", factors.sample),
    "GMVAE": drawn("GMVAE", model.sample),
}
print(f"{'':24}{'recognised':>12}{'useful':>8}{'Fréchet':>9}{'neighbours':>12}")
for name, generated in samples.items():
    s = metrics.score_generation(SVC, (x[train], y[train]), (x[test], y[test]), generated)
    print(f"{name:24}{s.recognised:12.3f}{s.useful:8.3f}{s.frechet:9.3f}{s.neighbours.ratio:12.2f}")
print(
    f"{'real rows':24}{s.accuracy_real:12.3f}{s.accuracy_real:8.3f}{s.frechet_real:9.3f}{1:12.2f}"
)

# %%
figure, panels = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
shown = {"real": (x[train], y[train]), **samples}
for panel, (name, (rows, labels)) in zip(panels, shown.items(), strict=True):
    some = np.argsort(labels, kind="stable")[:: max(1, len(labels) // 80)][:80]
    panel.imshow(tile(rows[some].reshape(-1, 8, 8), 10), cmap="gray_r", vmin=0, vmax=1)
    panel.set(xticks=[], yticks=[], title=name)
plt.show()

# %% [markdown]
# ## Which, when
#
# On these 1,200 digits the mixture of factor analysers is ahead on every line but the neighbours: its
# clusters are closer to the classes than the GMVAE's, its likelihood is higher and exact, its samples
# are the better ones, at a thirtieth of the parameters. Little data of low resolution is where a
# local linear model is enough, and a network has more to learn than the rows can tell it.
#
# *A mixture* where rows are few or their structure is nearly linear: it trains in seconds, and it
# conditions in closed form (`condition`, `impute`), which a VAE cannot. *Factor analysers* where a
# full covariance of all features is too much, as in pixels. *The GMVAE* where classes lie on curved
# sheets that no ellipsoid follows and rows are many; its likelihood is only bounded. *K-means* on the
# codes of an autoencoder is the cheap way between, without a density.

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
# # 7. Mixtures and the mixture VAE, side by side
#
# The same digits, the same split, the same measures: clustering without labels, generation by class,
# the likelihood of digits not seen, time and parameters.

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
pictures, y = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(pictures))
greys, y = pictures[order], y[order]
# Uniform noise of one step makes the greys continuous, so that every model has a proper density of them.
x = ((greys + np.random.default_rng(1).random(greys.shape)) / 17).astype(np.float32)
train_x, train_y, test_x, test_y = x[:1400], y[:1400], x[1400:], y[1400:]
starts = 2 if QUICK else 20
stages = {"pretrain_epochs": 15 if QUICK else 150, "restarts": min(starts, 16), "shift": 0.6}
sizes = {"shape": (8, 8), "latent": 16}


def timed(fn):
    """What fn gives, and its seconds, compilation included."""
    begin = time.perf_counter()
    out = jax.block_until_ready(fn())
    return out, time.perf_counter() - begin


# %% [markdown]
# ## Clustering
#
# Held-out: each is fitted to the first 1,400 rows, without labels, and scored on the other 397.

# %%
axes10 = PrincipalAxes.of(train_x, 10)
codes = axes10.encode(train_x)
prior = gmmjax.Prior.default(codes, 10, "full")
key = jax.random.key(0)
fits = {
    "K-means": timed(lambda: gmmjax.kmeans(key, train_x, 10, restarts=starts).model),
    "mixture, diagonal, all pixels": timed(
        lambda: gmmjax.fit(key, train_x, 10, family="diag", restarts=starts, reg=1e-2, tol=1e-5).model
    ),
    "PCA + mixture": timed(
        lambda: gmmjax.fit(key, codes, 10, restarts=starts, prior=prior, tol=1e-5).model
    ),
    "autoencoder": timed(
        lambda: fit_gmvae(
            key, train_x, 10, **sizes,
            training=Training(pretrain="autoencoder", epochs=0, **stages),
        )
    ),
    "GMVAE": timed(
        lambda: fit_gmvae(
            key, train_x, 10, family="VEV", seeds=1 if QUICK else 5, y=train_y, **sizes,
            training=Training(epochs=2 if QUICK else 10, prior_update="epoch", **stages),
        )
    ),
}  # fmt: skip
encoder = fits["autoencoder"][0].model
centres = gmmjax.kmeans(key, encoder.encode(train_x), 10, restarts=starts).model
gmvae = fits["GMVAE"][0]
found = {
    "K-means": (fits["K-means"][0].predict(test_x), 640),
    "mixture, diagonal, all pixels": (
        fits["mixture, diagonal, all pixels"][0].predict(test_x),
        fits["mixture, diagonal, all pixels"][0].n_parameters(),
    ),
    "PCA + mixture": (
        fits["PCA + mixture"][0].predict(axes10.encode(test_x)),
        fits["PCA + mixture"][0].n_parameters() + 11 * 64,
    ),
    "autoencoder": (centres.predict(encoder.encode(test_x)), encoder.network.n_parameters()),
    "GMVAE": (gmvae.model.predict(test_x), gmvae.model.network.n_parameters()),
}
print(f"{'':<32}{'ACC':>6}{'NMI':>6}{'ARI':>6}{'seconds':>9}{'parameters':>12}")
for name, (labels, count) in found.items():
    labels = np.asarray(labels)
    scores = [
        100 * float(f(test_y, labels))
        for f in (
            metrics.matched_accuracy,
            metrics.normalized_mutual_information,
            metrics.adjusted_rand,
        )
    ]
    shown = f"{name} + K-means" if name == "autoencoder" else name
    print(
        f"{shown:<32}" + "".join(f"{s:6.1f}" for s in scores) + f"{fits[name][1]:9.1f}{count:12d}"
    )
each = [
    100 * float(metrics.matched_accuracy(test_y, np.asarray(m.predict(test_x))))
    for m in gmvae.seeds()
]
print("GMVAE, accuracy of every seed:", np.round(each, 1))

# %% [markdown]
# ## Generation by class
#
# The mixture has labels: one normal a class in 20 principal axes (notebook 4). The GMVAE has none but
# for the names of its clusters, and a class without a cluster of its own cannot be asked for: its
# share is in the last column.

# %%
axes20 = PrincipalAxes.of(train_x, 20)
inner = axes20.encode(train_x)
densities = [
    axes20.lift(gmmjax.mle.mixture(inner[train_y == c], np.zeros(int(sum(train_y == c)), int)))
    for c in range(10)
]
shares = np.bincount(train_y) / len(train_y)
classes = gmmjax.classification.ClassConditionalMixture.create(shares, densities)
names = np.asarray(gmvae.names)
have = np.isin(train_y, names)
drawn = np.zeros_like(train_x)
for c in sorted(set(names.tolist()) & set(range(10))):
    own = train_y == c
    if own.any():
        samples = gmvae.model.sample_class(jax.random.fold_in(key, c), names, c, int(own.sum()))
        drawn[own] = np.asarray(samples).reshape(-1, 64)
generated = {
    "a normal a class": (np.asarray(classes.sample(key, train_y)), train_y),
    "GMVAE, by cluster": (drawn[have], train_y[have]),
}
print(f"{'':<20}{'recognised':>11}{'useful':>8}{'Fréchet':>9}{'neighbour ratio':>17}{'classes':>9}")
for name, (made, of) in generated.items():
    s = metrics.score_generation(
        lambda: SVC(C=10.0), (train_x, train_y), (test_x, test_y), (made, of),
        lambda rows: np.asarray(axes20.encode(rows)),
    )  # fmt: skip
    print(
        f"{name:<20}{s.recognised:11.3f}{s.useful:8.3f}{s.frechet:9.2f}{s.neighbours.ratio:17.2f}"
        f"{len(set(of.tolist())):9d}"
    )
print(
    f"{'real data':<20}{s.accuracy_real:11.3f}{s.accuracy_real:8.3f}{s.frechet_real:9.2f}{1:17.2f}"
)
left = np.concatenate([generated["a normal a class"][0][train_y == c][:8] for c in range(10)])
figure, (a, b) = plt.subplots(1, 2, figsize=(11, 6), layout="constrained")
clusters = [gmvae.model.sample_component(jax.random.fold_in(key, c), c, 8) for c in range(10)]
right = np.concatenate([np.asarray(samples).reshape(-1, 64) for samples in clusters])
for ax, made, title in (
    (a, left, "a normal a class"),
    (b, right, f"GMVAE, clusters named {names.tolist()}"),
):
    ax.imshow(tile(made, 8, shape=(8, 8)), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[], title=title)
plt.show()

# %% [markdown]
# ## The likelihood of digits not seen
#
# Exact for mixtures, by importance samples for the VAE (a lower bound on average); all of the same
# continuous greys.

# %%
whole = classes.mixture()
values = {
    "mixture, diagonal, all pixels": fits["mixture, diagonal, all pixels"][0].log_prob(test_x),
    "a normal a class": whole.log_prob(test_x),
    "GMVAE": gmvae.model.log_likelihood(key, test_x, 10 if QUICK else 500),
}
for name, log_prob in values.items():
    log_prob = np.asarray(log_prob)
    print(
        f"{name:<32}{log_prob.mean():8.1f} ± {log_prob.std() / np.sqrt(len(log_prob)):.1f} nats a digit"
    )

# %% [markdown]
# ## Where each is the right tool
#
# - *A mixture* where the clusters are roughly elliptic in the features or in a few principal axes,
#   where rows are few, and where densities, conditionals or missing values are wanted exactly: it
#   takes a second and has no settings to speak of.
# - *A GMVAE* where clusters are bent in the features, as pictures are: its codes straighten them, and
#   the mixture then finds them. It costs minutes, and its figures vary from seed to seed: report the
#   mean.
# - *K-means* as the first thing to try, and as the figure to beat.

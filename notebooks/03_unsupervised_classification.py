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
# # 3. Unsupervised classification
#
# Telling classes apart without labels: by a mixture's posterior or by K-means' nearest centre. How the
# result is scored, where each method wins and why, and what a few labels add.
#
# Run it from a clone of the repository: the data sets of the comparison lie in `benchmarks/`.

# %%
import dataclasses
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

root = Path.cwd() if (Path.cwd() / "benchmarks").is_dir() else Path.cwd().parent
sys.path.insert(0, str(root))

import gmmjax
from benchmarks._clustering_problems import OUTLIER, REAL, SYNTHETIC
from gmmjax import classification, metrics, mle, moments
from gmmjax.plot import PALETTE
from gmmjax.typing import pytree

QUICK = bool(os.environ.get("GMMJAX_NOTEBOOK_QUICK"))  # small settings, for a check
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
MARKERS = "o^sDvPX*"


def scatter(axes, x, labels, title=""):
    """Rows in the plane, a colour and a marker for each label."""
    for label in np.unique(labels):
        mine = x[labels == label]
        style = {"color": PALETTE[label % 7], "marker": MARKERS[label % 8]}
        if label < 0:
            style = {"color": "0.6", "marker": "."}
        axes.scatter(mine[:, 0], mine[:, 1], s=8, alpha=0.7, linewidths=0, **style)
    axes.set_title(title, fontsize="medium")


# %% [markdown]
# ## Two ways to name a row
#
# | | a row belongs to | function |
# |---|---|---|
# | mixture | $\arg\max_j r_j(x)$, $r_j(x) = p(z = j \mid x)$ | `predict(x)`, `responsibilities(x)` |
# | K-means | $\arg\min_j \lVert x - \mu_j \rVert$ | `predict(x)`; `transform(x)` for distances |
#
# K-means minimises the inertia $\sum_i \min_j \lVert x_i - \mu_j \rVert^2$ (`inertia(x)`) by
# Lloyd's two steps: name each row after its nearest centre, move each centre to the mean of its rows. The
# mixture also says how sure it is. On iris, without its labels:

# %%
iris = gmmjax.datasets.load_iris()
x, y = jnp.asarray(iris.x), iris.labels
key = jax.random.key(0)
kmeans = gmmjax.kmeans(key, x, 3, restarts=16)
mixture = gmmjax.fit(key, x, 3, family="tied", restarts=16)
hard, soft = np.asarray(kmeans.labels), np.asarray(mixture.model.predict(x))
sure = np.asarray(mixture.model.responsibilities(x).max(axis=1))

figure, row = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained", sharex=True, sharey=True)
petals = iris.x[:, 2:]
for axes, labels, title in zip(
    row, (y, hard, soft), ("species", "K-means", "mixture, one shape"), strict=True
):
    named = labels if labels is y else np.asarray(metrics.matching(y, labels))[labels]
    scatter(axes, petals, named, title)
    axes.set_xlabel(iris.feature_names[2] + " (cm)")
row[0].set_ylabel(iris.feature_names[3] + " (cm)")
row[2].scatter(*petals[sure < 0.9].T, s=60, facecolors="none", edgecolors="black", linewidths=0.8)
plt.show()
print("rings: rows of which the mixture is less than 90 % sure:", int((sure < 0.9).sum()))

# %% [markdown]
# ## Scores
#
# The numbers of clusters mean nothing: cluster 2 may be species 0. All scores look only at the table
# of how often each class meets each cluster (`metrics.contingency`).
#
# - **Matched accuracy** (`metrics.matched_accuracy`): the best one-to-one naming of clusters after
#   classes, found by the Hungarian method; then the share of rows named right.
# - **Adjusted Rand index** (`metrics.adjusted_rand`): of all pairs of rows, how many are together in
#   both labellings or apart in both, less what chance gives.
# - **Normalised mutual information** (`metrics.normalized_mutual_information`):
#   $I(\text{class}; \text{cluster})$ over the mean of the two entropies; not corrected for chance.
# - **Purity** (`metrics.purity`): each cluster takes its commonest class, several clusters the same
#   class if need be. It is *not* an accuracy: it only grows with the number of clusters.

# %%
print("mixture, rows are species, columns the clusters matched to them:")
print(np.asarray(metrics.matched_confusion(y, soft)))
print(f"{'':22}{'K-means':>10}{'mixture':>10}")
for name, score in (
    ("matched accuracy", metrics.matched_accuracy),
    ("adjusted Rand", metrics.adjusted_rand),
    ("NMI", metrics.normalized_mutual_information),
    ("purity", metrics.purity),
):
    print(f"{name:22}{float(score(y, hard)):10.3f}{float(score(y, soft)):10.3f}")

each = np.arange(len(y))  # a cluster for every row
print("\na cluster a row: purity", float(metrics.purity(y, each)), end=", ")
print("matched accuracy", float(metrics.matched_accuracy(y, each)))

# %% [markdown]
# ## K-means is a mixture in the limit
#
# Take spherical components of one fixed variance $\sigma^2$ and equal weights, and let EM move only
# the means. Then
#
# $$r_{ij} = \frac{e^{-\lVert x_i - \mu_j \rVert^2 / 2\sigma^2}}
#                 {\sum_l e^{-\lVert x_i - \mu_l \rVert^2 / 2\sigma^2}}
#   \;\xrightarrow{\;\sigma \to 0\;}\;
#   \begin{cases} 1 & \mu_j \text{ nearest to } x_i \\ 0 & \text{else,} \end{cases}
#   \qquad
#   -2\sigma^2 \Big[\ell + n \log k + \tfrac{nd}{2} \log 2\pi\sigma^2\Big]
#   \;\longrightarrow\; \sum_i \min_j \lVert x_i - \mu_j \rVert^2 .$$
#
# On the left `responsibilities(x)` and `log_likelihood(x)`, on the right `KMeans.predict(x)` and
# `KMeans.inertia(x)`. The E-step becomes "name after the nearest centre", the M-step "the mean of its
# rows", minus the log-likelihood the inertia: K-means. To see it, EM needs a model that holds everything
# but the means:


# %%
@pytree
class MeansOnly:
    """A mixture of which EM moves nothing but the means."""

    mixture: gmmjax.GaussianMixture

    def expect(self, x, weights):
        return self.mixture.expect(x, weights)

    def maximize(self, sums, *, prior=None, reg=0.0):
        means = moments.centre(sums).mean
        return MeansOnly(dataclasses.replace(self.mixture, means=means)), gmmjax.Status.CONVERGED


rng = np.random.default_rng(7)
centers = np.array([[-2.0, -1.5], [2.0, -1.5], [-1.5, 2.0], [1.5, 2.0]])
blobs = jnp.asarray(centers[np.arange(300) % 4] + rng.normal(size=(300, 2)), jnp.float32)
start = blobs[:4]  # one row of each
lloyd = gmmjax.em(gmmjax.KMeans(start), blobs, tol=1e-7, max_steps=200).model
inertia = float(lloyd.inertia(blobs))
n, d = blobs.shape

print("variance   rows named otherwise   centres move by   scaled likelihood / inertia")
shown = {}
for variance in (1.0, 0.3, 0.1, 0.01, 1e-4):
    first = gmmjax.GaussianMixture.create(
        np.full(4, 0.25), start, np.full(4, variance), "spherical"
    )
    em = gmmjax.em(MeansOnly(first), blobs, tol=1e-9, max_steps=2000)
    limit = em.model.mixture
    differ = int(jnp.sum(limit.predict(blobs) != lloyd.predict(blobs)))
    move = float(jnp.abs(limit.means - lloyd.centers).max())
    ell = float(limit.log_likelihood(blobs))
    scaled = -2 * variance * (ell + n * np.log(4) + 0.5 * n * d * np.log(2 * np.pi * variance))
    print(f"{variance:8g} {differ:22d} {move:17.4f} {scaled / inertia:29.4f}")
    shown[variance] = limit
assert differ == 0
assert abs(scaled / inertia - 1) < 1e-2

# %%
side = jnp.linspace(-5, 5, 60 if QUICK else 200)
plane = jnp.stack(jnp.meshgrid(side, side), axis=-1)
nearest = np.asarray(lloyd.predict(plane.reshape(-1, 2))).reshape(len(side), -1)
figure, row = plt.subplots(1, 4, figsize=(13, 3.4), layout="constrained", sharex=True, sharey=True)
for axes, variance in zip(row, (1.0, 0.3, 0.1, 0.01), strict=True):
    confidence = shown[variance].responsibilities(plane).max(axis=-1)
    image = axes.contourf(side, side, confidence, levels=np.linspace(0.25, 1, 16), cmap="cividis")
    for j in range(4):
        axes.contour(side, side, nearest == j, levels=[0.5], colors="black", linewidths=0.8)
    axes.scatter(*np.asarray(blobs).T, s=4, color="white", alpha=0.7, linewidths=0)
    axes.set_title(f"variance {variance:g}", fontsize="medium")
    axes.set_xlabel("x1")
row[0].set_ylabel("x2")
figure.colorbar(image, ax=row, label="largest responsibility")
plt.show()

# %% [markdown]
# As the variance falls the seams between the clusters narrow to the boundaries of K-means, drawn in
# black.
#
# ## Where each wins
#
# So K-means is a mixture with its hands tied: round, equally wide, equally large, and hard. Where the
# data are like that, untied hands gain nothing; where they are not, they gain much; and where there
# are too few data to learn shapes from, or the model is wrong in the tails, they do harm. Eight sets
# of data to show it, the same number of starts and of steps for both methods, and for the mixture the
# covariance family that BIC chooses of four.

# %%
FAMILIES = ["VVV"] if QUICK else ["EII", "VII", "EEE", "VVV"]
KEYS = 1 if QUICK else 5
CHOSEN = SYNTHETIC[1:3] if QUICK else SYNTHETIC


def least_bic(key, x, k):
    """The mixture of least BIC among the families that ended soundly."""
    fits = [
        gmmjax.fit(key, x, k, family=f, restarts=16, max_steps=300, throw=False) for f in FAMILIES
    ]
    sound = [f for f in fits if int(f.status) <= gmmjax.Status.MAX_STEPS] or fits
    return min(sound, key=lambda f: float(f.model.bic(x)))


partitions, scores = {}, {}


def compare(problem):
    """Adjusted Rand of both methods, for every key; the first key's partitions are kept."""
    values = []
    for seed in range(KEYS):
        rows, classes = problem.make(seed)
        rows = jnp.asarray(rows, jnp.float32)
        key = jax.random.key(seed)
        by_distance = gmmjax.kmeans(key, rows, problem.k, restarts=16, max_steps=300)
        by_density = least_bic(key, rows, problem.k)
        found = [np.asarray(by_distance.labels), np.asarray(by_density.model.predict(rows))]
        inside = classes != OUTLIER
        values.append([float(metrics.adjusted_rand(classes[inside], f[inside])) for f in found])
        if seed == 0:
            partitions[problem.name] = (rows, classes, found, by_density.model.family)
    scores[problem.name] = np.asarray(values)


for problem in CHOSEN:
    compare(problem)

# %%
figure, grid = plt.subplots(len(CHOSEN), 3, figsize=(10, 2.6 * len(CHOSEN)), layout="constrained")
for line, problem in zip(grid, CHOSEN, strict=True):
    rows, classes, found, family = partitions[problem.name]
    inside = classes != OUTLIER
    view = np.asarray(rows[:, :2])
    scatter(line[0], view, classes, problem.title)
    for axes, labels, name in zip(line[1:], found, ("K-means", f"mixture, {family}"), strict=True):
        named = np.asarray(metrics.matching(classes[inside], labels[inside], n_clusters=problem.k))
        spare = iter(range(problem.k, 2 * problem.k))
        colors = np.array([m if m >= 0 else next(spare) for m in named])
        score = float(metrics.adjusted_rand(classes[inside], labels[inside]))
        scatter(axes, view, colors[labels], f"{name}: adjusted Rand {score:.2f}")
    for axes in line:
        axes.set_xlabel("x1", fontsize="small")
        axes.set_ylabel("x2", fontsize="small")
plt.show()


# %%
def bars(problems):
    """Mean adjusted Rand of both methods, and its error, problem by problem."""
    _, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    place = np.arange(len(problems))
    for j, (name, color) in enumerate((("K-means", PALETTE[1]), ("mixture", PALETTE[0]))):
        middle = [scores[p.name][:, j].mean() for p in problems]
        error = [scores[p.name][:, j].std(ddof=min(1, KEYS - 1)) / np.sqrt(KEYS) for p in problems]
        where = place + 0.4 * j - 0.2
        axes.bar(where, middle, 0.38, yerr=error, color=color, label=name, capsize=3)
    titles = [p.title.replace(" and ", "\nand ").replace(", ", ",\n") for p in problems]
    axes.set_xticks(place, titles)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylabel("adjusted Rand index")
    axes.legend()
    plt.show()
    for problem in problems:
        print(f"{problem.title}: {problem.why}\n")


bars(CHOSEN)

# %% [markdown]
# ## On measured data
#
# Flowers, wines, tumours and handwritten digits were not drawn from anybody's model. The same two
# methods, the same choice by BIC; the data stay and only the starts change with the key, so the error
# bars are those of the search. The digits are seen in their first twelve principal axes.

# %%
MEASURED = [p for p in REAL if p.name in ("iris", "wine", "breast_cancer", "digits_pca")]
MEASURED = MEASURED[:1] if QUICK else MEASURED
for problem in MEASURED:
    compare(problem)
bars(MEASURED)
for problem in MEASURED:
    rows, classes, found, family = partitions[problem.name]
    accuracy = [float(metrics.matched_accuracy(classes, labels)) for labels in found]
    print(
        f"{problem.name:14} {rows.shape[0]:5} rows {rows.shape[1]:3} columns, family {family}; "
        f"matched accuracy: K-means {accuracy[0]:.3f}, mixture {accuracy[1]:.3f}"
    )

# %% [markdown]
# BIC asks which density fits, not which classes there are: on iris it chooses free shapes, though one
# shared shape tells the species apart better (the first picture of this notebook). What the columns are
# measured in matters to K-means and to round families, which is why wine and the tumours are standardised
# first; families with a covariance of their own are equivariant under any change of units.
#
# `python -m benchmarks.compare_kmeans_mixture` does the same with 20 keys, each family by itself, times
# and likelihoods; its tables are in `docs/comparison.md`.
#
# ## Do not score by the method's own measure
#
# The silhouette (`metrics.silhouette`) needs no labels: how much nearer is a row to its own cluster
# than to the next, in Euclidean distance? That is K-means' own idea of a cluster, so it prefers K-means
# even where K-means is wrong:

# %%
rows, classes, found, _ = partitions["anisotropic"]
for name, labels in (("classes", classes), ("K-means", found[0]), ("mixture", found[1])):
    print(f"{name:10} silhouette {float(metrics.silhouette(rows, labels)):.3f}", end="   ")
    print(f"adjusted Rand {float(metrics.adjusted_rand(classes, labels)):.3f}")

# %% [markdown]
# ## What labels add
#
# With every label the M-step alone is the fit, and Bayes' rule classifies: linear discriminant
# analysis is `mle.mixture(x, y, family="tied")`, the quadratic one `family="full"`, naive Bayes
# `family="diag"`. All ten folds of a cross-validation run as one program, a held-out row being a row
# of weight 0:

# %%
folds = classification.stratified_folds(jax.random.key(0), y, 10)
for name, family in (("linear", "tied"), ("quadratic", "full"), ("naive Bayes", "diag")):
    result = classification.cross_validate(
        lambda w, family=family: mle.mixture(x, y, 3, family=family, weights=w), x, y, folds
    )
    print(f"{name:12} wrong {float(result.error.mean()):.3f}", end="   ")
    print(f"log-loss {float(result.log_loss.mean()):.3f} nats")

# %% [markdown]
# With *some* labels, `classification.fit_semi_supervised` clamps $r_{ij}$ where $z_i$ is known and runs
# EM on the rest. A label is evidence in the E-step, $\log p(y_i \mid z_i = j)$ added to
# $\log p(x_i, z_i = j)$; everything else is the EM of notebook 2. Few labels name the clusters, many
# rows shape them:

# %%
per_class = [5, 10] if QUICK else [2, 5, 10, 20, 50]
repeats = 2 if QUICK else 10
wrong = np.zeros((len(per_class), repeats, 2))
for a, m in enumerate(per_class):
    for b in range(repeats):
        order = np.random.default_rng(b).permutation(len(y))
        known = np.concatenate([order[y[order] == c][:m] for c in range(3)])
        labels = np.full(len(y), -1)
        labels[known] = y[known]
        both = classification.fit_semi_supervised(
            jax.random.key(b), x, labels, family="tied", restarts=4
        )
        only = mle.mixture(x[known], y[known], 3, family="tied", reg=1e-3)
        for c, model in enumerate((only, both.model)):
            wrong[a, b, c] = np.mean(np.asarray(model.predict(x)) != y)

figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for c, (name, color, style) in enumerate(
    (("labelled rows only", PALETTE[1], "s--"), ("all rows", PALETTE[0], "o-"))
):
    middle = wrong[:, :, c].mean(axis=1)
    error = wrong[:, :, c].std(axis=1, ddof=1) / np.sqrt(repeats)
    axes.errorbar(per_class, middle, error, fmt=style, color=color, capsize=3, label=name)
axes.set_xlabel("labelled rows of each species")
axes.set_ylabel("share of rows classified wrong")
axes.set_ylim(0)
axes.legend()
plt.show()

# %% [markdown]
# ## What belongs to no class
#
# The mixture has a density, so it can say that a row is like nothing it has seen. A threshold on
# $\log p(x)$ with a chosen rate of false alarms comes from the model's own draws
# (`classification.sampled_threshold`):

# %%
model = mixture.model
threshold = classification.sampled_threshold(jax.random.key(1), model, 0.01)
strange = jnp.array([[5.8, 3.0, 4.3, 1.3], [5.8, 3.0, 1.3, 1.3], [9.0, 3.0, 4.3, 1.3]])
print("a versicolor, a short petal that is wide, a giant:")
print(classification.is_outlier(model, strange, threshold).tolist())
print(
    "irises called outliers:", int(classification.is_outlier(model, x, threshold).sum()), "of 150"
)

# %% [markdown]
# ## Where to look in the code
#
# - `gmmjax/kmeans.py`: K-means as one more model of the driver.
# - `gmmjax/metrics/`: the scores; `gmmjax/classification/`: everything with labels.
# - `benchmarks/compare_kmeans_mixture.py`: the comparison in full.

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
# # 6. The Gaussian-mixture VAE on digits
#
# Several models train at once, each from other weights; the one shown is chosen by the ELBO of
# held-out rows. No label takes part until the clusters are named.

# %%
import dataclasses
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from gmmjax import metrics
from gmmjax.generation import PrincipalAxes, tile
from gmmjax.vae import Training, fit_gmvae

QUICK = bool(os.environ.get("GMMJAX_NOTEBOOK_QUICK"))  # small settings, for a check
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})

# %%
pictures, y = load_digits(return_X_y=True)
x = pictures.reshape(-1, 8, 8) / 16
settings = Training(pretrain_epochs=150, epochs=10, shift=0.6, restarts=96, prior_update="epoch")
seeds = 3
if QUICK:
    settings = Training(pretrain_epochs=10, epochs=2, shift=0.6, restarts=2)
    seeds = 2
sizes = {"latent": 16, "seeds": seeds}
result = fit_gmvae(jax.random.key(0), x, 10, training=settings, y=y, **sizes)
model = result.model
found = [100 * float(metrics.matched_accuracy(y, np.asarray(m.predict(x)))) for m in result.seeds()]
print("accuracy of each seed, one-to-one:", np.round(found, 1), "chosen:", int(result.best))

# %% [markdown]
# ## What to watch while it trains
#
# The known failures each have a figure of their own: a cluster entropy that falls to 0 (all rows in
# one cluster), an information $I(x; c)$ that stays at 0, and units of the code that are not used.

# %%
h = result.history
figure, axes = plt.subplots(1, 4, figsize=(15, 3), layout="constrained")
for ax, (title, values) in zip(
    axes,
    {
        "ELBO, nats": h.elbo, "KL, nats": h.kl, "I(x; c), nats": h.information,
        "active units": h.active_units,
    }.items(),
    strict=True,
):  # fmt: skip
    ax.plot(values, linewidth=1)
    ax.axvline(settings.pretrain_epochs - 0.5, color="0.7")
    ax.set(title=title, xlabel="epoch")
plt.show()

# %% [markdown]
# ## Codes, clusters, pictures

# %%
codes = model.encode(x)
frame = PrincipalAxes.of(codes, 2)
plane = np.asarray(frame.encode(codes))
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
left.scatter(*plane.T, c=y, cmap="tab10", s=4)
left.set_title("codes in two principal axes, by class")
c = np.arange(10)
rows = [model.sample_component(jax.random.key(i), i, 10, mean=True) for i in c]
right.imshow(tile(np.concatenate(rows), 10), cmap="gray_r")
right.set(xticks=[], yticks=[], title=f"a row a cluster, named {np.asarray(result.names).tolist()}")
plt.show()

# %% [markdown]
# Interpolation between two clusters, on the line between their means; and reconstructions of the
# first rows.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3), layout="constrained")
lines = [model.interpolate(int(a), int(b), 9) for a, b in ((0, 1), (2, 3), (4, 5))]
left.imshow(tile(np.concatenate(lines), 9), cmap="gray_r")
right.imshow(tile(np.concatenate([x[:10], model.reconstruct(x[:10])]), 10), cmap="gray_r")
for ax, title in ((left, "between clusters"), (right, "rows, and their reconstruction")):
    ax.set(xticks=[], yticks=[], title=title)
plt.show()

# %% [markdown]
# ## Two failures, made on purpose
#
# A KL term eight times as heavy empties the code (posterior collapse), and the clusters say less of
# the rows.

# %%
heavy = dataclasses.replace(settings, beta=8.0, pretrain_epochs=10 if QUICK else 60, epochs=2)
collapsed = fit_gmvae(jax.random.key(0), x, 10, training=heavy, **sizes).history
print(
    f"active units: {h.active_units[-1].tolist()} and, at beta = 8, {collapsed.active_units[-1].tolist()}"
)
print(f"KL, nats: {float(h.kl[-1].mean()):.1f} and {float(collapsed.kl[-1].mean()):.1f}")
assert float(collapsed.kl[-1].mean()) < float(h.kl[-1].mean())

# %% [markdown]
# ## A few labels
#
# With `supervise` labels fix the component of their rows; the others are inferred.

# %%
few = np.full(len(y), -1)
for digit in range(10):
    few[np.flatnonzero(y == digit)[:5]] = digit
helped = fit_gmvae(jax.random.key(0), x, 10, training=settings, y=few, supervise=True, **sizes)
rest = few < 0
accuracy = np.mean(np.asarray(helped.model.predict(x))[rest] == y[rest])
print(f"accuracy on the rows without label, 5 labels a class: {100 * accuracy:.1f} %")

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
# # 5. From EM to the variational autoencoder
#
# EM needs $p(z \mid x)$ in closed form. Where $x$ comes from $z$ by a neural network there is none,
# and a second network stands in for it: an *amortised* E-step. Everything else stays: a bound, raised
# in both of its arguments.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import gmmjax
from gmmjax.plot import PALETTE
from gmmjax.uncertain import Uncertain
from gmmjax.vae import Training, fit_gmvae

QUICK = bool(os.environ.get("GMMJAX_NOTEBOOK_QUICK"))  # small settings, for a check
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The bound
#
# For any $q(z \mid x)$,
#
# $$\log p(x) \ge \mathbb E_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z)),$$
#
# with equality at the posterior. The gap is $\mathrm{KL}(q \,\|\, p(z \mid x))$, and EM closes it in
# each step. In one dimension it can be seen: a mixture $p(z)$, $x = \sin 2z + z$ with noise, and
# normals for $q$.

# %%
prior = gmmjax.GaussianMixture.create([0.4, 0.6], [[-1.5], [1.0]], [[[0.3]], [[0.4]]])
z = np.linspace(-5, 5, 4001)
step = z[1] - z[0]


def log_normal(value, mean, sd):
    """log N(value; mean, sd²)."""
    return -0.5 * ((value - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


log_joint = np.asarray(prior.log_prob(z[:, None])) + log_normal(np.sin(2 * z) + z, 0.8, 0.3)
evidence = np.log(np.exp(log_joint).sum() * step)
means = np.linspace(-2, 2, 60)
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
left.plot(z, np.exp(log_joint - evidence), color="black", label="p(z | x)")
for i, sd in enumerate((0.1, 0.3, 0.8)):
    q = np.exp(log_normal(z[:, None], means, sd))
    bound = (q * (log_joint[:, None] - log_normal(z[:, None], means, sd))).sum(0) * step
    assert np.all(bound < evidence)
    right.plot(means, bound, color=PALETTE[i], label=f"q = N(m, {sd}²)")
right.axhline(evidence, color="black", linestyle="--", label="log p(x)")
right.set(ylim=(-12, evidence + 1), xlabel="m", ylabel="bound, nats")
left.set(xlim=(-3, 3), xlabel="z")
left.legend(fontsize="small")
right.legend(fontsize="small")
plt.show()

# %% [markdown]
# ## Why a mixture for the prior
#
# A standard normal prior asks for one cloud of codes; data in clusters have several. The codes of a
# plain VAE on three bent clusters, and the codes where the prior is a mixture that EM found on them
# and that was trained on with the networks:

# %%
rng = np.random.default_rng(0)
label = rng.integers(0, 3, 400)
plane = np.array([[-3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])[label] + 0.5 * rng.normal(size=(400, 2))
x = np.tanh(plane @ rng.normal(size=(2, 8)) * 0.5) + 0.05 * rng.normal(size=(400, 8))
epochs = 15 if QUICK else 60
settings = Training(pretrain_epochs=epochs, epochs=0, batch=50, learning_rate=3e-3, restarts=4)
sizes = {"latent": 2, "hidden": (32,)}
plain = fit_gmvae(jax.random.key(0), x, 3, training=settings, **sizes)
joint = Training(pretrain_epochs=epochs, epochs=epochs, batch=50, learning_rate=3e-3, restarts=4)
mixed = fit_gmvae(jax.random.key(0), x, 3, training=joint, **sizes)
figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for ax, fitted, title in ((axes[0], plain, "standard normal"), (axes[1], mixed, "mixture")):
    codes = fitted.model.encode(x)
    for c in range(3):
        ax.plot(*np.asarray(codes)[label == c].T, ".", color=PALETTE[c], markersize=3)
    ax.set_title(f"{title} prior: ELBO {float(fitted.elbo[fitted.best]):.2f} nats a row")
axes[2].plot(mixed.history.elbo[:, 0], color="black")
axes[2].axvline(epochs - 0.5, color="0.7")
axes[2].set(xlabel="epoch", title="validation ELBO; EM on the codes at the line")
plt.show()

# %% [markdown]
# ## The E-step for codes known up to noise
#
# The encoder gives each row a normal, not a point. With $q = N(m, S)$ the best $q(c \mid x)$ that
# does not look at $z$ is $\mathrm{softmax}_c(\log\phi_c + \log N(m; \mu_c, \Sigma_c) - \tfrac12
# \mathrm{tr}(\Sigma_c^{-1} S))$: the mixture's own `responsibilities` of `Uncertain` rows. The same
# rows go into `em`, whose M-step then is the exact update of the prior for a fixed encoder. It never
# falls:

# %%
q = mixed.model.posterior(x)
rows = Uncertain(q.mean, jnp.exp(q.log_variance))
start = gmmjax.fit(jax.random.key(1), q.mean, 3, restarts=4).model
result = gmmjax.em(start, rows, tol=0, max_steps=20)
trace = np.asarray(result.trace)
trace = trace[np.isfinite(trace)] / len(x)
print(f"bound on the codes: {trace[0]:.3f} to {trace[-1]:.3f} nats a row")
assert np.all(np.diff(trace) > -1e-4)

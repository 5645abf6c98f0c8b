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
# # 1. The Gaussian mixture
#
# What the model is, how it is fitted where everything is seen, and why there is no closed form where
# something is hidden. Every formula names the function that computes it.
#
# You need calculus and the normal distribution. $n$ samples $x_i \in \mathbb{R}^d$, $k$ components;
# $z_i$ is the component that sample $i$ came from.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import gmmjax
from gmmjax.plot import PALETTE, plot_criterion, plot_mixture

QUICK = bool(os.environ.get("GMMJAX_NOTEBOOK_QUICK"))  # small settings, for a check
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN = PALETTE[:3]

# %% [markdown]
# ## Data with two humps
#
# Old Faithful, a geyser: how long each of 272 eruptions lasted, and the wait until the next.

# %%
faithful = gmmjax.datasets.load_faithful()
x = jnp.asarray(faithful.x)
wait = x[:, 1:]
x.shape, faithful.feature_names

# %% [markdown]
# One normal distribution has the maximum-likelihood estimate
#
# $$\hat\mu = \frac1n \sum_i x_i, \qquad
#   \hat\Sigma = \frac1n \sum_i (x_i - \hat\mu)(x_i - \hat\mu)^\top$$
#
# (`gmmjax.mle.normal`; the divisor is $n$, not $n-1$). It puts most of its mass where there are
# hardly any data.

# %%
mean, covariance = gmmjax.mle.normal(wait)
deviation = float(jnp.sqrt(covariance[0, 0]))
grid = jnp.linspace(35, 105, 400)[:, None]
one = gmmjax.GaussianMixture.create([1.0], mean[None], covariance[None])

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.hist(np.asarray(wait[:, 0]), bins=30, density=True, color="0.8", label="data")
axes.plot(grid[:, 0], jnp.exp(one.log_prob(grid)), color=BLUE, label="one normal")
axes.set_xlabel("wait (minutes)")
axes.set_ylabel("density (1 / minute)")
axes.legend()
print(f"mean {float(mean[0]):.1f} min, standard deviation {deviation:.1f} min")
plt.show()

# %% [markdown]
# ## A story of how the data came about
#
# 1. Draw a component, $z_i \sim \text{Categorical}(\phi_1, \dots, \phi_k)$.
# 2. Draw the sample from that component's normal, $x_i \mid z_i = j \sim N(\mu_j, \Sigma_j)$.
#
# `GaussianMixture.create` holds the parameters $\theta = (\phi, \mu, \Sigma)$, and
# `GaussianMixture.sample` tells the story: it returns both $x$ and $z$.

# %%
model = gmmjax.GaussianMixture.create(
    weights=[0.5, 0.3, 0.2],
    means=[[0.0, 0.0], [4.0, 1.0], [1.0, 4.0]],
    covariances=[
        [[1.0, 0.6], [0.6, 1.0]],
        [[1.5, -0.7], [-0.7, 0.8]],
        [[0.4, 0.0], [0.0, 0.4]],
    ],
)
draws, z = model.sample(jax.random.key(0), 500)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
left.scatter(draws[:, 0], draws[:, 1], s=8, color="0.4")
left.set_title("what we see: x")
left.set_xlabel("x1")
left.set_ylabel("x2")
plot_mixture(right, model, draws, labels=z)
right.set_title("what happened: x and z")
right.set_ylabel("")
plt.show()

# %% [markdown]
# ## The density
#
# Not knowing $z$ we sum over it:
#
# $$p(x) = \sum_{j=1}^k \phi_j\, N(x; \mu_j, \Sigma_j), \qquad
#   \log N(x; \mu, \Sigma) = -\tfrac d2 \log 2\pi - \tfrac12 \log|\Sigma|
#   - \tfrac12 (x-\mu)^\top \Sigma^{-1} (x-\mu)$$
#
# | formula | function |
# |---|---|
# | $\log \phi_j + \log N(x; \mu_j, \Sigma_j)$ | `model.log_joint(x)`, one column a component |
# | $\log p(x)$ | `model.log_prob(x)` |
# | $\ell(\theta) = \sum_i w_i \log p(x_i)$ | `model.log_likelihood(x, weights)` |
# | $r_j(x) = p(z = j \mid x)$ | `model.responsibilities(x)` |
#
# The sum is taken of logarithms, $\log \sum_j e^{a_j} = m + \log \sum_j e^{a_j - m}$ with $m$ the
# largest $a_j$ (`jax.nn.logsumexp`). Exponentiating first would say $\log 0$ for every point far from
# all centres.

# %%
far = jnp.array([[60.0, 60.0]])
densities = jnp.exp(model.log_joint(far))
print("densities first, then the logarithm:", float(jnp.log(densities.sum())))
print("logarithms throughout:              ", float(model.log_prob(far)[0]))

# %% [markdown]
# Bayes' rule gives back what was hidden, as far as it can be known (`model.responsibilities(x)`):
#
# $$r_{ij} = p(z_i = j \mid x_i) = \frac{\phi_j N(x_i; \mu_j, \Sigma_j)}{p(x_i)}$$

# %%
r = model.responsibilities(draws)
print("a few responsibilities:\n", np.round(r[:4], 3), "\nand their components:", z[:4])
print("component guessed right:", float(jnp.mean(model.predict(draws) == z)))

# %% [markdown]
# ## If $z$ were seen
#
# With $x$ *and* $z$ the log-likelihood falls apart into one term a component,
#
# $$\sum_i \log p(x_i, z_i) = \sum_j \sum_{i: z_i = j}
#   \left[ \log \phi_j + \log N(x_i; \mu_j, \Sigma_j) \right],$$
#
# and each is maximised by itself: shares of the labels for $\phi$ (`gmmjax.mle.categorical`), a mean
# and a covariance for each component. `gmmjax.mle.mixture` is that, and nothing else:

# %%
seen = gmmjax.mle.mixture(draws, z)
for j in range(3):
    mine = draws[z == j]
    mean, covariance = gmmjax.mle.normal(mine)
    np.testing.assert_allclose(seen.weights[j], len(mine) / len(draws), rtol=1e-5)
    np.testing.assert_allclose(seen.means[j], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.covariances[j], covariance, rtol=1e-3, atol=1e-5)
print("weights", np.round(gmmjax.mle.categorical(z), 3), "from labels; the true ones 0.5, 0.3, 0.2")

# %% [markdown]
# ## If $z$ is hidden
#
# Now the sum stands *inside* the logarithm, and the terms do not fall apart:
#
# $$\ell(\theta) = \sum_i \log \sum_j \phi_j N(x_i; \mu_j, \Sigma_j).$$
#
# Its derivative shows what goes wrong. With
# $\partial \log \sum_j e^{a_j} = \sum_j \frac{e^{a_j}}{\sum_l e^{a_l}}\, \partial a_j$,
#
# $$\frac{\partial \ell}{\partial \mu_j} = \sum_i r_{ij}\, \Sigma_j^{-1} (x_i - \mu_j) = 0
#   \quad\Longrightarrow\quad \mu_j = \frac{\sum_i r_{ij} x_i}{\sum_i r_{ij}} .$$
#
# This *looks* like a solution. But $r_{ij}$ is computed from all parameters, $\mu_j$ among them: it is
# an equation for a fixed point, not a formula. (Notebook 2 makes an algorithm of it.) The whole
# model can be differentiated (`jax.grad` of `model.log_likelihood`), so the identity can be checked:


# %%
def log_likelihood(means):
    moved = gmmjax.GaussianMixture(model.log_weights, means, model.factors, model.family)
    return moved.log_likelihood(draws)


gradient = jax.grad(log_likelihood)(model.means)
precisions = jnp.linalg.inv(model.covariances)
delta = draws[:, None] - model.means
by_hand = jnp.einsum("ij,jab,ijb->ja", r, precisions, delta)
print("jax.grad:\n", np.round(gradient, 2), "\nby hand:\n", np.round(by_hand, 2))

# %% [markdown]
# ## The surface has more than one summit
#
# The waits again, two components with weights ½ and a standard deviation of 6 minutes; only the two
# means are free. Exchanging the components changes nothing, so the surface is symmetric and has two
# summits of the same height. Between them lies a saddle: both means in the middle, where the gradient
# vanishes too.

# %%
side = jnp.linspace(45, 95, 21 if QUICK else 81)


@jax.jit
@jax.vmap
@jax.vmap
def height(means):
    two = gmmjax.GaussianMixture(
        jnp.log(jnp.full(2, 0.5)),
        means[:, None],
        gmmjax.families.Spherical(jnp.full(2, 6.0), 1),
        "spherical",
    )
    return two.log_likelihood(wait)


pairs = jnp.stack(jnp.meshgrid(side, side, indexing="ij"), axis=-1)
surface = height(pairs)
figure, axes = plt.subplots(figsize=(5.4, 4), layout="constrained")
shown = axes.contourf(side, side, surface.T, levels=30, cmap="cividis")
figure.colorbar(shown, label="log-likelihood (nats)")
top = jnp.unravel_index(jnp.argmax(surface), surface.shape)
first, second = float(side[top[0]]), float(side[top[1]])
axes.plot([first, second], [second, first], "^", color="white", markersize=9)
axes.set_xlabel("mean of component 1 (minutes)")
axes.set_ylabel("mean of component 2 (minutes)")
axes.set_aspect("equal")
plt.show()

# %% [markdown]
# ## And no highest summit at all
#
# Put one mean exactly on a sample and let that component's standard deviation $\sigma$ go to 0. Its
# density at that sample grows like $1/\sigma$, the other component keeps all other samples at a finite
# density, and the likelihood grows without bound. Such a "maximum" says nothing about the data.

# %%
deviations = jnp.logspace(1, -6, 40)


def collapsed(deviation):
    two = gmmjax.GaussianMixture(
        jnp.log(jnp.array([0.01, 0.99])),
        jnp.stack([wait[0], wait.mean(axis=0)]),
        gmmjax.families.Spherical(jnp.stack([deviation, wait.std()]), 1),
        "spherical",
    )
    return two.log_likelihood(wait)


heights = jax.vmap(collapsed)(deviations)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.semilogx(deviations, heights, color=BLUE)
axes.invert_xaxis()
axes.set_xlabel("standard deviation of the component on one sample (minutes)")
axes.set_ylabel("log-likelihood (nats)")
assert heights[-1] > heights[10]
plt.show()

# %% [markdown]
# `gmmjax.fit` therefore looks for the best *sound* maximum: every covariance has a floor (`reg`, a
# fraction of the variance of the data), a start that ends on the floor or rests on a handful of rows
# says so in its status, and it wins only where no other start is left.
#
# ## The fit
#
# Many starts at once, the best kept. Two components with full covariances on both columns:

# %%
result = gmmjax.fit(jax.random.key(0), x, 2, restarts=8 if QUICK else 64)
print(result.message)
print(
    "log-likelihood",
    round(float(result.log_likelihood), 3),
    "nats; BIC",
    float(result.model.bic(x)),
)

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
plot_mixture(axes, result.model, x, feature_names=["eruption (minutes)", "wait (minutes)"])
plt.show()

# %% [markdown]
# R's mclust finds −1130.264 on these data. How many components there are is another question: a
# larger $k$ always has a larger likelihood. The Bayesian information criterion
# $-2\ell + p \log n$ (`model.bic(x)`, smaller is better) charges for each of the $p$ free parameters.

# %%
ks = [1, 2, 3] if QUICK else [1, 2, 3, 4, 5, 6]
fits = [gmmjax.fit(jax.random.key(k), x, k, family="tied", restarts=16) for k in ks]
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
plot_criterion(axes, ks, [float(f.model.bic(x)) for f in fits])
plt.show()

# %% [markdown]
# ## Where to look in the code
#
# - `gmmjax/mixture.py`: the model; density, posterior, sampling.
# - `gmmjax/mle.py`: the closed forms.
# - `gmmjax/families/`: what a covariance may look like, one file each.
# - `gmmjax/fit.py`: starts, and the choice among them.
#
# Next: *2. The EM algorithm*, which turns the circular equation into steps that never go down.

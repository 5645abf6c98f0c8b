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
# # 2. The EM algorithm
#
# Notebook 1 ended in a circle: the best means need the responsibilities, and those need the means.
# Expectation-maximisation walks around the circle, and each turn is shown here to go uphill. The same
# driver then fits a model without a single Gaussian in it.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import gmmjax
from gmmjax.plot import PALETTE, plot_mixture

QUICK = bool(os.environ.get("GMMJAX_NOTEBOOK_QUICK"))  # small settings, for a check
jax.config.update("jax_enable_x64", True)  # so that inequalities can be seen to the last digit
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN = PALETTE[:3]

# %% [markdown]
# ## A bound that is easy to raise
#
# Let $q_i$ be *any* distribution over the hidden $z_i$. The logarithm is concave, so by Jensen's
# inequality the logarithm of a mean is at least the mean of the logarithms:
#
# $$\ell(\theta) = \sum_i \log \sum_j q_{ij} \frac{p(x_i, z_i = j; \theta)}{q_{ij}}
#   \;\ge\; \sum_i \sum_j q_{ij} \left[\log p(x_i, z_i = j; \theta) - \log q_{ij}\right]
#   = \text{ELBO}(\theta, q).$$
#
# How much is lost? Write $p(x_i, z_i = j) = p(x_i)\, p(z_i = j \mid x_i)$ in the bound and the term
# $\log p(x_i)$ comes out in front:
#
# $$\ell(\theta) - \text{ELBO}(\theta, q) = \sum_i \text{KL}\big(q_i \,\|\, p(z_i \mid x_i; \theta)\big)
#   \ge 0,$$
#
# and it is 0 exactly where $q_i$ is the posterior. The bound is `gmmjax.elbo(model, x, q)`, the
# posterior `model.responsibilities(x)`. A check on Old Faithful, with a random $q$ and with the
# posterior:

# %%
faithful = gmmjax.datasets.load_faithful()
x = jnp.asarray((faithful.x - faithful.x.mean(0)) / faithful.x.std(0))
model = gmmjax.GaussianMixture.create(
    [0.5, 0.5], [[-0.5, 1.0], [0.6, -0.8]], [[[0.4, 0.0], [0.0, 0.4]]] * 2
)
ell = float(model.log_likelihood(x))
posterior = model.responsibilities(x)
q = jax.random.dirichlet(jax.random.key(0), jnp.ones(2), (len(x),))
kl = float(jnp.sum(q * (jnp.log(q) - jnp.log(posterior))))
bound = float(gmmjax.elbo(model, x, q))
print(f"log-likelihood            {ell:12.3f}")
print(f"ELBO at a random q        {bound:12.3f}")
print(f"  gap {ell - bound:.3f} = KL {kl:.3f}")
print(f"ELBO at the posterior     {float(gmmjax.elbo(model, x, posterior)):12.3f}")

# %% [markdown]
# ## Two steps, both uphill on the bound
#
# Climb the bound in one argument at a time:
#
# - **E-step**: $q_i \leftarrow p(z_i \mid x_i; \theta)$. The bound now touches $\ell(\theta)$.
# - **M-step**: $\theta \leftarrow \arg\max_\theta \text{ELBO}(\theta, q)$ with $q$ held. The
#   logarithm stands outside the sum over $j$ now, so the terms fall apart and the maximum has a
#   closed form: that of notebook 1, with shares $r_{ij}$ in place of labels,
#
# $$N_j = \sum_i w_i r_{ij}, \quad \phi_j = \frac{N_j}{\sum_i w_i}, \quad
#   \mu_j = \frac1{N_j} \sum_i w_i r_{ij} x_i, \quad
#   \Sigma_j = \frac1{N_j} \sum_i w_i r_{ij} (x_i - \mu_j)(x_i - \mu_j)^\top .$$
#
# From one step to the next,
#
# $$\ell(\theta_{t+1}) \;\ge\; \text{ELBO}(\theta_{t+1}, q_t) \;\ge\; \text{ELBO}(\theta_t, q_t)
#   = \ell(\theta_t).$$
#
# In the code `model.expect(x, weights)` is the E-step: it returns the sums that the M-step needs
# ($N_j$, $\sum r x$, $\sum r x x^\top$) and $\ell(\theta)$, and `model.maximize(sums)` is the M-step.
# The chain of inequalities, number by number:

# %%
ones = jnp.ones(len(x))
print("step   l(theta_t)   ELBO(theta_t+1, q_t)   l(theta_t+1)")
path = [model]
for t in range(12):
    sums, before = path[-1].expect(x, ones)
    q = path[-1].responsibilities(x)
    after, _ = path[-1].maximize(sums)
    between = float(gmmjax.elbo(after, x, q))
    ell = float(after.log_likelihood(x))
    print(f"{t:4d} {float(before):12.4f} {between:22.4f} {ell:14.4f}")
    assert ell >= between >= float(before)
    path.append(after)

# %% [markdown]
# From a start that lies across the data, the picture after 0, 1, 3, 5, 8 and 12 steps. The steps are
# small where the components still share all rows, then large, then small again:

# %%
figure, row = plt.subplots(1, 6, figsize=(15, 3), layout="constrained", sharex=True, sharey=True)
for axes, t in zip(row, (0, 1, 3, 5, 8, 12), strict=True):
    plot_mixture(axes, path[t], x, feature_names=["eruption (scaled)", "wait (scaled)"])
    axes.set_title(f"after {t}: {float(path[t].log_likelihood(x)):.1f} nats", fontsize="small")
    axes.get_legend().remove()
    if t:
        axes.set_ylabel("")
plt.show()

# %% [markdown]
# ## The bound, drawn
#
# The waits alone, two components with weights ½ and a standard deviation of 6 minutes. One mean stays
# at 55, the other is the unknown $\mu$. The E-step at $\mu_t$ gives a bound that touches $\ell$ there,
# with the same slope; the M-step jumps to the top of the bound; the next bound touches at the new
# place.

# %%
wait = jnp.asarray(faithful.x[:, 1:])


def at(mu):
    """The mixture with the second mean at mu."""
    return gmmjax.GaussianMixture(
        jnp.log(jnp.full(2, 0.5)),
        jnp.stack([jnp.array([55.0]), jnp.atleast_1d(mu)]),
        gmmjax.families.Spherical(jnp.full(2, 6.0), 1),
        "spherical",
    )


mus = jnp.linspace(50, 95, 200)
curve = jax.jit(jax.vmap(lambda mu: at(mu).log_likelihood(wait)))(mus)
bounds = jax.jit(jax.vmap(lambda mu, q: gmmjax.elbo(at(mu), wait, q), (0, None)))

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(mus, curve, color="black", linewidth=2, label="log-likelihood")
mu = jnp.asarray(58.0)
for t, (color, style) in enumerate(zip(PALETTE[:3], ("--", "-.", ":"), strict=True)):
    q = at(mu).responsibilities(wait)
    axes.plot(mus, bounds(mus, q), color=color, linestyle=style, label=f"bound of step {t}")
    axes.plot(mu, at(mu).log_likelihood(wait), "o", color=color)
    mu = jnp.sum(q[:, 1] * wait[:, 0]) / jnp.sum(q[:, 1])  # the M-step for this mean
axes.plot(mu, at(mu).log_likelihood(wait), "*", color="black", markersize=12)
axes.set_ylim(float(curve.min()) - 300, float(curve.max()) + 120)
axes.set_xlabel("mean of component 2 (minutes)")
axes.set_ylabel("nats")
axes.legend()
plt.show()

# %% [markdown]
# ## The driver
#
# `gmmjax.em(model, data)` repeats the two steps in one compiled loop until the objective changes by
# less than `tol` nats per sample, and says how it ended. It holds no formula of any model: it calls
# `expect` and `maximize`. The last 32 log-likelihoods are kept in `trace`.

# %%
result = gmmjax.em(model, x, tol=1e-10)
trace = np.asarray(result.trace)
trace = trace[np.isfinite(trace)]
print(gmmjax.Status(int(result.status)).name, "after", int(result.n_steps), "steps")
print("log-likelihood (standardised data)", round(float(result.log_likelihood), 4))
assert bool(result.converged)
assert np.all(np.diff(trace) > -1e-12 * abs(trace[-1]))

# %% [markdown]
# ## Why it can be slow
#
# Near the top the distance to it shrinks by a constant factor a step, and the factor is the share of
# information that is missing because $z$ is hidden (Dempster, Laird and Rubin, 1977). The more the
# components overlap the more is hidden.

# %%
steps = 60 if QUICK else 200
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for apart, color, style in ((4.0, BLUE, "-"), (3.0, ORANGE, "--"), (2.0, GREEN, "-.")):
    true = gmmjax.GaussianMixture.create([0.5, 0.5], [[0.0], [apart]], [1.0, 1.0], "spherical")
    draws, _ = true.sample(jax.random.key(1), 4000)
    start = true.affine(jnp.array([0.7]))

    @jax.jit
    def climb(start, draws):
        def body(model, _):
            sums, ell = model.expect(draws, jnp.ones(len(draws)))
            return model.maximize(sums)[0], (model.means[:, 0], ell)

        return jax.lax.scan(body, start, None, length=steps)[1][0]

    means = climb(start, draws)
    distance = jnp.linalg.norm(means - means[-1], axis=1)[: steps // 2]
    axes.semilogy(distance, color=color, linestyle=style, label=f"{apart:g} deviations apart")
axes.set_ylim(1e-4, 3)
axes.set_xlabel("step")
axes.set_ylabel("distance of the means\nfrom where they end")
axes.legend()
plt.show()

# %% [markdown]
# ## A model without a Gaussian
#
# The Times of London printed death notices of women of 80 and more; on how many of the 1,096 days of
# 1910 to 1912 did it print $0, 1, \dots, 9$ of them (Hasselblad, 1969)? One Poisson distribution does
# not fit, because winters differ from summers. A mixture of two:
#
# $$p(x) = \sum_j \phi_j \frac{\lambda_j^x e^{-\lambda_j}}{x!}, \qquad
#   \text{M-step:}\quad \phi_j = \frac{\sum_i w_i r_{ij}}{\sum_i w_i}, \quad
#   \lambda_j = \frac{\sum_i w_i r_{ij} x_i}{\sum_i w_i r_{ij}} .$$
#
# To fit it, write down a pytree with the two steps: `log_joint` and `expect` for the left formula,
# `maximize` for the two on the right. The driver does the rest.

# %%
from gmmjax.typing import pytree


@pytree
class PoissonMixture:
    """Σ_j φ_j Poisson(λ_j)."""

    log_weights: jax.Array  # [k]
    rates: jax.Array  # [k]

    def log_joint(self, x):
        """log φ_j + log Poisson(x; λ_j), [n, k]."""
        x = x[:, None]
        log_poisson = x * jnp.log(self.rates) - self.rates - jax.lax.lgamma(x + 1)
        return self.log_weights + log_poisson

    def expect(self, x, weights):
        """Σ w r and Σ w r x, and the log-likelihood."""
        joint = self.log_joint(x)
        r = weights[:, None] * jax.nn.softmax(joint, axis=1)
        sums = {"weight": r.sum(axis=0), "first": r.T @ x}
        return sums, jnp.sum(weights * jax.nn.logsumexp(joint, axis=1))

    def maximize(self, sums, *, prior=None, reg=0.0):
        """The two closed forms above."""
        n = sums["weight"]
        model = PoissonMixture(jnp.log(n / n.sum()), sums["first"] / n)
        return model, gmmjax.Status.CONVERGED


notices = jnp.arange(10.0)
days = jnp.array([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1])  # how often each number occurred
start = PoissonMixture(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 4.0]))
poisson = gmmjax.em(start, notices, weights=days, tol=1e-12, max_steps=20_000)
two = poisson.model
print("weights", np.round(np.exp(two.log_weights), 3), "rates", np.round(two.rates, 3))
print(
    "log-likelihood",
    round(float(poisson.log_likelihood), 3),
    "after",
    int(poisson.n_steps),
    "steps",
)

# %%
single = float(jnp.sum(days * notices) / days.sum())
one = PoissonMixture(jnp.zeros(1), jnp.array([single]))
figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
axes.bar(notices, days, color="0.8", label="days observed")
for fitted, color, marker, name in ((one, ORANGE, "s", "one Poisson"), (two, BLUE, "o", "two")):
    expected = days.sum() * jnp.exp(jax.nn.logsumexp(fitted.log_joint(notices), axis=1))
    axes.plot(notices, expected, marker=marker, color=color, label=name)
axes.set_xlabel("death notices a day")
axes.set_ylabel("days")
axes.legend()
plt.show()

# %% [markdown]
# Two components that overlap this much make EM slow: thousands of steps. What was promised holds all
# the same, and `gmmjax.elbo` works for this model too, since it asks for `log_joint` only. And because
# the model is a pytree, `jax.vmap` runs many starts at once; they all end at the same height, some
# with the components exchanged:

# %%
rates = jax.random.uniform(jax.random.key(3), (8, 2), minval=0.5, maxval=6.0)
starts = PoissonMixture(jnp.log(jnp.full((8, 2), 0.5)), rates)
many = jax.vmap(lambda m: gmmjax.em(m, notices, weights=days, tol=1e-12, max_steps=20_000))(starts)
print("log-likelihoods:", np.round(np.asarray(many.log_likelihood), 3))
print("first rates:    ", np.round(np.asarray(many.model.rates[:, 0]), 3))
q = jax.nn.softmax(two.log_joint(notices), axis=1)
assert abs(float(gmmjax.elbo(two, notices, q, days) - poisson.log_likelihood)) < 1e-6

# %% [markdown]
# ## Where to look in the code
#
# - `gmmjax/em.py`: the driver, `init`, `step`, `terminate`, `em`, and `elbo`.
# - `gmmjax/expectation.py`: the Gaussian E-step; `gmmjax/moments.py`: the sums, and why they add up.
# - `gmmjax/mixture.py`, `maximize`: the M-step; `gmmjax/families/`: its constraint, by family.
# - `gmmjax/status.py`: how a run can end, in words.
#
# Next: *3. Unsupervised classification*, what the fitted components are good for.

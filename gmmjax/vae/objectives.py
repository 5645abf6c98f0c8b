"""The three bounds of a Gaussian-mixture VAE, from tight to loose, a short pure function each.

Each takes the prior, a `gmmjax.GaussianMixture`, and what the encoder says of n rows, and gives the
terms of log p(x) ≥ E_q[log p(x | z)] − KL, in nats (MATH 7). The prior's density, its posterior and
its mean over the noise of a code are the functions that EM uses.

`evidence` is what else is known of each row's component, log p(y | c), [n, k]: 0 and a large
negative number where a label is certain.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from gmmjax.mixture import GaussianMixture
from gmmjax.typing import Array, ArrayLike, Float, Key, pytree
from gmmjax.uncertain import Uncertain
from gmmjax.vae.networks import Autoencoder, Posterior

Objective = Literal["structured", "mean-field", "amortised"]
OBJECTIVES: tuple[Objective, ...] = ("structured", "mean-field", "amortised")


@pytree
class Terms:
    """One row's bound, and which component it belongs to."""

    reconstruction: Float[Array, "n"]  # E_q[log p(x | z)], by one draw of z
    kl: Float[Array, "n"]  # KL(q(z, c | x) ‖ p(z, c)), nats
    responsibilities: Float[Array, "n k"]  # q(c | x)

    @property
    def elbo(self) -> Float[Array, "n"]:
        return self.reconstruction - self.kl


def structured(
    prior: GaussianMixture,
    q: Posterior,
    z: Float[Array, "n d"],
    log_likelihood: Float[Array, "n"],
    evidence: Float[Array, "n k"] | None = None,
) -> Terms:
    """q(z, c | x) = q(z | x) p(c | z): E_q[log p(x | z) + log p(z)] + H[q], z a draw of q."""
    log_joint = _with(prior.log_joint(z), evidence)
    log_prob = jax.nn.logsumexp(log_joint, axis=-1)
    return Terms(log_likelihood, -(log_prob + q.entropy()), jax.nn.softmax(log_joint, axis=-1))


def mean_field(
    prior: GaussianMixture,
    q: Posterior,
    log_likelihood: Float[Array, "n"],
    evidence: Float[Array, "n k"] | None = None,
    log_g: Float[Array, "n k"] | None = None,
) -> Terms:
    """q(z, c | x) = q(z | x) g_c, with g at its exact optimum unless `log_g` is given.

    E_q[log p(x | z)] + H[q] + Σ_c g_c (E_q[log p(z, c)] − log g_c): only the first term is sampled.
    The optimum is not E_q[p(c | z)], as VaDE has it (Falck et al. 2021).
    """
    log_joint = _with(prior.log_joint(q.uncertain()), evidence)
    if log_g is None:
        bracket, g = jax.nn.logsumexp(log_joint, axis=-1), jax.nn.softmax(log_joint, axis=-1)
    else:
        bracket, g = jnp.sum(_gain(log_g, log_joint), axis=-1), jnp.exp(log_g)
    return Terms(log_likelihood, -(bracket + q.entropy()), g)


def amortised(
    prior: GaussianMixture,
    log_g: Float[Array, "n k"],
    q: Posterior,
    log_likelihood: Float[Array, "n k"],
    evidence: Float[Array, "n k"] | None = None,
) -> Terms:
    """q(z, c | x) = q(c | x) q(z | x, c), the sum over c taken exactly (Shu 2016).

    `q` has means [n, k, d], one code for each component, and `log_likelihood` is log p(x | z_c) of a
    draw of each.
    """
    g = jnp.exp(log_g)
    each = prior.log_joint(q.uncertain())  # [n, code of c, component]
    log_joint = _with(jnp.diagonal(each, axis1=-2, axis2=-1), evidence)
    kl = -jnp.sum(_gain(log_g, log_joint) + g * q.entropy(), axis=-1)
    return Terms(jnp.sum(g * log_likelihood, axis=-1), kl, g)


def bound(
    objective: Objective,
    network: Autoencoder,
    prior: GaussianMixture,
    key: Key[Array, ""],
    x: Float[Array, "n features"],
    seen: Float[Array, "n features"] | None = None,
    evidence: Float[Array, "n k"] | None = None,
    noise: ArrayLike = 1.0,
) -> tuple[Terms, Uncertain | Float[Array, "n d"]]:
    """The terms at one draw of z, and the codes as the prior's own M-step takes them.

    `seen` is what the encoder reads where that is not x itself (denoising); `noise` 0 takes the mean of
    q for its draw (an autoencoder, of which the result is no bound). Codes are the draw for the
    structured bound, and rows known up to noise for the others: with either, the M-step on their
    moments raises the bound that they belong to.
    """
    seen = x if seen is None else seen
    if objective == "amortised":
        added, each, q = network.encode_by_cluster(seen)
        # The network adds to the exact mean-field posterior, so that zero is a sound start, and no
        # cluster is turned against the prior by a head that has yet to learn.
        log_joint = _with(prior.log_joint(q.uncertain()), evidence)
        log_g = jax.nn.log_softmax(log_joint + added, axis=-1)
        z = each.sample(key, noise)
        log_likelihood = network.log_prob(x[:, None], z)
        return amortised(prior, log_g, each, log_likelihood, evidence), q.uncertain()
    q = network.encode(seen)
    z = q.sample(key, noise)
    log_likelihood = network.log_prob(x, z)
    if objective == "mean-field":
        return mean_field(prior, q, log_likelihood, evidence), q.uncertain()
    return structured(prior, q, z, log_likelihood, evidence), z


def importance(
    network: Autoencoder,
    prior: GaussianMixture,
    key: Key[Array, ""],
    x: Float[Array, "n features"],
) -> Float[Array, "n"]:
    """log p(x, z) − log q(z | x) at one draw of z: a log-weight of Burda et al. (2016)."""
    q = network.encode(x)
    z = q.sample(key)
    return network.log_prob(x, z) + prior.log_prob(z) - q.log_prob(z)


def _gain(log_g: Array, log_joint: Array) -> Array:
    """g (log p − log g), 0 where g is 0, in value and in gradient."""
    used = log_g > -jnp.inf
    inner = jnp.where(used, log_joint, 0.0) - jnp.where(used, log_g, 0.0)
    return jnp.where(used, jnp.exp(log_g) * inner, 0.0)


def _with(log_joint: Array, evidence: Array | None) -> Array:
    return log_joint if evidence is None else log_joint + evidence

"""Sums over all rows at a fixed model: the bound, the signs of the known failures, moments of the codes.

The noise of a row is drawn from the row's number, so that a figure depends on the model alone.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gmmjax import blocks
from gmmjax.blocks import Blocks
from gmmjax.mixture import GaussianMixture
from gmmjax.moments import Moments, about_origin
from gmmjax.typing import Array, Float, Int, Key, pytree
from gmmjax.vae.networks import Autoencoder
from gmmjax.vae.objectives import Objective, bound


@pytree
class Summary:
    """What an evaluation tells of one model; means over rows, in nats."""

    elbo: Float[Array, ""]
    reconstruction: Float[Array, ""]  # E_q[log p(x | z)]
    kl: Float[Array, ""]  # of z and c
    cluster_entropy: Float[Array, ""]  # of the clusters' shares: log k at most, 0 where all is one
    row_entropy: Float[Array, ""]  # mean of q(c | x): 0 where every row is sure of its cluster
    active_units: Int[Array, ""]  # dimensions of z whose mean varies over rows by over 0.01
    usage: Float[Array, "k"]  # shares of the clusters

    @property
    def information(self) -> Float[Array, ""]:
        """I(x; c) in nats, under q: 0 where the clusters say nothing of the rows."""
        return self.cluster_entropy - self.row_entropy


@partial(jax.jit, static_argnames="objective")
def evaluate(
    key: Key[Array, ""],
    network: Autoencoder,
    prior: GaussianMixture,
    x: Float[Array, "n features"],
    objective: Objective,
) -> Summary:
    """The bound on rows, by one draw of z each, and the signs of the known failures."""

    def one(data: tuple, weights: Array) -> tuple[Array, ...]:
        index, rows, _ = data
        key_block, rows = _presented(network, key, index, rows)
        terms, _ = bound(objective, network, prior, key_block, rows)
        r = terms.responsibilities
        entropy = jnp.sum(jax.scipy.special.entr(r), axis=-1)
        mean = network.encode(rows).mean
        each = (terms.reconstruction, terms.kl, entropy, r, mean, mean**2, jnp.ones_like(entropy))
        return tuple(jnp.tensordot(weights, a, 1) for a in each)

    sums = blocks.total(one, _numbered(x, None))
    reconstruction, kl, entropy, usage, mean, square, _ = (a / sums[-1] for a in sums)
    return Summary(
        elbo=reconstruction - kl,
        reconstruction=reconstruction,
        kl=kl,
        cluster_entropy=jnp.sum(jax.scipy.special.entr(usage)),
        row_entropy=entropy,
        active_units=jnp.sum(square - mean**2 > 0.01),
        usage=usage,
    )


@partial(jax.jit, static_argnames="objective")
def evaluate_each(
    key: Key[Array, ""],
    networks: Autoencoder,
    priors: GaussianMixture,
    x: Float[Array, "n features"],
    objective: Objective,
) -> Summary:
    """`evaluate` for every seed, all with the same draws."""
    return jax.vmap(lambda n, p: evaluate(key, n, p, x, objective))(networks, priors)


def moments_of_codes(
    network: Autoencoder,
    prior: GaussianMixture,
    key: Key[Array, ""],
    x: Float[Array, "n features"],
    evidence: Float[Array, "n k"] | None,
    objective: Objective,
) -> Moments:
    """The E-step of the prior on the codes of all rows, about 0."""
    prepared = prior.prepare()

    def one(data: tuple, weights: Array) -> Moments:
        index, rows, known = data
        key_block, rows = _presented(network, key, index, rows)
        _, codes = bound(objective, network, prior, key_block, rows, None, known)
        return about_origin(prepared.expect(codes, weights, known)[0])

    return blocks.total(one, _numbered(x, evidence))


def _presented(
    network: Autoencoder, key: Key[Array, ""], index: Array, rows: Array
) -> tuple[Key[Array, ""], Array]:
    """A block's own key, by the number of its first row, and its rows as the likelihood presents them."""
    key_block = jax.random.fold_in(key, index[0])
    return key_block, network.likelihood.present(jax.random.fold_in(key_block, 1), rows)


def _numbered(x: Array, evidence: Array | None) -> Blocks:
    """Rows in blocks with their numbers, from which their noise is drawn."""
    return blocks.split((jnp.arange(x.shape[0]), x, evidence))

"""A mixture of which some rows' components are seen, with certainty or with noise.

A label is evidence on the hidden component: the E-step adds log p(y_i | z_i = j) to the logarithm
of p(x_i, z_i = j), and everything else is as without labels. A certain label is 0 for its own
component and −∞ for the others, so that the row's responsibility is clamped; an unlabelled row adds
nothing. Labels are taken as missing at random: whether a row has one says nothing about its class.

    ℓ(θ) = Σ_labelled w_i log Σ_j φ_j N(x_i; μ_j, Σ_j) T_jy  +  Σ_unlabelled w_i log p(x_i),

T_jy = p(label y | component j), the identity where labels are certain. McLachlan and Peel (2000),
section 2.19; for noisy labels Lawrence and Schölkopf (2001).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gmmjax import checks, expectation
from gmmjax.mixture import GaussianMixture
from gmmjax.priors import Prior
from gmmjax.typing import Array, ArrayLike, Float, Int, pytree, static

UNLABELLED = -1


@pytree
class LabelledMixture:
    """p(x, y) = Σ_j φ_j N(x; μ_j, Σ_j) T_jy: a latent-variable model whose data are (x, labels).

    Labels are integers 0 … k − 1, label j naming component j; −1 is none. `em` fits it as it does
    any other model.
    """

    mixture: GaussianMixture
    log_noise: Float[Array, "k k"]  # log T_jy = log p(label y | component j)
    estimate_noise: bool = static(default=False)

    def evidence(self, labels: Int[Array, "n"]) -> Float[Array, "n k"]:
        """log p(y_i | z_i = j); 0 where there is no label."""
        return jnp.where(labels[:, None] < 0, 0.0, self.log_noise.T[jnp.maximum(labels, 0)])

    def log_joint(self, data: tuple[Array, Array]) -> Float[Array, "n k"]:
        """log p(x_i, y_i, z_i = j), in nats."""
        x, labels = data
        return self.mixture.log_joint(x) + self.evidence(labels)

    def responsibilities(self, x: ArrayLike, labels: ArrayLike) -> Float[Array, "n k"]:
        """p(z_i = j | x_i, y_i): what the labels say included."""
        rows = checks.rows(x)
        y, _ = checks.labels(
            labels, "labels", self.mixture.n_components, n=rows.shape[0], least=UNLABELLED
        )
        return jax.nn.softmax(self.log_joint((rows, y)), axis=-1)

    # --- EM ---------------------------------------------------------------------------------------

    def prepare(self) -> "_Prepared":
        """What the E-step needs, computed once a step."""
        return _Prepared(self.mixture.prepare(), self)

    def expect(self, data: tuple[Array, Array], weights: Float[Array, "n"]) -> tuple[Any, Array]:
        """The E-step on a block of rows: see `_Prepared.expect`."""
        return self.prepare().expect(data, weights)

    def maximize(
        self, moments: Any, *, prior: Any = None, reg: ArrayLike = 0.0
    ) -> tuple["LabelledMixture", Int[Array, ""]]:
        """The mixture's M-step and, where it is estimated, T_jy = Σ_i r_ij 1{y_i = y} / Σ_y."""
        own, seen = moments if self.estimate_noise else (moments, None)
        model, status = self.mixture.maximize(own, prior=prior, reg=reg)
        log_noise = self.log_noise
        if seen is not None:
            total = jnp.sum(seen, axis=1, keepdims=True)
            # A component that no labelled row may belong to keeps its row.
            log_noise = jnp.where(
                total > 0, jnp.log(seen / jnp.where(total > 0, total, 1.0)), log_noise
            )
        return LabelledMixture(model, log_noise, self.estimate_noise), status

    def log_prior(self, prior: Prior) -> Float[Array, ""]:
        """Log-density of the prior at the mixture's parameters, in nats, up to a constant."""
        return self.mixture.log_prior(prior)

    def localize(
        self, data: tuple[Array, Array], weights: Array | None, prior: Prior | None
    ) -> tuple["LabelledMixture", tuple[Any, Array], Prior | None, Callable]:
        """Everything in the data's `Frame`, and the way back."""
        local, x, prior, restore = self.mixture.localize(data[0], weights, prior)
        return dataclasses.replace(self, mixture=local), (x, data[1]), prior, restore

    def affine(self, shift: Float[Array, "d"], unit: ArrayLike = 1.0) -> "LabelledMixture":
        """The distribution of shift + unit · x."""
        return dataclasses.replace(self, mixture=self.mixture.affine(shift, unit))


@pytree
class _Prepared:
    mixture: expectation.Prepared
    model: LabelledMixture

    def expect(
        self, data: tuple[Array, Array], weights: Float[Array, "n"]
    ) -> tuple[Any, Float[Array, ""]]:
        """Moments, and the log-likelihood of a block; with the labels' counts [k, k] for noise."""
        x, labels = data
        evidence = self.model.evidence(labels)
        if not self.model.estimate_noise:
            return self.mixture.expect(x, weights, evidence)
        # The moments of each label's rows apart: their weights are Σ_i r_ij 1{y_i = y}, and their
        # sum is the moments of all. The responsibilities do not depend on the label's weights, so
        # `vmap` computes them once.
        k = evidence.shape[1]
        apart = weights * (labels == jnp.append(jnp.arange(k), UNLABELLED)[:, None])
        sums, log_likelihood = jax.vmap(lambda w: self.mixture.expect(x, w, evidence))(apart)
        total = jax.tree.map(lambda a: jnp.sum(a, axis=0), sums)
        total = dataclasses.replace(total, about=sums.about[0])
        return (total, sums.weight[:k].T), jnp.sum(log_likelihood)

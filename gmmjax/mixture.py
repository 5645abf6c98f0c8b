"""The Gaussian mixture: p(x) = Σ_j φ_j N(x; μ_j, Σ_j), as an immutable pytree.

It is at once a distribution to differentiate, vmap and put inside a loss, and a latent-variable
model that `em` can fit. The covariance family is structure; everything else is a leaf.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gmmjax import checks, conditioning, expectation, families, incomplete, missing, moments
from gmmjax.checks import Dims
from gmmjax.conditioning import Regression
from gmmjax.frame import Frame
from gmmjax.incomplete import Incomplete
from gmmjax.moments import Moments
from gmmjax.priors import Prior
from gmmjax.status import Status, worst
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree, static
from gmmjax.uncertain import Uncertain

_CHUNK = 2**20
"""Numbers of k × d × rows that a density holds at once."""


@pytree
class GaussianMixture:
    """p(x) = Σ_j φ_j N(x; μ_j, Σ_j).

    Build one with `create`, which checks its arguments; the constructor checks nothing, so that it
    works on traced and on batched leaves.
    """

    log_weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    factors: families.Covariance
    family: str = static()

    # --- building ---------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        weights: ArrayLike,
        means: ArrayLike,
        covariances: ArrayLike,
        family: str = "full",
    ) -> "GaussianMixture":
        """A mixture from plain arrays, checked on the host.

        - `weights`: [k], non-negative, sum 1.
        - `means`: [k, d].
        - `covariances`: by family, full [k, d, d], tied [d, d], diag [k, d] (variances), spherical
          [k] (variances); or for any family [k, d, d].

        Raises `ValueError` on a wrong shape, a value that is not finite, weights that do not sum to
        1, or a matrix that is not symmetric positive definite.

        >>> import gmmjax
        >>> m = gmmjax.GaussianMixture.create([0.5, 0.5], [[0.0], [4.0]], [1.0, 1.0], "spherical")
        >>> m.predict([[0.1], [3.9]]).tolist()
        [0, 1]
        """
        name = families.get(family).name
        w, mu = _host("weights", weights), _host("means", means)
        cov = _host("covariances", covariances)
        if mu.ndim != 2 or 0 in mu.shape:
            raise ValueError(f"means: expected shape [k, d]; got {mu.shape}.")
        k, d = mu.shape
        if w.shape != (k,):
            raise ValueError(f"weights: expected shape [{k}], one a row of means; got {w.shape}.")
        if np.any(w < 0):
            raise ValueError(
                f"weights: expected non-negative numbers; got a minimum of {w.min():g}."
            )
        if abs(w.sum() - 1) > 1e-5:
            raise ValueError(
                f"weights: expected a sum of 1; got {w.sum():.6g}. Divide them by their sum."
            )
        dense = _dense(cov, k, d, name)
        _check_positive_definite(dense)
        factors = families.get(name).from_dense(jnp.asarray(dense, float))
        return cls(jnp.log(jnp.asarray(w / w.sum(), float)), jnp.asarray(mu, float), factors, name)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def n_components(self) -> int:
        return self.means.shape[-2]

    @property
    def n_features(self) -> int:
        return self.means.shape[-1]

    @property
    def weights(self) -> Float[Array, "k"]:
        """φ."""
        return jnp.exp(self.log_weights)

    @property
    def covariances(self) -> Float[Array, "k d d"]:
        """Σ_j, dense, for every family."""
        return self.factors.dense(self.n_components, self.n_features)

    def mean(self) -> Float[Array, "d"]:
        """E[x] = Σ_j φ_j μ_j."""
        return self.weights @ self.means

    def covariance(self) -> Float[Array, "d d"]:
        """Cov[x], within plus between components."""
        delta = self.means - self.mean()
        within = jnp.einsum("k,kab->ab", self.weights, self.covariances)
        return within + jnp.einsum("k,ka,kb->ab", self.weights, delta, delta)

    def n_parameters(self) -> int:
        """Free parameters: k − 1 weights, k·d means, and those of the family."""
        k, d = self.n_components, self.n_features
        return k - 1 + k * d + families.get(self.family).n_parameters(k, d)

    # --- density ----------------------------------------------------------------------------------

    def log_joint(self, x: ArrayLike | Incomplete | Uncertain) -> Float[Array, "*batch k"]:
        """log p(x, z = j) = log φ_j + log N(x; μ_j, Σ_j), in nats.

        `x` has shape [..., d]; many rows are taken in chunks, so memory stays O(chunk · k · d). Here and
        in the other densities it may be `Incomplete` rows (`missing.mask`), of which the known part
        counts, or `Uncertain` rows, of which the mean over their noise is taken.

        Raises `ValueError` on another number of features, and on NaN or infinity; so do all methods
        built on this one. Under `jit` values are not looked at, and NaN in a row is NaN in its density.
        """
        if isinstance(x, Incomplete):
            return incomplete.log_joint(self, x)
        d = self.n_features
        variance = None
        if isinstance(x, Uncertain):
            variance = checks.points(x.variance, d, self.means.dtype, "variance").reshape(-1, d)
            x = x.x
        x = checks.points(x, d, self.means.dtype)
        flat = x.reshape(-1, d)
        chunk = max(1, _CHUNK // (self.n_components * d))

        def dense(rows: tuple[Array, Array | None]) -> Array:
            return expectation.log_joint(self.log_weights, self.means, self.factors, *rows).T

        rows = (flat, variance)
        out = dense(rows) if len(flat) <= chunk else incomplete.by_blocks(dense, rows, chunk)
        return out.reshape(*x.shape[:-1], self.n_components)

    def log_prob(self, x: ArrayLike | Uncertain) -> Float[Array, "*batch"]:
        """log p(x) in nats, for x of shape [..., d]."""
        return jax.nn.logsumexp(self.log_joint(x), axis=-1)

    def log_likelihood(self, x: ArrayLike, weights: ArrayLike | None = None) -> Float[Array, ""]:
        """Σ_i w_i log p(x_i), in nats."""
        if weights is None:
            return jnp.sum(self.log_prob(x))
        if isinstance(x, (Incomplete, Uncertain)):
            return jnp.sum(jnp.asarray(weights) * self.log_prob(x))
        x = checks.points(x, self.n_features, self.means.dtype, finite=False)
        weights = jnp.asarray(weights, x.dtype)
        # An absent row is absent even where its density overflows, in the gradient too: 0 · inf is
        # NaN, so the row itself is replaced.
        rows = self.log_prob(jnp.where((weights > 0)[..., None], x, self.means[0]))
        return jnp.sum(weights * rows)

    def responsibilities(self, x: ArrayLike | Uncertain) -> Float[Array, "*batch k"]:
        """r_j(x) = p(z = j | x)."""
        return jax.nn.softmax(self.log_joint(x), axis=-1)

    def log_certainty(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """log max_j r_j(x): 0 where a row is sure of its component, −log k at the least."""
        log_joint = self.log_joint(x)
        return jnp.max(log_joint, axis=-1) - jax.nn.logsumexp(log_joint, axis=-1)

    def predict(self, x: ArrayLike | Uncertain) -> Int[Array, "*batch"]:
        """The most probable component of each row."""
        return jnp.argmax(self.log_joint(x), axis=-1)

    def bic(self, x: ArrayLike) -> Float[Array, ""]:
        """−2 ℓ + p log n: smaller is better (mclust prints its negative)."""
        n = np.shape(x)[0]
        return -2 * self.log_likelihood(x) + self.n_parameters() * math.log(n)

    def icl(self, x: ArrayLike) -> Float[Array, ""]:
        """BIC − 2 Σ_i log max_j r_ij: smaller is better (mclust prints its negative).

        The second term is what the classification costs where components overlap (Biernacki, Celeux and
        Govaert 2000), with each row in its most probable component, as mclust has it.
        """
        return self.bic(x) - 2 * jnp.sum(self.log_certainty(x))

    def aic(self, x: ArrayLike) -> Float[Array, ""]:
        """−2 ℓ + 2 p: smaller is better."""
        return -2 * self.log_likelihood(x) + 2 * self.n_parameters()

    # --- sampling ---------------------------------------------------------------------------------

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n d"], Int[Array, "n"]]:
        """n draws (x, z): z ~ Categorical(φ), x | z ~ N(μ_z, Σ_z)."""
        key_z, key_x = jax.random.split(key)
        z = jax.random.categorical(key_z, self.log_weights, shape=(n,))
        return self.sample_given(key_x, z), z

    def sample_given(self, key: Key[Array, ""], z: Int[Array, "n"]) -> Float[Array, "n d"]:
        """One draw of x | z for each given component."""
        d = self.n_features
        noise = jax.random.normal(key, (z.shape[0], d), self.means.dtype)

        def draw(rows: tuple[Array, Array]) -> Array:
            noise, z = rows
            return self.means[z] + self.factors.color(noise, z)

        # A factor is gathered for each row: of 784 pixels those of 5,000 rows are 12 GB.
        chunk = max(1, 16 * _CHUNK // d**2)
        rows = (noise, z)
        return draw(rows) if len(noise) <= chunk else incomplete.by_blocks(draw, rows, chunk)

    def sample_component(self, key: Key[Array, ""], c: ArrayLike, n: int) -> Float[Array, "n d"]:
        """n draws from component c, an integer from 0 to k − 1."""
        if checks.concrete(c) and not 0 <= int(c) < self.n_components:  # type: ignore[arg-type]
            raise ValueError(f"c: expected a component from 0 to {self.n_components - 1}; got {c}.")
        return self.sample_given(key, jnp.full((n,), c, jnp.int32))

    # --- parts ------------------------------------------------------------------------------------

    def marginal(self, dims: Dims) -> "GaussianMixture":
        """The mixture of the coordinates `dims` alone: see `conditioning.marginal`."""
        return conditioning.marginal(self, dims)

    def condition(self, dims: Dims, values: ArrayLike) -> "GaussianMixture":
        """The mixture of the others given x[dims] = values: see `conditioning.condition`."""
        return conditioning.condition(self, dims, values)

    def regress(self, dims: Dims, x_given: ArrayLike) -> Regression:
        """Mean, covariance and quantiles of the other coordinates: see `conditioning.regress`."""
        return conditioning.regress(self, dims, x_given)

    def impute(
        self, key: Key[Array, ""], x: ArrayLike, how: Literal["mean", "mode", "draw"] = "mean"
    ) -> Float[Array, "n d"]:
        """x [n, d] with a value for every NaN: see `missing.impute`."""
        return missing.impute(key, self, x, how)

    # --- moving -----------------------------------------------------------------------------------

    def affine(self, shift: Float[Array, "d"], unit: ArrayLike = 1.0) -> "GaussianMixture":
        """The distribution of shift + unit · x, for a positive number `unit`."""
        factors = jax.tree.map(
            lambda a: a * unit, self.factors
        )  # every leaf is a standard deviation
        return dataclasses.replace(self, means=self.means * unit + shift, factors=factors)

    # --- EM ---------------------------------------------------------------------------------------

    def prepare(self) -> expectation.Prepared:
        """What the E-step needs, computed once a step."""
        return expectation.prepare(self.log_weights, self.means, self.factors, self.family)

    def localize(
        self,
        x: Array | Incomplete | Uncertain,
        weights: Float[Array, "n"] | None,
        prior: Prior | None,
    ) -> tuple["GaussianMixture", Array | Incomplete | Uncertain, Prior | None, Callable]:
        """Everything in the data's `Frame`, where sums keep their digits; and the way back."""
        rows = x.x if isinstance(x, (Incomplete, Uncertain)) else x
        frame = Frame.of(rows, weights)
        n = jnp.asarray(x.shape[0], rows.dtype) if weights is None else jnp.sum(weights)
        local = None if prior is None else prior.into(frame)
        if isinstance(x, Incomplete):
            known = x.n_known(jnp.ones(len(rows)) if weights is None else weights)
            n = known / self.n_features
        plain = not isinstance(x, (Incomplete, Uncertain))
        local_x = frame.enter(x) if plain else x.enter(frame)
        return self.into(frame), local_x, local, lambda result: frame.leave(result, n)

    def into(self, frame: Frame) -> "GaussianMixture":
        """This mixture in the coordinates of a frame."""
        return self.affine(-frame.centre / frame.unit, 1.0 / frame.unit)

    def expect(
        self, x: Float[Array, "n d"] | Incomplete | Uncertain, weights: Float[Array, "n"]
    ) -> tuple[Moments, Float[Array, ""]]:
        """The E-step on a block of rows: moments, and the log-likelihood in nats."""
        return self.prepare().expect(x, weights)

    def maximize(
        self,
        sums: Moments,
        *,
        prior: Prior | None = None,
        reg: ArrayLike = 0.0,
        variance: Float[Array, "d"] | None = None,
    ) -> tuple["GaussianMixture", Int[Array, ""]]:
        """The M-step in closed form, and what to warn of.

        `reg` is a floor, as a fraction of the data's own variance in each column: Σ_j ⪰
        reg · diag(v). `variance` is v where `sums` are not those of all the data. A component without
        weight keeps its mean and covariance.
        """
        family = families.get(self.family)
        k, d = self.means.shape
        data = moments.centre(sums)
        floor = jnp.asarray(reg) * (moments.total_variance(data) if variance is None else variance)
        posterior = (
            data if prior is None else moments.centre(sums + prior.moments(sums.about, sums.kind))
        )
        tiny = jnp.finfo(self.means.dtype).tiny
        empty = ~(sums.weight > tiny) & ~jnp.isnan(sums.weight)
        unknown = empty if prior is None else jnp.zeros_like(empty)
        count = family.count(sums.weight, None if prior is None else prior.dof, d)
        count = jnp.where(unknown, 0.0 if family.shared else 1.0, count)
        # From where the last step ended: near the end of EM the inner iteration has little left to do,
        # and ends no lower whatever its limits.
        options: dict = {"start": self.factors} if family.iterative else {}
        factors, floored = family.maximize(posterior.scatter, count, floor, k, **options)
        if not family.shared:
            factors = jax.tree.map(
                lambda new, old: jnp.where(unknown.reshape(k, *[1] * (new.ndim - 1)), old, new),
                factors,
                self.factors,
            )
            floored = floored & ~unknown
        means = jnp.where(unknown[:, None], self.means, posterior.mean)
        log_weights = _log_weights(sums.weight, prior)
        model = GaussianMixture(log_weights, means, factors, self.family)
        # A prior holds a component of few rows in place; without one, some few rows of any data lie
        # close enough to a plane for a maximum that says nothing of the rest (McLachlan and Peel
        # 2000, 3.10).
        sparse = ~empty & (sums.weight < (2 * family.rows_needed(d) if prior is None else 0))
        half_log_det = factors.half_log_det()
        status = worst(
            jnp.where(jnp.all(jnp.isfinite(half_log_det)), Status.CONVERGED, Status.SINGULAR),
            jnp.where(jnp.any(floored), Status.DEGENERATE, Status.CONVERGED),
            jnp.where(jnp.any(sparse), Status.SPURIOUS, Status.CONVERGED),
            jnp.where(jnp.any(empty), Status.EMPTY_COMPONENT, Status.CONVERGED),
        )
        return model, status

    def log_prior(self, prior: Prior) -> Float[Array, ""]:
        """Log-density of the prior at these parameters, in nats, up to a constant."""
        family = families.get(self.family)
        d = self.n_features
        count = family.count(jnp.zeros_like(self.log_weights), prior.dof, d)
        log_det = 2 * self.factors.half_log_det()
        if family.second.shape_kind == "trace":
            log_det = log_det / d  # the count of a variance is that of its coordinates
        delta = (self.means - prior.mean)[:, :, None]
        distance = jnp.sum(self.factors.whiten(delta) ** 2, axis=(1, 2))
        spread = jnp.sum(self.factors.trace_solve(prior.second(family.second)))
        concentration = prior.concentration - 1
        dirichlet = jnp.where(concentration > 0, concentration * self.log_weights, 0.0)
        return (
            -0.5 * jnp.sum(count * log_det)
            - 0.5 * spread
            - 0.5 * prior.mean_precision * jnp.sum(distance)
            + jnp.sum(dirichlet)
        )


def from_moments(
    sums: Moments, family: str, *, prior: Prior | None = None, reg: ArrayLike = 0.0
) -> tuple[GaussianMixture, Int[Array, ""]]:
    """The M-step where there is no earlier model: from labels, or from random responsibilities.

    A component without weight gets the spread of all the data, at its reference point.
    """
    start = spread(sums, family)
    return start.maximize(sums, prior=prior, reg=reg)


def spread(sums: Moments, family: str) -> GaussianMixture:
    """Equal weights, the reference points as means, the diagonal of the data's covariance each."""
    k, d = sums.about.shape
    variance = moments.total_variance(moments.centre(sums))
    dense = jnp.broadcast_to(jnp.diag(jnp.where(variance > 0, variance, 1.0)), (k, d, d))
    factors = families.get(family).covariance.from_dense(dense)
    log_weights = jnp.full((k,), -math.log(k), sums.about.dtype)
    return GaussianMixture(log_weights, sums.about, factors, families.get(family).name)


def _log_weights(weight: Float[Array, "k"], prior: Prior | None) -> Float[Array, "k"]:
    if prior is not None:
        weight = weight + (prior.concentration - 1)
    return jnp.log(weight) - jnp.log(jnp.sum(weight))


def _host(name: str, value: ArrayLike) -> np.ndarray:
    try:
        array = np.asarray(value, float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers; got {type(value).__name__}.") from error
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name}: expected finite numbers; got NaN or infinity.")
    return array


def _dense(cov: np.ndarray, k: int, d: int, family: str) -> np.ndarray:
    """Covariances in the family's own shape, or dense, as [k, d, d]."""
    eye = np.eye(d)
    if family == "tied" and cov.shape == (d, d):
        return np.broadcast_to(cov, (k, d, d))
    if family == "diag" and cov.shape == (k, d):
        return cov[:, :, None] * eye
    if family == "spherical" and cov.shape == (k,):
        return cov[:, None, None] * eye
    if cov.shape == (k, d, d):
        return cov
    own = {"tied": f"[{d}, {d}]", "diag": f"[{k}, {d}]", "spherical": f"[{k}]"}.get(family)
    either = f"{own} or [{k}, {d}, {d}]" if own else f"[{k}, {d}, {d}]"
    raise ValueError(
        f"covariances: expected shape {either} for family {family!r}; got {cov.shape}."
    )


def _check_positive_definite(dense: np.ndarray) -> None:
    scale = np.max(np.abs(dense), axis=(1, 2))
    if np.any(np.max(np.abs(dense - dense.transpose(0, 2, 1)), axis=(1, 2)) > 1e-6 * scale):
        raise ValueError("covariances: expected symmetric matrices; symmetrise with (S + Sᵀ) / 2.")
    try:
        np.linalg.cholesky(dense)
    except np.linalg.LinAlgError:
        worst_value = np.linalg.eigvalsh(dense).min()
        raise ValueError(
            "covariances: expected positive definite matrices; got a smallest eigenvalue of "
            f"{worst_value:.3g}. Add a small multiple of the identity, or use a simpler family."
        ) from None

"""Mixtures of factor analysers and of probabilistic PCA: covariances of low rank plus noise.

x | z = j is N(μ_j, Λ_j Λ_jᵀ + Ψ_j), Λ_j of shape [d, q] and Ψ_j diagonal (factor analysis) or a multiple of
the identity (PPCA). For many features: no d × d matrix is ever formed, and memory is O(k d q). A
model of its own and not a covariance family, because its sufficient statistics are not second
moments but those of the rows with their expected factors.

Ghahramani and Hinton (1996); Tipping and Bishop (1999). Given the responsibilities the mean is set to
its optimum first and the factors are expected about it, so that one step ascends in all parameters;
the loadings take the step of PX-EM (Liu, Rubin and Wu 1998), which lets the factors have a free
covariance and folds it back into Λ: plain EM crawls where the noise is small.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gmmjax import checks, families, linalg, moments
from gmmjax.blocks import split
from gmmjax.frame import Frame
from gmmjax.kmeans import kmeans
from gmmjax.mixture import GaussianMixture
from gmmjax.models import factor_conditioning
from gmmjax.moments import Moments, Second
from gmmjax.status import Status, worst
from gmmjax.typing import Array, ArrayLike, Float, Int, Key, pytree, static

_LOG_2PI = math.log(2 * math.pi)

_CHUNK = 2**20
"""Numbers of components × rows × features that an E-step holds at once."""


@pytree
class FactorMoments:
    """Sums over rows in each component's own units: δ = (x − μ_j) / s_j, u = E[factors | x, z = j].

    Those about the same model add up. In these units everything is of order 1, whatever the shift
    and the scale of the data.
    """

    weight: Float[Array, "k"]  # Σ_i r_ij
    first: Float[Array, "k d"]  # Σ_i r_ij δ
    second: Float[Array, "k d"]  # Σ_i r_ij δ²
    cross: Float[Array, "k d q"]  # Σ_i r_ij δ uᵀ


@pytree
class Prepared:
    """What the E-step needs, computed once a step: with Λ' = Λ / s, M = I + Λ'ᵀ Λ'."""

    constant: Float[Array, "k"]  # log φ_j − ½ d log 2π − ½ log|Σ_j|
    means: Float[Array, "k d"]
    scale: Float[Array, "k d"]
    loadings: Float[Array, "k d q"]  # Λ'
    regression: Float[Array, "k q d"]  # β = M⁻¹ Λ'ᵀ: u = β δ
    remaining: Float[Array, "k q q"]  # M⁻¹, the covariance of the factors given x

    def log_joint(self, xt: Float[Array, "d n"]) -> Float[Array, "k n"]:
        """log p(x, z = j) in nats."""

        def one(part: tuple[Array, ...]) -> Array:
            constant, mean, scale, loadings, regression = part
            delta = (xt - mean[:, None]) / scale[:, None]
            u = linalg.dot(regression, delta)
            # δᵀ Σ'⁻¹ δ as two sums of squares; δᵀδ − uᵀMu cancels where the factors explain much.
            rest = delta - linalg.dot(loadings, u)
            return constant - 0.5 * (jnp.sum(rest * rest, axis=0) + jnp.sum(u * u, axis=0))

        parts = (self.constant, self.means, self.scale, self.loadings, self.regression)
        return lax.map(one, parts, batch_size=self._batch(xt))

    def expect(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"]
    ) -> tuple[FactorMoments, Float[Array, ""]]:
        """Moments and log-likelihood of a block of rows."""
        xt = x.T
        log_joint = self.log_joint(xt)
        row_log_prob = jax.nn.logsumexp(log_joint, axis=0)
        responsibilities = jnp.exp(log_joint - row_log_prob) * weights

        def one(part: tuple[Array, ...]) -> tuple[Array, Array, Array]:
            r, mean, scale, regression = part
            delta = (xt - mean[:, None]) / scale[:, None]
            weighted = delta * r
            u = linalg.dot(regression, delta)
            first, second = jnp.sum(weighted, axis=1), jnp.sum(weighted * delta, axis=1)
            return first, second, linalg.dot(weighted, u.T)

        parts = (responsibilities, self.means, self.scale, self.regression)
        first, second, cross = lax.map(one, parts, batch_size=self._batch(xt))
        weight = jnp.sum(responsibilities, axis=1)
        return FactorMoments(weight, first, second, cross), jnp.sum(weights * row_log_prob)

    def _batch(self, xt: Array) -> int:
        return min(self.means.shape[0], max(1, _CHUNK // xt.size))


@pytree
class FactorMixture:
    """p(x) = Σ_j φ_j N(x; μ_j, Λ_j Λ_jᵀ + diag(s_j²)), a model for `em`.

    `start` makes one from data. The loadings are defined up to a rotation of the factors.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_iris().x
    >>> start = gmmjax.models.FactorMixture.start(jax.random.key(0), x, 3, n_factors=1)
    >>> result = gmmjax.em(start, x, reg=1e-6)
    >>> result.model.loadings.shape
    (3, 4, 1)
    """

    log_weights: Float[Array, "k"]
    means: Float[Array, "k d"]
    loadings: Float[Array, "k d q"]  # Λ_j
    scale: Float[Array, "k d"]  # s_j, standard deviations of the noise
    noise: Literal["diag", "spherical"] = static()

    # --- building ---------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        key: Key[Array, ""],
        x: ArrayLike,
        n_components: int,
        n_factors: int,
        *,
        noise: Literal["diag", "spherical"] = "diag",
        weights: ArrayLike | None = None,
    ) -> "FactorMixture":
        """Clusters of K-means, and in each the PPCA of the columns in units of their spread.

        `noise`: "diag" for factor analysis, "spherical" for probabilistic PCA (whose columns keep
        their units). `weights`: how often each row counts, [n].

        Raises `TypeError`, `ValueError` for arguments that cannot be used.
        """
        x = checks.rows(x)
        n, d = x.shape
        w = checks.weights(weights, n, x.dtype)
        w = jnp.ones(n, x.dtype) if w is None else w
        k, q = checks.count(n_components, "n_components"), checks.count(n_factors, "n_factors")
        if q > d:
            raise ValueError(f"n_factors: expected at most the {d} features of x; got {q}.")
        if noise not in ("diag", "spherical"):
            raise ValueError(f"noise: expected 'diag' or 'spherical'; got {noise!r}.")
        key_clusters, key_axes = jax.random.split(key)
        clusters = kmeans(key_clusters, x, k, restarts=1, weights=w)
        delta = jnp.where(w[:, None] > 0, x - clusters.centers[clusters.labels], 0.0)
        # Of all clusters together: the spread of a small one may be 0.
        unit = jnp.sqrt(w @ delta**2 / jnp.sum(w))
        unit = jnp.where(unit > 0, unit, jnp.where(jnp.any(unit > 0), jnp.max(unit), 1.0))
        if noise == "spherical":
            unit = jnp.full_like(unit, jnp.sqrt(jnp.mean(unit**2)))
        hot = w[:, None] * jax.nn.one_hot(clusters.labels, k, dtype=x.dtype)
        loadings, scale = _principal_factors(key_axes, delta / unit, hot, q)
        weight = jnp.sum(hot, axis=0)
        return cls(
            log_weights=jnp.log(weight + 1) - jnp.log(jnp.sum(weight + 1)),
            means=clusters.centers,
            loadings=unit[:, None] * loadings,
            scale=unit * scale[:, None],
            noise=noise,
        )

    @classmethod
    def join(cls, shares: ArrayLike, mixtures: "Sequence[FactorMixture]") -> "FactorMixture":
        """Σ_c π_c p_c(x) as one mixture, the components of the first first; `shares`: π, of sum 1.

        Raises `ValueError` where the mixtures differ in features or in factors, or the shares are
        not a probability for each.
        """
        pi = np.asarray(shares, float)
        if pi.shape != (len(mixtures),) or not (np.all(pi >= 0) and abs(pi.sum() - 1) <= 1e-5):
            raise ValueError(
                f"shares: expected {len(mixtures)} non-negative numbers of sum 1, one a mixture; got "
                f"{pi.tolist()}."
            )
        kinds = {(m.n_features, m.n_factors) for m in mixtures}
        if len(kinds) > 1:
            raise ValueError(
                f"mixtures: expected one number of features and of factors; got {sorted(kinds)}."
            )
        with np.errstate(divide="ignore"):
            log_pi = np.log(pi)
        parts = [
            (log_share + m.log_weights, m.means, m.loadings, m.scale)
            for log_share, m in zip(log_pi, mixtures, strict=True)
        ]
        noise = "spherical" if all(m.noise == "spherical" for m in mixtures) else "diag"
        return cls(*(jnp.concatenate(leaves) for leaves in zip(*parts, strict=True)), noise=noise)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def n_components(self) -> int:
        return self.means.shape[-2]

    @property
    def n_features(self) -> int:
        return self.means.shape[-1]

    @property
    def n_factors(self) -> int:
        return self.loadings.shape[-1]

    @property
    def weights(self) -> Float[Array, "k"]:
        """φ."""
        return jnp.exp(self.log_weights)

    @property
    def covariances(self) -> Float[Array, "k d d"]:
        """Σ_j, dense: for few features."""
        product = linalg.dot(self.loadings, jnp.swapaxes(self.loadings, -1, -2))
        return product + jax.vmap(jnp.diag)(self.scale**2)

    def to_mixture(self) -> GaussianMixture:
        """The same distribution with full covariances: for few features."""
        factors = families.Full.from_dense(self.covariances)
        return GaussianMixture(self.log_weights, self.means, factors, "full")

    def n_parameters(self) -> int:
        """k − 1 weights, k·d means; for each component d·q loadings up to rotation, and the noise."""
        k, d, q = self.n_components, self.n_features, self.n_factors
        noise = d if self.noise == "diag" else 1
        return k - 1 + k * (d + d * q - q * (q - 1) // 2 + noise)

    # --- density ----------------------------------------------------------------------------------

    def log_joint(self, x: ArrayLike) -> Float[Array, "*batch k"]:
        """log p(x, z = j) in nats, for x of shape [..., d]; many rows are taken in chunks."""
        d, k = self.n_features, self.n_components
        x = checks.points(x, d, self.means.dtype)
        flat = x.reshape(-1, d).astype(self.means.dtype)
        prepared = self.prepare()
        chunks = split(flat, block=max(1, _CHUNK // d)).data
        out = lax.map(lambda rows: prepared.log_joint(rows.T).T, chunks)
        return out.reshape(-1, k)[: flat.shape[0]].reshape(*x.shape[:-1], k)

    def log_prob(self, x: ArrayLike) -> Float[Array, "*batch"]:
        """log p(x) in nats, for x of shape [..., d]."""
        return jax.nn.logsumexp(self.log_joint(x), axis=-1)

    def log_likelihood(self, x: ArrayLike) -> Float[Array, ""]:
        """Σ_i log p(x_i), in nats."""
        return jnp.sum(self.log_prob(x))

    def responsibilities(self, x: ArrayLike) -> Float[Array, "*batch k"]:
        """p(z = j | x)."""
        return jax.nn.softmax(self.log_joint(x), axis=-1)

    def predict(self, x: ArrayLike) -> Int[Array, "*batch"]:
        """The most probable component of each row."""
        return jnp.argmax(self.log_joint(x), axis=-1)

    def factors(self, x: Float[Array, "n d"]) -> Float[Array, "n k q"]:
        """E[factors | x, z = j]: where a row lies in each component's subspace."""
        p = self.prepare()
        # About the middle of the means: the difference of two products about 0 would cancel.
        centre = jnp.mean(p.means, axis=0)
        offset = linalg.einsum("kqd,kd->kq", p.regression, (p.means - centre) / p.scale)
        return linalg.einsum("kqd,nd->nkq", p.regression / p.scale[:, None, :], x - centre) - offset

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n d"], Int[Array, "n"]]:
        """n draws (x, z)."""
        key_z, key_u, key_e = jax.random.split(key, 3)
        k, d, q = self.loadings.shape
        z = jax.random.categorical(key_z, self.log_weights, shape=(n,))
        u = jax.random.normal(key_u, (n, q), self.means.dtype)
        e = jax.random.normal(key_e, (n, d), self.means.dtype)
        # Each row's factors in its component's place: one product, and no [n, d, q].
        placed = jax.nn.one_hot(z, k, dtype=u.dtype)[:, :, None] * u[:, None, :]
        stacked = jnp.swapaxes(self.loadings, 1, 2).reshape(k * q, d)
        signal = linalg.dot(placed.reshape(n, k * q), stacked)
        return self.means[z] + signal + self.scale[z] * e, z

    # --- parts ------------------------------------------------------------------------------------

    def marginal(self, dims: checks.Dims) -> "FactorMixture":
        """The mixture of the coordinates `dims` alone: see `factor_conditioning.marginal`."""
        return factor_conditioning.marginal(self, dims)

    def condition(self, dims: checks.Dims, values: ArrayLike) -> "FactorMixture":
        """The mixture of the others given x[dims] = values: see `factor_conditioning.condition`."""
        return factor_conditioning.condition(self, dims, values)

    def impute(
        self, key: Key[Array, ""], x: ArrayLike, how: Literal["mean", "draw"] = "mean"
    ) -> Float[Array, "n d"]:
        """x [n, d] with a value for every NaN: see `factor_conditioning.impute`."""
        return factor_conditioning.impute(key, self, x, how)

    # --- EM ---------------------------------------------------------------------------------------

    def affine(self, shift: Float[Array, "d"], unit: ArrayLike = 1.0) -> "FactorMixture":
        """The distribution of shift + unit · x, for a positive number `unit`."""
        return dataclasses.replace(
            self,
            means=self.means * unit + shift,
            loadings=self.loadings * unit,
            scale=self.scale * unit,
        )

    def localize(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"] | None, prior: Any
    ) -> tuple["FactorMixture", Array, Any, Callable]:
        """Everything in the data's `Frame`, and the way back."""
        frame = Frame.of(x, weights)
        n = jnp.asarray(x.shape[0], x.dtype) if weights is None else jnp.sum(weights)
        return self.into(frame), frame.enter(x), prior, lambda result: frame.leave(result, n)

    def into(self, frame: Frame) -> "FactorMixture":
        """This mixture in the coordinates of a frame."""
        return self.affine(-frame.centre / frame.unit, 1.0 / frame.unit)

    def inner_whitener(self) -> Float[Array, "k q q"]:
        """L⁻¹ for M = L Lᵀ, the precision of the factors given x: L⁻ᵀ is a root of their covariance."""
        loadings = self.loadings / self.scale[:, :, None]
        eye = jnp.eye(self.n_factors, dtype=loadings.dtype)
        inner = eye + linalg.dot(jnp.swapaxes(loadings, -1, -2), loadings)
        return linalg.inverse_lower(linalg.cholesky(inner))

    def prepare(self) -> Prepared:
        """What the E-step needs, once a step."""
        loadings = self.loadings / self.scale[:, :, None]
        transposed = jnp.swapaxes(loadings, -1, -2)
        inverse = self.inner_whitener()
        remaining = linalg.dot(jnp.swapaxes(inverse, -1, -2), inverse)
        half_log_det = jnp.sum(jnp.log(self.scale), axis=-1) - linalg.half_log_det(inverse)
        return Prepared(
            constant=self.log_weights - 0.5 * self.n_features * _LOG_2PI - half_log_det,
            means=self.means,
            scale=self.scale,
            loadings=loadings,
            regression=linalg.dot(remaining, transposed),
            remaining=remaining,
        )

    def expect(
        self, x: Float[Array, "n d"], weights: Float[Array, "n"]
    ) -> tuple[FactorMoments, Float[Array, ""]]:
        """The E-step on a block of rows."""
        return self.prepare().expect(x, weights)

    def maximize(
        self, sums: FactorMoments, *, prior: Any = None, reg: ArrayLike = 0.0
    ) -> tuple["FactorMixture", Int[Array, ""]]:
        """Means at their optimum, and a step of PX-EM in loadings and noise about them.

        `reg` bounds the noise from below, as a fraction of each column's variance. A component
        without weight stays as it is. There is no prior for this model: `prior` must be None.
        """
        if prior is not None:
            raise ValueError("prior: a mixture of factor analysers takes none; got one.")
        p = self.prepare()
        lowest = self._floor(sums, reg)
        tiny = jnp.finfo(self.means.dtype).tiny
        empty = ~(sums.weight > tiny) & ~jnp.isnan(sums.weight)
        n = jnp.where(empty, 1.0, sums.weight)[:, None]
        first = sums.first / n
        second = sums.second / n - first**2
        moved = linalg.einsum("kqd,kd->kq", p.regression, first)
        cross = sums.cross / n[:, :, None] - first[:, :, None] * moved[:, None, :]
        inner = linalg.symmetrize(p.remaining + linalg.dot(p.regression, cross))
        inverse = linalg.inverse_lower(linalg.cholesky(inner))
        loadings = linalg.dot(cross, jnp.swapaxes(inverse, -1, -2))
        variance = self.scale**2 * (second - jnp.sum(loadings**2, axis=-1))
        if self.noise == "spherical":
            variance = jnp.broadcast_to(jnp.mean(variance, axis=-1, keepdims=True), variance.shape)
        floored = jnp.any(~(variance > lowest), axis=-1) & ~empty
        scale = jnp.sqrt(jnp.maximum(variance, lowest))
        kept = empty[:, None]
        model = FactorMixture(
            log_weights=jnp.log(sums.weight) - jnp.log(jnp.sum(sums.weight)),
            means=jnp.where(kept, self.means, self.means + self.scale * first),
            loadings=jnp.where(kept[:, :, None], self.loadings, self.scale[:, :, None] * loadings),
            scale=jnp.where(kept, self.scale, scale),
            noise=self.noise,
        )
        sound = jnp.all(jnp.isfinite(model.loadings)) & jnp.all(model.scale > 0)
        status = worst(
            jnp.where(sound, Status.CONVERGED, Status.SINGULAR),
            jnp.where(jnp.any(floored), Status.DEGENERATE, Status.CONVERGED),
            jnp.where(jnp.any(empty), Status.EMPTY_COMPONENT, Status.CONVERGED),
        )
        return model, status

    def coordinates(self) -> tuple[Array, Array, Array, Array]:
        """Parameters without constraints: for `acceleration`, as the M-step depends on the model."""
        return self.log_weights, self.means, self.loadings, jnp.log(self.scale)

    def at(
        self, coordinates: tuple[Array, Array, Array, Array], moments: FactorMoments, reg: ArrayLike
    ) -> "FactorMixture":
        """The mixture with other `coordinates`, its noise above the floor; `moments` are about `self`."""
        log_weights, means, loadings, log_scale = coordinates
        scale = jnp.maximum(jnp.exp(log_scale), jnp.sqrt(self._floor(moments, reg)))
        return FactorMixture(jax.nn.log_softmax(log_weights), means, loadings, scale, self.noise)

    def _floor(self, sums: FactorMoments, reg: ArrayLike) -> Float[Array, "d"]:
        """What the noise variance is at least."""
        lowest = jnp.asarray(reg) * moments.total_variance(
            moments.centre(self._second_moments(sums))
        )
        return jnp.full_like(lowest, jnp.mean(lowest)) if self.noise == "spherical" else lowest

    def _second_moments(self, sums: FactorMoments) -> Moments:
        """The diagonal second moments in the data's units, about the means."""
        first, second = sums.first * self.scale, sums.second * self.scale**2
        return Moments(self.means, sums.weight, first, second, Second.DIAG)


@partial(jax.jit, static_argnames="q")
def _principal_factors(
    key: Key[Array, ""], delta: Float[Array, "n d"], hot: Float[Array, "n k"], q: int
) -> tuple[Float[Array, "k d q"], Float[Array, "k"]]:
    """Loadings and noise of the PPCA of each cluster (Tipping and Bishop 1999, eq. 7), by power iteration.

    Products of the rows with [d, q] alone. Where a cluster's rows do not fill q directions, or leave
    nothing for the noise, a share of the mean variance stands in.
    """
    n = jnp.maximum(jnp.sum(hot, axis=0), 1.0)
    d = delta.shape[1]

    def one(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        key, r, n = part

        def product(axes: Array) -> Array:
            return linalg.dot(delta.T * r, linalg.dot(delta, axes)) / n

        def turn(_: Array, axes: Array) -> Array:
            return jnp.linalg.qr(product(axes))[0]

        axes = jnp.linalg.qr(jax.random.normal(key, (d, q), delta.dtype))[0]
        axes = lax.fori_loop(0, 8, turn, axes)
        values, vectors = jnp.linalg.eigh(linalg.symmetrize(linalg.dot(axes.T, product(axes))))
        total = jnp.sum(r[:, None] * delta**2) / n
        left = (total - jnp.sum(values)) / max(d - q, 1)
        noise = jnp.maximum(left, jnp.where(total > 0, 1e-3 * total / d, 1e-3))
        signal = jnp.sqrt(jnp.maximum(values - noise, 1e-3 * noise))
        return linalg.dot(axes, vectors) * signal, jnp.sqrt(noise)

    return lax.map(one, (jax.random.split(key, hot.shape[1]), hot.T, n))

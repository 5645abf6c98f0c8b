"""Standard errors from the observed information, −∇² ℓ at the fitted model, by automatic differentiation.

The Hessian is taken in `coordinates` without constraints, so that it can be inverted, and carried to
weights, means and covariances by the delta method. At a maximum of the likelihood the choice of
coordinates does not matter. McLachlan and Peel (2000), sections 2.15 and 2.16.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
import numpy as np

from gmmjax import blocks as blocks_
from gmmjax import checks, linalg
from gmmjax.frame import Frame
from gmmjax.inference.coordinates import Parameters, coordinates
from gmmjax.mixture import GaussianMixture
from gmmjax.typing import Array, ArrayLike, Bool, Float, pytree

_ROOM = 2**23
"""Numbers that the tangents of one block of rows may take."""


@pytree
class StandardErrors:
    """Standard errors, in the units of what they are errors of; NaN where there are none."""

    errors: Parameters
    information: Float[Array, "p p"]  # −∇² ℓ in `coordinates` of the data's frame
    positive_definite: Bool[Array, ""]  # whether it is: not at a saddle, nor on a flat ridge

    def intervals(
        self, model: GaussianMixture, level: ArrayLike = 0.95
    ) -> tuple[Parameters, Parameters]:
        """Normal confidence limits about the model's parameters, lower and upper."""
        return normal_intervals(Parameters.of(model), self.errors, level)


def standard_errors(
    model: GaussianMixture,
    x: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    robust: bool = False,
    throw: bool = True,
) -> StandardErrors:
    """Standard errors of a mixture fitted to x by maximum likelihood, from the observed information.

    **Arguments**

    - `model`: a `GaussianMixture` of any family at a maximum of the likelihood: fit to a small `tol`.
    - `x`: the data of that fit, [n, d]; `weights` how often each row counts, [n].
    - `robust`: the sandwich I⁻¹ J I⁻¹, J = Σ_i w_i s_i s_iᵀ of the scores, which holds where the data are
      not from a mixture of this kind (White 1982), in place of I⁻¹.
    - `throw`: raise where the information is not positive definite; otherwise errors are NaN.

    They say how far an estimate scatters in repeated samples of this size, about this maximum: they
    count neither other maxima nor the choice of k. Of few rows or components that overlap much, prefer
    the bootstrap.

    **Raises** `ValueError` for arguments that cannot be used.

    >>> import jax, gmmjax
    >>> x = gmmjax.datasets.load_faithful().x
    >>> model = gmmjax.fit(jax.random.key(0), x, 1, family="tied-spherical").model
    >>> found = gmmjax.inference.standard_errors(model, x)
    >>> float(found.errors.means[0, 0])  # σ / √n
    0.584
    """
    x = check(model, x)
    w = checks.weights(weights, x.shape[0], x.dtype)
    out = _standard_errors(model, x, w, robust=bool(robust))
    if throw and checks.concrete(out) and not bool(out.positive_definite):
        raise ValueError(
            "model: expected a maximum of the likelihood of x; its information is not positive "
            "definite. Fit to x with a smaller tol and more max_steps; fewer components or a simpler "
            "family where a component has no rows, or two share theirs."
        )
    return out


@partial(jax.jit, static_argnames="robust")
def _standard_errors(
    model: GaussianMixture, x: Array, w: Array | None, *, robust: bool
) -> StandardErrors:
    frame = Frame.of(x, w)
    theta, at = coordinates(model.into(frame))
    size = theta.shape[0] * model.n_components * model.n_features
    data = blocks_.split(frame.enter(x), w, max(1, min(1024, _ROOM // size)))

    def block_information(rows: Array, weights: Array) -> Float[Array, "p p"]:
        def log_likelihood(theta: Array) -> Array:
            return jnp.sum(weights * at(theta).log_prob(rows))

        return -jax.hessian(log_likelihood)(theta)

    def block_scores(rows: Array, weights: Array) -> Float[Array, "p p"]:
        scores = jax.jacfwd(lambda theta: at(theta).log_prob(rows))(theta)
        return linalg.dot(scores.T * weights, scores)

    information = linalg.symmetrize(blocks_.total(block_information, data))
    factor = linalg.cholesky(information)
    inverse = linalg.inverse_lower(factor)

    def natural(theta: Array) -> Parameters:
        return Parameters.of(at(theta).affine(frame.centre, frame.unit))

    meat = None
    if robust:
        meat = blocks_.total(block_scores, data)

    def error(jacobian: Float[Array, "... p"]) -> Float[Array, "..."]:
        root = linalg.dot(jacobian, inverse.T)
        if meat is None:
            return jnp.sqrt(jnp.sum(root**2, axis=-1))
        root = linalg.dot(root, inverse)
        return jnp.sqrt(jnp.maximum(jnp.sum(linalg.dot(root, meat) * root, axis=-1), 0.0))

    # Some derivatives are constants. Where XLA (jaxlib 0.10) knows it, it begins to factorise the
    # information while it compiles, where it finds no LAPACK and fails.
    jacobian = jax.jacfwd(natural)(lax.optimization_barrier(theta))
    errors = jax.tree.map(error, lax.optimization_barrier(jacobian))
    return StandardErrors(errors, information, jnp.all(jnp.isfinite(inverse)))


def normal_intervals(
    estimate: Parameters, errors: Parameters, level: ArrayLike
) -> tuple[Parameters, Parameters]:
    """estimate ± z · error."""
    check_level(level)
    z = jax.scipy.special.ndtri(0.5 + 0.5 * jnp.asarray(level, estimate.weights.dtype))
    low = jax.tree.map(lambda a, e: a - z * e, estimate, errors)
    return low, jax.tree.map(lambda a, e: a + z * e, estimate, errors)


def check(model: GaussianMixture, x: ArrayLike) -> Float[Array, "n d"]:
    """x, as rows that the model can be a model of."""
    if not isinstance(model, GaussianMixture):
        raise TypeError(f"model: expected a GaussianMixture; got {type(model).__name__}.")
    x = checks.rows(x)
    if x.shape[1] != model.n_features:
        raise ValueError(f"x: expected shape [n, {model.n_features}], as the model; got {x.shape}.")
    return x


def check_level(level: ArrayLike) -> None:
    """A number between 0 and 1."""
    if checks.concrete(level):
        number = np.asarray(level)
        if number.shape != () or not 0 < number < 1:
            raise ValueError(f"level: expected a number between 0 and 1, e.g. 0.95; got {level!r}.")

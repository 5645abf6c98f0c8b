"""Standard errors from the observed information, −∇² ℓ at the fitted model, by automatic differentiation.

The Hessian is taken in `coordinates` without constraints, so that it can be inverted, and carried to
weights, means and covariances by the delta method. At a maximum of the likelihood the choice of
coordinates does not matter. McLachlan and Peel (2000), sections 2.15 and 2.16.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
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


def _standard_errors(
    model: GaussianMixture, x: Array, w: Array | None, *, robust: bool
) -> StandardErrors:
    # Programs of their own: in one, XLA (jaxlib 0.10) begins to factorise the information of one component
    # while it compiles, where it finds no LAPACK and fails.
    frame = Frame.of(x, w)
    local = model.into(frame)
    rows = frame.enter(x)
    information, inverse = _information(local, rows, w)
    meat = _score_products(local, rows, w) if robust else None
    errors = _errors(local, frame, inverse, meat)
    return StandardErrors(errors, information, jnp.all(jnp.isfinite(inverse)))


def _sum_over_blocks(
    of_rows: Callable[[Array, Callable, Array, Array], Array],
    model: GaussianMixture,
    x: Array,
    w: Array | None,
) -> Float[Array, "p p"]:
    """Σ over blocks of of_rows(θ, its model, rows, weights): as many rows at once as there is room for."""
    theta, at = coordinates(model)
    size = theta.shape[0] * model.n_components * model.n_features
    data = blocks_.split(x, w, max(1, min(1024, _ROOM // size)))
    return blocks_.total(partial(of_rows, theta, at), data)


@jax.jit
def _information(
    model: GaussianMixture, x: Array, w: Array | None
) -> tuple[Float[Array, "p p"], Float[Array, "p p"]]:
    """I = −∂²ℓ/∂θ∂θᵀ, and the inverse of its Cholesky factor."""

    def of_rows(theta: Array, at: Callable, rows: Array, weights: Array) -> Float[Array, "p p"]:
        return -jax.hessian(lambda t: jnp.sum(weights * at(t).log_prob(rows)))(theta)

    information = linalg.symmetrize(_sum_over_blocks(of_rows, model, x, w))
    return information, linalg.inverse_lower(linalg.cholesky(information))


@jax.jit
def _score_products(model: GaussianMixture, x: Array, w: Array | None) -> Float[Array, "p p"]:
    """J = Σ_i w_i s_i s_iᵀ."""

    def of_rows(theta: Array, at: Callable, rows: Array, weights: Array) -> Float[Array, "p p"]:
        scores = jax.jacfwd(lambda t: at(t).log_prob(rows))(theta)
        return linalg.dot(scores.T * weights, scores)

    return _sum_over_blocks(of_rows, model, x, w)


@jax.jit
def _errors(model: GaussianMixture, frame: Frame, inverse: Array, meat: Array | None) -> Parameters:
    """The delta method: √(J I⁻¹ Jᵀ) of every number, or of the sandwich."""
    theta, at = coordinates(model)

    def natural(theta: Array) -> Parameters:
        return Parameters.of(at(theta).affine(frame.centre, frame.unit))

    def error(jacobian: Float[Array, "... p"]) -> Float[Array, "..."]:
        root = linalg.dot(jacobian, inverse.T)
        if meat is None:
            return jnp.sqrt(jnp.sum(root**2, axis=-1))
        root = linalg.dot(root, inverse)
        return jnp.sqrt(jnp.maximum(jnp.sum(linalg.dot(root, meat) * root, axis=-1), 0.0))

    return jax.tree.map(error, jax.jacfwd(natural)(theta))


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

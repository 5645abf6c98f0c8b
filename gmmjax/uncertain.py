"""Rows known up to Gaussian noise: data for `em` and for the densities of a mixture.

Each row is a normal N(m_i, S_i) rather than a point, as the codes of a variational autoencoder are.
With E over that normal, the E-step rests on

    E[log φ_j N(z; μ_j, Σ_j)] = log φ_j + log N(m_i; μ_j, Σ_j) − ½ tr(Σ_j⁻¹ S_i).

Its logsumexp over j is the best value of E[log p(z, j) − log g_j] that one g_i a row can reach, and its
softmax is that g_i (MATH 7, mean-field; Falck et al. 2021). The expected moments take m mᵀ + S in
the place of x xᵀ, and the M-step is that of every other fit.
"""

from gmmjax.frame import Frame
from gmmjax.typing import Array, Float, pytree


@pytree
class Uncertain:
    """Rows N(m_i, diag(v_i)); what a density gives for one is the bound above, in nats.

    >>> import jax.numpy as jnp, gmmjax
    >>> from gmmjax.uncertain import Uncertain
    >>> rows = Uncertain(jnp.array([[0.0], [4.0]]), jnp.array([[1.0], [2.0]]))
    >>> one = gmmjax.GaussianMixture.create([1.0], [[0.0]], [1.0], "spherical")
    >>> gmmjax.em(one, rows).model.covariances.tolist()  # 4 between the rows, 1.5 within
    [[[5.5]]]
    """

    x: Float[Array, "*rows d"]  # m_i
    variance: Float[Array, "*rows d"]  # v_i

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    def enter(self, frame: Frame) -> "Uncertain":
        """The rows in the coordinates of a frame."""
        return Uncertain(frame.enter(self.x), self.variance / frame.unit**2)

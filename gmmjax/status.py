"""How a lane ended: a small integer inside jit, a sentence with causes and a remedy outside it.

A lane is one run of EM or of K-means among many that are vmapped together. Inside a compiled
program nothing can be raised, so each lane carries a `Status`; the public edge turns it into text
or into an exception.
"""

from enum import IntEnum

import jax.numpy as jnp
import numpy as np

from gmmjax.typing import Array, ArrayLike, Bool, Int


class Status(IntEnum):
    """The state of one lane, ordered from the best ending to the worst.

    Up to `DEGENERATE` the model and its log-likelihood are finite and usable; from
    `NONFINITE_INPUT` on they are those of the last good step, and are not a success.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    OVERTAKEN = 2
    EMPTY_COMPONENT = 3
    SPURIOUS = 4
    DEGENERATE = 5
    RUNNING = 6
    NONFINITE_INPUT = 7
    SINGULAR = 8
    NONFINITE = 9

    @property
    def message(self) -> str:
        """One sentence on what happened, the likely causes, and the remedy."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: (
        "the log-likelihood changed by less than `tol` per sample in the last step, or on average in "
        "the last ones"
    ),
    Status.MAX_STEPS: (
        "`max_steps` was reached before the change fell to `tol`: the model is usable but not at "
        "its optimum. Raise `max_steps`, or `tol`, or pass `model` as `init` to go on"
    ),
    Status.OVERTAKEN: (
        "another start had got so far ahead that the run was left: the model is usable but not at its "
        "optimum, which was not going to be the best. Only the best start's result matters"
    ),
    Status.EMPTY_COMPONENT: (
        "a component has lost all its weight: there are probably fewer clusters than components. "
        "Use fewer components, more restarts, or a prior with concentration above 1"
    ),
    Status.SPURIOUS: (
        "a component rests on so few rows (less than twice what makes its covariance invertible), or "
        "is so much narrower than the digits of a column tell, that its maximum says little: such "
        "maxima exist in any data. Use fewer components, a simpler family, or a prior"
    ),
    Status.DEGENERATE: (
        "a covariance lies on its floor (`reg` times the variance of the data): a component has "
        "collapsed onto few or duplicate points, or columns are collinear, and the likelihood "
        "depends on `reg`. Use fewer components, a simpler family, a larger `reg`, or a prior"
    ),
    Status.RUNNING: "the run has not ended yet; call `step` again",
    Status.NONFINITE_INPUT: (
        "the data, the weights or the starting model hold NaN or infinity, or the start has no "
        "finite log-likelihood. Clean the data, or start from another model"
    ),
    Status.SINGULAR: (
        "a covariance is singular: a column is constant, columns are collinear, or a component "
        "has too few distinct points, and `reg` is 0 or the data have no variance there. Set "
        "`reg` above 0, drop the column, or use fewer components"
    ),
    Status.NONFINITE: (
        "a step gave a value that is not finite (overflow: data or parameters beyond the range of "
        "the dtype). Rescale the data, or use float64"
    ),
}


class GmmjaxError(Exception):
    """Base of every exception that is this library's own."""


class FitError(GmmjaxError):
    """No lane ended with a finite model. `status` is that of the best lane."""

    def __init__(self, status: Status, context: str = "") -> None:
        self.status = status
        super().__init__(f"{context}: {status.message}." if context else f"{status.message}.")


def is_success(status: ArrayLike) -> Bool[Array, "..."]:
    """Whether a lane's model is finite and at the end of its run (converged or out of steps)."""
    return jnp.asarray(status) <= Status.DEGENERATE


def worst(*statuses: ArrayLike) -> Int[Array, "..."]:
    """The worst of several statuses, elementwise."""
    out = jnp.asarray(statuses[0], jnp.int32)
    for status in statuses[1:]:
        out = jnp.maximum(out, jnp.asarray(status, jnp.int32))
    return out


def summarize(statuses: ArrayLike) -> str:
    """Counts by name, the best first, for tables and error texts: "60 converged, 4 degenerate"."""
    values, counts = np.unique(np.asarray(statuses), return_counts=True)
    return ", ".join(f"{c} {Status(v).name.lower()}" for v, c in zip(values, counts, strict=True))

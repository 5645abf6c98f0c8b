"""Gaussian-mixture variational autoencoders in Flax, on the library's own mixture as the prior.

Needs the extra `vae`. See MATH 7 of the documentation page `docs/vae.md`.
"""

from gmmjax._optional import optional_import

with optional_import("vae"):
    import flax  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401

from gmmjax.vae.checkpoint import CheckpointError
from gmmjax.vae.evaluation import Summary, evaluate
from gmmjax.vae.fit import GMVAEResult, fit_gmvae
from gmmjax.vae.likelihoods import Bernoulli, DiscretizedLogistic, Normal
from gmmjax.vae.model import GMVAE
from gmmjax.vae.networks import Architecture, Autoencoder, Posterior
from gmmjax.vae.objectives import Terms, amortised, bound, mean_field, structured
from gmmjax.vae.schedule import Training

__all__ = [
    "Architecture",
    "Autoencoder",
    "Bernoulli",
    "CheckpointError",
    "DiscretizedLogistic",
    "GMVAE",
    "GMVAEResult",
    "Normal",
    "Posterior",
    "Summary",
    "Terms",
    "Training",
    "amortised",
    "bound",
    "evaluate",
    "fit_gmvae",
    "mean_field",
    "structured",
]

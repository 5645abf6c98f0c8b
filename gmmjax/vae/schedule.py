"""`Training`: every setting of a training but the sizes of the networks, and the rates of its stages."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from gmmjax import checks
from gmmjax.vae.training import PRIOR_UPDATES, PriorUpdate, Rates

JOINT = 2
"""The last of the stages 0 and 1 (pretraining) and 2."""


@dataclass(frozen=True)
class Training:
    """How to train. All but `prior_update`, `batch` and the epochs are traced.

    - `pretrain`: what the first stage is. "vae": a VAE with a standard normal prior, the default, since
      it trains the encoder's variances too. "autoencoder": no noise and no KL term for four fifths of
      it, then a VAE, so that the variance head does not come untrained to the joint training.
    - `pretrain_epochs`, `epochs`: of the first stage and of the joint training.
    - `batch`: rows a step.
    - `learning_rate`: of the networks (Adam); it falls to 0 over the second half of each stage.
    - `prior_update`: "online": the M-step on a decaying average of the codes' moments, each step;
      "epoch": on all codes, after each epoch; "gradient": Adam on free parameters.
    - `prior_rate`: step size of the average, from 0 to 1, or Adam's rate; `None` for 0.02, 1 and 0.001.
    - `map_prior`: add the conjugate prior `Prior.default` of the codes as pseudo-moments (closed forms).
    - `clip`: largest norm of a step's gradient of the networks.
    - `beta`: factor of the KL term; the evaluation always has 1.
    - `warm_up`: epochs of the first stage in which the factor rises from 0.
    - `free_bits`: KL in nats a row below which it costs nothing.
    - `shift`: in pretraining, pictures are moved by up to so many pixels each way (rounded), anew in
      each step. Not in the joint training: the prior is that of the rows as they are.
    - `denoise`: in pretraining, the share of the features that the encoder does not see, anew each step.
    - `restarts`: starts of EM on the codes.
    - `reg`: floor of the prior's covariances, as a fraction of the codes' variances.
    - `patience`: epochs of joint training without a better validation ELBO after which a seed stops,
      and its best model is kept; 0 for never, and the last is kept.
    """

    pretrain: Literal["vae", "autoencoder"] = "vae"
    pretrain_epochs: int = 50
    epochs: int = 50
    batch: int = 128
    learning_rate: float = 1e-3
    prior_update: PriorUpdate = "online"
    prior_rate: float | None = None
    map_prior: bool = True
    clip: float = 1e3
    beta: float = 1.0
    warm_up: int = 10
    free_bits: float = 0.0
    shift: float = 0.0
    denoise: float = 0.0
    restarts: int = 32
    reg: float = 1e-3
    patience: int = 0

    def rates(self, stage: int) -> Rates:
        """The numbers of stage 0 (pretraining), 1 (its end, for an autoencoder) or 2 (joint)."""
        length = self.lengths[stage]
        default = {"online": 0.02, "epoch": 1.0, "gradient": 1e-3}[self.prior_update]
        prior_rate = default if self.prior_rate is None else self.prior_rate
        plain = stage == 0 and self.pretrain == "autoencoder"
        values = {
            "learning_rate": self.learning_rate,
            "prior_rate": prior_rate if stage == JOINT else 0.0,
            "clip": self.clip,
            "beta": 0.0 if plain else self.beta,
            "warm_up": self.warm_up if stage == 0 else 0.0,
            "free_bits": self.free_bits,
            "noise": 0.0 if plain else 1.0,
            "denoise": self.denoise if stage < JOINT else 0.0,
            "shift": self.shift if stage < JOINT else 0.0,
            "reg": self.reg,
            "decay_from": 0.5 * length,
            "length": length,
        }
        return Rates(**{name: jnp.asarray(value, float) for name, value in values.items()})

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Epochs of each stage."""
        tail = -(-self.pretrain_epochs // 5) if self.pretrain == "autoencoder" else 0
        return self.pretrain_epochs - tail, tail, self.epochs

    def check(self) -> None:
        """Raise `ValueError` or `TypeError`, naming the field, for a setting that cannot be used."""
        for name in ("pretrain_epochs", "epochs", "warm_up", "patience"):
            checks.count(getattr(self, name), name, least=0)
        if sum(self.lengths) == 0:
            raise ValueError("epochs: expected at least one, of pretraining or joint; got none.")
        for name in ("batch", "restarts"):
            checks.count(getattr(self, name), name)
        for name in ("learning_rate", "clip", "beta", "free_bits", "shift", "denoise", "reg"):
            checks.nonnegative(getattr(self, name), name)
        if self.prior_update not in PRIOR_UPDATES:
            raise ValueError(
                f"prior_update: expected one of {', '.join(PRIOR_UPDATES)}; got {self.prior_update!r}."
            )
        if self.pretrain not in ("vae", "autoencoder"):
            raise ValueError(f"pretrain: expected 'vae' or 'autoencoder'; got {self.pretrain!r}.")
        if self.denoise >= 1:
            raise ValueError(f"denoise: expected a share below 1; got {self.denoise}.")
        if self.prior_rate is not None:
            checks.nonnegative(self.prior_rate, "prior_rate")
            if self.prior_update != "gradient" and self.prior_rate > 1:
                raise ValueError(
                    f"prior_rate: expected a step size from 0 to 1 for {self.prior_update!r}; got "
                    f"{self.prior_rate}."
                )

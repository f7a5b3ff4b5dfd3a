"""Adversarial: a critic tells images that were made from real ones, and the maker is to be told apart no more (least squares GAN)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.discrepancies.gan import least_squares, right
from percepta.estimate import Estimate
from percepta.objectives.term import AbstractPerSample, TrainsCritic
from percepta.rng import Rng


class Adversarial(AbstractPerSample, TrainsCritic):
    """`critic` maps images to a list of logits. `real` and `fake` are taps of the estimate; without them x0 and x0_hat."""

    def __init__(self, critic: nn.Module, real: str | None = None, fake: str | None = None) -> None:
        self.critic, self.real, self.fake = critic, real, fake
        self.told: dict[str, Tensor] = {}

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        logits = self.critic(tap(est, self.fake, est.x0_hat))
        self.told = {"fooled": right(logits, True)}  # the share of patches that the critic takes for real
        return least_squares(logits, 1)

    def critic_loss(self, est: Estimate, rng: Rng) -> Float[Tensor, ""]:
        real, fake = tap(est, self.real, est.x0), tap(est, self.fake, est.x0_hat)
        return told_apart(self.critic(torch.cat([real, fake])), len(real))


def told_apart(logits: Sequence[Tensor], real: int) -> Float[Tensor, ""]:
    """A critic's loss, of logits whose first `real` rows are of real images and whose others are not: samples do not see each other, so one pass serves both,
    and its weights are normalised once."""
    of_real, of_fake = [x[:real] for x in logits], [x[real:] for x in logits]
    return least_squares(of_real, 1).mean() + least_squares(of_fake, 0).mean()


def tap(est: Estimate, name: str | None, otherwise: Tensor) -> Tensor:
    """What the estimate has under a name."""
    if name is None:
        return otherwise
    if name not in est.taps:
        raise ValueError(
            f"this estimate has no tap {name}, but {', '.join(sorted(est.taps)) or 'none'}: the method does not compute it"
        )
    return est.taps[name]

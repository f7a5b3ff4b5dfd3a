"""DiffusedAdversarial: Diffusion-GAN (Wang et al. 2023) around any critic of images: it sees them noised, as much as it can bear. LaDiffGAN's competitor.

    y = sqrt(abar_t) x + sqrt(1 - abar_t) s eps        t = 0 for half of the images, else of 1 .. T with probability proportional to t
    r_d = E[sign(D(y_real) - 1/2)]                      over 4 steps; then p moves by sign(r_d - 0.6) C, C = images/(kimg 1000), within [0, 1]
    T = T_min + p (T_max - T_min)                       the betas are linear from 1e-4 to 0.02 over these T steps

As published: s = 0.05 for images in [-1, 1], T in [10, 1000], kimg 100, and a critic that is not told t (the plug-in form). Real and made images have times of
their own. The paper's probabilities are proportional to t, its code's to t - 1, drawn from a table of 64 that is made anew every 4 steps: here
each image draws for itself. The published critic's logits are around 0; those of least squares are around 1/2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.discrepancies.gan import least_squares, right
from percepta.distributed import summed
from percepta.estimate import Estimate
from percepta.formulation import expand
from percepta.objectives.adversarial import Adversarial, tap, told_apart
from percepta.objectives.prior import own_numbers
from percepta.objectives.term import Settles
from percepta.path import LinearBeta, Times
from percepta.rng import Rng

EVERY = 4  # steps between two looks at r_d
TARGET = 0.6


class Adaptive(nn.Module):
    """A critic with the length of its diffusion: `p` of the way from T_min to T_max. What it knows is saved with it.

    `seen` are the steps since the last look: the sum of the signs of their real images, how many these are, and how many steps; the same on every rank.
    """

    p: Tensor
    seen: Tensor

    def __init__(self, critic: nn.Module, kimg: float = 100.0, least: int = 10, most: int = 1000) -> None:
        if not kimg > 0 or not 1 <= least <= most:
            raise ValueError(
                f"a diffusion is as long as a least up to a most, and moves at a speed above 0; got {least} to {most}, kimg {kimg:g}"
            )
        super().__init__()
        self.critic, self.kimg, self.least, self.most = critic, kimg, least, most
        self.register_buffer("p", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(3))
        self.own, self.of = [0.0, 0.0], -1  # what this rank saw in a step, and of which one

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.critic(x)

    @property
    def length(self) -> int:
        """T."""
        return self.least + round(float(self.p) * (self.most - self.least))

    def look(self, signs: Float[Tensor, "b"], step: int) -> None:
        """In the critic's turn, some real images of a step: where their logits lie, between -1 and 1."""
        if step != self.of:  # the last turn moved nothing, or settle has counted it
            self.own, self.of = [0.0, 0.0], step
        self.own[0] += float(signs.sum())
        self.own[1] += len(signs)

    def settle(self) -> None:
        """After the critic has moved, on every rank: what all of them saw is put together, and p moves if it is time."""
        if isinstance(self.critic, Settles):
            self.critic.settle()
        self.seen += torch.cat([summed(self.seen.new_tensor(self.own)), self.seen.new_ones(1)])
        self.own, self.of = [0.0, 0.0], -1
        total, images, steps = self.seen.tolist()
        if steps >= EVERY:
            sign = (total > TARGET * images) - (total < TARGET * images)
            self.p.add_(sign * images / (self.kimg * 1000)).clamp_(0, 1)
            self.seen.zero_()


class DiffusedAdversarial(Adversarial):
    """Adversarial, whose critic sees noised images: `critic` is a plain one, the player an Adaptive around it. `std` is s.

    `told`: T, and the share of patches that the critic takes for real though they are not.
    """

    def __init__(
        self, critic: nn.Module, real: str | None = None, fake: str | None = None, kimg: float = 100.0, least: int = 10,
        most: int = 1000, std: float = 0.05,
    ) -> None:  # fmt: skip
        if not std > 0:
            raise ValueError(f"the deviation of the noise is above 0, got {std:g}")
        super().__init__(Adaptive(critic, kimg, least, most), real, fake)
        self.std = std

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        adaptive = self._adaptive
        rng = own_numbers(est, f"diffused/{self.fake}")
        logits = adaptive(self._noised(tap(est, self.fake, est.x0_hat), rng))
        self.told = {"T": logits[0].new_tensor(float(adaptive.length), dtype=torch.float32), "fooled": right(logits, True)}
        return least_squares(logits, 1)

    def critic_loss(self, est: Estimate, rng: Rng) -> Float[Tensor, ""]:
        adaptive, mine = self._adaptive, rng.fork(f"diffused-critic/{self.fake}")
        real = self._noised(tap(est, self.real, est.x0), mine.fork("real"))
        fake = self._noised(tap(est, self.fake, est.x0_hat), mine.fork("fake"))
        logits = adaptive(torch.cat([real, fake]))
        adaptive.look(signs([x[: len(real)] for x in logits]), rng.step)
        return told_apart(logits, len(real))

    @property
    def _adaptive(self) -> Adaptive:
        assert isinstance(self.critic, Adaptive)
        return self.critic

    def _noised(self, x: Tensor, rng: Rng) -> Tensor:
        length = self._adaptive.length
        t, path = mixed_times(length, rng), LinearBeta(length)
        eps = rng.normal("eps", x.shape[1:], x.dtype).to(x.device)
        return expand(path.alpha(t), x) * x + self.std * expand(path.sigma(t), x) * eps


def mixed_times(length: int, rng: Rng) -> Times:
    """Of each row: 0 with probability 1/2, else k/length with k of 1 .. length, with probability proportional to k."""
    area = rng.uniform("priority") * length * (length + 1) / 2  # k is the first with k (k + 1)/2 > area
    k = ((1 + 8 * area).sqrt() / 2 + 0.5).floor().clamp(1, length)
    return torch.where(rng.uniform("mixture") < 0.5, 0.0, k / length)


def signs(logits: list[Tensor]) -> Float[Tensor, "b"]:
    """Of each image the mean sign of its logits about 1/2, each tensor of them counting alike."""
    return torch.stack([(x.detach().float() - 0.5).sign().flatten(1).mean(1) for x in logits]).mean(0)

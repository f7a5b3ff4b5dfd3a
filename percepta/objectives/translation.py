"""What a translation between two domains is held to beside its critics: to come back, to leave alone what is there already, to tell the two apart, to show
what its source shows."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from percepta.estimate import Estimate
from percepta.objectives.adversarial import tap
from percepta.objectives.term import AbstractPerSample, per_sample
from percepta.spaces import Space

Names = Sequence[tuple[str, str]]
CYCLE: Names = (("cycle_a", "real_a"), ("cycle_b", "real_b"))
IDENTITY: Names = (("same_a", "real_a"), ("same_b", "real_b"))
SOURCE: Names = (("fake_b", "real_a"), ("fake_a", "real_b"))
RECONSTRUCTION: Names = (("recon_a", "real_a"), ("recon_b", "real_b"))


class Alike(AbstractPerSample):
    """mean |x - y| of each pair of taps, summed: cycle, identity, reconstruction."""

    def __init__(self, pairs: Names) -> None:
        self.pairs = tuple(pairs)

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        return torch.stack([per_sample((tap(est, x, est.x0) - tap(est, y, est.x0)).abs()) for x, y in self.pairs]).sum(0)


class Cam(AbstractPerSample):
    """U-GAT-IT's classifier inside each generator: cross-entropy of whether it was given its source domain (1) or its target (0)."""

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        losses = []
        for way in ("a2b", "b2a"):
            for which, label in (("real", 1.0), ("same", 0.0)):
                logits = tap(est, f"cam_{way}_{which}", est.x0).float()
                losses.append(
                    per_sample(F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none"))
                )
        return torch.stack(losses).sum(0)


class MeanSquare(AbstractPerSample):
    """The mean square of taps, summed: UNIT's pull of its latents to N(0, 1), which takes their variance as 1."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        return torch.stack([per_sample(tap(est, name, est.x0).square()) for name in self.names]).sum(0)


class AlikeInside(AbstractPerSample):
    """mean (IN(f(x)) - IN(f(y)))^2 of each pair of taps, summed: the "domain-invariant perceptual loss" of MUNIT, which UNIT's code has too.

    f is the last layer of a frozen space. IN brings each of its channels to mean 0 and variance 1 over the image, and so takes away what a style mostly is;
    what is left is where things are. The space has more than one place left of the image: VGG16's relu5_3 has a sixteenth of the side.
    """

    def __init__(self, space: Space, pairs: Names = SOURCE) -> None:
        self.space, self.pairs = space, tuple(pairs)

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        made, goals = (torch.cat([tap(est, names[k], est.x0) for names in self.pairs]) for k in (0, 1))
        with torch.no_grad():
            wanted = self._inside(goals)
        return per_sample((self._inside(made) - wanted).square()).view(len(self.pairs), -1).sum(0)

    def _inside(self, x: Tensor) -> Tensor:
        features = self.space.features(x, {})[-1].float()
        if features.shape[2] * features.shape[3] < 2:
            raise ValueError(
                f"of images of {x.shape[-1]} x {x.shape[-2]} px one place is left in the last layer of {self.space.name}: take larger ones"
            )
        return F.instance_norm(features)

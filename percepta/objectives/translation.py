"""What a translation between two domains is held to beside its critics: to come back, to leave alone what is there already, to tell the two apart."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from percepta.estimate import Estimate
from percepta.objectives.adversarial import tap
from percepta.objectives.term import AbstractPerSample, per_sample

Names = Sequence[tuple[str, str]]
CYCLE: Names = (("cycle_a", "real_a"), ("cycle_b", "real_b"))
IDENTITY: Names = (("same_a", "real_a"), ("same_b", "real_b"))
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

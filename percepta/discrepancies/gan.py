"""What a critic's logits say, per sample: the least squares GAN (Mao et al. 2017).

    critic     (D(real) - 1)^2 + D(fake)^2            generator     (D(fake) - 1)^2

A critic gives several tensors of logits (scales, depths, class activation maps): each counts by its mean, and they are summed.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def least_squares(logits: Sequence[Tensor], target: float) -> Float[Tensor, "b"]:
    """The squared distance of all logits from the target, per sample, in float32 or better."""
    wide = [x.to(torch.promote_types(x.dtype, torch.float32)).flatten(1) for x in logits]
    return torch.stack([(x - target).square().mean(1) for x in wide]).sum(0)


def right(logits: Sequence[Tensor], real: bool) -> Float[Tensor, ""]:
    """The share of patches that the critic has on the right side of 1/2."""
    every = torch.cat([x.detach().float().flatten() for x in logits])
    return ((every > 0.5) == real).float().mean()

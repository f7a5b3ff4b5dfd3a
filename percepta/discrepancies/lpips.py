"""LPIPS as a function of features (Zhang et al. 2018, eq. 1), whatever network they come from.

    d(x, y) = sum_l 1/(H_l W_l) sum_hw || sqrt(w_l) * (x_hw/||x_hw|| - y_hw/||y_hw||) ||^2

x_hw is the vector of all channels at one place of layer l, and w_l >= 0 are the calibrated weights of its channels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

EPS = 1e-10  # of the published code: a place where every channel is 0 stays 0


def unit_channels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each place divided by its length over the channels. The gradient is finite where all channels are 0, unlike that of sqrt(sum)."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)


def lpips(x: Sequence[Tensor], y: Sequence[Tensor], heads: Sequence[Float[Tensor, "_"]]) -> Float[Tensor, "b"]:
    """The distance of each pair. `x` and `y`: features [b, c_l, h_l, w_l] by layer; `heads`: the weights [c_l] of the layers' channels."""
    if not len(x) == len(y) == len(heads):
        raise ValueError(f"as many heads as layers are needed: {len(x)} and {len(y)} layers, {len(heads)} heads")
    total = x[0].new_zeros(x[0].shape[0])
    for one, other, head in zip(x, y, heads, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"features of a pair have one shape, got {tuple(one.shape)} and {tuple(other.shape)}")
        difference = (unit_channels(one) - unit_channels(other)).square()
        total = total + torch.einsum("bchw,c->b", difference, head.to(difference)) / (one.shape[2] * one.shape[3])
    return total

"""LPIPS as a function of features (Zhang et al. 2018, eq. 1), whatever network they come from.

    d(x, y) = sum_l 1/(H_l W_l) sum_hw || sqrt(w_l) * (x_hw/||x_hw|| - y_hw/||y_hw||) ||^2

x_hw is the vector of all channels at one place of layer l, and w_l >= 0 are the calibrated weights of its channels.

Its gradient is written out: with u = x/||x||, v = y/||y|| and g = 2 w (u - v)/(H W), that at x is (g - u (u . g))/||x||. So it takes about
half of the passes over memory that automatic differentiation takes, and the sum is never rounded to 16 bits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-10  # of the published code: a place where every channel is 0 stays 0
TINY = 1e-20  # at such a place the gradient is that of x/EPS, and no 0/0


def unit_channels(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each place divided by its length over the channels. The gradient is finite where all channels are 0, unlike that of sqrt(sum)."""
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + EPS)


def lpips(x: Sequence[Tensor], y: Sequence[Tensor], heads: Sequence[Float[Tensor, "_"]]) -> Float[Tensor, "b"]:
    """The distance of each pair, in float32 or better. `x` and `y`: features [b, c_l, h_l, w_l] by layer; `heads`: the weights [c_l] of the
    layers' channels, which are frozen: no gradient goes to them."""
    if not len(x) == len(y) == len(heads):
        raise ValueError(f"as many heads as layers are needed: {len(x)} and {len(y)} layers, {len(heads)} heads")
    total = x[0].new_zeros(x[0].shape[0], dtype=torch.promote_types(x[0].dtype, torch.float32))
    for one, other, head in zip(x, y, heads, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"features of a pair have one shape, got {tuple(one.shape)} and {tuple(other.shape)}")
        total = total + _Layer.apply(one, other, head.detach())
    return total


class _Layer(torch.autograd.Function):
    """One layer of the sum. No matrix product in it: autocast would round that to 16 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, head: Tensor) -> Tensor:
        work = torch.promote_types(x.dtype, torch.float32)
        x_length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=work)
        y_length = torch.linalg.vector_norm(y, dim=1, keepdim=True, dtype=work)
        difference = x / (x_length + EPS)
        difference -= y / (y_length + EPS)
        weighted = difference * head.to(work).view(1, -1, 1, 1)
        out = difference.mul_(weighted).sum((1, 2, 3)) / (x.shape[2] * x.shape[3])
        sides = ((x, x_length), (y, y_length))
        kept = [part for side, needed in zip(sides, ctx.needs_input_grad, strict=False) for part in (side if needed else ())]
        ctx.save_for_backward(weighted.to(x.dtype), *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, at_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weighted, *kept = ctx.saved_tensors
        share = (at_out * (2 / (weighted.shape[2] * weighted.shape[3]))).view(-1, 1, 1, 1)
        found: list[Tensor | None] = []
        for needed, sign in zip(ctx.needs_input_grad, (1, -1), strict=False):
            found.append(_through_length(kept.pop(0), kept.pop(0), weighted * (sign * share)) if needed else None)
        return found[0], found[1], None


def _through_length(x: Tensor, length: Tensor, at_unit: Tensor) -> Tensor:
    """The gradient at x from the one at x/(||x|| + EPS); `at_unit` is used up."""
    scale = 1 / (length + EPS)
    along = (x * at_unit).sum(1, keepdim=True) * scale * scale / length.clamp_min(TINY)
    return at_unit.mul_(scale).addcmul_(x.to(at_unit.dtype), along, value=-1).to(x.dtype)

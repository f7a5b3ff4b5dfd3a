"""DISTS as a function of features (Ding et al. 2020, eq. 5 to 7): texture is the mean of a channel, structure is its correlation.

    d(x, y) = 1 - sum_lc  a_lc (2 m_x m_y + c)/(m_x^2 + m_y^2 + c) + b_lc (2 s_xy + c)/(s_x^2 + s_y^2 + c)

m, s^2 and s_xy are mean, variance and covariance of channel c of layer l over places; a and b are 0 or more, and add up to 1. The first
layer is the image itself.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

C = 1e-6


def dists(x: Sequence[Tensor], y: Sequence[Tensor], a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> Float[Tensor, "b"]:
    """The distance of each pair, in float32 or better. `a` and `b` are the weights of all layers' channels, one behind the other."""
    channels = sum(one.shape[1] for one in x)
    if len(x) != len(y) or len(a) != channels:
        raise ValueError(f"a weight per channel is needed: {len(x)} and {len(y)} layers of {channels} channels, {len(a)} weights")
    work = torch.promote_types(x[0].dtype, torch.float32)
    total, begin = x[0].new_ones(len(x[0]), dtype=work), 0
    for one, other in zip(x, y, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"features of a pair have one shape, got {tuple(one.shape)} and {tuple(other.shape)}")
        p, q = one.to(work), other.to(work)
        end = begin + p.shape[1]
        p_mean, q_mean = p.mean((2, 3), keepdim=True), q.mean((2, 3), keepdim=True)
        p, q = p - p_mean, q - q_mean
        texture = (2 * p_mean * q_mean + C) / (p_mean.square() + q_mean.square() + C)
        # of differences from the mean: the published E[xy] - E[x] E[y] loses digits where a channel is nearly constant
        structure = (2 * (p * q).mean((2, 3)) + C) / (p.square().mean((2, 3)) + q.square().mean((2, 3)) + C)
        total = total - (a[begin:end] * texture[:, :, 0, 0] + b[begin:end] * structure).sum(1)
        begin = end
    return total

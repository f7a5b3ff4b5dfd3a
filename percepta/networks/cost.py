"""What a network costs: its parameters, and the arithmetic of one evaluation of one image. Equal steps are not equal work."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from percepta.formulation import Cond, Denoiser
from percepta.networks.adapter import Network


class Cost(NamedTuple):
    """`gflops`: billions of operations, a multiplication and an addition being two, of convolutions, matrix products and attention."""

    parameters: int
    gflops: float


@torch.no_grad()
def cost_of(denoiser: Denoiser, shape: Sequence[int], cond: Cond = None) -> Cost:
    """Of one call for one image [c, h, w]: for a cascade that is both networks. The call is made, with zeros.

    `cond` is one row, needed where the network reads more than a label.
    """
    network = denoiser.network
    assert isinstance(network, Network)
    device = next(network.parameters()).device
    t = torch.full((1,), denoiser.path.t_max, dtype=torch.float64)
    classes = network.num_classes
    if cond is None and classes:
        cond = torch.zeros(1, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counted:
        denoiser(torch.zeros(1, *shape, device=device), t, cond)
    return Cost(sum(p.numel() for p in network.model.parameters()), counted.get_total_flops() / 1e9)

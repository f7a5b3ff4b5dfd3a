"""SelfPerceptual: how far an estimate is from its target as a frozen diffusion model sees both (Lin and Yang 2024, arXiv 2401.00110).

    eps_hat = (x_t - alpha x0_hat)/sigma          what the estimate says the noise was
    t' ~ U                                         another time
    L = mean ( f*_l(alpha' x0 + sigma' eps, t', c) - f*_l(alpha' x0_hat + sigma' eps_hat, t', c) )^2

f* is a frozen copy of a denoiser that was trained by squared errors, f*_l its hidden features: the mid block of a U-Net, the tokens after a
block of a transformer (LPL compares the depths 8, 16 and 28 of 28). The gradient passes through f* to x0_hat and eps_hat.

Where the published form is unclear: the paper prints U-Nets only, and which blocks of a transformer would stand for a mid block is LPL's choice. In the
paper this replaces the squared error; whether it does in LPL's table is open, so both can be had: as the only term, or beside `Denoising`. The mean is
over all of the layer, as everywhere here.

t' must be the same where a run is resumed, in each micro-batch and on any number of processes. A sample's noise is already so, and no two
samples share it: each sample draws t' from a source of its own, whose seed is a hash of its noise.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.discrepancies.layers import squared_error
from percepta.estimate import Estimate
from percepta.formulation import AbstractTimes, Cond, Denoiser, UniformTimes, expand, noise_of
from percepta.networks import Network
from percepta.networks.hidden import hidden_layer, stopped_after
from percepta.objectives.term import AbstractPerSample
from percepta.path import AbstractPath, Times
from percepta.rng import Rng, mix

UNIFORM = UniformTimes()
HASHED = 64  # numbers of a sample's noise: more tell samples no better apart


class SelfPerceptual(AbstractPerSample):
    """`frozen` is f*, which `frozen_copy` makes; `depth` counts the blocks of a transformer from 1, and is None for a U-Net.

    `times` draws t': uniform as in the paper; EDM's levels are better drawn as EDM draws them (LogNormalTimes).
    """

    def __init__(self, frozen: Denoiser, depth: int | None = None, times: AbstractTimes = UNIFORM) -> None:
        network = frozen.network
        if not isinstance(network, Network):
            raise ValueError(
                f"hidden features are read in a percepta.networks.Network, got {type(network).__name__}: adapt the model first"
            )
        if frozen.training or any(p.requires_grad for p in frozen.parameters()):
            raise ValueError("the model that judges is a frozen copy, or it would learn to agree: give frozen_copy(denoiser)")
        if network.model.is_gradient_checkpointing:
            raise ValueError("a network that is left at a layer cannot compute its blocks again: give frozen_copy(denoiser)")
        self.frozen, self.depth, self.times = frozen, depth, times
        hidden_layer(network, depth)  # refuses a depth that there is not

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        path, t = est.known_path, est.t
        if path != self.frozen.path:
            raise ValueError(
                f"the model that judges was trained on {self.frozen.path}, the estimate is on {path}: give one on the same path"
            )
        noised = est.noised
        assert noised is not None
        eps_hat = noise_of(est.x0_hat, noised.x_t.to(est.x0_hat.dtype), t, path)
        other = other_times(noised.eps, self.times, path)
        with torch.no_grad():
            real = self.hidden(est.x0, noised.eps, other, est.cond)
        return squared_error((self.hidden(est.x0_hat, eps_hat, other, est.cond),), (real,))

    def hidden(self, x0: Float[Tensor, "b c *d"], eps: Float[Tensor, "b c *d"], t: Times, cond: Cond) -> Tensor:
        """f*_l where x0 and eps are mixed for the time t; nothing behind the layer is computed."""
        path, network = self.frozen.path, self.frozen.network
        assert isinstance(network, Network)
        x_t = expand(path.alpha(t), x0) * x0 + expand(path.sigma(t), x0) * eps
        with stopped_after(hidden_layer(network, self.depth)) as found:
            self.frozen(x_t, t, cond)
        return found[0]


def other_times(eps: Float[Tensor, "b *d"], times: AbstractTimes, path: AbstractPath) -> Times:
    """A second time for each row, from its noise alone."""
    rows = eps.detach().flatten(1)[:, :HASHED].float().cpu().contiguous().numpy()
    drawn = [times.draw(path, Rng(mix("self-perceptual", row.tobytes().hex()), (0,))) for row in rows]
    return torch.cat([torch.empty(0, dtype=torch.float64), *drawn])


def frozen_copy(denoiser: Denoiser) -> Denoiser:
    """A copy of a denoiser that never learns: f*. Take it before the training begins, of a model that was trained by squared errors."""
    copied = copy.deepcopy(denoiser).requires_grad_(False).eval()
    if isinstance(copied.network, Network) and copied.network.model.is_gradient_checkpointing:
        copied.network.model.disable_gradient_checkpointing()
    return copied

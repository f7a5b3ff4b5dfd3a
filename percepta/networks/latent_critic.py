"""LatentCritic: tells noised latents of real images from those of made ones, at a noise level that it is told.

    z [b, c, h, w], time [b]  ->  one map of logits; every convolution is spectrally normalised: W / sigma_max(W)

Nothing is shared between the images of a batch, and the spectral norms move once after each step of the optimizer (percepta.networks.critics). The time is
added, never a factor: at each time the critic is as smooth in z as its norms say.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Float
from torch import Tensor, nn

from percepta.networks.critics import settle, spectral

SLOPE = 0.2


class Block(nn.Module):
    """A convolution that is told the time, and one that halves the side."""

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.time = nn.Linear(embedding, channels)
        self.conv = spectral(nn.Conv2d(channels, channels, 3, padding=1))
        self.down = spectral(nn.Conv2d(channels, out, 4, stride=2, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv(x) + self.time(embedding)[:, :, None, None], SLOPE)
        return F.leaky_relu(self.down(x), SLOPE)


class LatentCritic(nn.Module):
    """`depth` times the side is halved, and the width doubled up to four times `width`. First weights depend on `seed` alone."""

    def __init__(self, channels: int, width: int = 64, depth: int = 3, seed: int = 0) -> None:
        if channels < 1 or width < 2 or width % 2 or depth < 1:
            raise ValueError(
                f"a latent critic has channels, an even width and a depth of 1 or more, got {channels}, {width} and {depth}"
            )
        super().__init__()
        widths = [width * min(2**k, 4) for k in range(depth + 1)]
        self.width, self.factor = width, 2**depth
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(seed)
            self.embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
            self.enter = spectral(nn.Conv2d(channels, width, 3, padding=1))
            self.blocks = nn.ModuleList(Block(one, two, width) for one, two in pairwise(widths))
            self.leave = spectral(nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, z: Float[Tensor, "b c h w"], time: Float[Tensor, "b"]) -> list[Tensor]:
        """`time` is what the path's `network_time` says."""
        if min(z.shape[2:]) < self.factor:
            raise ValueError(
                f"latents of {z.shape[2]} x {z.shape[3]} cannot be halved {len(self.blocks)} times: give the latent critic a smaller depth"
            )
        first: nn.Linear = self.embed[0]  # pyright: ignore[reportAssignmentType]
        embedding = self.embed(get_timestep_embedding(time, self.width).to(first.weight.dtype))
        x = F.leaky_relu(self.enter(z.to(first.weight.dtype)), SLOPE)
        for block in self.blocks:
            x = block(x, embedding)
        return [self.leave(x)]

    def settle(self) -> None:
        """After each step of the optimizer: one power iteration of each spectral norm."""
        settle(self)


def depth_for(size: int) -> int:
    """So many times latents of this side are halved: at most three times, and to no less than 2 where that can be."""
    return max(1, min(3, size.bit_length() - 2))

"""DISTS (Ding, Ma, Wang and Simoncelli 2020): VGG16 without aliases, compared by texture and structure.

It forgives another sample of the same texture, which LPIPS does not: grass may be other grass. The network is that of LPIPS on VGG16 with L2
pooling, and the image in [0, 1] is its first layer.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.discrepancies.dists import dists
from percepta.spaces.lpips import CHANNELS
from percepta.spaces.space import Features, Space
from percepta.spaces.trunks import Trunk
from percepta.weights import find_weights, read_weights

WEIGHTS = "dists_weights"
WIDTH = 3 + sum(CHANNELS["vgg16"])


class Dists(Space):
    """Images in [-1, 1] to the image in [0, 1] and five layers of VGG16. `weights="random"` is for tests only."""

    def __init__(self, weights: str = "pretrained", on: Space | None = None) -> None:
        super().__init__(on)
        self.trunk = Trunk("vgg16", weights=weights, pooling="l2")
        self.name, self.reads = self.trunk.name, self.trunk.reads
        texture, structure = _calibration() if weights == "pretrained" else (torch.ones(WIDTH), torch.ones(WIDTH))
        both = (texture.sum() + structure.sum()).item()
        self.texture, self.structure = nn.Parameter(texture / both), nn.Parameter(structure / both)
        self.trunk.to(memory_format=torch.channels_last)
        self.freeze()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        return ((x + 1) / 2, *self.trunk(x))

    def between(self, x: Features, y: Features) -> Float[Tensor, "b"]:
        """DISTS of each pair; 0 where the two images are equal."""
        return dists(x, y, self.texture, self.structure)


def _calibration() -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The weights of texture and structure, one per channel."""
    tensors = read_weights(find_weights(WEIGHTS))
    found = [tensors[name].flatten().float() for name in ("alpha", "beta") if name in tensors]
    if len(found) != 2 or any(one.numel() != WIDTH for one in found):
        raise ValueError(f"{WEIGHTS} holds no alpha and beta of {WIDTH} channels, as DISTS has them")
    return found[0], found[1]

"""What vision transformers see of each patch: DINOv2's and CLIP's tokens after blocks at 1/4, 1/2, 3/4 and the end of their depth.

An embedding, which evaluation compares, says what an image shows and hardly where; as a metric function for pairs it leaves places free. Each
token is brought to mean 0 and variance 1 over its channels: a few of them are hundreds of times larger than the rest in these networks,
and would be all that a squared error sees.
"""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from percepta.spaces.clip import KINDS as CLIPS
from percepta.spaces.clip import Clip
from percepta.spaces.dino import Dino
from percepta.spaces.space import Features, Space


class Tokens(Space):
    """Images in [-1, 1] of any size to four maps of tokens, [b, n, c]: n patches of a square. `weights="random"` is for tests only."""

    resizes = True

    def __init__(self, kind: str = "dinov2", weights: str = "pretrained", on: Space | None = None) -> None:
        super().__init__(on)
        self.vit = Clip(kind, weights) if kind in CLIPS else Dino(kind, weights)
        self.name, self.reads = self.vit.name, self.vit.reads
        self.freeze()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        maps = _of_clip(self.vit, x) if isinstance(self.vit, Clip) else _of_dino(self.vit, x)
        return tuple(F.layer_norm(one, one.shape[-1:]) for one in maps)


def _quarters(depth: int) -> list[int]:
    """How many blocks come before each reading: 3, 6, 9 and 12 of 12."""
    return [max(1, round(depth * k / 4)) for k in (1, 2, 3, 4)]


def _of_clip(clip: Clip, x: Tensor) -> list[Tensor]:
    network: Any = clip.network
    seen = network.vision_model(pixel_values=clip.normalised(x), output_hidden_states=True).hidden_states
    return [seen[k][:, 1:] for k in _quarters(len(seen) - 1)]  # the first is what goes into the first block; [:, 0] is the class


def _of_dino(dino: Dino, x: Tensor) -> list[Tensor]:
    network: Any = dino.network
    read = [k - 1 for k in _quarters(len(network.blocks))]
    return network.forward_intermediates(dino.normalised(x), indices=read, output_fmt="NLC", intermediates_only=True)

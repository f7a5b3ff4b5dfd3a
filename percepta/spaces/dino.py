"""DINOv2's class token (Oquab et al. 2023) as a space: FD-DINOv2 (Stein et al. 2023) reads it from the ViT-L/14 at 224 px.

The whole image goes to 224 x 224, bicubic, whatever its shape. The position table of the published file is for 37 x 37 patches; it is brought
to 16 x 16 by the publishers' own rule (bicubic, not antialiased, the scale computed for 16.1), not by timm's, whose features differ.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from percepta.spaces.space import Features, Reads, Space
from percepta.spaces.trunks import MEAN, STD
from percepta.spaces.vit import fill, fitted, random_tensors
from percepta.weights import find_weights, hash_of_file, read_weights

SIZE, PATCH = 224, 14
KINDS: dict[str, tuple[str, str, int]] = {  # name -> timm's architecture, weights, dimension
    "dinov2": ("vit_large_patch14_dinov2", "dinov2_vitl14", 1024),
    "dinov2-b": ("vit_base_patch14_dinov2", "dinov2_vitb14", 768),
    "dinov2-s": ("vit_small_patch14_dinov2", "dinov2_vits14", 384),
}


class Dino(Space):
    """Images in [-1, 1] of any size to the normalised class token, (b, dims). `weights="random"` is for tests only."""

    reads, resizes = Reads("images", 3, 1), True
    mean: Tensor
    std: Tensor

    def __init__(self, kind: str = "dinov2", weights: str = "pretrained", on: Space | None = None) -> None:
        super().__init__(on)
        if kind not in KINDS:
            raise ValueError(f"unknown DINO {kind!r}; known: {', '.join(KINDS)}")
        if weights not in ("pretrained", "random"):
            raise ValueError(f"weights are 'pretrained' or, for tests, 'random'; got {weights!r}")
        self.name = kind
        architecture, file, self.dims = KINDS[kind]
        path = find_weights(file) if weights == "pretrained" else None
        self.network = _network(architecture)
        tensors = random_tensors(self.network) if path is None else read_weights(path)
        if "pos_embed" in tensors:
            tensors["pos_embed"] = positions(tensors["pos_embed"].float(), SIZE // PATCH)
        fill(self.network, tensors, file)
        self.weights = "random" if path is None else hash_of_file(path)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.freeze()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        return (self.network(self.normalised(x)).float(),)

    def normalised(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """As the network reads them."""
        return ((fitted(x, SIZE, crop=False) + 1) / 2 - self.mean) / self.std


def _network(architecture: str) -> nn.Module:
    """The architecture from timm, without weights and without a classifier; its output is the class token after the last norm."""
    import timm

    with torch.device("meta"):
        return timm.create_model(architecture, pretrained=False, num_classes=0, img_size=SIZE)


def positions(table: Float[Tensor, "1 n d"], side: int) -> Float[Tensor, "1 m d"]:
    """The position table for side x side patches. The 0.1 is the publishers': it keeps the rounded output size from falling short."""
    old = math.isqrt(table.shape[1] - 1)
    if old == side:
        return table
    grid = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / old
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    assert grid.shape[-2:] == (side, side), f"{old} patches a side became {tuple(grid.shape[-2:])}, not {side}"
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)

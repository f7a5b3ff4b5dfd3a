"""CLIP's image embedding (Radford et al. 2021) as a space, in the two forms that metrics use.

clip     ViT-B/32 at 224 px: CLIP-FD, as clean-fid's `clip_vit_b_32`. The shorter side to 224, then the middle; the projected
         embedding (512) as the network gives it.
clip-l   ViT-L/14 at 336 px: CMMD (Jayasumana et al. 2024). The middle square, then that to 336 x 336, as the authors' reader does it; the
         embedding (768) has length 1, as theirs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from percepta.spaces.space import Features, Reads, Space
from percepta.spaces.vit import fill, fitted, random_tensors, square
from percepta.weights import find_weights, hash_of_file, read_weights

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Kind:
    """The network's sizes and what surrounds it."""

    weights: str
    width: int
    layers: int
    heads: int
    patch: int
    size: int
    dims: int
    crop: bool  # the shorter side to `size`, then the middle of it; otherwise the middle square first, then that to `size`
    unit: bool  # embeddings of length 1


KINDS = {
    "clip": Kind("clip_vit_b_32", 768, 12, 12, 32, 224, 512, crop=True, unit=False),
    "clip-l": Kind("clip_vit_l_14_336", 1024, 24, 16, 14, 336, 768, crop=False, unit=True),
}


class Clip(Space):
    """Images in [-1, 1] of any size to CLIP's image embedding, (b, dims). `weights="random"` is for tests only."""

    reads, resizes = Reads("images", 3, 1), True
    mean: Tensor
    std: Tensor

    def __init__(self, kind: str = "clip", weights: str = "pretrained", on: Space | None = None) -> None:
        super().__init__(on)
        if kind not in KINDS:
            raise ValueError(f"unknown CLIP {kind!r}; known: {', '.join(KINDS)}")
        if weights not in ("pretrained", "random"):
            raise ValueError(f"weights are 'pretrained' or, for tests, 'random'; got {weights!r}")
        self.name, self.kind = kind, KINDS[kind]
        path = find_weights(self.kind.weights) if weights == "pretrained" else None
        self.network = _network(self.kind)
        fill(self.network, random_tensors(self.network) if path is None else read_weights(path), f"CLIP {self.kind.weights}")
        self.weights = "random" if path is None else hash_of_file(path)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.freeze()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        embedding = self.network(pixel_values=self.normalised(x)).image_embeds
        return (F.normalize(embedding.float()) if self.kind.unit else embedding.float(),)

    def normalised(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """As the network reads them."""
        x = fitted(x if self.kind.crop else square(x), self.kind.size, self.kind.crop)
        return ((x + 1) / 2 - self.mean) / self.std


def _network(kind: Kind) -> nn.Module:
    """The architecture from transformers, without weights."""
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ImportError as error:
        raise ValueError("CLIP's network comes from transformers: pip install 'percepta[clip]'") from error
    config = CLIPVisionConfig(
        hidden_size=kind.width, intermediate_size=4 * kind.width, num_hidden_layers=kind.layers, num_attention_heads=kind.heads,
        patch_size=kind.patch, image_size=kind.size, projection_dim=kind.dims, hidden_act="quick_gelu",
    )  # fmt: skip
    with torch.device("meta"):
        network = CLIPVisionModelWithProjection(config)
    embeddings = network.vision_model.embeddings
    positions = torch.arange(embeddings.num_positions).expand(1, -1)
    embeddings.register_buffer("position_ids", positions, persistent=False)  # not in weights files
    return network

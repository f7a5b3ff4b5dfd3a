"""ImageNet classifiers read after each of their four stages: the metric functions of Cas-DM's Table 3, and ConvNeXt beyond it.

    resnet     ResNet-50 (He et al. 2016), layer1 to layer4: 256, 512, 1024, 2048 channels at 1/4, 1/8, 1/16, 1/32 of the size
    swin       Swin-T (Liu et al. 2021), the four stages before each patch merging: 96, 192, 384, 768
    convnext   ConvNeXt-T (Liu et al. 2022), the four stages before each downsampling: 96, 192, 384, 768
    inception  the FID network of 2015, the last block at each of its three sizes: Mixed_5d, Mixed_6e, Mixed_7c: 288, 768, 2048

The paper names the networks, not their layers: these are our reading. The networks read the image at the size it has; they were trained at
224 (Inception at 299).
"""

from dataclasses import dataclass

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from percepta.spaces.inception import Inception
from percepta.spaces.space import Features, Reads, Space
from percepta.spaces.trunks import MEAN, STD
from percepta.weights import find_weights, read_weights


@dataclass(frozen=True)
class Backbone:
    """Its builder in torchvision and its weights; `places_first`: its features come as [b, h, w, c]."""

    builder: str
    weights: str
    places_first: bool = False


BACKBONES = {
    "resnet": Backbone("resnet50", "resnet50"),
    "swin": Backbone("swin_t", "swin_t", places_first=True),
    "convnext": Backbone("convnext_tiny", "convnext_tiny"),
}
INCEPTION_BLOCKS = ("Mixed_5d", "Mixed_6e", "Mixed_7c")


class Stages(Space):
    """Images in [-1, 1] to the outputs of a backbone's four stages, [b, c, h, w]. `weights="random"` is for tests only."""

    reads = Reads("images", 3, 32)
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str = "pretrained", on: Space | None = None) -> None:
        super().__init__(on)
        if name not in BACKBONES:
            raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
        if weights not in ("pretrained", "random"):
            raise ValueError(f"weights are 'pretrained' or, for tests, 'random'; got {weights!r}")
        self.name, self.kind = name, BACKBONES[name]
        tensors = read_weights(find_weights(self.kind.weights)) if weights == "pretrained" else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = getattr(torchvision.models, self.kind.builder)(weights=None)
        if tensors is not None:
            _fill(network, tensors, self.kind.weights)
        self.stages = nn.ModuleList(_stages(network)).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.freeze()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        x = ((x + 1) / 2 - self.mean) / self.std
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x.permute(0, 3, 1, 2) if self.kind.places_first else x)
        return tuple(out)


class InceptionBlocks(Space):
    """Images in [-1, 1] to the maps of the FID network after some of its blocks. `weights="random"` is for tests only."""

    reads = Reads("images", 3, 75)

    def __init__(self, blocks: tuple[str, ...] = INCEPTION_BLOCKS, weights: str = "pretrained", on: Space | None = None) -> None:
        super().__init__(on)
        unknown = [block for block in blocks if block not in INCEPTION_BLOCKS]
        if unknown or not blocks:
            raise ValueError(f"Inception's blocks are {', '.join(INCEPTION_BLOCKS)}; got {', '.join(unknown) or 'none'}")
        self.blocks = blocks
        self.network = Inception(("2048" if "Mixed_7c" in blocks else "768",), weights)
        self.name = self.network.name
        self.freeze()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        dialect = self.network.dialect
        maps = {name: out for name, out, _ in self.network.walk((x * 127.5 + (127.5 - dialect.shift)) / dialect.scale)}
        return tuple(maps[block] for block in self.blocks)


def _stages(network: nn.Module) -> list[nn.Sequential]:
    """The four stages, each with what comes before it."""
    parts = dict(network.named_children())
    if "layer1" in parts:
        stem = nn.Sequential(parts["conv1"], parts["bn1"], parts["relu"], parts["maxpool"])
        return [nn.Sequential(stem, parts["layer1"]), *(nn.Sequential(parts[f"layer{k}"]) for k in (2, 3, 4))]
    features = list(parts["features"].children())
    return [nn.Sequential(*features[k : k + 2]) for k in (0, 2, 4, 6)]


def _fill(network: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """The published weights; ValueError where they are another network's."""
    own = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    wrong = [name for name, value in own.items() if name not in tensors or tensors[name].shape != value.shape]
    if wrong:
        raise ValueError(
            f"these are not the weights of {what}: {wrong[0]} is missing or of another shape ({len(wrong)} of {len(own)})"
        )
    network.load_state_dict({name: tensors[name] for name in own}, strict=False)

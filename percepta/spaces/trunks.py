"""Frozen classification trunks of torchvision and the layers at which perceptual losses read them.

Images in [-1, 1] are brought to the trunk's own normalisation. Layers are those of the papers: LPIPS for AlexNet and SqueezeNet,
relu1_2 .. relu5_3 for VGG16, relu1_1 .. relu5_1 for VGG19 (Johnson et al. 2016; First Order Motion).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from percepta.spaces.space import Features, Reads, Space
from percepta.weights import find_weights, has_weights, read_weights


@dataclass(frozen=True)
class Layers:
    """Where `features` is cut (the index after which a tap is read), the least side, and where the weights are."""

    builder: str
    taps: tuple[int, ...]
    min_size: int
    weights: tuple[str, ...]


TRUNKS = {
    "alex": Layers("alexnet", (1, 4, 7, 9, 11), 31, ("lpips_alex_fp32", "alexnet")),
    "squeeze": Layers("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), 17, ("lpips_squeeze_fp32",)),
    "vgg16": Layers("vgg16", (3, 8, 15, 22, 29), 16, ("vgg16",)),
    "vgg19": Layers("vgg19", (1, 6, 11, 20, 29), 16, ("vgg19",)),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, for images in [0, 1]


class Trunk(Space):
    """The activations of a classification network after chosen layers of its `features`.

    `weights="random"` is for tests of shapes and gradients only; what it measures means nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, taps: tuple[int, ...] | None = None, weights: str = "pretrained", on: Space | None = None
    ) -> None:
        super().__init__(on)
        if name not in TRUNKS:
            raise ValueError(f"unknown trunk {name!r}; known: {', '.join(TRUNKS)}")
        self.name = name
        layers = TRUNKS[name]
        self.taps = taps or layers.taps
        self.reads = Reads("images", 3, layers.min_size)
        self.layers: nn.Sequential = getattr(torchvision.models, layers.builder)(weights=None).features[: max(self.taps) + 1]
        for module in self.layers:
            if isinstance(module, nn.ReLU):
                module.inplace = False  # taps must survive the layers after them
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        if weights == "pretrained":
            self._load(layers.weights)
        elif weights != "random":
            raise ValueError(f"weights are 'pretrained' or, for tests, 'random'; got {weights!r}")
        self.freeze()

    def _load(self, names: tuple[str, ...]) -> None:
        tensors = read_weights(first_weights(names))
        own = {k: tensors[f"features.{k}"] for k in self.layers.state_dict() if f"features.{k}" in tensors}
        self.layers.load_state_dict(own)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        x = ((x + 1) / 2 - self.mean) / self.std
        out = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                out.append(x)
        return tuple(out)


def first_weights(names: tuple[str, ...]) -> Path:
    """The file of the first of these weights that is here; ValueError about the first where none is."""
    return find_weights(next((name for name in names if has_weights(name)), names[0]))


def available_trunk() -> str:
    """The best trunk whose weights are on this machine: VGG19, VGG16, AlexNet, SqueezeNet."""
    for name in ("vgg19", "vgg16", "alex", "squeeze"):
        if any(has_weights(file) for file in TRUNKS[name].weights):
            return name
    raise ValueError(
        "no weights for a perceptual loss are on this machine: see `percepta doctor` for where to get them, set "
        "PERCEPTA_WEIGHTS, or use --perceptual none"
    )

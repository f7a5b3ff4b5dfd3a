"""Frozen classification trunks of torchvision and the layers at which perceptual losses read them.

Images in [-1, 1] are brought to the trunk's own normalisation. Where a distance was made with other pooling than the classifier had, that is
put in its place (POOLINGS). Layers are those of the papers: LPIPS for AlexNet and SqueezeNet,
relu1_2 .. relu5_3 for VGG16, relu1_1 .. relu5_1 for VGG19 (Johnson et al. 2016; First Order Motion).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from jaxtyping import Float
from torch import Tensor, nn

from percepta.spaces.space import Features, Reads, Space
from percepta.spaces.vit import fill, random_tensors
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
POOLINGS = ("max", "average", "l2")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet, for images in [0, 1]


class L2Pooling(nn.Module):
    """The root of the blurred squares, every other one (Ding et al. 2020, "DISTS"): no aliases, unlike the maximum. Places outside are 0."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        side = torch.tensor([0.25, 0.5, 0.25])  # a Hann window
        self.register_buffer("kernel", side[:, None] * side, persistent=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c _ _"]:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return (nn.functional.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _pooling(found: nn.Module, how: str) -> nn.Module:
    """What stands in the place of a layer of the classifier."""
    if not isinstance(found, nn.MaxPool2d) or how == "max":
        return found
    if how == "l2":
        return L2Pooling()
    return nn.AvgPool2d(found.kernel_size, found.stride, found.padding, found.ceil_mode)  # pyright: ignore[reportArgumentType]


class Trunk(Space):
    """The activations of a classification network after chosen layers of its `features`.

    `precision="bf16"` rounds weights and activations, but not the first layer's: pixels of 8 bits would be a third of the error.
    `weights="random"` is for tests of shapes and gradients only; what it measures means nothing.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        taps: tuple[int, ...] | None = None,
        weights: str = "pretrained",
        on: Space | None = None,
        pooling: str = "max",
        precision: str = "fp32",
    ) -> None:
        super().__init__(on)
        if name not in TRUNKS:
            raise ValueError(f"unknown trunk {name!r}; known: {', '.join(TRUNKS)}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {', '.join(POOLINGS)}; got {pooling!r}")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is fp32 or bf16, got {precision!r}")
        self.name, self.precision = name, precision
        layers = TRUNKS[name]
        self.taps = taps or layers.taps
        self.reads = Reads("images", 3, layers.min_size)
        with torch.device("meta"):  # VGG's classifier alone would take half a gigabyte and a second, to be thrown away
            network = getattr(torchvision.models, layers.builder)(weights=None).features[: max(self.taps) + 1]
        self.layers = nn.Sequential(*(_pooling(layer, pooling) for layer in network))
        for index, module in enumerate(self.layers):
            if isinstance(module, nn.ReLU):
                module.inplace = index - 1 not in self.taps  # taps must survive the layers after them
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        if weights == "pretrained":
            fill(self.layers, _published(layers.weights), name)
        elif weights == "random":
            fill(self.layers, random_tensors(self.layers), name)
        else:
            raise ValueError(f"weights are 'pretrained' or, for tests, 'random'; got {weights!r}")
        if precision == "bf16":
            self.layers[1:].bfloat16()
        self.freeze()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        x = ((x + 1) / 2 - self.mean) / self.std
        out = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == 0 and self.precision == "bf16":
                x = x.bfloat16()
            if index in self.taps:
                out.append(x)
        return tuple(out)


def _published(names: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of `features`, by their names within it."""
    return {name.removeprefix("features."): value for name, value in read_weights(first_weights(names)).items()}


def first_weights(names: tuple[str, ...]) -> Path:
    """The file of the first of these weights that is here; ValueError about the first where none is."""
    return find_weights(next((name for name in names if has_weights(name)), names[0]))


def has_trunk(name: str) -> bool:
    """Whether its weights are on this machine."""
    return any(has_weights(file) for file in TRUNKS[name].weights)


def available_trunk() -> str:
    """The best trunk whose weights are on this machine: VGG19, VGG16, AlexNet, SqueezeNet."""
    for name in ("vgg19", "vgg16", "alex", "squeeze"):
        if has_trunk(name):
            return name
    raise ValueError(
        "no weights for a perceptual loss are on this machine: see `percepta doctor` for where to get them, set "
        "PERCEPTA_WEIGHTS, or use --perceptual none"
    )

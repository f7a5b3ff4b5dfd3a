"""LPIPS without decoding: the activations of a VGG16 that reads latents (E-LatentLPIPS, Kang et al. 2024), one of the losses that LPL is compared with.

VGG16 with batch norm, its first convolution on the latent's channels, and nothing where its first three poolings were: a latent is a small
image already. The distance is LPIPS's (percepta.discrepancies.lpips): unit length over the channels at each place, weights of channels, mean over places.

The weights are either your copy of the published ones, which are for non-commercial use and never shipped here, or a small network that
`train_latent_lpips` (percepta.spaces.latent_lpips_fit) teaches on latents of your own.

Where the published form is unclear: the paper names the layers relu1_2, 2_2, 3_3, 4_3 and 5_3, and the published package cuts each one pooling
later. Behind three of them nothing is pooled, so that is the same; the fourth and the fifth layer are read after the maximum over 2 x 2. The calibrated
weights were made for these, so they are read there. The package also adds a mean absolute difference and random augmentations unless told not to;
the authors of LPL do without both, and so does this.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.discrepancies.lpips import lpips
from percepta.spaces.space import Features, Reads, Space
from percepta.spaces.trained import Kind
from percepta.weights import hash_of_file, read_weights

KIND = Kind("latent LPIPS", "latent_vgg.safetensors", "latent_lpips.json", "train_latent_lpips")
COUNTS = (2, 2, 3, 3, 3)  # convolutions of each block of VGG16
WIDTHS = (64, 128, 256, 512, 512)
UNPOOLED = 3  # the first blocks, behind which nothing is pooled
TAPS = (6, 13, 23, 33, 43)  # the ends of the blocks, with what stands in the place of the pooling


def latent_vgg(channels: int, widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """VGG16-BN's `features`, layer for layer, for latents of `channels` channels; the index of a layer does not depend on the widths."""
    if len(widths) != len(COUNTS) or min(widths) < 1 or channels < 1:
        raise ValueError(f"a latent VGG has {len(COUNTS)} widths and reads 1 channel or more, got {tuple(widths)} and {channels}")
    layers: list[nn.Module] = []
    for block, (width, count) in enumerate(zip(widths, COUNTS, strict=True)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.Identity() if block < UNPOOLED else nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class LatentLpips(Space):
    """Scaled latents to the five layers. `weights`: the published file (`<encoder>_latest_vgg16_tuned.pth`, or the same tensors as
    safetensors), or a folder that `train_latent_lpips` gave.

    The published weights of channels are not all positive, so that distance can fall below 0; they are taken as they are. Those of a trained
    folder are uniform, 1/C: nobody has asked people about your latents. `weights="random"`, with `channels` and `widths`, is for tests.
    """

    def __init__(
        self, weights: str | Path, channels: int | None = None, widths: Sequence[int] = WIDTHS, on: Space | None = None
    ) -> None:
        super().__init__(on)
        self.facts: dict[str, Any] = {}
        if weights == "random":
            self.name, self.weights = "latent-lpips", "random"
            self.layers, heads = random_vgg(channels or 4, widths), None
        elif Path(weights).is_dir():
            self.facts = KIND.facts_in(Path(weights))
            self.layers, heads = filled(KIND.tensors_in(Path(weights)), self.facts["widths"], str(weights)), None
            self.weights = str(self.facts["weights"])
            self.name = f"latent-lpips:{self.weights[:12]}"
        else:
            trunk, heads = published(Path(weights))
            self.layers = filled(trunk, WIDTHS, str(weights))
            self.name, self.weights = "latent-lpips", hash_of_file(Path(weights))
        found = channels_of(self.layers)
        if channels not in (None, found):
            raise ValueError(
                f"the latents have {channels} channels, and {weights} was made for {found}: it belongs to another autoencoder"
            )
        self.layers.to(memory_format=torch.channels_last)  # a place's channels lie together, as the distance reads them
        self.reads = Reads("latents", found, 2 ** (len(COUNTS) - UNPOOLED))
        self.calibration = nn.ParameterList(heads or [torch.full((w,), 1 / w) for w in widths_of(self.layers)])
        self.freeze()

    @property
    def about(self) -> str:
        """What it is, for a protocol."""
        if not self.facts:
            return f"E-LatentLPIPS, the file with the sha256 {self.weights[:12]}" if self.weights != "random" else "random weights"
        f = self.facts
        how = (
            f"supervised on {f['classes']} classes, accuracy {f['reached']:.3f} on {f['held']:,} held-out latents"
            if f["method"] == "supervised"
            else f"contrastive (SimCLR), loss {f['reached']:.3f}"
        )
        return f"latent VGG of widths {f['widths']} trained on {f['latents']:,} of {f['of']:,} latents, {how}, uniform weights of channels, seed {f['seed']}"

    def forward(self, z: Float[Tensor, "b z i j"]) -> Features:
        out, x = [], z
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in TAPS:
                out.append(x)
        return tuple(out)

    def distance(self, x: Float[Tensor, "b z i j"], y: Float[Tensor, "b z i j"]) -> Float[Tensor, "b"]:
        """Of each pair of latents; 0 where the two are equal."""
        self.reads.check(x, "latent LPIPS")
        self.reads.check(y, "latent LPIPS")
        return self.between(self(x), self(y))

    def between(self, x: Features, y: Features) -> Float[Tensor, "b"]:
        """The distance of features that are known already."""
        return lpips(x, y, list(self.calibration))


def channels_of(layers: nn.Sequential) -> int:
    """How many channels the latents have that it reads."""
    return layers[0].in_channels  # pyright: ignore[reportReturnType]


def widths_of(layers: nn.Sequential) -> list[int]:
    """The channels of each layer that is read."""
    norms = [(index, layer) for index, layer in enumerate(layers) if isinstance(layer, nn.BatchNorm2d)]
    return [max((index, layer) for index, layer in norms if index < tap)[1].num_features for tap in TAPS]


def random_vgg(channels: int, widths: Sequence[int], seed: int = 0) -> nn.Sequential:
    """Fresh weights, as a training begins with; the global random numbers do not move."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        layers = latent_vgg(channels, widths)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return layers


def filled(tensors: Mapping[str, Tensor], widths: Sequence[int], where: str) -> nn.Sequential:
    """The network with these weights; ValueError, naming the first that does not fit."""
    first = tensors.get("0.weight")
    with torch.device("meta"):
        layers = latent_vgg(first.shape[1] if first is not None and first.ndim == 4 else 1, widths)
    own = {name: value for name, value in layers.state_dict().items() if not name.endswith("num_batches_tracked")}
    wrong = [
        f"{name} {'is missing' if name not in tensors else f'has shape {tuple(tensors[name].shape)}, not {tuple(value.shape)}'}"
        for name, value in own.items()
        if name not in tensors or tensors[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"{where} holds no latent VGG16 with batch norm: {wrong[0]} ({len(wrong)} of {len(own)} tensors are wrong)"
        )
    counts = {name: torch.tensor(0) for name in layers.state_dict() if name not in own}
    layers.load_state_dict({name: tensors[name].float() for name in own} | counts, assign=True)
    return layers


def published(path: Path) -> tuple[dict[str, Tensor], list[Float[Tensor, "_"]]]:
    """The tensors of a published file: those of the network by their places in it, and the weights of the channels.

    Their names there: `net.slice<k>.<index in VGG16-BN's features>.<weight, bias, running_mean, running_var>`, `lin<l>.model.1.weight` [1, C, 1, 1],
    and these once more as `lins.<l>.model.1.weight`.
    """
    tensors = {name.removeprefix("module."): value for name, value in read_weights(path).items()}
    trunk: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part = name.split(".")
        if part[0] == "net" and len(part) == 4 and part[2].isdigit():
            trunk[f"{part[2]}.{part[3]}"] = value
    if not trunk:
        bare = any(".features." in name for name in tensors)
        why = "it is the classifier that E-LatentLPIPS was made from" if bare else f"it has {len(tensors)} tensors of other names"
        raise ValueError(
            f"{path} is no E-LatentLPIPS: {why}. Give <encoder>_latest_vgg16_tuned.pth, or what train_latent_lpips makes"
        )
    heads: list[Tensor] = []
    for layer, width in enumerate(WIDTHS):
        names = (f"lin{layer}.model.1.weight", f"lins.{layer}.model.1.weight")
        found = [tensors[name].flatten().float() for name in names if name in tensors]
        if not found or found[0].numel() != width:
            raise ValueError(
                f"{path} holds no calibrated weights for layer {layer} ({width} channels): {names[0]} is missing or odd"
            )
        heads.append(found[0])
    return trunk, heads

"""LPIPS v0.1 (Zhang et al. 2018): a classification trunk and the calibrated weights of its channels; and the trunks pooled to one row.

`Lpips` is a Space, so its features can be computed once for a target and compared with many; `distance` does both at once. The published
distance has the maximum poolings that its trunks were trained with. `pooling="average"` puts the mean there, as Cas-DM has it (piq's
replace_pooling) and consistency models: a gradient reaches every pixel of a window then, and not only its largest.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.discrepancies.lpips import lpips
from percepta.spaces.space import Features, Space
from percepta.spaces.trunks import TRUNKS, Trunk, first_weights
from percepta.weights import find_weights, hash_of_file, read_weights

HEADS = {"alex": "lpips_alex_fp32", "squeeze": "lpips_squeeze_fp32", "vgg16": "lpips_vgg_heads"}
CHANNELS = {"alex": (64, 192, 384, 256, 256), "squeeze": (64, 128, 256, 384, 384, 512, 512), "vgg16": (64, 128, 256, 512, 512)}


class Lpips(Space):
    """Images in [-1, 1] to the trunk's features at LPIPS's layers. `weights="random"` is for tests only."""

    def __init__(
        self,
        trunk: str = "alex",
        weights: str = "pretrained",
        on: Space | None = None,
        pooling: str = "max",
        precision: str = "fp32",
    ) -> None:
        super().__init__(on)
        if trunk not in HEADS:
            raise ValueError(f"LPIPS is calibrated for {', '.join(HEADS)}; got {trunk!r}")
        self.trunk = Trunk(trunk, weights=weights, pooling=pooling, precision=precision)
        self.trunk.to(memory_format=torch.channels_last)  # a place's channels lie together, as the distance reads them
        self.name, self.reads = self.trunk.name, self.trunk.reads
        heads = _heads(trunk) if weights == "pretrained" else [torch.full((c,), 1 / c) for c in CHANNELS[trunk]]
        self.calibration = nn.ParameterList(heads)
        self.freeze()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        return self.trunk(x)

    def distance(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "_ c _ _"]) -> Float[Tensor, "b"]:
        """LPIPS of each pair; 0 where the two images are equal."""
        self.reads.check(x, "LPIPS")
        self.reads.check(y, "LPIPS")
        if x.shape != y.shape:
            raise ValueError(f"LPIPS compares images of one size, got {tuple(x.shape)} and {tuple(y.shape)}")
        return self.between(self(x), self(y))

    def between(self, x: Features, y: Features) -> Float[Tensor, "b"]:
        """LPIPS of features that are known already."""
        return lpips(x, y, list(self.calibration))


class Pooled(Space):
    """Images in [-1, 1] to one row: the mean over places of each layer of a trunk, the layers behind one another."""

    def __init__(self, trunk: str = "alex", weights: str = "pretrained", on: Space | None = None) -> None:
        super().__init__(on)
        if trunk not in CHANNELS:
            raise ValueError(f"pooled trunks are {', '.join(CHANNELS)}; got {trunk!r}")
        self.trunk = Trunk(trunk, weights=weights)
        self.name, self.reads, self.dims = self.trunk.name, self.trunk.reads, sum(CHANNELS[trunk])
        self.weights = "random" if weights == "random" else trunk_hash(trunk)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        return (torch.cat([tap.mean((2, 3)) for tap in self.trunk(x)], 1),)


def trunk_hash(trunk: str) -> str:
    """The sha256 of the file that `Trunk` reads."""
    return hash_of_file(first_weights(TRUNKS[trunk].weights))


def _heads(trunk: str) -> list[Float[Tensor, "_"]]:
    tensors = read_weights(find_weights(HEADS[trunk]))
    out = []
    for layer, channels in enumerate(CHANNELS[trunk]):
        names = (f"lin{layer}.weight", f"lin{layer}.model.1.weight")  # repacked, and as published
        found = [tensors[name].flatten().float() for name in names if name in tensors]
        if not found or found[0].numel() != channels:
            raise ValueError(f"{HEADS[trunk]} holds no calibrated weights for layer {layer} of {trunk} ({channels} channels)")
        out.append(found[0])
    return out

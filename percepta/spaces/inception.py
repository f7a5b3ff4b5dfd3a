"""Inception: the network of 2015-12-05 whose features FID, KID, sFID and the Inception Score are defined in (Heusel et al. 2017).

    tap       features, one row per image
    64        mean of the first max pooling
    192       mean of the second max pooling
    768       mean of Mixed_6e
    2048      mean of Mixed_7c, the usual ones of FID (`pool_3:0` of the TensorFlow graph)
    logits    1008, without the bias of the last layer, as every tool computes the Inception Score
    spatial   2023: the first 7 channels of Mixed_6d's 1x1 branch after its ReLU, 17 x 17, the channel running fastest. Guided-diffusion's sFID
              reads them as `mixed_6/conv:0`: the graph counts the mixed blocks from 0, and Mixed_5b is its `mixed`.

The network is run up to the deepest tap that is asked for. Weights: the published file, from which torch-fidelity and pytorch-fid both read,
or for taps up to 768 and spatial the partial one.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from percepta.spaces.inception_layers import Block, Convolutions, block_a, block_b, block_c, block_d, block_e
from percepta.spaces.resizing import known_dialect, resize
from percepta.spaces.space import Features, Reads, Space
from percepta.weights import find_weights, has_weights, hash_of_file, read_weights

SIZE = 299
TAPS: dict[str, int] = {"64": 64, "192": 192, "768": 768, "2048": 2048, "logits": 1008, "spatial": 7 * 17 * 17}
FULL = ("fid_inception_full", "fid_inception_full_pt")
PARTIAL = "fid_inception_7a_1280_fp32"
_POOLED = ("Conv2d_2b_3x3", "Conv2d_4a_3x3")
_MEANS = {"Conv2d_2b_3x3": "64", "Conv2d_4a_3x3": "192", "Mixed_6e": "768", "Mixed_7c": "2048"}
_DEPTH = {"64": 0, "192": 1, "spatial": 2, "768": 3, "2048": 4, "logits": 5}


def _stages(depth: int) -> dict[str, nn.Module]:
    """The layers in their order, as far as this depth needs them, by the name that the weights files use."""
    one: dict[str, nn.Module] = {
        "Conv2d_1a_3x3": Convolutions(3, {"Conv2d_1a_3x3": 32}, (3, 3), 2),
        "Conv2d_2a_3x3": Convolutions(32, {"Conv2d_2a_3x3": 32}, (3, 3), pad=False),
        "Conv2d_2b_3x3": Convolutions(32, {"Conv2d_2b_3x3": 64}, (3, 3)),
    }
    if depth >= 1:
        one["Conv2d_3b_1x1"] = Convolutions(64, {"Conv2d_3b_1x1": 80})
        one["Conv2d_4a_3x3"] = Convolutions(80, {"Conv2d_4a_3x3": 192}, (3, 3), pad=False)
    if depth >= 2:
        one |= {"Mixed_5b": block_a(192, 32), "Mixed_5c": block_a(256, 64), "Mixed_5d": block_a(288, 64), "Mixed_6a": block_b(288)}
        one |= {"Mixed_6b": block_c(768, 128), "Mixed_6c": block_c(768, 160), "Mixed_6d": block_c(768, 160)}
    if depth >= 3:
        one["Mixed_6e"] = block_c(768, 192)
    if depth >= 4:
        one |= {"Mixed_7a": block_d(768), "Mixed_7b": block_e(1280, "avg"), "Mixed_7c": block_e(2048, "max")}
    if depth >= 5:
        one["fc"] = nn.Linear(2048, 1008, bias=False)
    return one


class Inception(Space):
    """Images in [-1, 1] of any size to rows of features, float32, one tensor per tap in the order asked for.

    `weights` is "pretrained", for tests "random" (what it measures means nothing), or tensors under the names of the published file.
    `of_bytes` takes uint8 images and is what a metric reads. `precision="bf16"` rounds weights and activations; features stay float32.
    """

    reads, resizes = Reads("images", 3, 1), True

    def __init__(
        self,
        taps: tuple[str, ...] = ("2048",),
        weights: str | Mapping[str, Tensor] = "pretrained",
        dialect: str = "torch-fidelity",
        precision: str = "fp32",
        on: Space | None = None,
    ) -> None:
        super().__init__(on)
        unknown = [tap for tap in taps if tap not in TAPS]
        if unknown or not taps:
            raise ValueError(f"Inception's taps are {', '.join(TAPS)}; got {', '.join(unknown) or 'none'}")
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is fp32 or bf16, got {precision!r}")
        self.taps, self.dialect, self.precision = taps, known_dialect(dialect), precision
        self.stages = nn.ModuleDict(_stages(max(_DEPTH[tap] for tap in taps)))
        self.weights = self._load(weights)
        if precision == "bf16":
            self.stages.bfloat16()
            self.stages["Conv2d_1a_3x3"].float()  # half a per cent of the work; pixels rounded to 8 bits cost a third of the error
        self.stages.to(memory_format=torch.channels_last)
        self.freeze()

    def _load(self, weights: str | Mapping[str, Tensor]) -> str:
        """Fill the layers; returns the sha256 of the file, or "random" or "given"."""
        if isinstance(weights, Mapping):
            self._fill(weights)
            return "given"
        if weights == "random":
            self._randomise()
            return "random"
        if weights != "pretrained":
            raise ValueError(f"weights are 'pretrained' or, for tests, 'random' or tensors; got {weights!r}")
        shallow = max(_DEPTH[tap] for tap in self.taps) <= _DEPTH["768"]
        names = (*FULL, PARTIAL) if shallow else FULL
        path = find_weights(next((name for name in names if has_weights(name)), names[0]))
        self._fill(read_weights(path))
        return hash_of_file(path)

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            for name, stage in self.stages.items():
                for layer in stage.modules():
                    if isinstance(layer, Convolutions):
                        layer.load(tensors, f"{name}." if isinstance(stage, Block) else "")
                    elif isinstance(layer, nn.Linear):
                        with torch.no_grad():
                            layer.weight.copy_(tensors["fc.weight"])
        except KeyError as error:
            raise ValueError(f"these are not the weights of the FID Inception network: {error.args[0]} is missing") from error

    def _randomise(self) -> None:
        """Activations of about the same size at every depth."""
        generator = torch.Generator().manual_seed(0)
        for parameter in self.stages.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 200
            nn.init.normal_(parameter, std=(2 / fan) ** 0.5, generator=generator)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        return self._of_pixels(x * 127.5 + 127.5)

    @torch.no_grad()
    def of_bytes(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        """The features of images as files hold them, without gradients."""
        parts = [self._of_pixels(part.float()) for part in images.split(self._together(images))]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(rows) for rows in zip(*parts, strict=True))

    def _together(self, images: Tensor) -> int:
        """Images that go through the layers at a time. On a CPU so few that no activation (the largest has 64 x 147 x 147 numbers) exceeds
        32 MiB: glibc gives larger blocks back to the system after every use, and a fifth of the time goes into having them mapped again."""
        if images.device.type != "cpu":
            return max(1, len(images))
        return 6 if self.precision == "fp32" else 8

    def _of_pixels(self, x: Tensor) -> Features:
        x = resize(x, SIZE, self.dialect.resize)
        x = (x - self.dialect.shift) / self.dialect.scale
        out: dict[str, Tensor] = {}
        for name, at, first in self.walk(x):
            if name == "Mixed_6d":
                out["spatial"] = first.permute(0, 2, 3, 1).flatten(1).to(_at_least_float32(at))
            if name in _MEANS:
                out[_MEANS[name]] = at.mean((2, 3), dtype=_at_least_float32(at))
        if "fc" in self.stages:
            weight = self.stages["fc"].weight
            assert isinstance(weight, Tensor)
            out["logits"] = F.linear(out["2048"], weight.to(out["2048"].dtype))
        return tuple(out[tap] for tap in self.taps)

    def walk(self, x: Float[Tensor, "b 3 h w"]) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Stage after stage: its name, its output, and the first channels of Mixed_6d's 1x1 branch (of others none). `x` is normalised."""
        x = x.contiguous(memory_format=torch.channels_last)
        for name, stage in self.stages.items():
            first = x[:, :0]
            if isinstance(stage, Convolutions):
                x = stage(x.to(stage.weight.dtype))
                x = (F.max_pool2d(x, 3, stride=2) if name in _POOLED else x).relu_()
            elif isinstance(stage, Block):
                x, first = stage(x, 7 if name == "Mixed_6d" else 0)
            else:
                return
            yield name, x, first


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)

"""The features of an autoencoder's own decoder: where LPL compares latents (Berrada et al. 2025).

    z -> z/scale + shift -> post_quant_conv -> conv_in -> mid block -> up block 1 -> ... -> up block n

A layer is the output of the mid block, or of an up block; for the tiny autoencoders, which have neither, what each stage hands to its
upsampling. They are the values that `vae.decode` computes on its way, and nothing behind the deepest layer that is read is computed.

Memory: `checkpointing` computes each block again in the backward pass, and `crop` decodes a window of each latent, another one for each sample.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, VQModel
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from percepta.spaces.space import Features, Reads, Space

Stage = Callable[[Tensor], Tensor]


@runtime_checkable
class Codec(Protocol):
    """What is decoded: percepta.networks.Autoencoder."""

    model: Any
    latent_channels: int
    factor: int

    def raw(self, z: Tensor) -> Tensor: ...


class Decoder(Space):
    """Scaled latents to feature maps of the frozen decoder of `vae`. `layers`: which of them, 0 being the mid block; all by default.

    `upscale` says how many times finer than the latent each of these layers is. The autoencoder is frozen for good.
    """

    def __init__(
        self, vae: Codec, layers: Sequence[int] | None = None, precision: str = "fp32", checkpointing: bool = False
    ) -> None:
        super().__init__()
        if type(vae.model) not in WALKS:
            raise ValueError(
                f"no decoder of {type(vae.model).__name__} is known here; known: {', '.join(c.__name__ for c in WALKS)}"
            )
        if next(vae.model.parameters()).dtype == torch.float16:
            raise ValueError(
                "decoders overflow in float16: give the autoencoder in float32 or bfloat16, as in vae.to(torch.float32)"
            )
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"the precision of a decoder is fp32 or bf16, got {precision!r}")
        self.vae, self.precision, self.checkpointing = vae, precision, checkpointing
        finenesses = WALKS[type(vae.model)].upscale(vae.model)
        self.layers = tuple(range(len(finenesses))) if layers is None else tuple(sorted(set(layers)))
        if not self.layers or not 0 <= self.layers[0] <= self.layers[-1] < len(finenesses):
            raise ValueError(f"this decoder has the layers 0 (mid block) to {len(finenesses) - 1}, got {layers}")
        self.upscale, self.coarsest = tuple(finenesses[layer] for layer in self.layers), finenesses[0]
        self.reads = Reads("latents", vae.latent_channels)
        self.freeze()

    def forward(self, z: Float[Tensor, "b z i j"]) -> Features:
        walk = WALKS[type(self.vae.model)]
        with self._precision(z.device.type):
            x, stages = walk.stages(self.vae.model, self.vae.raw(z))
            found: list[Tensor] = []
            for layer, stage in enumerate(stages[: self.layers[-1] + 1]):
                again = self.checkpointing and torch.is_grad_enabled() and x.requires_grad
                x = checkpoint(stage, x, use_reentrant=False) if again else stage(x)  # pyright: ignore[reportAssignmentType]
                if layer in self.layers:
                    found.append(x)
        return tuple(found)

    def _precision(self, device: str) -> AbstractContextManager[object]:
        """In float16 decoders overflow: where a step is computed in it, this stays in float32. Shapes alone (meta) have no autocast."""
        if not torch.amp.is_autocast_available(device):
            return nullcontext()
        if self.precision == "bf16":
            return torch.autocast(device, torch.bfloat16)
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        return torch.autocast(device, enabled=False) if half else nullcontext()


class AbstractWalk:
    """How one class of autoencoder is decoded, stage by stage."""

    def upscale(self, model: Any) -> list[int]:
        """Of each layer: how many times finer than the latent."""
        fineness, out = 1, [1]
        for block in model.decoder.up_blocks:
            fineness *= 1 if block.upsamplers is None else 2
            out.append(fineness)
        return out

    def stages(self, model: Any, z: Tensor) -> tuple[Tensor, list[Stage]]:
        """What the first stage reads, and the stages."""
        return self.entered(model, z), [model.decoder.mid_block, *model.decoder.up_blocks]

    def entered(self, model: Any, z: Tensor) -> Tensor:
        return model.decoder.conv_in(z if model.post_quant_conv is None else model.post_quant_conv(z))


class KlWalk(AbstractWalk):
    """AutoencoderKL, and AsymmetricAutoencoderKL without an image to copy from."""


class VqWalk(AbstractWalk):
    """VQModel: the nearest entry of the codebook first, which the gradient passes as if it were not there."""

    def stages(self, model: Any, z: Tensor) -> tuple[Tensor, list[Stage]]:
        code = model.quantize(z)[0]
        spatial = code if model.config.norm_type == "spatial" else None
        blocks = [model.decoder.mid_block, *model.decoder.up_blocks]
        return self.entered(model, code), [lambda x, block=block: block(x, spatial) for block in blocks]


class TinyWalk(AbstractWalk):
    """AutoencoderTiny: one chain of layers, each stage ending with its last residual block."""

    def ends(self, model: Any) -> list[int]:
        layers = list(model.decoder.layers)
        blocks = [k for k, layer in enumerate(layers) if isinstance(layer, AutoencoderTinyBlock)]
        return [k for k in blocks if k + 1 not in blocks]

    def upscale(self, model: Any) -> list[int]:
        layers = list(model.decoder.layers)
        factor = int(model.config.upsampling_scaling_factor)
        return [factor ** sum(isinstance(layer, nn.Upsample) for layer in layers[:end]) for end in self.ends(model)]

    def stages(self, model: Any, z: Tensor) -> tuple[Tensor, list[Stage]]:
        ends = [-1, *self.ends(model)]
        parts = [model.decoder.layers[first + 1 : last + 1] for first, last in pairwise(ends)]
        return torch.tanh(z / 3) * 3, parts


WALKS: dict[type, AbstractWalk] = {
    AutoencoderKL: KlWalk(),
    AsymmetricAutoencoderKL: KlWalk(),
    AutoencoderTiny: TinyWalk(),
    VQModel: VqWalk(),
}


def windows(z: Sequence[Float[Tensor, "b z i j"]], side: int, place: Float[Tensor, "b 2"]) -> list[Float[Tensor, "b z _ _"]]:
    """The same window of each row of several latents, at most `side` wide; `place` in [0, 1) says where, from one edge to the other."""
    height, width = z[0].shape[2:]
    tall, wide = min(side, height), min(side, width)
    top = (place[:, 0] * (height - tall + 1)).long()[:, None] + torch.arange(tall, device=place.device)
    left = (place[:, 1] * (width - wide + 1)).long()[:, None] + torch.arange(wide, device=place.device)
    rows = torch.arange(len(place), device=place.device)[:, None, None]
    return [x[rows, :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2) for x in z]

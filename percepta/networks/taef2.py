"""TAEF2 (madebyollin/taesd, MIT): a tiny autoencoder of factor 8 with 32 latent channels, from its published weights.

It is diffusers' AutoencoderTiny but for the blocks at the latents' resolution, which have one more branch: x + W2 relu(norm(W1 x)), 1 x 1
convolutions over four times the channels, in front of the usual convolutions.
"""

from collections.abc import Mapping

import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from percepta.networks.autoencoders import Autoencoder

CHANNELS, GROUPS = 64, 4
FIRST = {"encoder": 0, "decoder": 1}  # the published decoder counts its clamp as a layer


class PooledBlock(AutoencoderTinyBlock):
    """A block with the further branch."""

    def __init__(self) -> None:
        super().__init__(CHANNELS, CHANNELS, "relu")
        self.pool = nn.Sequential(
            nn.Conv2d(CHANNELS, 4 * CHANNELS, 1, bias=False),
            nn.GroupNorm(GROUPS, 4 * CHANNELS),
            nn.ReLU(),
            nn.Conv2d(4 * CHANNELS, CHANNELS, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pool(x))


def build_taef2(weights: Mapping[str, Tensor]) -> Autoencoder:
    """The autoencoder, frozen and in float32. It decodes and encodes; diffusers cannot load what save_pretrained would write of it."""
    model = AutoencoderTiny(latent_channels=32)
    state: dict[str, Tensor] = {}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        place, _, rest = rest.partition(".")
        if part not in FIRST or not place.isdigit():
            raise ValueError(f"these are not the weights of TAEF2: it has encoder.N.* and decoder.N.*, got {key}")
        state[f"{part}.layers.{int(place) - FIRST[part]}.{rest}"] = value.float()
    for name in {key.partition(".pool.")[0] for key in state if ".pool." in key}:
        part, _, place = name.split(".")
        layers = getattr(model, part).layers
        if int(place) < len(layers):
            layers[int(place)] = PooledBlock()
    wrong = model.load_state_dict(state, strict=False) if _shapes_fit(model, state) else None
    if wrong is None or wrong.missing_keys or wrong.unexpected_keys:
        raise ValueError(
            "these are not the weights of TAEF2: names or shapes of its layers differ; the file is taef2_fp16.safetensors"
        )
    return Autoencoder(model.requires_grad_(False).eval())


def _shapes_fit(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    own = model.state_dict()
    return all(name in own and own[name].shape == value.shape for name, value in state.items()) and all(
        bool(torch.isfinite(value).all()) for value in state.values()
    )

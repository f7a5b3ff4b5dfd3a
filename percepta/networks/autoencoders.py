"""Autoencoders behind one pair of calls: images to scaled latents and back.

    encode(x) = ((mean - shift) scale, std scale)        decode(z) = D(z / scale + shift)

Scaled latents have about unit variance: they are what diffusion is trained on. Images are in [-1, 1] on both sides for every class
(the tiny autoencoders work in [0, 1] inside); what decode returns is not clamped, so that losses keep their gradient. A VQModel's latents
are those before its codebook, which is the first step of its decoder; the gradient passes it as if it were not there.
Shapes are checked in the calls, with advice.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny, VQModel
from jaxtyping import Float
from torch import Tensor, nn

from percepta.networks.loading import class_of, load_model
from percepta.networks.presets import apply_overrides, nearest

LEVELS = {  # where each class's configuration lists the levels of its encoder
    AutoencoderKL: "block_out_channels",
    AsymmetricAutoencoderKL: "down_block_out_channels",
    AutoencoderTiny: "encoder_block_out_channels",
    VQModel: "block_out_channels",
}


class Autoencoder(nn.Module):
    """A model behind encode and decode. `factor` is how many pixels a latent is wide, `deterministic` says that std is always 0.

    `scale` and `shift` come from the model's configuration, one number per latent channel; `set_scale` changes them there too.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        if type(model) not in LEVELS:
            raise ValueError(f"{type(model).__name__} is no autoencoder known here; known: {', '.join(c.__name__ for c in LEVELS)}")
        self.model = model
        config: Any = model.config
        self.deterministic = isinstance(model, AutoencoderTiny | VQModel)
        self.factor = 2 ** (len(config[LEVELS[type(model)]]) - 1)
        self.in_channels: int = config.in_channels
        self.latent_channels: int = config.get("vq_embed_dim") or config.latent_channels
        self.register_buffer("scale", torch.empty(0), persistent=False)
        self.register_buffer("shift", torch.empty(0), persistent=False)
        self._read_scale()

    def _read_scale(self) -> None:
        """scale = scaling_factor / latents_std, shift = shift_factor + latents_mean: classes have some of the four."""
        config = dict(self.model.config)

        def vector(name: str, default: float) -> Tensor:
            value = default if config.get(name) is None else config[name]
            return torch.as_tensor(value, dtype=torch.float32).expand(self.latent_channels).reshape(1, -1, 1, 1)

        self.scale = (vector("scaling_factor", 1.0) / vector("latents_std", 1.0)).to(self.scale.device)
        self.shift = (vector("shift_factor", 0.0) + vector("latents_mean", 0.0)).to(self.shift.device)

    def set_scale(self, std: float, mean: float = 0.0) -> None:
        """From now on raw latents of this mean and standard deviation have mean 0 and variance 1 when scaled. Saved with the
        model."""
        if not std > 0:
            raise ValueError(f"the latents' standard deviation must be positive, got {std}")
        if mean != 0 and "shift_factor" not in self.model.config:
            raise ValueError(f"{type(self.model).__name__} knows no shift_factor: leave the mean out, got {mean}")
        changed = {"scaling_factor": 1 / std} | ({"shift_factor": mean} if "shift_factor" in self.model.config else {})
        defaults = [name for name in dict(self.model.config).get("_use_default_values", []) if name not in changed]
        self.model.register_to_config(**changed, _use_default_values=defaults)
        self._read_scale()

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def posterior(self, x: Tensor) -> tuple[Float[Tensor, "b z i j"], Float[Tensor, "b z i j"]]:
        """Mean and standard deviation of the raw latents, before scaling, in float32: what a KL penalty reads."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise ValueError(f"images are float [b, {self.in_channels}, h, w] in [-1, 1], got {x.dtype} {tuple(x.shape)}")
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"height and width must be multiples of {self.factor}, got {x.shape[2]} x {x.shape[3]}; resize or crop the images"
            )
        encoded = self.model.encode(x.to(self.dtype), return_dict=False)[0]
        if self.deterministic:
            return encoded.float(), torch.zeros_like(encoded, dtype=torch.float32)
        return encoded.mean.float(), encoded.std.float()

    def encode(self, x: Tensor) -> tuple[Float[Tensor, "b z i j"], Float[Tensor, "b z i j"]]:
        """Mean and standard deviation of the scaled latents, float32; a sample is mean + std * eps."""
        mean, std = self.posterior(x)
        return (mean - self.shift) * self.scale, std * self.scale

    def raw(self, z: Tensor) -> Float[Tensor, "b z i j"]:
        """Scaled latents as the decoder reads them: z / scale + shift."""
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise ValueError(f"latents are [b, {self.latent_channels}, h, w], got {tuple(z.shape)}")
        return (z.to(torch.promote_types(z.dtype, torch.float32)) / self.scale.to(z.device) + self.shift.to(z.device)).to(
            self.dtype
        )

    def decode(self, z: Tensor) -> Float[Tensor, "b c h w"]:
        """Images of scaled latents, float32, about in [-1, 1]; clamp before writing them."""
        return self.model.decode(self.raw(z), return_dict=False)[0].float()

    def enable_gradient_checkpointing(self) -> None:
        """Trade compute for memory: blocks are computed again in the backward pass."""
        if isinstance(self.model, AutoencoderTiny):
            raise ValueError(
                "AutoencoderTiny's encoder leaves out its change of range under gradient checkpointing, so it would compute "
                "something else; use a smaller batch instead"
            )
        self.model.enable_gradient_checkpointing()

    def save_pretrained(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder, safe_serialization=True)


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The autoencoder saved in a folder: a `vae/` of a pipeline, or what Autoencoder.save_pretrained wrote."""
    return Autoencoder(load_model(folder))


def outline_autoencoder(folder: str | Path) -> Autoencoder:
    """Its shapes alone, by its config.json: on the device meta, without weights."""
    cls: Any = class_of(Path(folder))
    with torch.device("meta"):
        return Autoencoder(cls.from_config(cls.load_config(folder)))


# f = 4: 32 x 32 pixels become 8 x 8 latents of 4 channels. The scale is set when the training of it ends
AE_POCKET = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
AUTOENCODERS: dict[str, dict[str, Any]] = {"ae-pocket": AE_POCKET}


def build_autoencoder(
    preset: str = "ae-pocket", *, channels: int = 3, size: int = 32, overrides: Mapping[str, Any] | None = None, seed: int = 0
) -> Autoencoder:
    """A fresh AutoencoderKL of a preset. Weights depend on `seed` alone."""
    if preset not in AUTOENCODERS:
        raise ValueError(f"unknown autoencoder {preset!r}{nearest(preset, list(AUTOENCODERS))}; known: {', '.join(AUTOENCODERS)}")
    config = {**AUTOENCODERS[preset], "in_channels": channels, "out_channels": channels, "sample_size": size}
    config = apply_overrides(config, AutoencoderKL, overrides or {}, ("in_channels", "out_channels", "sample_size"))
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        return Autoencoder(AutoencoderKL(**config))


def image_size(sample_size: int | None, vae: Autoencoder | None) -> int | None:
    """Side of the images of a network of this sample size, behind an autoencoder or in pixels."""
    return sample_size if sample_size is None or vae is None else sample_size * vae.factor

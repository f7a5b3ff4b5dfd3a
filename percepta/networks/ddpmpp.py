"""DDPM++ and NCSN++ as Karras et al. 2022 use them (EDM, table 1 and appendix F.1): the U-Nets of Song et al. 2021, without progressive outputs.
Written from the papers.

What sets it apart from DDPM's U-Net: residual branches are summed and scaled by 1/sqrt(2); up- and downsampling happen inside
residual blocks, with a projected shortcut; four blocks a level; attention with one head at 16 x 16 only; the last layers of
each branch start near zero; an optional vector describes how the image was augmented, so that augmentation does not leak into
samples.

NCSN++ differs in three things: the noise level is told by random Fourier features, images are resampled by the filter 1, 3, 3, 1 in place of 1, 1, and
the image itself joins the way down at each resolution.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

NEAR_ZERO = 1e-5  # weight gain of layers that end a residual branch
FOURIER = 16.0  # standard deviation of NCSN++'s frequencies


def scaled_(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> nn.Linear | nn.Conv2d:
    """Xavier-uniform weights times `gain`, zero bias."""
    fan_in = layer.weight[0].numel()
    fan_out = layer.weight.shape[0] * layer.weight[0, 0].numel()
    bound = gain * math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(c_in: int, c_out: int, kernel: int = 3, gain: float = 1.0) -> nn.Module:
    return scaled_(nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2), gain)


def linear(c_in: int, c_out: int, bias: bool = True, gain: float = 1.0) -> nn.Module:
    return scaled_(nn.Linear(c_in, c_out, bias), gain)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-6)


class SelfAttention(nn.Module):
    """Single-head attention over positions, before the residual sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv = conv(channels, 3 * channels, 1, math.sqrt(0.2))
        self.out = conv(channels, channels, 1, NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.out(attended.transpose(1, 2).reshape(x.shape))


def filtered(x: Tensor, resample: str, padding: int = 1) -> Tensor:
    """Half or twice as large, each channel by the filter 1, 3, 3, 1 along both sides; what lies beyond the border is 0."""
    place = torch.arange(4, device=x.device)  # no numbers that would have to be brought to a GPU
    taps = (1 + place * (3 - place)).to(x.dtype) / 8
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 4, 4)
    if resample == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=x.shape[1])


class FromImage(nn.Module):
    """NCSN++: a convolution of the image, or of what it has become on the way down, that halves it."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv: Any = conv(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.conv2d(x, self.conv.weight, padding=2)  # a pixel more on each side, for the filter
        return filtered(wide, "down", padding=0) + self.conv.bias[:, None, None]


class Block(nn.Module):
    """Norm, conv (with resampling), plus condition, norm, conv; optional attention. Each residual sum is scaled by 1/sqrt(2)."""

    def __init__(
        self, c_in: int, c_out: int, emb: int, resample: str | None, attention: bool, dropout: float, fir: bool = False
    ) -> None:
        super().__init__()
        self.resample, self.dropout, self.fir = resample, dropout, fir
        self.norm0, self.conv0 = norm(c_in), conv(c_in, c_out)
        self.condition = linear(emb, c_out)
        self.norm1, self.conv1 = norm(c_out), conv(c_out, c_out, gain=NEAR_ZERO)
        self.shortcut = conv(c_in, c_out, 1) if c_in != c_out or resample else nn.Identity()
        self.attention = SelfAttention(c_out) if attention else None

    def _resampled(self, x: Tensor) -> Tensor:
        if self.fir and self.resample is not None:
            return filtered(x, self.resample)
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(self._resampled(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.condition(emb)[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (self.shortcut(self._resampled(x)) + h) * math.sqrt(0.5)
        return x if self.attention is None else (x + self.attention(x)) * math.sqrt(0.5)


class DDPMPP(ModelMixin, ConfigMixin):
    """forward(x, timestep, class_labels, augment_labels) -> raw output. `timestep` is EDM's c_noise = ln(sigma)/4, any float.

    Label num_classes is the null label: a row of zeros. Missing augmentation labels are zeros: an image that was not augmented.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attention_sizes: Sequence[int] = (16,),
        dropout: float = 0.13,
        num_classes: int | None = None,
        augment_dim: int = 0,
        ncsn: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        emb, told = 4 * model_channels, (2 if ncsn else 1) * model_channels
        self.label_in = linear(num_classes, told, gain=1.0) if num_classes else None
        self.augment_in = linear(augment_dim, told, bias=False) if augment_dim else None
        self.time_in, self.time_hidden = linear(told, emb), linear(emb, emb)
        # numbers that bfloat16 has: in a model that is cast to half precision they stay what they were in training
        frequencies = (FOURIER * torch.randn(told // 2)).bfloat16().float() if ncsn else None
        self.register_buffer("frequencies", frequencies)
        self.from_image = nn.ModuleList()

        def block(c_in: int, c_out: int, resample: str | None = None, attention: bool = False) -> Block:
            return Block(c_in, c_out, emb, resample, attention, dropout, fir=ncsn)

        channels, skips, seen = model_channels, [model_channels], in_channels
        self.conv_in = conv(in_channels, channels)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level, mult in enumerate(channel_mult):
            if level:
                self.down_blocks.append(block(channels, channels, "down"))
                if ncsn:
                    self.from_image.append(FromImage(seen, channels))
                    seen = channels
                skips.append(channels)
            for _ in range(num_blocks):
                self.down_blocks.append(block(channels, mult * model_channels, attention=sample_size >> level in attention_sizes))
                channels = mult * model_channels
                skips.append(channels)
        self.mid_blocks = nn.ModuleList([block(channels, channels, attention=True), block(channels, channels)])
        for level, mult in reversed(list(enumerate(channel_mult))):
            if level < len(channel_mult) - 1:
                self.up_blocks.append(block(channels, channels, "up"))
            for i in range(num_blocks + 1):
                attention = i == num_blocks and sample_size >> level in attention_sizes
                self.up_blocks.append(block(channels + skips.pop(), mult * model_channels, attention=attention))
                channels = mult * model_channels
        self.norm_out, self.conv_out = norm(channels), conv(channels, out_channels, gain=NEAR_ZERO)

    def _frequencies(self, device: torch.device) -> Tensor:
        config: Any = self.config
        if config.ncsn:
            return 2 * math.pi * self.frequencies.float()
        half = config.model_channels // 2
        return 10000.0 ** -(torch.arange(half, dtype=torch.float32, device=device) / (half - 1))

    def _embed(self, time: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        config: Any = self.config
        angles = time.float()[:, None] * self._frequencies(time.device)
        emb = torch.cat([angles.sin(), angles.cos()], dim=1).to(self.dtype)
        if self.label_in is not None:
            if labels is None:
                raise ValueError(f"this DDPMPP has {config.num_classes} classes: give class_labels, {config.num_classes} for none")
            # unit-variance input: a one-hot row times sqrt(num_classes); the null label is a row of zeros
            one_hot = F.one_hot(labels, config.num_classes + 1)[:, :-1].to(emb.dtype)
            emb = emb + self.label_in(one_hot * math.sqrt(config.num_classes))
        if self.augment_in is not None and augment is not None:
            emb = emb + self.augment_in(augment.to(emb.dtype))
        return F.silu(self.time_hidden(F.silu(self.time_in(emb))))

    def _run(self, block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            again: Any = self._gradient_checkpointing_func
            return again(block, x, emb)
        return block(x, emb)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        timestep: Float[Tensor, "b"],
        class_labels: Int[Tensor, "b"] | None = None,
        augment_labels: Float[Tensor, "b a"] | None = None,
    ) -> Float[Tensor, "b o h w"]:
        emb = self._embed(timestep, class_labels, augment_labels)
        image, from_image = x, iter(self.from_image)
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = self._run(block, x, emb)
            if block.resample == "down" and self.from_image:
                image = x = (x + next(from_image)(image)) * math.sqrt(0.5)
            skips.append(x)
        for block in self.mid_blocks:
            x = self._run(block, x, emb)
        for block in self.up_blocks:
            if block.resample != "up":
                x = torch.cat([x, skips.pop()], dim=1)
            x = self._run(block, x, emb)
        return self.conv_out(F.silu(self.norm_out(x)))

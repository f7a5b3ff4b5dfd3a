"""U-Nets of improved-diffusion and guided-diffusion (Nichol and Dhariwal 2021, Dhariwal and Nichol 2021) as UNet2DModel.

The configuration is read off the names and shapes of the weights. What they cannot tell is asked for: the image size, and into how many
heads attention is split. Both networks are the same computation; only these differ:

    attention           one convolution makes queries, keys and values, ordered head by head (q, k, v, q, k, v ...) in improved-diffusion and by
                        default in guided-diffusion, or all queries first (its "new attention order"); here they are three layers
    heads               a fixed number at every width there; UNet2DModel has a fixed width per head: where both cannot hold, the number is
                        kept as a fact (percepta.networks.facts)
"""

import math
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DModel
from torch import Tensor

from percepta.interop.state import State

RES = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2", "out_layers.3": "conv2",
       "skip_connection": "conv_shortcut"}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What the weights say: channels and attention per level, finest first; blocks per level; kind of resampling and of conditioning."""

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    blocks: int
    resampling: str  # conv | resnet
    scale_shift: bool

    @property
    def levels(self) -> int:
        return len(self.channels)

    @property
    def attention_widths(self) -> set[int]:
        return {c for c, a in zip(self.channels, self.attention, strict=True) if a} | {self.channels[-1]}


def read_shape(state: State) -> Shape:
    """The shape of the network that these weights belong to."""
    outputs, inputs = state.count("output_blocks"), state.count("input_blocks")
    ups = [
        i
        for i in range(outputs)
        if any(state.has(f"output_blocks.{i}.{j}.{w}.weight") for j in (1, 2) for w in ("conv", "in_layers.0"))
    ]
    blocks = ups[0] if ups else outputs - 1
    levels = len(ups) + 1
    if blocks < 1 or outputs != levels * (blocks + 1) or inputs != levels * (blocks + 1):
        raise ValueError(
            f"{inputs} input and {outputs} output blocks with {len(ups)} upsamplings form no U-Net with the same number of blocks at "
            "every level; networks with pooling instead of strided convolutions are not known here"
        )
    first = [1 + level * (blocks + 1) for level in range(levels)]
    channels = tuple(state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in first)
    attention = tuple(state.has(f"input_blocks.{i}.1.qkv.weight") for i in first)
    wide = state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    base = state["input_blocks.0.0.weight"].shape[0]
    if channels[0] != base or state["time_embed.0.weight"].shape[1] != base:
        raise ValueError(
            f"the first level has {channels[0]} channels and the network starts with {base}: UNet2DModel needs a first multiplier of 1"
        )
    resnet = levels > 1 and state.has(f"input_blocks.{blocks + 1}.0.in_layers.0.weight")
    return Shape(channels, attention, blocks, "resnet" if resnet else "conv", wide == 2 * channels[0])


def config_of(state: State, shape: Shape, size: int, head_width: int) -> dict[str, Any]:
    resnet = shape.resampling == "resnet"
    down = tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" if resnet else "DownBlock2D" for a in shape.attention)
    up = tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" if resnet else "UpBlock2D" for a in reversed(shape.attention))
    return {
        "sample_size": size, "in_channels": state["input_blocks.0.0.weight"].shape[1], "out_channels": state["out.2.weight"].shape[0],
        "block_out_channels": shape.channels, "layers_per_block": shape.blocks, "down_block_types": down, "up_block_types": up,
        "downsample_type": shape.resampling, "upsample_type": shape.resampling, "attention_head_dim": head_width, "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift" if shape.scale_shift else "default",
        "time_embedding_dim": state["time_embed.0.weight"].shape[0],
        "num_class_embeds": state["label_emb.weight"].shape[0] if state.has("label_emb.weight") else None,
    }  # fmt: skip


def convert_unet(weights: dict[str, Tensor], size: int, num_heads: int | None = None, num_head_channels: int | None = None,
                 new_attention_order: bool = False) -> tuple[UNet2DModel, int | None]:  # fmt: skip
    """The network, and its number of heads where UNet2DModel's configuration cannot say it (for adapt(num_heads=...))."""
    state = State(weights, "input_blocks.0.0.weight", "an improved-diffusion or guided-diffusion U-Net")
    shape = read_shape(state)
    if (num_heads is None) == (num_head_channels is None):
        raise ValueError(
            "weights do not tell how attention is split: give num_heads (improved-diffusion's default is 4) or num_head_channels "
            "(guided-diffusion's published models: 64), one of the two"
        )
    widths = sorted(shape.attention_widths)
    wrong = [w for w in widths if w % (num_heads or num_head_channels or 1)]
    if wrong:
        raise ValueError(
            f"attention over {wrong[0]} channels does not split into num_heads={num_heads}, num_head_channels={num_head_channels}"
        )
    fact = num_heads if num_heads is not None and len(widths) > 1 else None
    head_width = num_head_channels or (math.gcd(*widths) if fact else widths[0] // (num_heads or 1))
    step = 2 ** (shape.levels - 1)
    if size % step:
        raise ValueError(f"a U-Net of {shape.levels} levels makes images whose side is a multiple of {step}, got size={size}")
    model = UNet2DModel(**config_of(state, shape, size, head_width))
    model.load_state_dict(_renamed(state, shape, num_heads, num_head_channels, new_attention_order))
    return model.eval(), fact


def _renamed(state: State, shape: Shape, num_heads: int | None, head_channels: int | None, new_order: bool) -> dict[str, Tensor]:
    new: dict[str, Tensor] = {}

    def plain(old: str, name: str) -> None:
        new[f"{name}.weight"], new[f"{name}.bias"] = state.take(f"{old}.weight"), state.take(f"{old}.bias")

    def res(old: str, name: str) -> None:
        for theirs, ours in RES.items():
            if theirs != "skip_connection" or state.has(f"{old}.{theirs}.weight"):
                plain(f"{old}.{theirs}", f"{name}.{ours}")

    def attention(old: str, name: str) -> None:
        plain(f"{old}.norm", f"{name}.group_norm")
        for kind in ("weight", "bias"):
            whole = state.take(f"{old}.qkv.{kind}").squeeze(-1) if kind == "weight" else state.take(f"{old}.qkv.bias")
            for part, values in zip("qkv", _split(whole, num_heads, head_channels, new_order), strict=True):
                new[f"{name}.to_{part}.{kind}"] = values
        new[f"{name}.to_out.0.weight"] = state.take(f"{old}.proj_out.weight").squeeze(-1)
        new[f"{name}.to_out.0.bias"] = state.take(f"{old}.proj_out.bias")

    def resampling(old: str, name: str, conv: str) -> None:
        res(old, name) if shape.resampling == "resnet" else plain(f"{old}.{conv}", f"{name}.conv")

    for theirs, ours in {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "input_blocks.0.0": "conv_in",
                         "out.0": "conv_norm_out", "out.2": "conv_out"}.items():  # fmt: skip
        plain(theirs, ours)
    if state.has("label_emb.weight"):
        new["class_embedding.weight"] = state.take("label_emb.weight")
    per, last = shape.blocks + 1, shape.levels - 1
    for level in range(shape.levels):
        for j in range(shape.blocks):
            old = f"input_blocks.{1 + level * per + j}"
            res(f"{old}.0", f"down_blocks.{level}.resnets.{j}")
            if shape.attention[level]:
                attention(f"{old}.1", f"down_blocks.{level}.attentions.{j}")
        if level < last:
            resampling(f"input_blocks.{(level + 1) * per}.0", f"down_blocks.{level}.downsamplers.0", "op")
    for j, ours in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        (attention if j == 1 else res)(f"middle_block.{j}", f"mid_block.{ours}")
    for i in range(shape.levels):
        has_attention = shape.attention[last - i]
        for j in range(per):
            old = f"output_blocks.{i * per + j}"
            res(f"{old}.0", f"up_blocks.{i}.resnets.{j}")
            if has_attention:
                attention(f"{old}.1", f"up_blocks.{i}.attentions.{j}")
        if i < last:
            resampling(f"output_blocks.{i * per + shape.blocks}.{1 + has_attention}", f"up_blocks.{i}.upsamplers.0", "conv")
    state.finish()
    return new


def _split(whole: Tensor, num_heads: int | None, head_channels: int | None, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of one matrix or bias."""
    channels = len(whole) // 3
    if new_order:
        q, k, v = whole.chunk(3)
    else:
        heads = num_heads or channels // (head_channels or channels)
        q, k, v = whole.reshape(heads, 3, channels // heads, *whole.shape[1:]).unbind(1)
    return q.reshape(channels, *whole.shape[1:]), k.reshape(channels, *whole.shape[1:]), v.reshape(channels, *whole.shape[1:])

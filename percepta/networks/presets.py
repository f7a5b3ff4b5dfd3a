"""Named networks, from a pocket U-Net that trains on two CPU cores to the papers' sizes.

    network = build("unet-pocket", size=32, num_classes=12)

A preset is a diffusers class (or one of ours) with a configuration as a function of the data; whatever the class's constructor
takes can be overridden by name. Class-conditional networks get a null label beside their classes, so that guidance can be used.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DModel

from percepta.networks import initial
from percepta.networks.adapter import Network, adapt
from percepta.networks.ddpmpp import DDPMPP


@dataclass(frozen=True)
class Data:
    """What a network is built for. `num_classes` counts true classes; the null label comes on top. `beside` channels are read and not denoised."""

    channels: int
    size: int
    num_classes: int | None
    learn_sigma: bool
    beside: int = 0

    @property
    def shape(self) -> dict[str, int]:
        out = 2 * self.channels if self.learn_sigma else self.channels
        return {"sample_size": self.size, "in_channels": self.channels + self.beside, "out_channels": out}

    @property
    def table(self) -> int | None:
        return None if self.num_classes is None else self.num_classes + 1


@dataclass(frozen=True)
class Preset:
    """A model class and its configuration for some data; `typical` is the data of the paper, which tables and counts use."""

    about: str
    cls: type
    config: Callable[[Data], dict[str, Any]]
    initialize: initial.Initializer
    typical: Data


def _blocks(attention: tuple[bool, ...]) -> dict[str, Any]:
    """Block types of a U-Net, from the finest level down, with or without attention."""
    return {
        "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
    }


def unet_pocket(data: Data) -> dict[str, Any]:
    """The finest level is narrow, because that is where the time goes; no attention: at 8 x 8 two blocks see everything."""
    return {
        **data.shape,
        **_blocks((False,) * 3),
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "time_embedding_dim": 128,
        "add_attention": False,
        "num_class_embeds": data.table,
    }


def unet_cifar(data: Data) -> dict[str, Any]:
    """Ho et al. 2020, appendix B: 128 channels times 1, 2, 2, 2, two blocks, one-headed attention at 16 x 16, dropout 0.1."""
    return {
        **data.shape,
        **_blocks((False, True, False, False)),
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "dropout": 0.1,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "num_class_embeds": data.table,
    }


def adm_64(data: Data) -> dict[str, Any]:
    """Nichol and Dhariwal 2021 at 64 x 64: 128 channels times 1, 2, 3, 4, three blocks, attention at 16 and 8, scale-shift norm.

    Heads are 64 wide, which Dhariwal and Nichol 2021 found best; the earlier paper's four heads are `Facts.num_heads`. With
    scale-shift norm the class would leave the middle attention without its norm unless told otherwise.
    """
    return {
        **data.shape,
        **_blocks((False, False, True, True)),
        "block_out_channels": (128, 256, 384, 512),
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "num_class_embeds": data.table,
    }


def iddpm_32(data: Data) -> dict[str, Any]:
    """Nichol and Dhariwal 2021 at 32 x 32, without dropout: 128 channels times 1, 2, 2, 2, three blocks, attention of four heads at 16 and 8."""
    return {
        **data.shape,
        **_blocks((False, True, True, False)),
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 3,
        "attention_head_dim": 64,
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "num_class_embeds": data.table,
    }


def ddpmpp_32(data: Data) -> dict[str, Any]:
    """Karras et al. 2022, CIFAR-10: the class's own defaults, with the nine augmentation labels."""
    return {**data.shape, "num_classes": data.num_classes, "augment_dim": 9}


def ddpmpp_64(data: Data) -> dict[str, Any]:
    """Karras et al. 2022, FFHQ and AFHQv2 at 64 x 64: a level more above, half as wide, and dropout 0.05 (table 7)."""
    return {**ddpmpp_32(data), "channel_mult": (1, 2, 2, 2), "dropout": 0.05}


def ncsnpp_32(data: Data) -> dict[str, Any]:
    """Karras et al. 2022, NCSN++: the size and the depth of DDPM++."""
    return {**ddpmpp_32(data), "ncsn": True}


def ncsnpp_64(data: Data) -> dict[str, Any]:
    """The same beside DDPM++ at 64 x 64."""
    return {**ddpmpp_64(data), "ncsn": True}


def ddpmpp_pocket(data: Data) -> dict[str, Any]:
    """DDPM++ for two CPU cores: its narrow finest level has one block, and there is attention in the middle alone."""
    small = {"model_channels": 32, "channel_mult": (1, 2, 2), "num_blocks": 1, "attention_sizes": (), "dropout": 0.0}
    return {**ddpmpp_32(data), **small}


def _dit(layers: int, heads: int, head_dim: int) -> Callable[[Data], dict[str, Any]]:
    def config(data: Data) -> dict[str, Any]:
        return {
            **data.shape,
            "num_layers": layers,
            "num_attention_heads": heads,
            "attention_head_dim": head_dim,
            "patch_size": 2,
            "num_embeds_ada_norm": data.num_classes or 1,
        }

    return config


def _mmdit(layers: int, heads: int, head_dim: int) -> Callable[[Data], dict[str, Any]]:
    """SD3's transformer, told a class by one token; its position table reaches twice the size, to go on training at twice the
    size."""

    def config(data: Data) -> dict[str, Any]:
        width = (data.num_classes or 0) + 1
        return {
            **data.shape,
            "num_layers": layers,
            "num_attention_heads": heads,
            "attention_head_dim": head_dim,
            "patch_size": 2,
            "joint_attention_dim": width,
            "pooled_projection_dim": width,
            "caption_projection_dim": heads * head_dim,
            "pos_embed_max_size": max(data.size, 2),
        }

    return config


CIFAR = Data(3, 32, None, False)
IMAGENET_LATENTS = Data(4, 32, 1000, True)
PRESETS: dict[str, Preset] = {
    "unet-pocket": Preset("a small U-Net for two CPU cores", UNet2DModel, unet_pocket, initial.unet, CIFAR),
    "unet-cifar": Preset("DDPM's U-Net for CIFAR-10 (Ho et al. 2020)", UNet2DModel, unet_cifar, initial.unet, CIFAR),
    "adm-64": Preset("a U-Net for 64 x 64 (Nichol and Dhariwal 2021)", UNet2DModel, adm_64, initial.unet, Data(3, 64, None, True)),
    "iddpm-32": Preset("a U-Net for 32 x 32 (Nichol and Dhariwal 2021)", UNet2DModel, iddpm_32, initial.unet, CIFAR),
    "ddpmpp-32": Preset("EDM's DDPM++ for CIFAR-10 (Karras et al. 2022)", DDPMPP, ddpmpp_32, initial.as_built, CIFAR),
    "ddpmpp-64": Preset(
        "EDM's DDPM++ for 64 x 64 (Karras et al. 2022)", DDPMPP, ddpmpp_64, initial.as_built, Data(3, 64, None, False)
    ),
    "ncsnpp-32": Preset("EDM's NCSN++ for CIFAR-10 (Karras et al. 2022)", DDPMPP, ncsnpp_32, initial.as_built, CIFAR),
    "ncsnpp-64": Preset(
        "EDM's NCSN++ for 64 x 64 (Karras et al. 2022)", DDPMPP, ncsnpp_64, initial.as_built, Data(3, 64, None, False)
    ),
    "ddpmpp-pocket": Preset("a small DDPM++", DDPMPP, ddpmpp_pocket, initial.as_built, CIFAR),
    "dit-pocket": Preset("a small DiT", DiTTransformer2DModel, _dit(6, 4, 32), initial.dit, CIFAR),
    "dit-xl-2": Preset("DiT-XL/2 (Peebles and Xie 2023)", DiTTransformer2DModel, _dit(28, 16, 72), initial.dit, IMAGENET_LATENTS),
    "mmdit-pocket": Preset("a small MMDiT with a class token", SD3Transformer2DModel, _mmdit(4, 4, 32), initial.mmdit, CIFAR),
    "mmdit-xl-2": Preset(
        "MMDiT-XL/2 with a class token (Esser et al. 2024)",
        SD3Transformer2DModel,
        _mmdit(28, 16, 72),
        initial.mmdit,
        Data(4, 32, 1000, False),
    ),
}


def nearest(name: str, known: list[str]) -> str:
    """ "; did you mean 'x'?" or nothing."""
    found = difflib.get_close_matches(name, known, 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def apply_overrides(config: dict[str, Any], cls: type, overrides: Mapping[str, Any], fixed: tuple[str, ...]) -> dict[str, Any]:
    """The configuration with constructor arguments replaced; a name that the constructor does not take is an error."""
    known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    for name in overrides:
        if name not in known:
            raise ValueError(f"{cls.__name__} takes no {name!r}{nearest(name, known)}; it takes {', '.join(known)}")
        if name in fixed:
            raise ValueError(f"{name!r} follows from the data: give channels, size, num_classes or learn_sigma instead")
    return config | dict(overrides)


FIXED = (
    "sample_size",
    "in_channels",
    "out_channels",
    "num_class_embeds",
    "num_embeds_ada_norm",
    "num_classes",
    "joint_attention_dim",
    "pooled_projection_dim",
)


def chosen_for(preset: str, channels: int | None, size: int | None, num_classes: int | None, learn_sigma: bool = False) -> Data:
    """The data that a preset is asked for; what is left open is the preset's typical data."""
    if preset not in PRESETS:
        raise ValueError(f"unknown network {preset!r}{nearest(preset, list(PRESETS))}; known: {', '.join(PRESETS)}")
    typical = PRESETS[preset].typical
    data = Data(
        typical.channels if channels is None else channels, typical.size if size is None else size, num_classes, learn_sigma
    )
    for name in ("channels", "size"):
        if getattr(data, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(data, name)}")
    return data


def build(
    preset: str,
    *,
    channels: int | None = None,
    size: int | None = None,
    num_classes: int | None = None,
    learn_sigma: bool = False,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    beside: int = 0,
) -> Network:
    """A fresh network, for the preset's own channels and size unless others are given. Its weights depend on `seed` alone.

    `beside` more channels are read, a condition that lies beside the image, and not put out.
    """
    data = replace(chosen_for(preset, channels, size, num_classes, learn_sigma), beside=beside)
    chosen = PRESETS[preset]
    config = apply_overrides(chosen.config(data), chosen.cls, overrides or {}, FIXED)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        model = chosen.cls(**config)
        chosen.initialize(model)
    network = adapt(model, num_classes=num_classes)
    problem = network.family.check_size(model, data.size, data.size)
    if problem:
        raise ValueError(f"{preset} cannot work at size {data.size}: {problem}")
    return network


def parameters(preset: str) -> int:
    """How many parameters a preset has on its typical data; nothing is allocated."""
    data = PRESETS[preset].typical
    with torch.device("meta"):
        network = build(preset, channels=data.channels, size=data.size, num_classes=data.num_classes, learn_sigma=data.learn_sigma)
    return sum(p.numel() for p in network.parameters())


@cache
def preset_table() -> tuple[tuple[str, int, int, int, int | None, str], ...]:
    """(name, parameters, size, channels, classes, what it is) of every preset, on its typical data."""
    rows = ((name, p.typical, p.about) for name, p in PRESETS.items())
    return tuple((name, parameters(name), data.size, data.channels, data.num_classes, about) for name, data, about in rows)

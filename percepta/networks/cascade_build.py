"""Cas-DM's and Dual Diffusion's networks from the presets for U-Nets, and what they put out by name.

    network = build_cascade(CascadeSpec("cascade", "unet-pocket"), Cosine(4000), size=32)
    denoiser = Denoiser(network, cascade_formulation(network.model))
    parts = parts_of(*denoiser.full(x_t, t))

The denoiser's x0_hat is the mixture, so that samplers, previews, averages and exports work as they are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from jaxtyping import Float
from torch import Tensor

from percepta.formulation import Formulation
from percepta.networks import initial
from percepta.networks.adapter import Network, adapt
from percepta.networks.cascade import FOLLOWS, Cascade
from percepta.networks.presets import FIXED, PRESETS, Data, apply_overrides, chosen_for
from percepta.path import AbstractDiscretePath, AbstractPath, path_from_config

KINDS = ("cascade", "dual")
PHIS = ("same", "fixres")


@dataclass(frozen=True)
class CascadeSpec:
    """Which two estimates, and by which networks.

    `preset` names theta's U-Net, `overrides` replaces entries of its configuration. `phi` is "same" (another such U-Net) or "fixres"
    (`fixres`). `time_factor` None shows the U-Nets timesteps on a scale of 1000, as improved-diffusion does; `num_heads` gives every
    attention so many heads (improved-diffusion: 4), whatever its width. The rest is `Cascade`'s.
    """

    kind: str = "cascade"
    preset: str = "unet-pocket"
    phi: str = "same"
    concat: bool = False
    clamp: float | None = 1.0
    ratio: str = "sigmoid"
    time_factor: float | None = None
    num_heads: int | None = None
    overrides: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.phi not in PHIS:
            raise ValueError(f"kind is {' or '.join(KINDS)} and phi {' or '.join(PHIS)}, got {self.kind!r} and {self.phi!r}")
        if self.kind == "dual" and (self.phi != "same" or self.concat):
            raise ValueError("phi and concat describe the second network of a cascade; Dual Diffusion has one: leave them out")


class Parts(NamedTuple):
    """What a cascade puts out: mixed = r x0' + (1 - r) x0*, and its parts. `star` is x0*, a constant; `ratio` is r, one channel."""

    mixed: Tensor
    x0_prime: Tensor
    ratio: Tensor
    eps: Tensor
    star: Tensor


def parts_of(x0_hat: Float[Tensor, "b c h w"], taps: Mapping[str, Tensor]) -> Parts:
    """The parts in what `Denoiser.full` returns for a cascade."""
    c, extra = x0_hat.shape[1], taps.get("extra")
    if extra is None or extra.shape[1] != 3 * c + 1:
        got = "none" if extra is None else str(extra.shape[1])
        raise ValueError(
            f"a cascade puts out {3 * c + 1} channels beside its estimate (x0', r, eps', x0*), got {got}: "
            "build the network with build_cascade"
        )
    return Parts(x0_hat, *extra.split([c, 1, c, c], 1))


def fixres(config: Mapping[str, Any]) -> dict[str, Any]:
    """Cas-DM's Fix-Res CNN: a U-Net with every down- and upsampling removed, and fewer attention layers.

    The paper does not print it. Here: as many blocks in all, at full size and of the finest level's width, with attention in the middle
    alone (where the U-Net has it there): fewer parameters and more arithmetic than the U-Net, as the paper says of its own.
    """
    widths = config["block_out_channels"]
    return dict(config) | {
        "block_out_channels": list(widths[:1]),
        "layers_per_block": config["layers_per_block"] * len(widths),
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
    }


def _theta(spec: CascadeSpec, data: Data) -> dict[str, Any]:
    preset = PRESETS[spec.preset]
    if preset.cls is not UNet2DModel:
        known = ", ".join(name for name, p in PRESETS.items() if p.cls is UNet2DModel)
        raise ValueError(f"a cascade is made of U-Nets, {known}; {spec.preset!r} is a {preset.cls.__name__}")
    config = apply_overrides(preset.config(data), preset.cls, spec.overrides or {}, FIXED)
    return {name: value for name, value in config.items() if name not in FOLLOWS}


def build_cascade(
    spec: CascadeSpec,
    path: AbstractPath,
    *,
    channels: int | None = None,
    size: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> Network:
    """A fresh cascade for images on a path; theta starts as `build(spec.preset, seed=seed)` does, r at 1/2 (at 0 where it is raw)."""
    if not isinstance(path, AbstractDiscretePath):
        raise ValueError(f"a cascade reads the timesteps of a discrete path (linear, cosine), got {type(path).__name__}")
    data = chosen_for(spec.preset, channels, size, num_classes)
    theta = _theta(spec, data)
    config = {
        "theta_config": theta,
        "phi_config": None if spec.kind == "dual" else fixres(theta) if spec.phi == "fixres" else theta,
        "schedule": path.to_config(),
        "sample_size": data.size,
        "in_channels": data.channels,
        "num_class_embeds": data.table,
        "concat": spec.concat,
        "clamp": spec.clamp,
        "ratio": spec.ratio,
        "time_factor": 1000 / path.num_steps if spec.time_factor is None else spec.time_factor,
    }
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        model = Cascade(**json.loads(json.dumps(config)))  # as it will be read back: lists, not tuples
        for unet in model.unets:
            initial.unet(unet)
    network = adapt(model, num_classes=num_classes, num_heads=spec.num_heads)
    problem = network.family.check_size(model, data.size, data.size)
    if problem:
        raise ValueError(f"a cascade of {spec.preset} cannot work at size {data.size}: {problem}")
    return network


def cascade_formulation(model: object) -> Formulation | None:
    """What a cascade's configuration says about how it is trained: x0, on the schedule that it holds. None for other models."""
    if not isinstance(model, Cascade):
        return None
    return Formulation(path_from_config(dict(model.config["schedule"])), "clean")

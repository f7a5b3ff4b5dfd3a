"""percepta convert: a foreign checkpoint as a diffusers pipeline."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from percepta.absent import absent
from percepta.cli.parse import parse, to_stdout


@dataclass(frozen=True)
class Convert:
    """Turn a state dict of improved-diffusion, guided-diffusion or DiT into a diffusers pipeline, for --init and for sampling.

    Example: percepta convert ema_0.9999.pt church --family improved-diffusion --size 64 --num-heads 4 --schedule cosine --timesteps 4000

    Pickled files are read as tensors only, in a process of their own: nothing in them is run. The shapes tell the architecture; what they
    cannot tell (heads, schedule) is asked for with the words of the training scripts.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """The state dict: .pt, .safetensors or .npz."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The folder to write."""
    family: Literal["improved-diffusion", "guided-diffusion", "dit"]
    """Whose training script wrote it."""
    size: int | None = None
    """Side of the images (latents for DiT) it was trained on."""
    num_heads: int | None = None
    """Attention heads."""
    num_head_channels: int | None = None
    """guided-diffusion: channels per head, instead of a number of heads."""
    new_attention_order: bool = False
    """guided-diffusion: use_new_attention_order."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule of the training."""
    timesteps: int = 1000
    """Steps of that schedule."""
    predict: Literal["eps", "x0"] = "eps"
    """What the network predicts."""
    rescale_timesteps: Literal["auto", "yes", "no"] = "auto"
    """Whether the network reads its time on 0 to 1000; auto is each script's default."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Convert, args, "percepta convert")
    from percepta.formulation import Denoiser
    from percepta.interop import Foreign, convert, export_pipeline

    if not command.checkpoint.exists():
        raise ValueError(absent(command.checkpoint, "a file of weights"))
    told = Foreign(
        command.size, command.num_heads, command.num_head_channels, command.new_attention_order, command.schedule, command.timesteps,
        {"eps": "noise", "x0": "clean"}[command.predict], {"auto": None, "yes": True, "no": False}[command.rescale_timesteps],
    )  # fmt: skip
    network, formulation = convert(command.checkpoint, command.family, told)
    export_pipeline(command.out, Denoiser(network, formulation), card={"training": f"converted from {command.checkpoint.name}"})
    count = sum(p.numel() for p in network.parameters())
    record = {"out": str(command.out), "parameters": count, "network": type(network.model).__name__}
    to_stdout(json.dumps(record) if command.json else f"{command.out}: {record['network']}, {count / 1e6:.1f} M parameters")
    return 0

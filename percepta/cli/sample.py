"""percepta sample: images from a run or a diffusers pipeline, as files, an .npz or one grid."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from percepta.cli import fail
from percepta.cli.parse import Usage, parse, to_stdout


@dataclass(frozen=True)
class Sample:
    """Draw images. Image k depends on the seed and on k alone: any batch size, any order, the same image.

    Example: percepta sample runs/ddpm --num 64 --steps 50 --out samples/

    OUT ending in .png is one grid, in .npz an array of uint8 images (`arr_0`, labels in `arr_1`: ADM's layout), anything else a folder
    of PNG files with protocol.json. A folder that was left half full by the same command is filled up.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """A run folder, or a folder of a diffusers pipeline."""
    out: Path = Path("samples")
    """Folder, FILE.npz or FILE.png."""
    num: int = 16
    """How many images."""
    steps: int | None = None
    """Steps of the sampler. Default: those the model was finetuned for (recipe mmd), or 50."""
    sampler: str | None = None
    """ddim, ddpm, euler, heun, rk4, dpmpp, adaptive, or the name of a diffusers scheduler class. Default: the pipeline's."""
    spacing: str | None = None
    """Where the steps are: leading, linspace, trailing, quadratic, karras, logsnr, uniform, shifted. Default: the pipeline's."""
    eta: float | None = None
    """ddim: share of fresh noise, 0 none to 1 as DDPM. Default: the pipeline's, usually 0."""
    clip: bool | None = None
    """ddim and ddpm: clip the clean estimate to [-1, 1], or not: --clip, --no-clip. Default: as the pipeline does; usually yes for pixels,
    no for latents."""
    guidance: float | None = None
    """Classifier-free guidance; 1 is none. Default: what the model was finetuned to be sampled with, else 1."""
    classes: tuple[str, ...] = ()
    """Class names or numbers, repeated in turn. Default: all classes in turn."""
    prompts: str | None = None
    """For a model that reads text: prompts with ; between, or a file with one a line. They are taken in turn."""
    negative_prompt: str | None = None
    """With --prompts and --guidance: the text that guidance leads away from. Default: the empty one."""
    predict: Literal["eps", "x0", "v", "flow", "edm"] | None = None
    """For a bare model folder, without a scheduler beside it: what the network predicts."""
    schedule: Literal["linear", "cosine"] | None = None
    """With --predict eps, x0 or v: the noise schedule it was trained with, over 1000 steps."""
    seed: int = 0
    """With the image's number it decides the image."""
    batch: int = 64
    """Images at a time: memory only, the images stay the same."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the network's arithmetic."""
    json: bool = False
    """Print the protocol as one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Sample, args, "percepta sample")
    for name in ("num", "steps", "batch"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise Usage(f"percepta sample: --{name} must be at least 1, got {value}")
    if command.negative_prompt is not None and not command.negative_prompt.strip():
        raise Usage("percepta sample: --negative-prompt is empty, which it is anyway: leave it away")
    from percepta.sampling import draw
    from percepta.training.signals import Interrupted, stop_on_signals

    with stop_on_signals() as flag:
        try:
            protocol = draw(_job(command), command.out, flag.check)
        except Interrupted:
            return fail(f"stopped; run the same command again to go on: {command.out}" if not command.out.suffix else "stopped", 3)
    to_stdout(json.dumps(protocol) if command.json else f"{command.num} images in {command.out}")
    return 0


def _job(command: Sample):
    from percepta.sampling import Job, prompts_of

    return Job(
        source=command.source, num=command.num, steps=command.steps, sampler=command.sampler, spacing=command.spacing, eta=command.eta,
        clip=command.clip, guidance=command.guidance, classes=command.classes, prompts=prompts_of(command.prompts), negative_prompt=command.negative_prompt, seed=command.seed, batch=command.batch,
        predict=command.predict, schedule=command.schedule, device=command.device, mixed_precision=command.mixed_precision,
    )  # fmt: skip

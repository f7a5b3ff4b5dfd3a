"""percepta export: a run as a diffusers pipeline; a translator as ONNX files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from percepta.cli.parse import Usage, parse, to_stdout


@dataclass(frozen=True)
class Export:
    """Write a run's model as a folder that diffusers loads without Percepta.

    Example: percepta export runs/ddpm my-pipeline

    The newest good checkpoint is exported, with averaged weights; a run that was stopped half way can be exported too.
    A run that translates images is written with --onnx as a file for each direction, checked against torch: percepta export runs/ladiffgan onnx --onnx
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The folder to write; it must not exist, or hold an earlier export."""
    step: int | None = None
    """Checkpoint to export. Default: the newest good one."""
    raw: bool = False
    """Export the last weights instead of their average."""
    ema_length: float | None = None
    """Runs with --ema power: relative length of the average (0.01 to 0.28), reconstructed from the run's snapshots."""
    adapter: bool = False
    """Runs with --peft: write the trained weights alone, for the base that they were trained on, instead of the merged pipeline."""
    onnx: bool = False
    """Runs of ladiffgan, or model folders of them: write a2b.onnx and b2a.onnx, each with a JSON file beside it that says what goes in and comes out."""
    direction: Literal["a2b", "b2a"] | None = None
    """With --onnx: this one alone. Default: both."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Export, args, "percepta export")
    if command.onnx:
        return _run_onnx(command)
    if command.direction is not None:
        raise Usage("percepta export: --direction chooses among the files of --onnx; without it a folder holds both directions")
    from percepta.recipes import recipes
    from percepta.training.reopen import export_run

    step = export_run(recipes(), command.run, command.out, command.step, command.raw, command.ema_length, command.adapter)
    to_stdout(
        json.dumps({"out": str(command.out), "step": step}) if command.json else f"{command.out}: step {step} of {command.run}"
    )
    return 0


def _run_onnx(command: Export) -> int:
    if command.adapter:
        raise Usage("percepta export: --adapter writes what was trained beside a base, --onnx a translator: give one of them")
    from percepta.networks.translation import DIRECTIONS
    from percepta.recipes import recipes
    from percepta.translating.onnx import pair_of, write_onnx

    pipe, about = pair_of(recipes(), command.run, command.step, command.raw, command.ema_length)
    files = write_onnx(pipe, command.out, DIRECTIONS if command.direction is None else (command.direction,), about)
    if command.json:
        to_stdout(json.dumps({"out": str(command.out), **about, "files": files}))
    for file in files:
        checked = file["checked"]
        told = f"checked, {checked['largest_difference']:.1g} from torch" if isinstance(checked, dict) else f"checked: {checked}"
        if not command.json:
            to_stdout(f"{command.out / file['file']}: {file['model']}, opset {file['opset']}, {told}")
    return 0

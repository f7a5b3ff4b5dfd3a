"""percepta export: a run as a diffusers pipeline."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from percepta.cli.parse import parse, to_stdout


@dataclass(frozen=True)
class Export:
    """Write a run's model as a folder that diffusers loads without Percepta.

    Example: percepta export runs/ddpm my-pipeline

    The newest good checkpoint is exported, with averaged weights; a run that was stopped half way can be exported too.
    """

    run: tyro.conf.Positional[Path]
    """A run folder."""
    out: tyro.conf.Positional[Path]
    """The folder to write; it must not exist, or hold an earlier export."""
    step: int | None = None
    """Checkpoint to export. Default: the newest good one."""
    raw: bool = False
    """Export the last weights instead of their average."""
    ema_length: float | None = None
    """Runs with --ema power: relative length of the average (0.01 to 0.28), reconstructed from the run's snapshots."""
    adapter: bool = False
    """Runs with --peft: write the trained weights alone, for the base that they were trained on, instead of the merged pipeline."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Export, args, "percepta export")
    from percepta.recipes import recipes
    from percepta.training.reopen import export_run

    step = export_run(recipes(), command.run, command.out, command.step, command.raw, command.ema_length, command.adapter)
    to_stdout(
        json.dumps({"out": str(command.out), "step": step}) if command.json else f"{command.out}: step {step} of {command.run}"
    )
    return 0

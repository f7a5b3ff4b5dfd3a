"""A run from its folder: the method its config.json describes, with the weights of a checkpoint."""

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from percepta.absent import absent
from percepta.evaluation.contamination import trained_against
from percepta.training import checkpoint as checkpoints
from percepta.training.adapting import export_adapter, export_model
from percepta.training.config import read_config
from percepta.training.data import recorded_data
from percepta.training.ema import reconstruct
from percepta.training.job import build_method, card
from percepta.training.loop import averaged
from percepta.training.recipe import Recipe
from percepta.training.state import load_weights, make_state


def export_run(
    recipes: Mapping[str, type[Recipe]],
    run: Path,
    out: Path,
    step: int | None = None,
    raw: bool = False,
    ema_length: float | None = None,
    adapter: bool = False,
) -> int:
    """Export a checkpoint of a run, or its adapter alone; returns its step."""
    if not run.exists():
        raise ValueError(absent(run, "a run folder"))
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is no run folder: it has no config.json")
    if raw and ema_length is not None:
        raise ValueError("--raw and --ema-length exclude each other")
    recipe, settings = read_config(run / "config.json", recipes)
    checkpoint = checkpoints.load(run if step is None else run / f"checkpoint-{step}")
    data = recorded_data(settings, json.loads((run / "config.json").read_text())["resolved"])
    method = build_method(recipe, settings, data, trains=False)
    state = make_state(method, settings, torch.device("cpu"))
    state.load(checkpoint, trains=False)
    if ema_length is not None:
        if settings.ema != "power":
            raise ValueError(f"--ema-length needs a run with --ema power; {run} averaged with --ema {settings.ema}")
        average = reconstruct(run / "snapshots", ema_length, state.images)
        # not the whole model: what blocks share has several names, and the last one loaded would win
        own = {name: x for name, x in method.model.state_dict().items() if name in average}
        load_weights(method.model, average, str(run / "snapshots"), own)
        raw = True
    about = card(recipe, settings, checkpoint.step, trained_against(run))
    with nullcontext() if raw else averaged(state):
        if adapter:
            export_adapter(method, out)
        else:
            export_model(method, out, about)
    return checkpoint.step

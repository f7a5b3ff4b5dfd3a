"""percepta train NAME: train or finetune by a recipe."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from percepta.cli.parse import Usage, nearest, parse, to_stdout
from percepta.training.config import read_config
from percepta.training.recipe import Recipe
from percepta.training.settings import Settings


def run(args: Sequence[str]) -> int:
    from percepta.recipes import recipes

    found = recipes()
    if not args or args[0].startswith("-"):
        text = "percepta train NAME [flags]   NAME is one of:\n" + "\n".join(f"  {n:<12} {r.summary}" for n, r in found.items())
        if args and args[0] in ("-h", "--help"):
            to_stdout(text + "\n\nEach has its own help: percepta train ddpm --help")
            return 0
        raise Usage(f"percepta train: name a recipe ({', '.join(found)}); see percepta train --help")
    name, *flags = args
    if name not in found:
        raise Usage(f"percepta train: there is no recipe {name!r}{nearest(name, found)} (see percepta recipes)")
    recipe, settings = read(found[name], flags)
    return start(recipe, settings)


def read(kind: type[Recipe], flags: Sequence[str]) -> tuple[Recipe, Settings]:
    """Knobs and settings from the flags, on top of --config where one is given."""
    flags = list(flags)
    knobs, settings = kind(), kind.default_settings()
    config, preset = _take(flags, "--config"), _take(flags, "--preset")
    if config is not None and preset is not None:
        raise Usage("percepta train: --config and --preset exclude each other: a config has all values already")
    if preset is not None:
        knobs, settings = kind.preset(preset)
    if config is not None:
        knobs, settings = read_config(Path(config), {kind.name: kind})
    elif "--resume" in flags and (before := Path(_peek(flags, "--out") or f"runs/{kind.name}") / "config.json").is_file():
        knobs, settings = read_config(before, {kind.name: kind})  # a run goes on with its own flags
    knob, flag = tyro.conf.arg(name=""), tyro.conf.arg(help="Repeat a run from its config.json; flags given beside it win.")
    fields = [("recipe", Annotated[kind, knob]), ("settings", Settings), ("config", Annotated[Path | None, flag], None)]
    if kind.presets:
        known = tyro.conf.arg(help=f"Other defaults: {', '.join(kind.presets)}; flags given beside it win.")
        fields.append(("preset", Annotated[str | None, known], None))
    command: Any = dataclasses.make_dataclass("Train", fields, frozen=True)
    description = f"{kind.__doc__}\n\nExample: {kind.example}"
    parsed: Any = parse(command, flags, f"percepta train {kind.name}", command(knobs, settings), description)
    said = any(flag.split("=")[0] == "--size" for flag in flags) or (knobs, settings) != (kind(), kind.default_settings())
    if kind.size_of_init and parsed.settings.init and not said:
        return parsed.recipe, dataclasses.replace(parsed.settings, size=_size_of(parsed.settings.init) or parsed.settings.size)
    return parsed.recipe, parsed.settings


def _size_of(init: str) -> int | None:
    """Side of the images that a pipeline makes."""
    from percepta.interop import load_pipeline
    from percepta.networks import Autoencoder, image_size

    pipeline = load_pipeline(init)
    vae = None if pipeline.vae is None else Autoencoder(pipeline.vae)
    return image_size(getattr(pipeline.denoiser.network, "sample_size", None), vae)


def _take(flags: list[str], name: str) -> str | None:
    """Remove a flag and its value."""
    for index, flag in enumerate(flags):
        if flag.startswith(f"{name}="):
            return flags.pop(index).split("=", 1)[1]
        if flag == name:
            if index + 1 == len(flags):
                raise Usage(f"percepta train: {name} needs a file")
            flags.pop(index)
            return flags.pop(index)
    return None


def _peek(flags: list[str], name: str) -> str | None:
    """A flag's value, left where it is."""
    return _take(list(flags), name)


def start(recipe: Recipe, settings: Settings) -> int:
    from percepta.training.job import train
    from percepta.training.log import console
    from percepta.training.loop import NonFinite

    try:
        outcome = train(recipe, settings)
    except NonFinite as error:
        console.print(f"percepta train {recipe.name}: {error}")
        return 1
    if not outcome.first:
        return 0 if outcome.finished else 3
    if not outcome.finished:
        begun = (outcome.folder / "config.json").is_file()  # until then, nothing but the command knows its flags
        console.print(
            f"stopped at step {outcome.step}"
            + ("; a checkpoint is written" if outcome.step else ", before the first step")
            + (
                f". To go on:\n  percepta train {recipe.name} --out {outcome.folder} --resume"
                if begun
                else "; the same command goes on"
            )
        )
        return 3
    grids = sorted((outcome.folder / "samples").glob("*.png"))
    console.print(
        f"done: {outcome.folder}\n  model    {outcome.model}\n  samples  {grids[-1] if grids else 'none'}\n"
        f"next:\n  {outcome.next_command}"
    )
    return 0

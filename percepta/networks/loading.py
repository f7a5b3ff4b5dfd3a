"""Models from folders: config.json names the class, weights are safetensors."""

import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers import ModelMixin
from safetensors import SafetensorError

from percepta.absent import absent
from percepta.networks.cascade import Cascade
from percepta.networks.cyclegan import CycleganPair
from percepta.networks.ddpmpp import DDPMPP
from percepta.networks.munit import MunitPair
from percepta.networks.ugatit import UgatitPair
from percepta.networks.unit import UnitPair

OWN: dict[str, type[ModelMixin]] = {cls.__name__: cls for cls in (DDPMPP, Cascade, CycleganPair, UnitPair, MunitPair, UgatitPair)}


def class_of(folder: Path) -> type[ModelMixin]:
    """The class that a model folder's config.json names."""
    config = folder / "config.json"
    if not config.is_file():
        parts = sorted(p.parent.name for p in folder.glob("*/config.json"))
        hint = f"it holds {', '.join(parts)}: give one of these" if parts else "give a folder that save_pretrained wrote"
        raise ValueError(f"no config.json in {folder}: this is no model folder; {hint}")
    try:
        content = json.loads(config.read_text())
        name = content.get("_class_name")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config} is not a model's configuration: {error}") from error
    if name is None and "recipe" in content:
        raise ValueError(f"{folder} is a run of the recipe {content['recipe']}, {_what_for(folder, content['recipe'])}")
    found = OWN.get(str(name)) or getattr(diffusers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, ModelMixin)):
        raise ValueError(f"{config} names the class {name!r}, no model of diffusers {diffusers.__version__} nor of Percepta")
    return found


def _what_for(run: Path, recipe: str) -> str:
    """What a run's folder can be given for, where a model was expected in its place."""
    if recipe == "autoencoder":
        return "which trains an autoencoder and no denoiser: give it as --vae"
    if recipe == "prior":
        return "whose denoiser is told another latent, and judges translations: percepta.objectives.prior reads it"
    if recipe == "ladiffgan":
        return f"which translates images and draws none: percepta translate {run} IMAGES OUT"
    if (run / "model").is_dir():
        return f"and its model is a pipeline: give it as --init, or a network of {run / 'model'}"
    return f"and has no model yet: go on with percepta train {recipe} --out {run} --resume, or take a checkpoint of it with percepta export"


def load_model(folder: str | Path) -> ModelMixin:
    """The model saved in a folder, in eval mode. Only safetensors are read: other formats may run code. Every weight must be
    there."""
    folder = Path(folder)
    if not folder.is_dir():
        said = f"{folder} is a file, no model's folder" if folder.exists() else absent(folder, "a model's folder")
        raise ValueError(f"{said} (models load from local folders: hf download NAME --local-dir FOLDER)")
    cls = class_of(folder)
    if not list(folder.glob("*.safetensors")):
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        convert = f"{cls.__name__}.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)"
        refused = f"{', '.join(others)} may hold code and is not loaded; convert it where you trust it, with {convert}"
        raise ValueError(f"no safetensors in {folder}: {refused if others else 'its weights are missing'}")
    try:
        model, info = _read(cls, folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"the weights in {folder} cannot be read, or do not fit its config.json: {str(error).splitlines()[0]}"
        ) from error
    wrong = {what: list(info[what]) for what in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[what]}
    if wrong:
        first = "; ".join(f"{len(keys)} {what}, first {keys[0]}" for what, keys in wrong.items())
        raise ValueError(f"the weights in {folder} do not fit its config.json: {first}; was the folder changed or cut short?")
    return model.eval()


def _read(cls: Any, folder: Path) -> tuple[ModelMixin, dict[str, Any]]:
    return cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)

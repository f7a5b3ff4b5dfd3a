"""config.json: what was asked of a run, written so that it can be asked again."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from percepta.training.recipe import Recipe
from percepta.training.settings import Settings


def asked(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """The part of config.json that `read_config` reads."""
    flags = dataclasses.asdict(dataclasses.replace(settings, resume=False))
    return {
        "recipe": recipe.name,
        "knobs": dataclasses.asdict(recipe),
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in flags.items()},
    }


def read_config(path: Path, recipes: Mapping[str, type[Recipe]]) -> tuple[Recipe, Settings]:
    """The recipe and settings of a config.json (or of the run folder it is in); entries that no flag has are errors."""
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        config = json.loads(path.read_text())
        name, knobs, settings = config["recipe"], dict(config["knobs"]), dict(config["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run's config.json: {error!r}") from None
    if name not in recipes:
        raise ValueError(f"{path} is of the recipe {name!r}, which is not among {', '.join(recipes)}")
    return _filled(recipes[name], knobs, path), _filled(Settings, settings, path)


def _filled(kind: type, values: dict[str, Any], path: Path) -> Any:
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            raise ValueError(f"{path} has the unknown entry {key!r}" + (f", did you mean {close[0]!r}?" if close else ""))
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = tuple(value)
        elif value is not None and "Path" in str(known[key].type):
            values[key] = Path(value)
    return kind(**values)

"""config.json: what was asked of a run, written so that it can be asked again."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from percepta.absent import absent
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
        raise ValueError(absent(path, "a run's config.json"))
    try:
        config = json.loads(path.read_text())
        name, knobs, settings = config["recipe"], dict(config["knobs"]), dict(config["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a run's config.json: {error!r}") from None
    if name not in recipes:
        raise ValueError(f"{path} is of the recipe {name!r}, which is not among {', '.join(recipes)}")
    return _filled(recipes[name], knobs, path), _filled(Settings, settings, path)


FREE_ON_RESUME = frozenset(
    # what may differ between a run and its continuation: where and how fast it runs, how long, and what is written
    [
        "steps",
        "out",
        "resume",
        "device",
        "workers",
        "data_memory",
        "cache",
        "compile",
        "gradient_checkpointing",
        "dist_timeout",
        "log_every",
        "sample_every",
        "sample_num",
        "sample_steps",
        "sampler",
        "guidance",
        "checkpoint_every",
        "keep",
        "keep_best",
        "shares_every",
        "report_to",
        "eval_every",
        "eval_metrics",
        "eval_num",
        "eval_space",
        "eval_data",
        "eval_steps",
        "on_nonfinite",
        "max_bad_steps",
    ]
)


SCORES = ("keep_best", "eval_space", "eval_data", "eval_num", "eval_steps", "sampler", "guidance")  # what a kept score comes from


def check_continuation(path: Path, recipe: Recipe, settings: Settings, whole: bool = True) -> None:
    """Refuse to continue a run under flags that would make it another one; `path` is the run's config.json. Without `whole`, flags that are None are to be
    filled in yet."""
    if not path.is_file():
        return
    was, now = json.loads(path.read_text()), json.loads(json.dumps(asked(recipe, settings), default=str))
    if was["recipe"] != now["recipe"]:
        raise ValueError(f"{path.parent} is a run of the recipe {was['recipe']!r}, not {now['recipe']!r}")
    usual = json.loads(json.dumps(asked(type(recipe)(), Settings()), default=str))
    was |= {part: usual[part] | was[part] for part in ("knobs", "settings")}  # a flag that is younger than the run had its default
    # the best checkpoint has a score: one made in another way could neither beat it nor be beaten
    scored = was["settings"].get("keep_best") is not None and now["settings"]["keep_best"] is not None
    free = {"knobs": recipe.lengths, "settings": FREE_ON_RESUME - frozenset(SCORES if scored else ())}
    changed = [
        f"--{key.replace('_', '-')} {was[part].get(key)} (now {now[part][key]})"
        for part in ("knobs", "settings")
        for key in now[part]
        if was[part].get(key) != now[part][key] and key not in free[part] and (whole or now[part][key] is not None)
    ]
    if changed:
        raise ValueError(
            f"{path.parent} was started with {', '.join(changed)}: continue it with the flags it has, or give another --out"
        )


def _filled(kind: type, values: dict[str, Any], path: Path) -> Any:
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, list(known), n=1)
            raise ValueError(f"{path} has the unknown entry {key!r}" + (f", did you mean {close[0]!r}?" if close else ""))
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = tuple(value)
        elif value is not None and "Path" in str(known[key].type):
            values[key] = Path(value)
        if not _fits(values[key], hints[key]):
            raise ValueError(f"{path}: {key} must be {known[key].type}, got {value!r}")
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from JSON fits a field's type: the few kinds that flags have."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is tuple:
        inner = (args[0],) * len(value) if isinstance(value, tuple) and len(args) == 2 and args[1] is ... else args
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))

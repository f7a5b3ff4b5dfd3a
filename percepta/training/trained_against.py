"""What a method is trained against: the spaces behind its terms, for config.json, and those that its starting points bring along.

A metric in one of these spaces measures obedience, not quality; percepta/evaluation/contamination.py reads the record and marks it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from percepta.evaluation.contamination import trained_against
from percepta.objectives import AbstractObjective
from percepta.spaces import Space
from percepta.training.method import Method
from percepta.training.recipe import Recipe
from percepta.training.settings import Settings


def spaces_behind(value: Any) -> Iterator[Space]:
    """Every Space in an objective: its attributes, lists of them, objectives inside it, and what a Space stands on."""
    if isinstance(value, nn.Module):
        yield from (module for module in value.modules() if isinstance(module, Space))
    elif isinstance(value, AbstractObjective):
        yield from spaces_behind(vars(value))
    elif isinstance(value, Mapping):
        yield from spaces_behind(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from spaces_behind(item)


def record(method: Method, recipe: Recipe, settings: Settings) -> list[dict[str, str]]:
    """`resolved.trained_against` of config.json: own terms first, then what --init, --vae and the models behind its terms were trained against."""
    own = [{"space": space.name, "term": term.name} for term in method.all_terms for space in spaces_behind(term.objective)]
    own_vae = settings.vae == settings.init  # what --init brought along
    given = (("--init", settings.init), ("--vae", None if own_vae else settings.vae), *recipe.stands_on.items())
    inherited = [{"space": space, "inherited": f"{flag} {path}"} for flag, path in given if path for space in trained_against(path)]
    out: list[dict[str, str]] = []
    for entry in [*own, *inherited]:
        if entry not in out:
            out.append(entry)
    return out


def names(entries: list[dict[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry["space"] for entry in entries))

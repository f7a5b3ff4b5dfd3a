"""percepta recipes: the methods, a line each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from percepta.cli.parse import parse, to_stdout


@dataclass(frozen=True)
class Recipes:
    """List the methods that `percepta train NAME` knows.

    Example: percepta recipes
    """

    json: bool = False
    """Print one JSON object instead of a table."""


def run(args: Sequence[str]) -> int:
    command = parse(Recipes, args, "percepta recipes")
    from percepta.recipes import recipes

    found = recipes()
    if command.json:
        to_stdout(json.dumps({name: {"summary": r.summary, "example": r.example} for name, r in found.items()}, indent=2))
        return 0
    width = max(map(len, found))
    to_stdout("\n".join(f"{name:<{width}}  {r.summary}" for name, r in found.items()))
    return 0

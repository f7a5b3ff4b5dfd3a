"""One readable file per method. A recipe is found by listing this folder: a new method is one new file here."""

import importlib
import inspect
import pkgutil

from percepta.training.recipe import Recipe


def recipes() -> dict[str, type[Recipe]]:
    """Every recipe by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, Recipe)
                and not inspect.isabstract(value)
                and value.__module__ == module.__name__
            ):
                found[value.name] = value
    return dict(sorted(found.items()))

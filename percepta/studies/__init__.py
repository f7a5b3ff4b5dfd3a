"""One readable file per table or figure of a paper, found by listing this folder: its rows, its columns, the paper's numbers, its commands.

A study is a matrix of cells at equal budget. Each cell is a chain of `percepta` commands as a user would type them; what cells share is run
once (engine/). Files that begin with an underscore hold what the studies of one paper have in common.
"""

import importlib
import pkgutil

from percepta.studies.engine.study import Study


def studies() -> dict[str, Study]:
    """Every study by name."""
    names = [info.name for info in pkgutil.iter_modules(__path__) if not info.ispkg and not info.name.startswith("_")]
    found = [importlib.import_module(f"{__name__}.{name}").STUDY for name in names]
    return {study.name: study for study in sorted(found, key=lambda study: study.name)}

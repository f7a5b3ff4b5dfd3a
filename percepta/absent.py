"""What is said of a path where nothing is: what was looked for, and what lies there with a similar name."""

import difflib
from contextlib import suppress
from pathlib import Path


def absent(path: str | Path, wanted: str = "") -> str:
    """One sentence of a path that does not exist; `wanted` is what should be there, as in "a run folder"."""
    try:
        end = Path(path).expanduser()
    except RuntimeError:  # ~ of nobody
        return f"{path}: does not exist{f' ({wanted} is wanted)' if wanted else ''}"
    parent = end.absolute().parent
    while not parent.exists():  # the first folder of the way that is missing is the one that was misspelt
        end, parent = parent, parent.parent
    siblings = []
    with suppress(OSError):  # a file, or a folder that may not be read
        siblings = [entry.name for entry in parent.iterdir() if entry.name != end.name]  # a link to nothing bears the name itself
    near = difflib.get_close_matches(end.name, siblings, 1, 0.5)
    hint = f"did you mean {parent / near[0]}?" if near else f"{parent} holds {', '.join(sorted(siblings)[:8]) or 'nothing'}"
    return f"{path}: does not exist{f' ({wanted} is wanted)' if wanted else ''}; {hint}"

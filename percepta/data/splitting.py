"""Two folders of images into the layout of unpaired translation: trainA/ and trainB/, testA/ and testB/.

Where equal file names belong together, the test sets are pairs, and of every other pair one half alone is trained on: what a method must find
out for itself is then nowhere in its data.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from percepta.data.domains import FACTS, Domains, find_domains, names_of
from percepta.data.layouts import open_folder
from percepta.data.order import permutation
from percepta.rng import mix


def split_domains(a: str | Path, b: str | Path, out: str | Path, test: int, pairing: str = "none", seed: int = 0) -> Domains:
    """`test` images of each folder to judge by, the rest to train on, as links to the files (copies where a disk has no links).

    `pairing`: `names` where equal file names belong together, `none` where they do not.
    """
    if pairing not in ("none", "names"):
        raise ValueError(f"files are paired by names, or none are, got pairing={pairing!r}")
    if test < 1:
        raise ValueError(f"at least 1 image to judge by is needed, got test={test}")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: exists already; give a new folder")
    sides = [open_folder(Path(folder)) for folder in (a, b)]
    names = [names_of(side) for side in sides]
    shared = sorted(names[0].keys() & names[1].keys()) if pairing == "names" else []
    if pairing == "names" and len(shared) < test:
        raise ValueError(f"{a} and {b} have {len(shared)} file names in common, fewer than the {test} pairs to judge by")
    shared = _shuffled(shared, mix(seed, "split", "pairs"))
    chosen: dict[str, tuple[Path, list[str]]] = {}
    for side, places, letter in zip(sides, names, "AB", strict=True):
        if pairing == "names":
            tested = shared[:test]
            foreign = shared[test + (letter == "A") :: 2]  # the other domain trains on these
        else:
            tested, foreign = _shuffled(sorted(places), mix(seed, "split", letter))[:test], []
        trained = sorted(places.keys() - set(tested) - set(foreign))
        if len(tested) < test or not trained:
            raise ValueError(f"{side.root}: {len(places)} images cannot give {test} to judge by, and others to train on")
        for part, kept in (("train", trained), ("test", tested)):
            chosen[f"{part}{letter}"] = side.root, [side.names[places[name]] for name in kept]
    for name, (root, files) in chosen.items():
        _put(root, files, out / name)
    (out / FACTS).write_text(json.dumps({"pairing": pairing}) + "\n", encoding="utf-8")
    return find_domains(str(out))


def _shuffled(names: Sequence[str], key: int) -> list[str]:
    return [names[int(k)] for k in permutation(len(names), key)]


def _put(root: Path, names: Sequence[str], folder: Path) -> None:
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link((root / name).resolve(), place)
        except OSError:  # another disk, or one without links
            shutil.copyfile(root / name, place)

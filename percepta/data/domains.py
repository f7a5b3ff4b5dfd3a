"""Two unpaired domains, A (what is translated) and B (what it becomes): where their images are, and where those to judge by.

Training and test sets are told as `--data` takes them, so that every command can be given them. Which test image of A belongs to which of B
is a truth that training never uses: it is known of the built-in shapes, and of folders where `domains.json` says {"pairing": "names"}.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from percepta.data.open import both_domains, is_shapes, open_source, shapes_text
from percepta.data.shapes import Shapes
from percepta.data.source import Files, Source

PAIRINGS = ("none", "names", "scenes")
FACTS = "domains.json"  # beside the test folders
TEST_SCENES = 1000  # shapes to judge by, where the training set is not smaller


@dataclass(frozen=True)
class Domains:
    """The sets by name. `pairing` of the test sets: none, names (the files of equal names), scenes (shapes: equal places)."""

    train_a: str
    train_b: str
    test_a: str | None = None
    test_b: str | None = None
    pairing: str = "none"

    def tests(self) -> tuple[str, str]:
        """Both test sets; ValueError where one is missing."""
        missing = [name for name, test in (("A", self.test_a), ("B", self.test_b)) if test is None]
        if self.test_a is None or self.test_b is None:
            raise ValueError(
                f"there are no test images of {' and '.join(missing)} for {self.train_a} -> {self.train_b}: put them into testA/ and testB/ "
                "beside trainA/ and trainB/ (percepta.data.split_domains does, from two folders of images)"
            )
        return self.test_a, self.test_b


class Partners(NamedTuple):
    """Which image of A belongs to which of B: image a[k] to image b[k]."""

    a: Int64[np.ndarray, " n"]
    b: Int64[np.ndarray, " n"]


def find_domains(source: str, target: str | None = None) -> Domains:
    """The domains of --source and --target; without a target those of a folder with trainA/ and trainB/ (or A/ and B/), or of `shapes`.

    The test set of trainNAME/ is testNAME/ beside it, that of train/NAME/ is test/NAME/, that of A/ is testA/; that of shapes is drawn from
    scenes that no training set has.
    """
    if target is None:
        source, target = both_domains(source)
    if _same(source, target):
        raise ValueError(f"both domains are {source}: translation needs two, the --source and the --target that it becomes")
    tests = _test_of(source), _test_of(target)
    return Domains(source, target, *tests, pairing=pairing_of(*tests))


def paired(a: Source, b: Source) -> bool:
    """Whether image k of one shows what image k of the other does, by what the sets are: shapes of the same scenes. (An outline does not
    tell which texture and background the filled shape has.)"""
    if not (isinstance(a, Shapes) and isinstance(b, Shapes)):
        return False
    return (a.first, a.seed, a.length, set(a.shown)) == (b.first, b.seed, b.length, set(b.shown))


def partners(a: Source, b: Source, pairing: str) -> Partners | None:
    """The pairs of two test sets; None where none are known. An image without a partner is left out."""
    if pairing not in PAIRINGS:
        raise ValueError(f"unknown pairing {pairing!r}; known: {', '.join(PAIRINGS)}")
    if pairing == "none":
        return None
    if pairing == "scenes":
        if not paired(a, b):
            raise ValueError(
                f"{_told(a)} and {_told(b)} do not show the same scenes: only shapes of part=test with equal options do"
            )
        return Partners(np.arange(len(a)), np.arange(len(b)))
    ours, theirs = names_of(a), names_of(b)
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        raise ValueError(
            f"{_told(a)} and {_told(b)} are said to be paired by file names, and have none in common ({_some(ours)}; {_some(theirs)})"
        )
    return Partners(*(np.array([names[name] for name in both], dtype=np.int64) for names in (ours, theirs)))


def _same(source: str, target: str) -> bool:
    if is_shapes(source) and is_shapes(target):
        return replace(_shapes(source), labels="none", size=8) == replace(_shapes(target), labels="none", size=8)
    return source == target or (Path(source).exists() and Path(target).exists() and Path(source).samefile(target))


def _shapes(text: str) -> Shapes:
    shapes = open_source(text)
    assert isinstance(shapes, Shapes)
    return shapes


def _test_of(train: str) -> str | None:
    """The test set beside a training set, where there is one."""
    if is_shapes(train):
        shapes = _shapes(train)
        if shapes.part == "test":
            raise ValueError(f"{train}: scenes of part=test are to judge by: train on others, and they are found")
        return shapes_text(train, part="test", length=str(min(shapes.length, TEST_SCENES)))
    path = Path(train)  # which may not be there any more where a model is judged
    if path.name.startswith("train"):
        there = path.with_name(path.name.replace("train", "test", 1))
    elif path.parent.name == "train":
        there = path.parent.with_name("test") / path.name
    elif path.name in ("A", "B"):
        there = path.with_name(f"test{path.name}")
    else:
        return None
    return str(there) if there.exists() else None


def pairing_of(test_a: str | None, test_b: str | None) -> str:
    """How two sets to judge by belong together, one of PAIRINGS. Training sets do not, whatever stands beside them."""
    if test_a is None or test_b is None or _trained_on(test_a) or _trained_on(test_b):
        return "none"
    if is_shapes(test_a) or is_shapes(test_b):
        return "scenes" if is_shapes(test_a) and is_shapes(test_b) and paired(_shapes(test_a), _shapes(test_b)) else "none"
    file = Path(test_a).parent / FACTS
    if Path(test_a).parent.resolve() != Path(test_b).parent.resolve() or not file.is_file():
        return "none"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: is not JSON: {error}") from error
    if not isinstance(said, dict) or said.get("pairing") not in ("names", "none"):
        raise ValueError(
            f'{file}: needs {{"pairing": "names"}} (equal file names belong together) or {{"pairing": "none"}}, got {said}'
        )
    return said["pairing"]


def _trained_on(test: str) -> bool:
    """Whether a folder has the name of one that is trained on."""
    path = Path(test)
    return not is_shapes(test) and (path.name.startswith("train") or path.parent.name == "train" or path.name in ("A", "B"))


def names_of(source: Source) -> dict[str, int]:
    """The place of each file by its name below the folder, without the ending."""
    if not isinstance(source, Files):
        raise ValueError(f"{_told(source)} are no files in a folder: only those have names that can pair them")
    out: dict[str, int] = {}
    for place, name in enumerate(source.names):
        stem = Path(name).with_suffix("").as_posix()
        if stem in out:
            raise ValueError(
                f"{source.root}: {source.names[out[stem]]} and {name} have the same name: which of them is the pair's?"
            )
        out[stem] = place
    return out


def _told(source: Source) -> str:
    return str(source.root) if isinstance(source, Files) else repr(source) if isinstance(source, Shapes) else type(source).__name__


def _some(names: dict[str, int]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")

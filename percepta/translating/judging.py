"""Judging a trained translator on test sets, both ways: what `percepta evaluate RUN` does for a run of a recipe that translates.

judge_translator(Asked(Path("runs/a")))                                     # the run's own test sets
judge_translator(Asked(Path("translator"), source="testA", target="testB")) # others
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from percepta import distributed
from percepta.absent import absent
from percepta.data.domains import find_domains, pairing_of
from percepta.data.transforms import still
from percepta.evaluation.evaluate import Evaluation
from percepta.evaluation.sets import ImageSet, open_side
from percepta.evaluation.translation import TestSets, judge_translations
from percepta.networks.loading import class_of
from percepta.networks.translation import Direction, Pair
from percepta.reports.figures import Words, strip
from percepta.sampling import origin, weights_hash
from percepta.translating.pipeline import TranslationPipeline

TITLES = {"a2b": "A translated to B", "b2a": "B translated to A"}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is judged. Without `source` (images of A) and `target` (of B) on the test sets of the run; `size` and `crop` are the run's unless given."""

    model: Path
    source: str | None = None
    target: str | None = None
    num: int | None = None
    size: int | None = None
    crop: str | None = None
    on_bad: str = "error"
    seed: int = 0
    device: str = "cpu"


def is_translator(given: object) -> bool:
    """Whether this is a run of a recipe that translates, its model, or a translator that was saved."""
    if not isinstance(given, (str, Path)) or not Path(given).is_dir():
        return False
    folder = Path(given)
    model = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    if not (model / "config.json").is_file():
        return False
    try:
        return issubclass(class_of(model), Pair)
    except ValueError:
        return _config(folder / "config.json").get("recipe") == "ladiffgan"  # a run that has no model yet


def judge_translator(
    asked: Asked,
    figures: Path | None = None,
    check: Callable[[], None] = lambda: None,
    **options: Any,
) -> Evaluation:
    """Both directions, as percepta.evaluation.translation says; `options` are those of its `judge_translations`. `figures`: where some
    translations are shown."""
    pipe = TranslationPipeline.from_pretrained(asked.model, asked.size).to(asked.device)
    if pipe.size is None:
        raise ValueError(f"{asked.model} does not say at which size it was trained: say at which it is judged, with --size")
    pipe.fitting("resize")
    sets = test_sets(asked, pipe.size)

    def translate(x: Tensor, way: Direction) -> Tensor:
        return pipe.pair.translate(x.to(pipe.device), way, asked.seed)

    def look(way: str, rows: Sequence[Sequence[np.ndarray]]) -> None:
        if figures is not None and rows and distributed.world().first:
            show_rows(figures, way, rows)

    drawn = {
        "by": "translations", "source": str(asked.model), "model": type(pipe.pair).__name__, "weights": weights_hash(pipe.pair),
        "size": pipe.size, "seed": asked.seed, **origin(asked.model),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return judge_translations(
            translate, sets, drawn=drawn, device=asked.device, seed=asked.seed, look=look, check=check, **options
        )


def test_sets(asked: Asked, size: int) -> TestSets:
    """The sets, cut as training cut its images."""
    run = run_of(asked.model)
    settings = run.get("settings", {})
    a, b = asked.source, asked.target
    if (a is None) != (b is None):
        raise ValueError(
            "a translator is judged on two sets: give images of A (--source) and of B (REAL), or none for the run's own"
        )
    if a is None or b is None:
        if not run:
            raise ValueError(
                f"{asked.model} is not a run's folder and has no test sets: give images of B, and of A with --source: "
                f"percepta evaluate {asked.model} testB --source testA"
            )
        knobs = run.get("knobs", {})
        a, b = own_tests(knobs["source"], knobs["target"], settings.get("eval_data"))
    crop = asked.crop or still(settings.get("crop", "center-crop"))
    sides = []
    for text in (a, b):
        side = open_side(text, size=size, crop=crop, on_bad=asked.on_bad)
        assert isinstance(side, ImageSet), "statistics have no size, and are refused with one"
        if asked.num is not None and not 2 <= asked.num <= len(side):
            raise ValueError(f"--num {asked.num}: so many of each test set are translated, 2 or more, and {text} has {len(side)}")
        sides.append(side)
    return TestSets(sides[0], sides[1], pairing_of(a, b), asked.num)


def own_tests(source: str, target: str, eval_data: str | None) -> tuple[str, str]:
    """The test sets of a run; of B what it was evaluated with while it trained."""
    found = find_domains(source, target)
    found = replace(found, test_b=eval_data or found.test_b)
    for images, test in ((source, found.test_a), (target, found.test_b)):
        if test is None and ":" not in images and not Path(images).exists():
            raise ValueError(
                f"the run was trained on {absent(images, 'the path as it was given there')}. Go to the folder that it was trained in, or "
                "name both test sets: REAL, images of B, and --source, images of A"
            )
    return found.tests()


def run_of(model: Path) -> dict[str, Any]:
    """The config.json of the run that a folder is, or that it is the model of; empty where there is none."""
    for folder in (model, model.parent) if model.name == "model" else (model,):
        found = _config(folder / "config.json")
        if "recipe" in found:
            return found
    return {}


def show_rows(folder: Path, way: str, rows: Sequence[Sequence[np.ndarray]]) -> Path:
    """Figures of some translations: the image, its translation, the way back, and the true partner where it is known."""
    shows = "image, translation, and back" + (", and the truth" if all(len(row) == 4 for row in rows) else "")
    return strip(folder, f"translations-{way}", rows, Words(
        TITLES[way], f"From left to right: {shows}. The first images of the test set.",
        f"{len(rows)} rows: {shows}"))  # fmt: skip


def _config(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

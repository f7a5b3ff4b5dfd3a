"""Evaluation while a run trains: what the averaged weights make now, against the data, as a line of evaluations.jsonl and a file of its own.

It draws from a random stream of its own and leaves torch's generators as they were, so that a run has the same weights with it and
without. What an evaluation needs (weights of a space, the reference, a sampler) is asked for before the first step, not at step N.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from percepta.data import open_source
from percepta.data.transforms import still
from percepta.training.folder import RunFolder, write_json
from percepta.training.product import Check, Product
from percepta.training.settings import Settings
from percepta.training.translated import Translated

if TYPE_CHECKING:  # a run without evaluations does not import them
    from percepta.evaluation.evaluate import Evaluation
    from percepta.evaluation.plan import Plan
    from percepta.evaluation.sets import ImageSet, StatsFile
    from percepta.evaluation.translation import TestSets

LINES = "evaluations.jsonl"
DIALECT = "torch-fidelity"  # the default of `percepta evaluate`
Judge = Callable[..., "Evaluation"]


@dataclass(frozen=True)
class Evaluator:
    """What is computed at each evaluation of a run, with everything it needs at hand. One process has it, the first.

    `lower` says of each value whether lower is better; `judge` is percepta.evaluation.evaluate's function, or, for a translator, which is
    judged on test sets, percepta.evaluation.translation's.
    """

    product: Product
    settings: Settings
    device: torch.device
    real: "ImageSet | StatsFile | TestSets"
    judge: Judge
    metrics: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    lower: Mapping[str, bool] = field(default_factory=dict)

    def __call__(self, step: int, images: int, check: Check) -> dict[str, Any]:
        """One evaluation of the weights that the product has now. `check` may raise, and nothing is left behind then."""
        with untouched(self.device):
            made, how = self.product.judged(self.settings, self.device, check, self.real)
            found = self.judge(
                made, self.real, metrics=self.metrics, spaces=self.spaces, dialect=DIALECT, device=str(self.device),
                cache=self.settings.cache and self.settings.cache / "features", seed=self.settings.seed, trained_against=self.trained,
                drawn={**how, "step": step}, check=check, keep_rows=False,
            )  # fmt: skip
        return {"step": step, "images": images, **found.to_json()}

    def score(self, file: Path) -> float | None:
        """The --keep-best value of a finished evaluation as a checkpoint's score, the lower the better; None where there is none."""
        name = self.settings.keep_best
        if name is None or not file.is_file():
            return None
        found = json.loads(file.read_text())["metrics"].get(name)  # none in an evaluation from before a resume with other metrics
        value = math.nan if found is None else float(found["value"])
        return None if not math.isfinite(value) else value if self.lower[name] else -value


def prepared(
    product: Product, settings: Settings, device: torch.device, trained: Sequence[str], note: Callable[[str], None], check: Check
) -> Evaluator | None:
    """The evaluator that the settings ask for, or None; ValueError for what could not be computed later. `check` may raise to leave."""
    if not settings.eval_every:
        return None
    from percepta.evaluation.evaluate import cache_folder, evaluate
    from percepta.evaluation.plan import Plan, check_metrics
    from percepta.evaluation.translation import WAYS, TestSets, judge_translations
    from percepta.training.ready import make_sure, planned

    metrics, spaces = check_metrics(words(settings.eval_metrics)), words(settings.eval_space or "")
    cache = settings.cache / "features" if settings.cache else cache_folder()
    real, lower = reference(settings, product), dict[str, bool]()
    sides = {f"/{way}": (real.of(way)[1], real.count(way)) for way in WAYS} if isinstance(real, TestSets) else {
        "": (real, settings.eval_num)}  # fmt: skip
    plans: dict[str, Plan] = {}
    for way, (side, _) in sides.items():
        plans[way], spaces = planned(side, metrics, spaces, settings, device, cache, note, check)
        lower |= {f"{name}{way}": less for name, less in directions(plans[way]).items()}
    if isinstance(real, TestSets):
        lower |= told_beside(real, note)
    if settings.keep_best is not None and settings.keep_best not in lower:
        raise ValueError(f"--keep-best {settings.keep_best} is not among what is evaluated: {', '.join(lower)}")
    with untouched(device):
        for way, (side, made) in sides.items():
            make_sure(plans[way], side, made, settings, cache, note, check)
    judge = judge_translations if isinstance(real, TestSets) else evaluate
    return Evaluator(product, settings, device, real, judge, metrics, spaces, tuple(trained), lower)


def told_beside(sets: "TestSets", note: Callable[[str], None]) -> dict[str, bool]:
    """What a translation is judged by beside the metrics; what cannot be had is told, and does not stop a run."""
    from percepta.evaluation.translation import beside

    lower, missing = beside(sets)
    for reason in dict.fromkeys(missing.values()):
        note(f"evaluation: without {', '.join(name for name, why in missing.items() if why == reason)}: {reason}")
    return lower


def words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def reference(settings: Settings, product: Product) -> "ImageSet | StatsFile | TestSets":
    """The other side: the training data through its own resize and crop (the middle, where training draws the place), or --eval-data.

    Reconstructions are compared with the very images that they are of; a translator has two sets.
    """
    from percepta.evaluation.sets import StatsFile, open_side

    if isinstance(product, Translated):
        return product.tests(settings)
    coder = product.judged_by == "reconstructions"
    given = settings.eval_data
    if given is not None and Path(given).suffix == ".npz" and isinstance(side := open_side(given), StatsFile):
        if coder:
            raise ValueError(
                f"--eval-data {given} holds statistics: an autoencoder is judged by reconstructions, which need images"
            )
        return side  # made of images of one size already
    return images_of(settings, given or settings.data, settings.eval_num if coder else None)


def images_of(settings: Settings, data: str, num: int | None = None) -> "ImageSet":
    """A set of images as this run's training sees them, cut the same way each time: the middle, or, for `jitter`, the whole."""
    from percepta.evaluation.sets import ImageSet, open_side

    images = open_side(
        open_source(data, settings.size), size=settings.size, crop=still(settings.crop), num=num, on_bad=settings.on_bad_image
    )
    assert isinstance(images, ImageSet)  # a source holds no statistics
    return images


def directions(plan: "Plan") -> dict[str, bool]:
    """Every value that the plan gives, and whether lower is better."""
    return {f"{key}{want.suffix}": want.metric.lower for want in plan.wanted for key in want.metric.keys}


def keep(folder: RunFolder, record: Mapping[str, Any]) -> None:
    """The line first, then the file: where the file is, the evaluation is whole and is not done again."""
    step = int(record["step"])
    folder.rewind_lines(LINES, step - 1)  # of an evaluation that was killed between the two
    folder.append(LINES, {k: record[k] for k in ("step", "images", "metrics", "protocol", "warnings")})
    folder.evaluation(step).parent.mkdir(parents=True, exist_ok=True)
    write_json(folder.evaluation(step), record)


def told(record: Mapping[str, Any], seconds: float) -> str:
    """The line for the console; values that the model was trained against are marked."""
    parts = []
    for name, value in record["metrics"].items():
        spread = f" +- {value['std']:.2g}" if value.get("std") is not None else ""
        parts.append(f"{name} {value['value']:.5g}{spread}{' (trained against)' if value.get('contaminated') else ''}")
    return f"step {record['step']}: {', '.join(parts)}  ({seconds:.1f} s)"


def untouched(device: torch.device) -> AbstractContextManager[None]:
    """Whatever is drawn inside, torch's generators go on as if it had not been."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

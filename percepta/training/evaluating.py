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

if TYPE_CHECKING:  # a run without evaluations does not import them
    from percepta.evaluation.evaluate import Evaluation
    from percepta.evaluation.plan import Plan
    from percepta.evaluation.sets import ImageSet, StatsFile

LINES = "evaluations.jsonl"
DIALECT = "torch-fidelity"  # the default of `percepta evaluate`
Judge = Callable[..., "Evaluation"]


@dataclass(frozen=True)
class Evaluator:
    """What is computed at each evaluation of a run, with everything it needs at hand. One process has it, the first.

    `lower` says of each value whether lower is better; `judge` is percepta.evaluation.evaluate's function.
    """

    product: Product
    settings: Settings
    device: torch.device
    real: "ImageSet | StatsFile"
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
    from percepta.evaluation.evaluate import Opener, cache_folder, evaluate, make_dialect
    from percepta.evaluation.plan import check_metrics, make_plan, without_impossible
    from percepta.evaluation.sets import StatsFile
    from percepta.training.ready import diversity_missing, make_sure

    metrics, how = check_metrics(words(settings.eval_metrics)), make_dialect(DIALECT)
    real = reference(settings, product)
    cache = settings.cache / "features" if settings.cache else cache_folder()
    opener = Opener(how, "fp32", str(device), cache, real, settings.seed, note, check)
    with untouched(device):  # the space `domain` may be trained here
        spaces = words(settings.eval_space or "") or opener.usual(metrics)
        plan = make_plan(metrics, spaces, opener, isinstance(real, StatsFile))
    if isinstance(real, StatsFile):
        plan = without_impossible(plan, None, real)
    plan.missing |= diversity_missing(plan, settings.size)
    if plan.missing:
        raise ValueError(f"--eval-metrics {settings.eval_metrics} cannot all be computed: " + "; ".join(
            f"{name}: {why}" for name, why in plan.missing.items()))  # fmt: skip
    lower = directions(plan)
    if settings.keep_best is not None and settings.keep_best not in lower:
        raise ValueError(f"--keep-best {settings.keep_best} is not among what is evaluated: {', '.join(lower)}")
    with untouched(device):
        make_sure(plan, how, real, settings, cache, note, check)
    for warning in dict.fromkeys(opener.warnings):
        note(f"evaluation: {warning}")
    return Evaluator(product, settings, device, real, evaluate, metrics, spaces, tuple(trained), lower)


def words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def reference(settings: Settings, product: Product) -> "ImageSet | StatsFile":
    """The other side: the training data through its own resize and crop (the middle, where training draws the place), or --eval-data.

    Reconstructions are compared with the very images that they are of.
    """
    from percepta.evaluation.sets import StatsFile, open_side

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

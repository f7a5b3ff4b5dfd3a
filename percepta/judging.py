"""Judging what the user has: sets of images, or a run or pipeline that is drawn from first. What `percepta evaluate` does, as a function."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from percepta.evaluation.contamination import trained_against
from percepta.evaluation.evaluate import Evaluation, Given, make_dialect
from percepta.evaluation.evaluate import evaluate as evaluate_sets
from percepta.evaluation.plan import check_metrics
from percepta.evaluation.sets import short_hash
from percepta.sampling import PROTOCOL, Drawing, Job, write
from percepta.training.folder import write_json

DRAWN = 50_000  # images, unless asked otherwise


def is_generator(given: object) -> bool:
    """Whether this is a run or a pipeline, which has to be drawn from."""
    if not isinstance(given, (str, Path)):
        return False
    path = Path(given)
    if not path.is_dir():
        return False
    return any((path / name).is_file() for name in ("config.json", "model_index.json")) and not (path / PROTOCOL).is_file()


def evaluate(
    generated: Given,
    real: Given,
    job: Job | None = None,
    samples: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
    **options: Any,
) -> Evaluation:
    """evaluation/evaluate.py's `evaluate`, where `generated` may be a run or a pipeline folder: `job` then says how it is drawn, `samples` where to.

    Drawn images stay in a folder named by what made them, below the run: an interrupted drawing goes on, a repeated one is not done again.
    """
    check_metrics(options.get("metrics"))  # wrong names before hours of drawing
    make_dialect(options.get("dialect", "torch-fidelity"))
    known: dict[str, Any] = {}
    trained: Sequence[str] = options.pop("trained_against", ())
    if is_generator(generated):
        assert isinstance(generated, (str, Path))
        trained = (*trained, *trained_against(Path(generated)))
        job = replace(job or Job(source=Path(generated), num=DRAWN), source=Path(generated))
        folder = samples or Path(generated) / "evaluation" / "drawn"
        generated, known = _draw(job, folder, note, check)
        options["num"] = job.num
    elif isinstance(generated, (str, Path)) and (Path(generated) / PROTOCOL).is_file():
        known = json.loads((Path(generated) / PROTOCOL).read_text())  # written by `percepta sample`
        trained = (*trained, *_trained_source(known))
    return evaluate_sets(
        generated, real, trained_against=tuple(dict.fromkeys(trained)), drawn=known, note=note, check=check, **options
    )


def _trained_source(known: dict[str, Any]) -> tuple[str, ...]:
    source = Path(str(known.get("source", "")))
    return trained_against(source) if known.get("source") and source.is_dir() else ()


def _draw(job: Job, folder: Path, note: Callable[[str], None], check: Callable[[], None]) -> tuple[Path, dict[str, Any]]:
    drawing = Drawing(job, check)
    named = {k: v for k, v in drawing.protocol().items() if k not in ("num", "source")}
    out = folder / short_hash(json.dumps(named, sort_keys=True))
    note(f"drawing {job.num:,} images by {drawing.how.sampler}, {drawing.how.steps} steps, into {out}")
    return out, write(drawing, out)


def save(evaluation: Evaluation, folder: Path, name: str = "evaluation") -> Path:
    """NAME.json and protocol.json in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", evaluation.to_json())
    write_json(folder / PROTOCOL, evaluation.protocol)
    return folder / f"{name}.json"


def copying(
    evaluation: Evaluation,
    real: Given,
    held_out: Given | None,
    count: int,
    folder: Path,
    note: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
    **options: Any,
) -> dict[str, Any]:
    """Is it copying? Nearest images of `real`, in the space of the evaluation's first metric; figures in FOLDER/figures, numbers in FOLDER/copying.json.

    `options`: those of the evaluation that say how images are read (space, size, crop, on_bad, precision, device, cache, dialect, seed).
    """
    from percepta.evaluation.evaluate import Opener, cache_folder
    from percepta.evaluation.neighbours import find_neighbours
    from percepta.evaluation.sets import ImageSet, open_side
    from percepta.spaces.extractor import split_name

    reading = {name: options[name] for name in ("size", "crop", "on_bad") if name in options}
    name = evaluation.protocol["generated"]["name"]
    sides = [open_side(given, **reading) for given in (name, real, *([held_out] if held_out is not None else []))]
    if not all(isinstance(side, ImageSet) for side in sides):
        raise ValueError("--neighbours compares images; statistics (mu, sigma) have none")
    images: list[ImageSet] = [side for side in sides if isinstance(side, ImageSet)]
    cache = options.get("cache") or cache_folder()
    how = make_dialect(options.get("dialect", "torch-fidelity"))
    opener = Opener(
        how, options.get("precision", "fp32"), options.get("device", "cpu"), cache, images[1], options.get("seed", 0), note
    )
    family, layer = split_name(next(value.space for value in evaluation.metrics.values()))
    extractor = opener(family, layer)
    found = find_neighbours(
        images[0], images[1], images[2] if held_out is not None else None, extractor, layer or extractor.default, cache, count,
        note=note, check=check,
    )  # fmt: skip
    _figures(found, images, folder / "figures")
    write_json(folder / "copying.json", found.to_json())
    return found.to_json()


def _figures(found: Any, images: Sequence[Any], folder: Path) -> None:
    from percepta.reports.figures import Words, distribution_plot, neighbour_panel

    queries, near = found.images(images[0], images[1])
    space = found.copying.space
    neighbour_panel(folder, "neighbours", queries, near, found.distances.astype(float), Words(
        "Nearest reference images", f"Left: samples, the lower half those that lie nearest to any reference image. Right: their nearest in {space}.",
        f"{len(queries)} samples, each with its {found.indices.shape[1]} nearest reference images and their distances"))  # fmt: skip
    lists = {"samples": found.all_generated.tolist()}
    if found.all_held_out is not None:
        lists["held-out images"] = found.all_held_out.tolist()
    distribution_plot(folder, "nearest-distances", lists, Words(
        "Is it copying?", f"Distance to the nearest reference image in {space}. A model copies where its samples lie nearer than images it has not seen.",
        f"distributions of distances: {', '.join(lists)}"))  # fmt: skip

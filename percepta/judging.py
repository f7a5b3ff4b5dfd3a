"""Judging what the user has: sets of images, or a run or pipeline that is drawn from first. What `percepta evaluate` does, as a function."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from percepta import distributed
from percepta.evaluation.contamination import CARD as SPACES
from percepta.evaluation.contamination import trained_against
from percepta.evaluation.evaluate import Evaluation, Given, make_dialect
from percepta.evaluation.evaluate import evaluate as evaluate_sets
from percepta.evaluation.plan import check_metrics
from percepta.evaluation.sets import ImageSet, open_side, short_hash
from percepta.sampling import PROTOCOL, Drawing, Job, reads_text, write
from percepta.spaces.extractor import split_name
from percepta.training.folder import write_json
from percepta.translating.judging import Asked, is_translator, judge_translator

DRAWN = 50_000  # images, unless asked otherwise
READING = ("size", "crop", "on_bad")  # the options that say how a side is opened


def is_generator(given: object) -> bool:
    """Whether this is a run or a pipeline, which has to be drawn from."""
    if not isinstance(given, (str, Path)):
        return False
    path = Path(given)
    if not path.is_dir():
        return False
    return any((path / name).is_file() for name in ("config.json", "model_index.json"))


def evaluate(
    generated: Given,
    real: Given | None = None,
    job: Job | None = None,
    samples: Path | None = None,
    note: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
    source: str | Path | None = None,
    **options: Any,
) -> Evaluation:
    """evaluation/evaluate.py's `evaluate`, where `generated` may be a run or a pipeline folder: `job` then says how it is drawn, `samples` where to.

    Drawn images stay in a folder named by what made them, below the run: an interrupted drawing goes on, a repeated one is not done again.
    A translator is judged in both directions, on its own test sets, or on `source` (images of A) and `real` (of B); `samples`: where some
    translations are shown.
    """
    if is_translator(generated):
        assert isinstance(generated, (str, Path))
        return _translator(Path(generated), real, source, samples, {**options, "note": note, "check": check})
    if source is not None:
        raise ValueError(f"{generated} translates nothing: images of A (source) are for a run of the recipe ladiffgan")
    if real is None:
        raise ValueError(
            f"{generated} is judged against images that it should look like: say which; only a translator has test sets of its own"
        )
    real = checked(real, options, job if is_generator(generated) else None)
    known: dict[str, Any] = {}
    trained: Sequence[str] = options.pop("trained_against", ())
    if is_generator(generated):
        assert isinstance(generated, (str, Path))
        trained = (*trained, *trained_against(Path(generated)))
        job = told(replace(job or Job(source=Path(generated), num=DRAWN), source=Path(generated)), real)
        folder = samples or Path(generated) / "evaluation" / "drawn"
        generated, known = _draw(job, folder, note, check)
        options["num"] = job.num
    elif isinstance(generated, (str, Path)):
        known = drawn_by(generated)
        trained = (*trained, *_trained_source(known))
    found = evaluate_sets(
        generated, real, trained_against=tuple(dict.fromkeys(trained)), drawn=known, note=note, check=check, **options
    )
    if known and SPACES not in known and not Path(str(known["source"])).is_dir():
        found.warnings.append(f"drawn from {known['source']}, which is not here: what that was trained against is not known")
    return found


def _translator(
    model: Path, real: Given | None, source: str | Path | None, figures: Path | None, options: dict[str, Any]
) -> Evaluation:
    """`size`, `crop`, `on_bad`, `num`, `seed` and `device` say what is translated, and how; the others, what is computed."""
    for name, given in (("real", real), ("source", source)):
        if given is not None and not isinstance(given, (str, Path)):
            raise ValueError(f"{name} of a translator is named as --data is, a folder or a set, got {type(given).__name__}")
    own = {name: options.pop(name) for name in ("size", "crop", "on_bad", "num") if name in options}
    own |= {name: options.pop(name) for name in ("seed", "device") if name in options}
    a, b = (None if given is None else str(given) for given in (source, real))
    trained = (*options.pop("trained_against", ()), *trained_against(model))
    asked = Asked(model=model, source=a, target=b, **own)
    return judge_translator(asked, figures, trained_against=tuple(dict.fromkeys(trained)), **options)


def told(job: Job, real: Given) -> Job:
    """The job, with the captions of the reference in their order as prompts where the model reads text and none were said."""
    if job.prompts or not reads_text(job.source):
        return job
    indices = real.indices if isinstance(real, ImageSet) else ()
    texts = real.source.texts if isinstance(real, ImageSet) else None
    chosen = [] if texts is None else [text for index in indices if (text := texts[index]) is not None]
    if not chosen or len(chosen) != len(indices):
        raise ValueError(
            f"{job.source} makes images of texts, and the reference has captions for {len(chosen)} of its images: give every image of it one, or "
            'say of which with --prompts FILE (one a line) or --prompts "a red disc;a blue star"'
        )
    return replace(job, prompts=tuple(chosen[: job.num]))


def drawn_by(images: str | Path) -> dict[str, Any]:
    """What `percepta sample` wrote beside its images (FOLDER/protocol.json, FILE.npz.json); empty where there is no such record."""
    path = Path(images)
    file = path / PROTOCOL if path.is_dir() else path.with_name(f"{path.name}.json")
    if not file.is_file():
        return {}
    try:
        record = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged, so it is not known how the images were made: {error}") from error
    return record if isinstance(record, dict) and record.get("source") else {}


def checked(real: Given, options: dict[str, Any], job: Job | None) -> Given:
    """The reference, opened; whatever can be refused is refused here, before hours of drawing."""
    check_metrics(options.get("metrics"))
    make_dialect(options.get("dialect", "torch-fidelity"), options.get("kid_subsets"), options.get("kid_size"))
    for space in options.get("spaces", ()):
        split_name(space)
    if is_generator(real):
        raise ValueError(f"{real} is a run or a pipeline; only the generated side, which comes first, is drawn from a model")
    if job is not None and job.num < 2:
        raise ValueError(f"at least 2 images have to be drawn, got num={job.num}")
    return open_side(real, **{name: options[name] for name in READING if name in options})


def _trained_source(known: dict[str, Any]) -> tuple[str, ...]:
    source = Path(str(known.get("source", "")))
    now = trained_against(source) if known and source.is_dir() else ()
    return (*known.get(SPACES, ()), *now)


def _draw(job: Job, folder: Path, note: Callable[[str], None], check: Callable[[], None]) -> tuple[Path, dict[str, Any]]:
    drawing = Drawing(job, lambda *_: check())  # a sampler tells its step
    named = {k: v for k, v in drawing.protocol().items() if k not in ("num", "source")}
    out = folder / short_hash(json.dumps(named, sort_keys=True))
    if distributed.world().first:
        note(f"drawing {job.num:,} images by {drawing.how.sampler}, {drawing.how.steps} steps, into {out}")
    return out, write(drawing, out)


def save(evaluation: Evaluation, folder: Path, name: str = "evaluation") -> Path:
    """NAME.json and protocol.json in the folder; NAME.protocol.json where protocol.json says how the images in it were drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", evaluation.to_json())
    write_json(folder / (f"{name}.{PROTOCOL}" if drawn_by(folder) else PROTOCOL), evaluation.protocol)
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

    judged = evaluation.protocol["generated"]
    images = open_images((judged["name"], real, *([] if held_out is None else [held_out])), **options)
    images[0] = only(images[0], judged["count"] + judged.get("bad", 0))
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
    if distributed.world().first:
        _figures(found, images, folder / "figures")
        write_json(folder / "copying.json", found.to_json())
    return found.to_json()


def only(images: ImageSet, num: int) -> ImageSet:
    """As many images as were judged."""
    side = open_side(images, num=num, on_bad=images.on_bad)
    assert isinstance(side, ImageSet), side
    return side


def open_images(given: Sequence[Given], **options: Any) -> list[ImageSet]:
    """Sides that have to be images, for `copying`: ValueError where one is statistics."""
    sides = [open_side(one, **{name: options[name] for name in READING if name in options}) for one in given]
    images = [side for side in sides if isinstance(side, ImageSet)]
    if len(images) < len(sides):
        raise ValueError("--neighbours compares images; statistics (mu, sigma) have none")
    return images


def _figures(found: Any, images: Sequence[Any], folder: Path) -> None:
    from percepta.reports.figures import Words, distribution_plot, neighbour_panel

    queries, near = found.images(images[0], images[1])
    space = found.copying.space.removesuffix("-embedding")  # of a space with one layer, its name says enough
    neighbour_panel(folder, "neighbours", queries, near, found.distances.astype(float), Words(
        "Nearest reference images", f"Left: samples, the lower half those that lie nearest to any reference image. Right: their nearest in {space}, with the distances.",
        f"{len(queries)} samples, each with its {found.indices.shape[1]} nearest reference images and their distances"))  # fmt: skip
    lists = {"samples": found.all_generated.tolist()}
    if found.all_held_out is not None:
        lists["held-out images"] = found.all_held_out.tolist()
    distribution_plot(folder, "nearest-distances", lists, Words(
        "Is it copying?", f"Distance to the nearest reference image in {space}. A model copies where its samples lie nearer than images it has not seen.",
        f"distributions of distances: {', '.join(lists)}"))  # fmt: skip

"""From image files to their translations in files: one, or a folder with all that is below it, as `percepta translate` does.

A folder is filled as `percepta sample` fills one: whole files only, and the same command goes on where it was stopped. Its protocol.json
holds all that decides the pixels, the hash of each image among it.
"""

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from percepta import distributed
from percepta._version import __version__
from percepta.absent import absent
from percepta.data.image import EXTENSIONS, FORMATS, BadImage, alpha_of, read_bytes, read_image
from percepta.data.source import quick_hash
from percepta.images import to_uint8
from percepta.networks.translation import Direction
from percepta.sampling import PROTOCOL, origin, weights_hash
from percepta.training.precision import pick_device
from percepta.translating import together
from percepta.translating.fitting import Fit
from percepta.translating.pipeline import TranslationPipeline, as_tensor, picture_of

WRITES: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"}, ".webp": {"format": "WEBP", "lossless": True}, ".tif": {"format": "TIFF"}, ".tiff": {"format": "TIFF"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0}, ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}  # fmt: skip
TOGETHER = 2**24  # pixels that are held as floats at a time, unless one image has more
MOST_BYTES = 2**29


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to translate, and how."""

    model: Path
    images: Path
    out: Path
    direction: Direction = "a2b"
    fit: Fit = "resize"
    size: int | None = None
    seed: int = 0
    batch: int = 16
    device: str = "auto"
    on_bad: Literal["error", "skip"] = "error"


@dataclass
class Done:
    """What became of a job. `skipped`: files that could not be read, each with the reason."""

    num: int
    translated: int = 0
    already: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Files:
    """Image files below `root`, by name, and the file that each becomes."""

    root: Path
    targets: dict[str, Path]
    record: Path  # the protocol's file
    folder: bool = True  # whether a folder is filled, or one file written


def translate_files(
    job: Job, check: Callable[[], None] = lambda: None, progress: Callable[[Done], None] = lambda _: None
) -> tuple[Done, dict[str, Any]]:
    """Translate what is not there yet; what was done, and the protocol. Ranks share the files, and all of them hear of all."""
    files = files_of(job.images, job.out)
    device = pick_device(job.device, distributed.world().local_rank)
    pipe = TranslationPipeline.from_pretrained(job.model, job.size).to(device)
    pipe.fitting(job.fit)
    missing, record = together.from_first(partial(_prepare, files, pipe, job))
    done = Done(len(files.targets), already=len(files.targets) - len(missing))
    for round_of_blocks in together.blocks(missing, job.batch):
        own, failure = Done(len(files.targets)), None
        try:
            check()
            for mine in round_of_blocks[distributed.world().rank :][:1]:
                _translate(files, mine, pipe, job, own, check, lambda own=own, done=done: progress(_sum(done, own)))
        except Exception as error:  # told to the other ranks, which wait
            failure = error
        done.translated += together.summed([own.translated], failure)[0]
        done.skipped += together.gathered(own.skipped)
        progress(done)
    if not files.folder and done.translated and distributed.world().first:
        _write_record(files.record, record)
    return done, {k: v for k, v in record.items() if k != "images"}


def _prepare(files: Files, pipe: TranslationPipeline, job: Job) -> tuple[list[str], dict[str, Any]]:
    """What has no translation yet, and the record, which a folder is given before the images: one that holds some says what they are."""
    protocol = {
        "model": type(pipe.pair).__name__, "weights": weights_hash(pipe.pair), "direction": job.direction, "fit": job.fit,
        "size": None if job.fit == "pad" else pipe.size, "seed": job.seed, "percepta": __version__,
    }  # fmt: skip
    hashes = {name: _hash(files.root / name) for name in files.targets}
    missing = _missing(files, protocol, hashes)
    before = _known(files.record).get("images", {}) if files.folder else {}
    record = {**protocol, "source": str(job.model), **origin(job.model), "images": {**before, **hashes}}
    if files.folder:
        _write_record(files.record, record)
    return missing, record


def _translate(
    files: Files, names: Sequence[str], pipe: TranslationPipeline, job: Job, done: Done, check: Callable[[], None],
    progress: Callable[[], None],
) -> None:  # fmt: skip
    """Some of the files, counted in `done`."""
    for chunk in _chunks(files, names, job, done):
        check()
        images = [as_tensor(pixels) for _, pixels, _ in chunk]
        out = pipe.translate(images, job.direction, job.fit, job.seed, job.batch, check)
        for (name, _, alpha), translation in zip(chunk, out, strict=True):
            save(files.targets[name], picture_of(to_uint8(translation[None])[0], alpha), name)
            done.translated += 1
        progress()


def _sum(done: Done, more: Done) -> Done:
    return Done(done.num, done.translated + more.translated, done.already, [*done.skipped, *more.skipped])


def files_of(images: Path, out: Path) -> Files:
    """The files that IN names, and where OUT puts them."""
    if not images.exists():
        raise ValueError(absent(images, "an image, or a folder of images"))
    if images.is_file():
        if out.is_dir() or not out.suffix:
            return Files(images.parent, {images.name: out / f"{images.stem}.png"}, out / PROTOCOL)
        if out.suffix.lower() not in WRITES:
            raise ValueError(f"{out}: {', '.join(WRITES)} are written, not {out.suffix}; or give a folder")
        if out.exists():
            raise ValueError(f"{out} is there already: give another OUT, or remove it")
        return Files(images.parent, {images.name: out}, out.with_name(f"{out.name}.json"), folder=False)
    if out.is_file() or out.suffix.lower() in EXTENSIONS:
        raise ValueError(f"{images} is a folder, so {out} is to be one too")
    if out.resolve().is_relative_to(images.resolve()):
        raise ValueError(f"{out} lies in {images}, and would be translated the next time: give an OUT beside it")
    names = _names(images)
    if not names:
        raise ValueError(f"{images}: no images found (looked for {' '.join(EXTENSIONS)})")
    return Files(images, {name: out / target for name, target in target_names(names).items()}, out / PROTOCOL)


def _names(root: Path) -> list[str]:
    """All images below a folder, sorted; hidden ones and folders behind links are left out."""
    out = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        out += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return sorted(out)


def target_names(names: Sequence[str]) -> dict[str, str]:
    """NAME.png for NAME.jpg; NAME.jpg.png where that would be the file of another image too."""
    short = {name: str(PurePosixPath(name).with_suffix(".png")) for name in names}
    times = Counter(target.casefold() for target in short.values())
    out = {name: target if times[target.casefold()] == 1 else f"{name}.png" for name, target in short.items()}
    again = [target for target, n in Counter(target.casefold() for target in out.values()).items() if n > 1]
    if again:
        raise ValueError(f"two images would become {again[0]}: rename one of them")
    return out


def _hash(path: Path) -> str | None:
    """The content as `quick_hash` sees it; None for a file that cannot be read, which its reading will say."""
    try:
        return quick_hash(path)[1]
    except BadImage:
        return None


def _known(record: Path) -> dict[str, Any]:
    if not record.is_file():
        return {}
    try:
        found = json.loads(record.read_text())
    except ValueError as error:
        raise ValueError(f"{record} is not valid JSON: give another OUT, or remove this one") from error
    return found if isinstance(found, dict) else {}


def _missing(files: Files, protocol: dict[str, Any], hashes: dict[str, str | None]) -> list[str]:
    """The images that have no translation by this protocol yet. A folder with anything else is refused."""
    if not files.folder:
        return list(files.targets)
    known, folder = _known(files.record), files.record.parent
    if not known and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and has no {PROTOCOL}: give another OUT")
    different = [key for key, value in protocol.items() if known and known.get(key) != value]
    if different:
        raise ValueError(f"{folder} holds images of another protocol ({', '.join(different)} differ): give another OUT")
    before = known.get("images", {})
    there = [name for name, target in files.targets.items() if target.exists()]
    for name in there:
        if name not in before:
            raise ValueError(f"{files.targets[name]} is there already, and is not the translation of {name}: give another OUT")
        if before[name] != hashes[name]:
            raise ValueError(
                f"{files.root / name} is not what it was when it was translated to {files.targets[name]}: remove that one"
            )
    return [name for name in files.targets if name not in set(there)]


def _write_record(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, file)


Read = tuple[str, np.ndarray, np.ndarray | None]  # name, RGB, alpha


def _chunks(files: Files, names: Sequence[str], job: Job, done: Done) -> Iterator[list[Read]]:
    """`batch` images at a time, fewer where they are large. What cannot be read ends the job, or is counted."""
    chunk: list[Read] = []
    pixels = 0
    for name in names:
        try:
            image, alpha = read(files.root / name)
            if alpha is not None and files.targets[name].suffix.lower() in (".jpg", ".jpeg") and alpha.min() < 255:
                raise ValueError(f"{files.root / name} is transparent in parts, which a JPEG cannot be: write .png or .webp")
        except BadImage as error:
            if job.on_bad == "error":
                raise
            done.skipped.append({"name": name, "reason": error.reason})
            continue
        if chunk and (len(chunk) == job.batch or pixels + image.shape[0] * image.shape[1] > TOGETHER):
            yield chunk
            chunk, pixels = [], 0
        chunk.append((name, image, alpha))
        pixels += image.shape[0] * image.shape[1]
    if chunk:
        yield chunk


def read(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """An image as training reads it, and its alpha where it has one."""
    data = read_bytes(path, str(path), MOST_BYTES)
    decoded = read_image(data, str(path))
    alpha = alpha_of(Image.open(io.BytesIO(data), formats=FORMATS)) if "alpha" in decoded.changes else None
    return decoded.image, alpha


def save(path: Path, picture: Image.Image, name: str) -> None:
    """Whole or not at all."""
    kind = WRITES[path.suffix.lower()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        (picture.convert("RGB") if kind["format"] == "JPEG" else picture).save(temporary, **kind)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

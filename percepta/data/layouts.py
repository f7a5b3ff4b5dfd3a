"""Sources on disk: folders (flat, one sub-folder per class, or metadata.jsonl) and npz files."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from percepta.data.captions import caption_of
from percepta.data.image import EXTENSIONS, Reading
from percepta.data.source import Files, Item, Source, hash_bytes

NPZ_BYTES = 2**36  # an npz is read whole
NPZ_RATIO = 1000  # deflate's limit is 1032: what unpacks further than this was made to fill memory


def open_folder(root: Path, reading: Reading | None = None) -> Files:
    """A folder of images. Labels come from metadata.jsonl or from the sub-folders' names; a flat folder has none."""
    if (root / "metadata.jsonl").is_file():
        return _from_metadata(root, reading)
    top, classes, others = [], [], Counter()
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            classes.append(entry.name)
        elif _is_image(entry.name):
            top.append(entry.name)
        else:
            others[Path(entry.name).suffix or entry.name] += 1
    found = {name: _images_below(root, name) for name in classes}
    with_images = [name for name in classes if found[name]]
    if top and with_images:
        raise ValueError(
            f"{root}: {len(top)} images lie beside {len(with_images)} sub-folders with images ({with_images[0]}/, ...): "
            "put every image into a class sub-folder, or all of them into one flat folder"
        )
    if top:
        return Files(root, top, reading=reading)
    if not with_images:
        seen = ", ".join(f"{n} x {kind}" for kind, n in others.most_common(5)) or (
            "only empty sub-folders" if classes else "nothing at all"
        )
        raise ValueError(f"{root}: no images found (looked for {' '.join(EXTENSIONS)}); the folder holds {seen}")
    empty = sorted(set(classes) - set(with_images))
    if empty:
        raise ValueError(f"{root}: class sub-folders without images: {', '.join(empty[:5])}; remove them, or fill them")
    names = [name for c in with_images for name in found[c]]
    labels = [k for k, c in enumerate(with_images) for _ in found[c]]
    return Files(root, names, labels, with_images, reading=reading)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _images_below(root: Path, name: str) -> list[str]:
    """Relative posix names, sorted. Links to folders inside a class are not followed: they may form loops."""
    out = []
    for folder, _, files in os.walk(root / name):
        out += [(Path(folder) / f).relative_to(root).as_posix() for f in files if _is_image(f)]
    return sorted(out)


def _from_metadata(root: Path, reading: Reading | None) -> Files:
    """A line per image: {"file_name": ..., "label": number or name, "text" or "caption": ...}. Labels: all or none; texts are optional."""
    names, labels, texts = [], [], []
    for number, line in enumerate((root / "metadata.jsonl").read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{root / 'metadata.jsonl'}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ValueError(f'{where}: needs an object with "file_name", got {line[:80]}')
        name = row["file_name"]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{where}: {name} points out of the folder; file names are relative to it")
        if not (root / name).is_file():
            raise ValueError(f"{where}: {name} does not exist")
        names.append(name)
        labels.append(row.get("label"))
        texts.append(caption_of(row, where))
    if not names:
        raise ValueError(f"{root / 'metadata.jsonl'}: names no images")
    indices, class_names = _classes(labels, f"{root / 'metadata.jsonl'}")
    return Files(root, names, indices, class_names, texts if any(text is not None for text in texts) else None, reading)


def _classes(labels: list, where: str) -> tuple[list[int] | None, tuple[str, ...]]:
    """Labels as numbers, and the classes' names: names sort into numbers, numbers name themselves."""
    missing = sum(label is None for label in labels)
    if missing == len(labels):
        return None, ()
    if missing:
        raise ValueError(f"{where}: {missing} of {len(labels)} lines have no label; give one to all or to none")
    if all(isinstance(label, str) for label in labels):
        names = tuple(sorted(set(labels)))
        place = {name: k for k, name in enumerate(names)}
        return [place[label] for label in labels], names
    if all(type(label) is int and 0 <= label < 1_000_000 for label in labels):
        return labels, tuple(map(str, range(max(labels) + 1)))
    raise ValueError(
        f"{where}: labels must be all names or all whole numbers from 0, got {sorted({type(v).__name__ for v in labels})}"
    )


class Npz(Source):
    """`arr_0` or `images`: uint8 [n, h, w, 3] (or [n, h, w]: grey); `arr_1` or `labels`: whole numbers [n]. As ADM's samples
    are stored.

    The file is read whole at first use, in each process that reads it; pickles hold its path alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._images: np.ndarray | None = None
        header = self._load()
        labels = header["labels"]
        self.labels = None if labels is None else tuple(int(v) for v in labels)
        self.class_names = () if self.labels is None else tuple(map(str, range(max(self.labels) + 1)))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_images": None}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def images(self) -> UInt8[np.ndarray, "n h w *c"]:
        if self._images is None:
            self._load()
        assert self._images is not None
        return self._images

    def _load(self) -> dict[str, np.ndarray | None]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    if member.file_size > NPZ_BYTES or member.file_size > NPZ_RATIO * max(member.compress_size, 2**16):
                        raise ValueError(
                            f"{self.path}: {member.filename} unpacks from {member.compress_size:,} to {member.file_size:,} bytes: "
                            "refused"
                        )
            with np.load(self.path, allow_pickle=False) as pack:
                images = next((pack[key] for key in ("arr_0", "images") if key in pack), None)
                labels = next((pack[key] for key in ("arr_1", "labels") if key in pack), None)
                keys = list(pack.keys())
        except (zipfile.BadZipFile, OSError, EOFError, zipfile.LargeZipFile, NotImplementedError) as error:
            raise ValueError(f"{self.path}: is not a readable npz file: {error}") from error
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise ValueError(
                    f"{self.path}: holds pickled objects, which are never executed; store plain arrays with numpy.savez"
                ) from error
            raise
        if images is None:
            raise ValueError(f"{self.path}: has no images: needs arr_0 or images, holds {', '.join(keys) or 'nothing'}")
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)) or not len(images):
            raise ValueError(f"{self.path}: images must be uint8 [n, h, w, 3] or [n, h, w], got {images.dtype} {images.shape}")
        if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0):
            raise ValueError(
                f"{self.path}: labels must be whole numbers from 0, [{len(images)}], got {labels.dtype} {labels.shape}"
            )
        self._images = images
        return {"labels": labels}

    def read(self, index: int) -> Item:
        image, changes = self.images[index], ()
        if image.ndim == 2:
            image, changes = np.repeat(image[..., None], 3, axis=2), ("grey",)
        return Item(image, None if self.labels is None else self.labels[index], f"{self.path}[{index}]", "", changes)

    def entries(self) -> Iterator[tuple[str, int, str, int | None]]:
        for index, image in enumerate(self.images):
            yield str(index), image.nbytes, hash_bytes(image.tobytes()), None if self.labels is None else self.labels[index]


def folder_names(root: Path) -> Sequence[str]:
    return sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith("."))

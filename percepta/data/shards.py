"""WebDataset shards: tar files of images, read in place at any index.

The headers are walked once and the images' offsets kept, so that a shard gives random access (and so exact resume and order)
without being extracted and without the webdataset package. Nothing is ever written, so a member's name can do no harm; links,
devices and sparse members are refused, and so are compressed tars, which have no random access. Files of one sample share their
name up to the first dot: `0001.jpg`, `0001.cls` (a whole number), or `0001.json` with a "label"; `0001.txt` is a caption.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from percepta.data.captions import MAX_BYTES, caption_in
from percepta.data.image import EXTENSIONS, BadImage, Reading, read_image
from percepta.data.source import Item, Source, hash_bytes

MAX_MEMBERS = 10_000_000  # over all shards
MAX_SHARD_MEMBERS = 1_000_000
MAX_LABEL_BYTES = 2**16


def expand(pattern: str) -> list[Path]:
    """`shards-{000..009}.tar` to ten paths."""
    match = re.fullmatch(r"([^{}]*)\{(\d+)\.\.(\d+)\}([^{}]*)", pattern)
    if match is None:
        raise ValueError(f"{pattern}: a pattern of shards has one range of numbers, for example shards-{{000..009}}.tar")
    before, first, last, after = match.groups()
    if not int(first) <= int(last) or int(last) - int(first) >= 100_000:
        raise ValueError(f"{pattern}: the range must rise, by less than 100,000, got {first}..{last}")
    return [Path(f"{before}{k:0{len(first)}d}{after}") for k in range(int(first), int(last) + 1)]


class Shards(Source):
    """The images of tar files, in the order of the files and of their members."""

    def __init__(self, paths: Sequence[Path], reading: Reading | None = None) -> None:
        self.paths, self.reading = tuple(paths), reading or Reading()
        missing = [str(p) for p in self.paths if not p.is_file()]
        if missing or not self.paths:
            raise ValueError(f"shards that do not exist: {', '.join(missing[:5]) or 'none was named'}")
        rows: list[tuple[int, int, int, str, int | None]] = []
        self.captions: list[tuple[int, int] | None] = []  # where in its shard the caption of each image lies, and how long it is
        for k, path in enumerate(self.paths):
            images, captions = _index(path, MAX_MEMBERS - len(rows))
            rows += [(k, *row) for row in images]
            self.captions += captions
        if not rows:
            raise ValueError(
                f"{self.paths[0]}{' ...' if len(self.paths) > 1 else ''}: no images found in {len(self.paths)} shards "
                f"(looked for {' '.join(EXTENSIONS)})"
            )
        self.places = np.array([row[:3] for row in rows], dtype=np.int64)  # shard, offset, size
        self.names = tuple(row[3] for row in rows)
        labels = [row[4] for row in rows]
        missing_labels = sum(v is None for v in labels)
        if 0 < missing_labels < len(labels):
            raise ValueError(
                f"{self.paths[0]} ...: {missing_labels} of {len(labels)} images have no label; give one to all or to none"
            )
        self.labels = None if missing_labels else tuple(v for v in labels if v is not None)
        self.class_names = () if self.labels is None else tuple(map(str, range(max(self.labels) + 1)))

    @cached_property
    def texts(self) -> tuple[str | None, ...] | None:
        if not any(self.captions):
            return None
        return tuple(self._caption(index) for index in range(len(self)))

    def _caption(self, index: int) -> str | None:
        place = self.captions[index]
        if place is None:
            return None
        if place[1] > MAX_BYTES:
            raise ValueError(f"the caption of {self._name(index)} has {place[1]:,} bytes, more than {MAX_BYTES:,}")
        with self.paths[int(self.places[index, 0])].open("rb") as file:
            file.seek(place[0])
            return caption_in(file.read(place[1]), f"the caption of {self._name(index)}")

    def __len__(self) -> int:
        return len(self.names)

    def _bytes(self, index: int) -> bytes:
        shard, offset, size = (int(v) for v in self.places[index])
        name = self._name(index)
        if size > self.reading.max_bytes:
            raise BadImage(name, "oversized", f"has {size:,} bytes, more than the limit of {self.reading.max_bytes:,}")
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise BadImage(name, "missing", f"cannot be read: {error.strerror or error}") from error
        if len(data) < size:
            raise BadImage(name, "corrupt", f"is truncated: the shard ends {size - len(data)} bytes too early")
        return data

    def _name(self, index: int) -> str:
        return f"{self.paths[int(self.places[index, 0])]}:{self.names[index]}"

    def read(self, index: int) -> Item:
        name = self._name(index)
        decoded = read_image(self._bytes(index), name, self.reading)
        return Item(decoded.image, None if self.labels is None else self.labels[index], name, decoded.format, decoded.changes)

    def encoded(self, index: int) -> tuple[str, bytes]:
        return self._name(index), self._bytes(index)

    def entries(self) -> Iterator[tuple[str, int, str, int | None]]:
        for k, name in enumerate(self.names):
            data = self._bytes(k)
            yield name, len(data), hash_bytes(data), None if self.labels is None else self.labels[k]


Rows = list[tuple[int, int, str, int | None]]


def _index(path: Path, room: int) -> tuple[Rows, list[tuple[int, int] | None]]:
    """(offset, size, name, label) of each image of a shard, and (offset, size) of its caption; both may stand before or after the image."""
    images: list[tuple[int, int, str]] = []
    labels: dict[str, int] = {}
    captions: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for number, member in enumerate(tar):
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile keeps every header otherwise
                if number >= min(MAX_SHARD_MEMBERS, room):
                    raise ValueError(f"{path}: more than {min(MAX_SHARD_MEMBERS, room):,} members; make smaller shards")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise ValueError(f"{path}: {member.name} is a link, a device or sparse; shards hold plain files only")
                key, _, suffix = member.name.rpartition("/")[2].partition(".")
                key, suffix = member.name.rpartition("/")[0] + "/" + key, "." + suffix.lower()
                if suffix.endswith(EXTENSIONS):
                    images.append((member.offset_data, member.size, member.name))
                elif suffix == ".txt":
                    captions[key] = (member.offset_data, member.size)
                elif suffix in (".cls", ".json"):
                    label = _label(tar, member, suffix, path)
                    if label is not None:
                        labels[key] = label
    except (tarfile.TarError, OSError, EOFError, OverflowError, UnicodeError) as error:
        raise ValueError(f"{path}: is not a readable, uncompressed tar: {error}; unpack a .tar.gz with gunzip first") from error
    keys = [_key(name) for _, _, name in images]
    return [(*image, labels.get(key)) for image, key in zip(images, keys, strict=True)], [captions.get(key) for key in keys]


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return folder + "/" + file.partition(".")[0]


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, path: Path) -> int | None:
    """The whole number in a .cls, or under "label" in a .json; a .json without one says nothing about labels."""
    where = f"{path}:{member.name}"
    if member.size > MAX_LABEL_BYTES:
        raise ValueError(f"{where}: has {member.size:,} bytes, too much for a label")
    file = tar.extractfile(member)
    assert file is not None, where
    text = file.read().decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: cannot be read as {'a whole number' if suffix == '.cls' else 'JSON'}: {text[:40]!r}") from error
    if suffix == ".json":
        value = value.get("label") if isinstance(value, dict) else None
        if value is None:
            return None
    if type(value) is not int or not 0 <= value < 1_000_000:
        raise ValueError(f"{where}: a label is a whole number from 0, got {text[:40]!r}")
    return value

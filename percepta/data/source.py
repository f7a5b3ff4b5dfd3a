"""Source: a set of images where any one can be read by its index.

Because every sample is reachable by index, order, resume, workers and world size are pure functions of (seed, place in the stream);
nothing has to be saved. A Source holds no open handle and pickles small: spawned workers open what they need themselves.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from percepta.data.captions import caption_beside
from percepta.data.image import BadImage, Reading, read_bytes, read_image

QUICK = 1 << 16  # a larger file is hashed by its first and last 64 KiB


@dataclass(frozen=True, eq=False)
class Item:
    """One image as uint8 RGB, what is known about it, and which conversions its reading needed (names of image.CONVERSIONS)."""

    image: UInt8[np.ndarray, "h w 3"]
    label: int | None
    name: str
    format: str = ""
    changes: tuple[str, ...] = ()
    text: str | None = None


class Source(ABC):
    """A finite set of images. `class_names` is empty where there are no labels; labels are 0 .. num_classes-1."""

    class_names: tuple[str, ...] = ()
    reading: Reading = Reading()

    @cached_property
    def texts(self) -> tuple[str | None, ...] | None:
        """The caption of each image, None for one without; None where the source has no captions at all. Looked up when it is asked for."""
        return None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Item:
        """Decode one image; BadImage where that fails."""

    def encoded(self, index: int) -> tuple[str, bytes] | None:
        """(name, the file's bytes) of one image, as `reading` decodes them; None where images are not files. BadImage if unreadable."""
        return None

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, int, str, int | None]]:
        """(name, size in bytes, hash of content, label) of each image: what the fingerprint is made of. Nothing is decoded."""

    def read_many(self, indices: Sequence[int] | np.ndarray) -> "list[Item | BadImage]":
        """Several images; one that cannot be read is its BadImage, so that the others are not lost."""
        out: list[Item | BadImage] = []
        for index in indices:
            try:
                out.append(self.read(int(index)))
            except BadImage as error:
                out.append(error)
        return out

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the set: the same files with the same labels give the same one, wherever they lie and whenever they were
        written.

        It is the sha256 of the sorted lines (name, size, content hash, label) and the class names. The content hash of a file above
        128 KiB reads its first and last 64 KiB only: a damaged middle is the business of `percepta doctor --data`.
        """
        total = hashlib.sha256("\n".join(self.class_names).encode())
        for line in sorted("\t".join(map(str, entry)) for entry in self.entries()):
            total.update(b"\n" + line.encode())
        return total.hexdigest()


class Files(Source):
    """Image files under one root, each with an optional label and text. What the folder layouts become."""

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
        texts: Sequence[str | None] | None = None,
        reading: Reading | None = None,
    ) -> None:
        self.root, self.names, self.reading = root, tuple(names), reading or Reading()
        self.labels = None if labels is None else tuple(labels)
        self.captions = None if texts is None else tuple(texts)
        self.class_names = tuple(class_names)

    @cached_property
    def texts(self) -> tuple[str | None, ...] | None:
        """As given, or from NAME.txt beside the images."""
        found = self.captions or tuple(caption_beside(self.root / name) for name in self.names)
        return found if any(text is not None for text in found) else None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Item:
        path = self.root / self.names[index]
        decoded = read_image(path, str(path), self.reading)
        label = None if self.labels is None else self.labels[index]
        text = None if self.captions is None else self.captions[index]
        return Item(decoded.image, label, str(path), decoded.format, decoded.changes, text)

    def encoded(self, index: int) -> tuple[str, bytes]:
        path = self.root / self.names[index]
        return str(path), read_bytes(path, str(path), self.reading.max_bytes)

    def entries(self) -> Iterator[tuple[str, int, str, int | None]]:
        for k, name in enumerate(self.names):
            size, digest = quick_hash(self.root / name)
            yield name, size, digest, None if self.labels is None else self.labels[k]


class Pairs:
    """Two unpaired domains, A (what is translated) and B (what it becomes).

    A batch pairs independent draws from both, each in an order of its own: never by name, and the counts may differ.
    """

    def __init__(self, a: Source, b: Source) -> None:
        self.a, self.b = a, b

    def __len__(self) -> int:
        return max(len(self.a), len(self.b))

    @cached_property
    def fingerprint(self) -> str:
        return hash_of(self.a.fingerprint, self.b.fingerprint)


def hash_of(*parts: object) -> str:
    return hashlib.sha256("\t".join(map(str, parts)).encode()).hexdigest()


def hash_bytes(data: bytes | memoryview) -> str:
    """The content hash of the fingerprint: whole up to 128 KiB, else both ends."""
    digest = hashlib.blake2b(digest_size=16)
    if len(data) <= 2 * QUICK:
        digest.update(data)
    else:
        digest.update(data[:QUICK])
        digest.update(data[-QUICK:])
    return digest.hexdigest()


def quick_hash(path: Path) -> tuple[int, str]:
    """(size, content hash) of a file, reading at most 128 KiB of it."""
    try:
        size = path.stat().st_size
        if size <= 2 * QUICK:
            return size, hash_bytes(read_bytes(path, str(path), 2 * QUICK))
        with path.open("rb") as file:
            head = file.read(QUICK)
            file.seek(-QUICK, 2)
            return size, hash_bytes(head + file.read(QUICK))
    except OSError as error:
        raise BadImage(str(path), "missing", f"cannot be read: {error.strerror or error}") from error

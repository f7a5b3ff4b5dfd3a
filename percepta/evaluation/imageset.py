"""ImageSet: the images of one side in one order, what their content is, and what reading them has told.

An image is known by the hash of its file's bytes (of its pixels where there is no file), taken before anything is decoded; the same content has
the same fingerprint wherever it lies and whatever it is called. Formats, sizes, conversions, bad files and pixel hashes come from the pass,
which decodes every image anyway (passes.py), and are kept beside its rows.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from percepta.data import BadImage, Item, Shapes, Source, Transform, read_image
from percepta.data.shapes import VERSION as SHAPES_VERSION
from percepta.data.source import hash_of

READER = 1  # part of every chunk's key: raise it when the same bytes give other pixels
UNREAD = "bad "  # how the digest of a file begins whose bytes could not be had
LISTED = 10  # sizes, and bad files, that the facts list one by one


class Seen(NamedTuple):
    """One image as the networks get it, and what its reading told. `size` is the file's (height, width); `pixels` hashes `image`."""

    image: UInt8[np.ndarray, "3 h w"]
    format: str
    changes: tuple[str, ...]
    size: tuple[int, int]
    pixels: str


@dataclass(frozen=True)
class Told:
    """A Seen without its pixels; `shape` is the judged image's (height, width). Where `bad` is given, (kind, reason), there is no image."""

    format: str = ""
    changes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    shape: tuple[int, int] = (0, 0)
    pixels: str = ""
    bad: tuple[str, str] | None = None

    @classmethod
    def of(cls, seen: Seen | BadImage) -> "Told":
        if isinstance(seen, BadImage):
            return cls(bad=(seen.kind, seen.reason))
        return cls(seen.format, seen.changes, seen.size, (seen.image.shape[1], seen.image.shape[2]), seen.pixels)


class Chunk(NamedTuple):
    """Neighbouring images of a set: places start .. stop-1, and the name of their content."""

    key: str
    start: int
    stop: int


class ImageSet:
    """Some images of a source, each as large as it is, or as `transform` makes it.

    `indices` are the chosen images; a place is a position among them. Until a pass has read the set, every chosen image counts; after it (and
    `on_bad="skip"`) len, read and names are those of the readable ones, so that image i belongs to row i of the pass.
    """

    def __init__(
        self, name: str, source: Source, indices: Sequence[int], transform: Transform | None, on_bad: str, selection: str = "all"
    ) -> None:
        if on_bad not in ("error", "skip"):
            raise ValueError(f"on_bad must be error or skip, got {on_bad!r}")
        if transform is not None and transform.random:
            raise ValueError(f"judged images are cut the same way each time: no {transform.crop}; use center-crop, stretch or pad")
        self.name, self.source, self.transform, self.on_bad, self.selection = name, source, transform, on_bad, selection
        self.indices = tuple(indices)
        self._told: tuple[Told, ...] | None = None

    def __len__(self) -> int:
        return len(self._good)

    @property
    def _good(self) -> Sequence[int]:
        """The places of the images that count."""
        if self._told is None:
            return range(len(self.indices))
        return [place for place, told in enumerate(self._told) if told.bad is None]

    def places(self) -> list[int]:
        """The places of the images that count; `indices` has their numbers in the source."""
        return list(self._good)

    @property
    def transform_text(self) -> str:
        if self.transform is None:
            return "none: every image at its own size"
        return f"{self.transform.crop} to {self.transform.size} x {self.transform.size}, filter {self.transform.filter}"

    @cached_property
    def digests(self) -> list[str]:
        """The content of each chosen image. Files are read, in threads, and not decoded."""
        starts = range(0, len(self.indices), 64)
        with ThreadPoolExecutor(threads()) as pool:
            parts = pool.map(lambda start: self._digests(range(start, min(start + 64, len(self.indices)))), starts)
            return [digest for part in parts for digest in part]

    @property
    def fingerprint(self) -> str:
        """A hash of the content of all chosen images, in order; names, labels and the transform do not enter."""
        return hash_of(*self.digests)

    @property
    def seen_as(self) -> str:
        """A hash of what the fingerprint leaves out: the way to pixels, and the labels of the chosen images where the source holds them."""
        labels = getattr(self.source, "labels", None)  # a tuple where a source holds them; Shapes names a kind of label
        chosen = [labels[index] for index in self.indices] if isinstance(labels, tuple) else [labels]
        return hash_of(READER, self.source.reading, self.transform, *chosen)

    def chunks(self, count: int) -> list[Chunk]:
        """The set in chunks of `count` images, each named by its content and by how that becomes pixels."""
        how = (READER, self.source.reading, self.transform)
        bounds = [(start, min(start + count, len(self.indices))) for start in range(0, len(self.indices), count)]
        return [Chunk(hash_of(*how, *self.digests[start:stop])[:32], start, stop) for start, stop in bounds]

    def read(self, indices: Sequence[int]) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Some images, decoded now. BadImage where one cannot be read."""
        good = self._good
        found = self.load([good[index] for index in indices])
        for one in found:
            if isinstance(one, BadImage):
                raise one
        return [np.ascontiguousarray(one.image.transpose(1, 2, 0)) for one in found if isinstance(one, Seen)]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def read_many(self, indices: Sequence[int]) -> list[Item | BadImage]:
        """As `read`, with what is known of each image, its label above all; one that cannot be read is its BadImage."""
        good, out = self._good, list[Item | BadImage]()
        for item in self.source.read_many([self.indices[good[index]] for index in indices]):
            seen = item if isinstance(item, BadImage) else self._seen(item)
            if isinstance(seen, Seen) and isinstance(item, Item):
                item = replace(item, image=np.ascontiguousarray(seen.image.transpose(1, 2, 0)))
            out.append(seen if isinstance(seen, BadImage) else item)
        return out

    def load(self, places: Sequence[int]) -> list[Seen | BadImage]:
        """The images of these places, as a pass reads them. ValueError where a file is no longer what was hashed."""
        items = self._items([self.indices[place] for place in places], [self.digests[place] for place in places])
        return [self._seen(item) for item in items]

    def settle(self, told: Sequence[Told]) -> None:
        """Take what a pass has learnt of every chosen image."""
        assert len(told) == len(self.indices), (len(told), len(self.indices))
        if self.on_bad == "error":
            self.refuse(told, 0)
        good = sum(one.bad is None for one in told)
        if good < 2:
            raise ValueError(f"{self.name}: {good} of {len(told)} images can be read; at least 2 are needed")
        self._told = tuple(told)

    def refuse(self, told: Sequence[Told], start: int) -> None:
        """BadImage for the first bad one among the images from place `start` on."""
        for place, one in enumerate(told, start):
            if one.bad is not None:
                raise BadImage(self.name_of(place), *one.bad)

    def name_of(self, place: int) -> str:
        """The name of a chosen image, for messages: read anew where the source is files."""
        try:
            found = self.source.encoded(self.indices[place])
            return found[0] if found is not None else self.source.read(self.indices[place]).name
        except BadImage as error:
            return error.name

    @property
    def told(self) -> list[Told]:
        """What the pass learnt of each image that counts."""
        assert self._told is not None, f"{self.name}: no pass has read these images yet"
        return [one for one in self._told if one.bad is None]

    @property
    def sizes(self) -> set[tuple[int, int]]:
        """(height, width) as the networks get them."""
        return {one.shape for one in self.told}

    @property
    def jpeg_share(self) -> float:
        """The part that JPEG has marked."""
        return sum(one.format == "JPEG" for one in self.told) / len(self)

    def overlap(self, other: "ImageSet") -> int:
        """How many of these images are in the other set too, pixel for pixel, as both are judged."""
        theirs = {one.pixels for one in other.told}
        return sum(one.pixels in theirs for one in self.told)

    def facts(self) -> dict[str, Any]:
        """What the pass found, for the protocol."""
        told = self.told
        assert self._told is not None
        bad = [(place, one.bad) for place, one in enumerate(self._told) if one.bad is not None]
        sizes = Counter(one.size for one in told).most_common()
        out: dict[str, Any] = {
            "selection": self.selection,
            "formats": dict(Counter(one.format or "array" for one in told).most_common()),
            "sizes": {f"{w} x {h}": count for (h, w), count in sizes[:LISTED]},
            "conversions": dict(sorted(Counter(change for one in told for change in one.changes).items())),
            "duplicates": len(told) - len({one.pixels for one in told}),
        }
        if len(sizes) > LISTED:
            out["distinct_sizes"] = len(sizes)
        if bad:
            out["bad"] = len(bad)
            out["bad_files"] = {self.name_of(place): reason for place, (_, reason) in bad[:LISTED]}
        return out

    def _digests(self, places: range) -> list[str]:
        indices = [self.indices[place] for place in places]
        if isinstance(self.source, Shapes):  # its scenes are what their numbers say: nothing has to be drawn
            drawing = replace(self.source, length=1, labels="none")
            younger = [
                f"{f.name}={value}" for f in fields(drawing) if not f.repr and (value := getattr(drawing, f.name)) != f.default
            ]
            return [hash_of(drawing, SHAPES_VERSION, *younger, index) for index in indices]
        return [self._refused(item) if isinstance(item, BadImage) else _hash(item) for item in self._contents(indices)]

    def _refused(self, error: BadImage) -> str:
        if self.on_bad == "error":
            raise error
        return f"{UNREAD}{error.kind}: {error.reason}"

    def _contents(self, indices: Sequence[int]) -> Iterator["bytes | np.ndarray | BadImage"]:
        """The bytes of each image's file, or its pixels."""
        for index in indices:
            try:
                found = self.source.encoded(index)
                yield found[1] if found is not None else self.source.read(index).image
            except BadImage as error:
                yield error

    def _items(self, indices: Sequence[int], digests: Sequence[str]) -> list[Item | BadImage]:
        if isinstance(self.source, Shapes):
            return list(self.source.read_many(indices))
        return [self._item(index, digest) for index, digest in zip(indices, digests, strict=True)]

    def _item(self, index: int, digest: str) -> Item | BadImage:
        """Decode one image from the very bytes that were hashed."""
        content: bytes | np.ndarray
        try:
            found = self.source.encoded(index)
            item = None if found is not None else self.source.read(index)
        except BadImage as error:
            if not digest.startswith(UNREAD):
                raise ValueError(f"{error}: it could be read a moment ago; is the set still being written?") from error
            return error
        if found is not None:
            name, content = found
        else:
            assert item is not None
            name, content = item.name, item.image
        if _hash(content) != digest:
            raise ValueError(f"{name}: has changed since it was hashed; is the set still being written?")
        if item is not None:
            return item
        assert isinstance(content, bytes)
        try:
            decoded = read_image(content, name, self.source.reading)
        except BadImage as error:
            return error
        return Item(decoded.image, None, name, decoded.format, decoded.changes)

    def _seen(self, item: Item | BadImage) -> Seen | BadImage:
        if isinstance(item, BadImage):
            return item
        height, width = item.image.shape[:2]
        if self.transform is None:
            image, changes = np.ascontiguousarray(item.image.transpose(2, 0, 1)), ()
        else:
            try:
                image, changes = self.transform.stage(item.image, item.name)
            except BadImage as error:
                return error
        return Seen(image, item.format, (*item.changes, *changes), (height, width), _hash(image))


def _hash(content: bytes | np.ndarray) -> str:
    """Of a file's bytes, or of pixels and their shape."""
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    shape = ",".join(map(str, content.shape)).encode()
    return hashlib.blake2b(np.ascontiguousarray(content).data, digest_size=16, person=shape[:16]).hexdigest()


def threads() -> int:
    return max(1, min(8, os.cpu_count() or 1))

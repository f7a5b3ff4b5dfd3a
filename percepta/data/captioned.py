"""Captioned: a source that tells its images by their captions, for networks that read text.

A caption is the `text` (or `caption`) of metadata.jsonl or of a Hugging Face column, a NAME.txt beside NAME.png, or the .txt of a sample of
tar shards. Every image needs one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from percepta.data.image import BadImage
from percepta.data.source import Item, Source, hash_of


class Captioned(Source):
    """A source whose classes are its captions: label k says that the caption is number k of `class_names`, the distinct ones, sorted.

    So a caption follows its image through order, workers and stand-ins for bad images as a label does. `empty` gives every image the
    empty caption instead.
    """

    def __init__(self, source: Source, name: str, empty: bool = False) -> None:
        texts = ("",) * len(source) if empty else source.texts
        if texts is None:
            raise ValueError(
                f"a network that reads text needs captions, and {name} has none: give each image one (`text` in metadata.jsonl, NAME.txt beside "
                "NAME.png, .txt in tar shards, a column `text`), or --conditional no, which trains with the empty prompt"
            )
        missing = [index for index, text in enumerate(texts) if text is None]
        if missing:
            raise ValueError(
                f"{len(missing)} of the {len(texts)} images of {name} have no caption, image {missing[0]} for one: give one to all (it may be empty)"
            )
        known = [text for text in texts if text is not None]
        self.source, self.reading = source, source.reading
        self.class_names = tuple(sorted(set(known)))
        place = {text: k for k, text in enumerate(self.class_names)}
        self.labels = tuple(place[text] for text in known)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Item:
        return replace(self.source.read(index), label=self.labels[index], text=self.class_names[self.labels[index]])

    def read_many(self, indices: Sequence[int] | np.ndarray) -> list[Item | BadImage]:
        return [
            item
            if isinstance(item, BadImage)
            else replace(item, label=self.labels[int(index)], text=self.class_names[self.labels[int(index)]])
            for index, item in zip(indices, self.source.read_many(indices), strict=True)
        ]

    def encoded(self, index: int) -> tuple[str, bytes] | None:
        return self.source.encoded(index)

    def entries(self) -> Iterator[tuple[str, int, str, int | None]]:
        return self.source.entries()

    @cached_property
    def fingerprint(self) -> str:
        """Of the images and of what is said of each."""
        return hash_of(self.source.fingerprint, "captions", *self.class_names, *self.labels)

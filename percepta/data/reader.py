"""Feed: the rows of any places of the stream, from a source; Store: the same rows from memory.

A bad image stops the run with its name, or (`on_bad="skip"`) the next good index of the set stands in for it, always the same one,
so that the rows stay a function of (seed, ordinal). Both ways give the same bits.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from percepta.data.image import BadImage
from percepta.data.order import indices_of
from percepta.data.source import Source
from percepta.data.transforms import Transform

MAX_BAD_RUN = 1000  # bad images in a row after which a set is not worth reading
CHUNK = 32  # images of one thread's job

MISSING, GOOD, BAD = 0, 1, 2


class Loaded(NamedTuple):
    """One image after the fixed stage, and what its reading changed."""

    stage: UInt8[np.ndarray, "3 H W"]
    label: int
    changes: tuple[str, ...]


class Notes(NamedTuple):
    """What happened while rows were read: index -> conversions, index -> why it was skipped."""

    changes: dict[int, tuple[str, ...]]
    skipped: dict[int, BadImage]


class Rows(NamedTuple):
    images: UInt8[Tensor, "b 3 s s"]
    labels: Int64[Tensor, " b"]
    notes: Notes


@dataclass(frozen=True)
class Feed:
    """One source in its own order, prepared. Pickles small: this is what a worker process gets."""

    source: Source
    transform: Transform
    seed: int
    name: str = "order"
    on_bad: str = "error"

    def indices(self, ordinals: Sequence[int] | range) -> Int64[np.ndarray, " b"]:
        return indices_of(ordinals, len(self.source), self.seed, self.name)

    def load(self, indices: Sequence[int] | np.ndarray) -> list[Loaded | BadImage]:
        """The fixed stage of these indices."""
        out: list[Loaded | BadImage] = []
        for item in self.source.read_many(indices):
            if isinstance(item, BadImage):
                out.append(item)
                continue
            try:
                stage, more = self.transform.stage(item.image, item.name)
            except BadImage as error:
                out.append(error)
            else:
                out.append(Loaded(stage, -1 if item.label is None else item.label, (*item.changes, *more)))
        return out

    def rows(self, ordinals: Sequence[int] | range) -> Rows:
        """Read, prepare and place these rows now, in this process."""
        notes = Notes({}, {})
        indices = self.indices(ordinals)
        draws = self.transform.draws(self.seed, self.name, np.asarray(ordinals, dtype=np.int64))
        size = self.transform.size
        images = np.empty((len(indices), 3, size, size), dtype=np.uint8)
        labels = np.empty(len(indices), dtype=np.int64)
        for row, (index, found) in enumerate(zip(indices, self.load(indices), strict=True)):
            loaded = self.good(int(index), found, notes)
            images[row] = self.transform.place_one(loaded.stage, draws.top[row], draws.left[row], draws.flip[row])
            labels[row] = loaded.label
        return Rows(torch.from_numpy(images), torch.from_numpy(labels), notes)

    def good(self, index: int, found: Loaded | BadImage, notes: Notes) -> Loaded:
        """`found`, or what stands in for it."""
        for _ in range(MAX_BAD_RUN):
            if isinstance(found, Loaded):
                if found.changes:
                    notes.changes[index] = found.changes
                return found
            if self.on_bad == "error":
                raise found
            notes.skipped[index] = found
            index = (index + 1) % len(self.source)
            found = self.load([index])[0]
        raise ValueError(f"{min(MAX_BAD_RUN, len(self.source))} images in a row cannot be used, the last one: {found}")


class Store:
    """A set kept in memory as uint8 [n, 3, S, S] after the fixed stage, each image decoded once, when it is first asked for.

    Threads decode (Pillow lets go of the interpreter lock); `request` starts on rows that a later `rows` will want. Only the
    caller's thread touches the store's state. On a GPU (`device`) gathering, flipping and normalising happen there.
    """

    def __init__(self, feed: Feed, device: torch.device, threads: int = 2) -> None:
        side = feed.transform.stage_size
        assert side is not None, f"{feed.transform.crop} has no fixed size"
        self.feed, self.device, self.threads = feed, device, threads
        count = len(feed.source)
        self.images = torch.empty((count, 3, side, side), dtype=torch.uint8, device=device)
        self.labels = np.empty(count, dtype=np.int64)
        self.state = np.full(count, MISSING, dtype=np.uint8)
        self.bad: dict[int, BadImage] = {}
        self.notes = Notes({}, {})
        self.pending: dict[int, Future] = {}
        self.pool: ThreadPoolExecutor | None = None

    @staticmethod
    def bytes_of(count: int, transform: Transform) -> int | None:
        """What a store of so many images would take; None where images keep sizes of their own."""
        side = transform.stage_size
        return None if side is None else count * (3 * side * side + 9)

    def request(self, indices: np.ndarray) -> None:
        """Start to decode what is not there yet."""
        missing = [int(i) for i in np.unique(indices[self.state[indices] == MISSING]) if int(i) not in self.pending]
        if not missing:
            return
        self.pool = self.pool or ThreadPoolExecutor(self.threads, thread_name_prefix="percepta-data")
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            job = self.pool.submit(_load_together, self.feed, chunk)
            self.pending.update(dict.fromkeys(chunk, job))

    def collect(self, indices: np.ndarray) -> None:
        """Wait until these indices are there."""
        self.request(indices)
        for job in {id(j): j for j in (self.pending[int(i)] for i in indices[self.state[indices] == MISSING])}.values():
            chunk, good, stages, found = job.result()
            if good:
                self.images[self._here(np.array(good))] = self._here(stages)
            for index, item in zip(chunk, found, strict=True):
                del self.pending[index]
                if isinstance(item, BadImage):
                    self.bad[index], self.state[index] = item, BAD
                else:
                    self.labels[index], self.state[index] = item.label, GOOD
                    if item.changes:
                        self.notes.changes[index] = item.changes
        if self.pool is not None and not self.pending and (self.state != MISSING).all():
            self.pool.shutdown()
            self.pool = None

    def rows(self, ordinals: Sequence[int] | range) -> Rows:
        indices = self.feed.indices(ordinals)
        if (self.state[indices] != GOOD).any():
            self.collect(indices)
            for row in np.flatnonzero(self.state[indices] == BAD):
                indices[row] = self._stand_in(int(indices[row]))
        draws = self.feed.transform.draws(self.feed.seed, self.feed.name, np.asarray(ordinals, dtype=np.int64))
        images = self.images.index_select(0, self._here(indices))
        return Rows(self.feed.transform.place(images, draws), torch.from_numpy(self.labels[indices]), self.notes)

    def _here(self, x: np.ndarray) -> Tensor:
        """On the store's device, without waiting for what runs there."""
        return torch.from_numpy(x).to(self.device, non_blocking=True)

    def _stand_in(self, index: int) -> int:
        for _ in range(MAX_BAD_RUN):
            if self.state[index] == GOOD:
                return index
            if self.feed.on_bad == "error":
                raise self.bad[index]
            self.notes.skipped[index] = self.bad[index]
            index = (index + 1) % len(self.state)
            self.collect(np.array([index]))
        raise ValueError(f"{min(MAX_BAD_RUN, len(self.state))} images in a row cannot be used, the last one: {self.bad[index]}")


def _load_together(feed: Feed, chunk: list[int]) -> tuple[list[int], list[int], np.ndarray | None, list[Loaded | BadImage]]:
    """A thread's job: the chunk, which of it are good, those stacked, and what is known about each."""
    found = feed.load(chunk)
    kept = [(index, item) for index, item in zip(chunk, found, strict=True) if isinstance(item, Loaded)]
    stages = np.stack([item.stage for _, item in kept]) if kept else None
    light = [item if isinstance(item, BadImage) else item._replace(stage=np.empty((3, 0, 0), np.uint8)) for item in found]
    return chunk, [index for index, _ in kept], stages, light

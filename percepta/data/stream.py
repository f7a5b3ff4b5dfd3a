"""Stream: the endless training stream of a source, cut into steps and shared among ranks.

Global step s holds the places (ordinals) s*batch .. (s+1)*batch - 1, and each rank a contiguous part of them. What stands at a
place is a function of (seed, ordinal): a run may stop anywhere, start at any step, and change workers or world size between,
and reads the same images with the same crops and flips, to the bit.

Three ways to the same bits: small sets are kept in memory after one decode (a gather per batch); larger ones come from spawned
worker processes; with `workers=0` they are read where they are asked for.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from percepta.data.image import BadImage
from percepta.data.order import share
from percepta.data.reader import Feed, Notes, Rows, Store
from percepta.data.source import Pairs, Source
from percepta.data.transforms import Transform, to_float
from percepta.estimate import Batch

Step = tuple[tuple[int, ...], Batch]


@dataclass
class Stream:
    """`batch` is global. A source with labels gives int64 `cond`; Pairs give B as `x0` and A as `source`.

    `memory_limit_bytes` bounds the in-memory set (0: never keep one), `workers` are used for what does not fit. `on_bad`: error
    or skip. `device`: keep the set there, and yield batches there; it must fit the limit. `pin`: page-locked batches for fast
    copies to a GPU.
    """

    source: Source | Pairs
    size: int
    seed: int
    batch: int
    rank: int = 0
    world: int = 1
    workers: int = 0
    crop: str = "center-crop"
    flip: bool = False
    filter: str = "adm"
    on_bad: str = "error"
    memory_limit_bytes: int = 2**31
    pin: bool = False
    device: torch.device | str = "cpu"
    changes: Counter[str] = field(default_factory=Counter, init=False)  # conversion -> images that needed it, each counted once
    skipped: dict[str, str] = field(default_factory=dict, init=False)  # bad image -> reason

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("batch", 1), ("world", 1), ("workers", 0), ("memory_limit_bytes", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"the rank must lie in 0 .. {self.world - 1}, got {self.rank}")
        if self.on_bad not in ("error", "skip"):
            raise ValueError(f"on_bad must be error or skip, got {self.on_bad!r}")
        self.device = torch.device(self.device)
        transform = Transform(self.size, self.crop, self.flip, self.filter)
        domains = (
            [("target", self.source.b), ("source", self.source.a)] if isinstance(self.source, Pairs) else [("order", self.source)]
        )
        self._feeds = [Feed(source, transform, self.seed, name, self.on_bad) for name, source in domains]
        for name, source in domains:
            if not len(source):
                raise ValueError(f"the data ({name}) holds no images")
        self._seen: list[set[int]] = [set() for _ in self._feeds]
        needs = [Store.bytes_of(len(feed.source), feed.transform) for feed in self._feeds]
        fits = None not in needs and sum(n for n in needs if n is not None) <= self.memory_limit_bytes
        if self.device.type != "cpu" and not fits:
            raise ValueError(
                f"the data takes {needs} bytes, more than memory_limit_bytes={self.memory_limit_bytes:,}, or has no fixed size "
                f"({self.crop}): it cannot be kept on {self.device}; leave the device out, or raise the limit"
            )
        threads = max(1, min(8, os.cpu_count() or 1))
        self._stores = [Store(feed, self.device, threads) for feed in self._feeds] if fits else []

    @property
    def num_classes(self) -> int:
        return 0 if isinstance(self.source, Pairs) else self.source.num_classes

    @property
    def way(self) -> str:
        """How rows are read: memory, workers or direct."""
        return "memory" if self._stores else "workers" if self.workers else "direct"

    def ordinals(self, step: int, total: int | None = None) -> range:
        """This rank's places of a global step. `total` ends the stream: its last step may be smaller, a rank's part of it empty."""
        first = step * self.batch
        count = self.batch if total is None else max(0, min(self.batch, total - first))
        return share(first, count, self.rank, self.world)

    def batches(self, start_step: int = 0, stop_step: int | None = None, total: int | None = None) -> Iterator[Step]:
        """(ordinals, Batch) of this rank, step after step from `start_step`; without an end unless one is named."""
        if start_step < 0 or (total is not None and total < 0):
            raise ValueError(f"start_step and total must not be negative, got {start_step} and {total}")
        ends = [end for end in (stop_step, None if total is None else -(-total // self.batch)) if end is not None]
        stop = min(ends) if ends else None
        rows = self._worker_rows if self.way == "workers" else self._own_rows
        for ordinals, parts in rows(start_step, stop, total):
            for seen, part in zip(self._seen, parts, strict=True):
                self._note(seen, part.notes)
            yield tuple(ordinals), self._batch(parts)

    def _own_rows(self, start: int, stop: int | None, total: int | None) -> Iterator[tuple[range, list[Rows]]]:
        step = start
        while stop is None or step < stop:
            ordinals = self.ordinals(step, total)
            parts = [reader.rows(ordinals) for reader in self._stores or self._feeds]
            for store in self._stores:  # decode the next step while this one trains
                store.request(store.feed.indices(self.ordinals(step + 1, total)))
            yield ordinals, parts
            step += 1

    def _worker_rows(self, start: int, stop: int | None, total: int | None) -> Iterator[tuple[Sequence[int], list[Rows]]]:
        loader = torch.utils.data.DataLoader(
            _Rows(self._feeds), batch_sampler=_Steps(self, start, stop, total), num_workers=self.workers, collate_fn=_as_is,
            multiprocessing_context="spawn", prefetch_factor=2, generator=torch.Generator(),  # the global one must not move
            worker_init_fn=_own_group,
        )  # fmt: skip
        for ordinals, parts in loader:
            if isinstance(parts, BadImage):
                raise parts
            yield ordinals, parts

    def _batch(self, parts: list[Rows]) -> Batch:
        images = [self._ready(to_float(part.images)) for part in parts]
        cond = self._ready(parts[0].labels) if self.num_classes else None
        return Batch(images[0], cond, images[1] if len(images) > 1 else None)

    def _ready(self, x: Tensor) -> Tensor:
        x = x.to(self.device, non_blocking=True)
        return x.pin_memory() if self.pin and x.device.type == "cpu" and torch.cuda.is_available() else x

    def _note(self, seen: set[int], notes: Notes) -> None:
        """Count each conversion once per image, warn once per bad file. Called with what a worker, or a store, has noted so far."""
        for index in notes.changes.keys() - seen:
            self.changes.update(notes.changes[index])
        for index in notes.skipped.keys() - seen:
            error = notes.skipped[index]
            self.skipped[error.name] = error.reason
            warnings.warn(
                f"skipped bad image {error}; the next good one stands in for it ({len(self.skipped)} skipped so far)", stacklevel=3
            )
        seen |= notes.changes.keys() | notes.skipped.keys()
        notes.changes.clear()
        notes.skipped.clear()


class _Steps:
    """The places of each step, as the worker processes are asked for them."""

    def __init__(self, stream: Stream, start: int, stop: int | None, total: int | None) -> None:
        self.stream, self.start, self.stop, self.total = stream, start, stop, total

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start
        while self.stop is None or step < self.stop:
            yield list(self.stream.ordinals(step, self.total))
            step += 1


class _Rows(torch.utils.data.Dataset):
    """What a worker runs. A bad image comes back as a value: its name survives the way between processes unchanged."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds

    def __getitems__(self, ordinals: list[int]) -> tuple[list[int], list[Rows] | BadImage]:
        try:
            return ordinals, [feed.rows(ordinals) for feed in self.feeds]
        except BadImage as error:
            return ordinals, error


def _own_group(_worker: int) -> None:
    """A signal to the run's process group (Ctrl-C, a batch system) is the trainer's, which stops after its step and ends its workers."""
    os.setpgid(0, 0)


def _as_is(rows):
    return rows

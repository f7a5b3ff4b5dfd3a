"""One pass over a side: every image is decoded once, all extractors read it, and their rows of features are kept in chunks.

    images -> threads decode ahead -> batches of one size -> extractors -> rows, in chunks of CHUNK images (cache.py)

What is in the cache already is neither decoded nor computed, so a second evaluation, and one that was interrupted, only does what is missing.
Several ranks share out the missing chunks and all end with all of them. Batches are formed inside a chunk, and statistics summed chunk by
chunk in order: neither depends on which process worked out which chunk.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percepta import distributed
from percepta.data import BadImage
from percepta.evaluation.cache import Store, unsealed, write_sealed
from percepta.evaluation.imageset import Chunk, ImageSet, Seen, Told, threads
from percepta.evaluation.moments import Moments

CHUNK = 512  # images; part of the definition of Rows.moments
GROUP = 8  # images a thread decodes at a time
AHEAD_BYTES = 2**28  # pixels that are decoded and wait, at most
MEMORY_BYTES = 2**28  # Rows.array of more bytes is a file


@runtime_checkable
class Reads(Protocol):
    """What a pass needs of an extractor; spaces/extractor.py has them."""

    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> Mapping[str, int | None]: ...
    @property
    def weights(self) -> str: ...
    @property
    def identity(self) -> str: ...

    def __call__(self, images: UInt8[Tensor, "b 3 h w"], layers: Sequence[str]) -> dict[str, Float32[Tensor, "b d"]]: ...


E = TypeVar("E", bound=Reads)


class Rows:
    """The features of a set in one layer: row i belongs to image i. They stay in the cache's files; `array` is the whole of them."""

    def __init__(self, store: Store, unit: str, chunks: Sequence[Chunk], counts: Sequence[int]) -> None:
        self.store, self.unit, self.counts = store, unit, tuple(counts)
        self.chunks = tuple(chunks)

    def __len__(self) -> int:
        return sum(self.counts)

    def parts(self) -> Iterator[Float32[np.ndarray, "n d"]]:
        """The rows chunk by chunk; one of which no image could be read has none and is left out."""
        dims = 0
        for chunk, count in zip(self.chunks, self.counts, strict=True):
            if not count:
                continue
            rows = self.store.rows(self.unit, chunk, count)
            if rows is None:
                raise ValueError(f"{self.store.path(self.unit, chunk)}: was removed or changed while it was in use; evaluate again")
            dims = dims or rows.shape[1]
            _same_dims(dims, rows.shape[1])
            yield rows

    @property
    def dims(self) -> int:
        return next(self.parts()).shape[1]

    def moments(self) -> Moments:
        """Summed over the chunks in order, in float64: the same bits at any number of ranks."""
        return Moments.total(Moments.of_chunk(part) for part in self.parts())

    @cached_property
    def array(self) -> Float32[np.ndarray, "n d"]:
        """All rows: in memory while they are few, else a memory map of a file that ends with this process."""
        parts = self.parts()
        first = next(parts)
        shape = (len(self), first.shape[1])
        if shape[0] * shape[1] * 4 <= MEMORY_BYTES:
            return np.concatenate([first, *parts])
        with tempfile.TemporaryFile(dir=self.store.folder) as file:  # nameless: the map keeps it alive
            for part in (first, *parts):
                part.tofile(file)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=shape)


def extract(
    images: ImageSet,
    wanted: Mapping[E, Sequence[str]],
    cache: Path,
    batch: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    note: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
) -> dict[tuple[str, str], Rows]:
    """(extractor, layer) -> rows, for the wanted layers of each extractor; `images` then knows its facts and its bad files.

    `progress(done, total)` counts the images that this process decodes; `note` gets a line per extractor that says what the cache had (on rank 0);
    `check` may raise to leave: whole chunks stay, and the next call goes on after them.
    """
    if batch < 1:
        raise ValueError(f"the batch must be at least 1, got {batch}")
    _check_wanted(wanted)
    world, store = distributed.world(), Store(cache)
    store.sweep()
    units = {(e, layer): store.unit(e.name, layer, e.identity) for e, layers in wanted.items() for layer in dict.fromkeys(layers)}
    chunks = images.chunks(CHUNK)
    have = _have(images, store, chunks, list(units.values()))
    somewhere = distributed.agreed(have.to(torch.int32)) > 0
    if world.first:
        _say(images, wanted, units, chunks, somewhere, note)
    missing = [k for k in range(len(chunks)) if not bool(somewhere[k].all())]
    work = [
        _Work(images, store, chunks[k], {u: name for (u, name), there in zip(units.items(), somewhere[k, 1:], strict=True) if not there}, batch)
        for k in missing[world.rank :: world.size]
    ]  # fmt: skip
    _compute(images, work, batch, progress, check)
    if world.size > 1:
        _exchange(store, chunks, list(units.values()), lambda: _have(images, store, chunks, list(units.values())))
    told = [_known(store, chunk) for chunk in chunks]
    images.settle([one for part in told for one in part])
    counts = [sum(one.bad is None for one in part) for part in told]
    return {(e.name, layer): Rows(store, unit, chunks, counts) for (e, layer), unit in units.items()}


def _check_wanted(wanted: Mapping[E, Sequence[str]]) -> None:
    names = [extractor.name for extractor in wanted]
    for extractor, layers in wanted.items():
        if names.count(extractor.name) > 1:
            raise ValueError(f"two extractors are called {extractor.name}: their rows could not be told apart")
        if extractor.weights == "random":
            raise ValueError(f"the extractor {extractor.name} has random weights: nothing is measured with it")
        for layer in layers:
            if layer not in extractor.layers:
                raise ValueError(f"the extractor {extractor.name} has no layer {layer!r}; it has {', '.join(extractor.layers)}")


def _known(store: Store, chunk: Chunk) -> list[Told]:
    told = store.told(chunk)
    if told is None:
        raise ValueError(f"{store.told_path(chunk)}: was removed or changed while it was in use; evaluate again")
    return told


def _have(images: ImageSet, store: Store, chunks: Sequence[Chunk], units: Sequence[str]) -> Tensor:
    """[chunks, 1 + units]: what lies whole in this process's cache. Rows without what was told of their images do not count."""
    have = torch.zeros(len(chunks), 1 + len(units), dtype=torch.bool)
    for k, chunk in enumerate(chunks):
        told = store.told(chunk)
        if told is None:
            continue
        if images.on_bad == "error":
            images.refuse(told, chunk.start)
        count = sum(one.bad is None for one in told)
        have[k] = torch.tensor([True, *(store.rows(unit, chunk, count) is not None for unit in units)])
    return have


def _say(
    images: ImageSet,
    wanted: Mapping[E, Sequence[str]],
    units: Mapping[tuple[E, str], str],
    chunks: Sequence[Chunk],
    somewhere: Tensor,
    note: Callable[[str], None],
) -> None:
    """The line of each extractor: what the cache had."""
    sizes = torch.tensor([chunk.stop - chunk.start for chunk in chunks])
    columns = {pair: k for k, pair in enumerate(units, 1)}
    for extractor, layers in wanted.items():
        there = somewhere[:, [0, *(columns[extractor, layer] for layer in layers)]].all(1)
        found, total = int(sizes[there].sum()), int(sizes.sum())
        state = "hit" if found == total else "miss" if not found else "partial hit"
        rest = "" if found == total else f", {total - found:,} to compute"
        note(f"cache {state}: {images.name} in {extractor.name} ({', '.join(layers)}): {found:,} of {total:,} images{rest}")


class _Work:
    """A chunk that is being computed: images come in their order, batches of one size leave to the extractors."""

    def __init__(self, images: ImageSet, store: Store, chunk: Chunk, units: Mapping[tuple[Reads, str], str], batch: int) -> None:
        self.images, self.store, self.chunk, self.units, self.batch = images, store, chunk, units, batch
        self.layers: dict[Reads, list[str]] = {}
        for extractor, layer in units:
            self.layers.setdefault(extractor, []).append(layer)
        self.told: list[Told] = []
        self.waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
        self.rows: dict[tuple[Reads, str], np.ndarray] = {}

    def take(self, seen: Seen | BadImage) -> None:
        """The next image of the chunk."""
        if isinstance(seen, BadImage) and self.images.on_bad == "error":
            raise seen
        place = len(self.told)
        self.told.append(Told.of(seen))
        if isinstance(seen, Seen) and self.units:
            alike = self.waiting.setdefault(seen.image.shape, [])
            alike.append((place, seen.image))
            if len(alike) == self.batch:
                self._run(seen.image.shape)
            elif sum(map(_bytes, self.waiting.values())) > AHEAD_BYTES:  # many sizes of large images
                self._run(max(self.waiting, key=lambda shape: _bytes(self.waiting[shape])))
        if len(self.told) == self.chunk.stop - self.chunk.start:
            self._finish()

    def _run(self, shape: tuple[int, ...]) -> None:
        """A batch through all extractors."""
        group = self.waiting.pop(shape)
        places = [place for place, _ in group]
        pixels = torch.from_numpy(np.stack([image for _, image in group]))
        for extractor, layers in self.layers.items():
            found = extractor(pixels, layers)
            for layer in layers:
                rows = found[layer].numpy()
                if not np.isfinite(rows).all():
                    first = self.chunk.start + places[int(np.flatnonzero(~np.isfinite(rows).all(1))[0])]
                    raise ValueError(
                        f"{extractor.name}-{layer} of {self.images.name_of(first)} is not finite: check its weights and precision"
                    )
                key = (extractor, layer)
                if key not in self.rows:
                    self.rows[key] = np.zeros((self.chunk.stop - self.chunk.start, rows.shape[1]), np.float32)
                _same_dims(self.rows[key].shape[1], rows.shape[1])
                self.rows[key][places] = rows

    def _finish(self) -> None:
        """The last batches, then the files: what was told first, rows without it do not count."""
        for shape in list(self.waiting):
            self._run(shape)
        self.store.write_told(self.chunk, self.told)
        good = [place for place, one in enumerate(self.told) if one.bad is None]
        for (extractor, layer), unit in self.units.items():
            rows = self.rows.get((extractor, layer))
            if rows is None:  # no image of the chunk can be read
                rows = np.zeros((self.chunk.stop - self.chunk.start, extractor.layers[layer] or 0), np.float32)
            self.store.write_rows(unit, self.chunk, rows[good])
        self.rows.clear()


def _same_dims(first: int, other: int) -> None:
    if first != other:
        raise ValueError(
            f"images of several sizes give rows of {first} and of {other} features in this space; bring them to one size (--size)"
        )


def _bytes(group: Sequence[tuple[int, np.ndarray]]) -> int:
    return len(group) * group[0][1].nbytes


def _compute(
    images: ImageSet, work: Sequence[_Work], batch: int, progress: Callable[[int, int], None], check: Callable[[], None]
) -> None:
    places = [place for one in work for place in range(one.chunk.start, one.chunk.stop)]
    owners = [one for one in work for _ in range(one.chunk.start, one.chunk.stop)]
    done = 0
    with closing(_decoded(images, places, batch)) as groups:
        for group in groups:
            check()
            for seen in group:
                owners[done].take(seen)
                done += 1
            progress(done, len(places))


def _decoded(images: ImageSet, places: Sequence[int], batch: int) -> Generator[list[Seen | BadImage], None, None]:
    """The images of these places in order, decoded by threads that run ahead: by two batches, or as far as memory allows."""
    waiting: deque[Future[list[Seen | BadImage]]] = deque()
    most = 2 * (-(-batch // GROUP)) + threads()
    step, ahead, largest, start = 1, threads(), 1, 0  # carefully, until it is known how large the images are
    pool = ThreadPoolExecutor(threads())
    try:
        while start < len(places) or waiting:
            while start < len(places) and len(waiting) < ahead:
                waiting.append(pool.submit(images.load, places[start : start + step]))
                start += step
            group = waiting.popleft().result()
            largest = max([largest, *(seen.image.nbytes for seen in group if isinstance(seen, Seen))])
            step = max(1, min(GROUP, AHEAD_BYTES // largest // threads()))
            ahead = max(threads(), min(most, AHEAD_BYTES // (step * largest)))
            yield group
    finally:
        pool.shutdown(cancel_futures=True)


def _exchange(store: Store, chunks: Sequence[Chunk], units: Sequence[str], have: Callable[[], Tensor]) -> None:
    """Give every rank the files that it lacks: none where the ranks share the folder."""
    world = distributed.world()
    distributed.agreed(torch.zeros(1))  # all have written
    table = torch.zeros(world.size, len(chunks), 1 + len(units), dtype=torch.int32)
    table[world.rank] = have().to(torch.int32)
    table = distributed.agreed(table)
    for k, u in ((int(k), int(u)) for k, u in (table.sum(0) < world.size).nonzero()):
        path = store.told_path(chunks[k]) if u == 0 else store.path(units[u - 1], chunks[k])
        source = int(table[:, k, u].argmax())
        assert bool(table[source, k, u]), f"no rank has {path}"
        content = unsealed(path) if world.rank == source else None
        sent = distributed.send_bytes(content, source)
        if not bool(table[world.rank, k, u]):
            write_sealed(path, sent)

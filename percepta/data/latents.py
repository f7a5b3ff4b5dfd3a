"""The latent cache: an autoencoder's posterior mean and standard deviation of every image, encoded once.

Training then draws z = mean + std * noise from the stored posterior (Rombach et al. 2022), with noise keyed by (seed, ordinal), and needs
neither images nor encoder. A cache is named by what it was made from (data, autoencoder, size, crop, filter, flip, precision): another
of these is another cache, never a wrong hit. Shards are safetensors, each written beside and renamed; the manifest with their hashes comes
last, so a cache is whole or it is resumed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from percepta.data.image import BadImage
from percepta.data.order import indices_of, share, uniform
from percepta.data.reader import Feed, Notes
from percepta.data.source import Source, hash_of
from percepta.data.transforms import Transform, to_float
from percepta.estimate import Batch
from percepta.rng import Rng

DTYPES = {"float16": torch.float16, "float32": torch.float32}
MANIFEST = "manifest.json"
ROWS = 1024  # images of a shard
BATCH = 16  # images the encoder sees at once


@runtime_checkable
class Encoder(Protocol):
    """What makes latents: mean and standard deviation of the posterior, scaled as the denoiser reads them."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class CacheResult(NamedTuple):
    """Where a cache lies, and whether it was there already (`hit`); `encoded` images were encoded now.

    `skipped`: bad image -> reason; the next good image of the set stands in for each.
    """

    hit: bool
    key: str
    path: Path
    encoded: int
    skipped: dict[str, str]


@dataclass(frozen=True)
class CacheKey:
    """What a cache is made from. `vae` is a hash of the autoencoder's weights."""

    data: str
    vae: str
    transform: Transform
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if self.transform.random:
            raise ValueError(f"latents are encoded once: a random crop ({self.transform.crop}) cannot be cached; use center-crop")
        if self.dtype not in DTYPES:
            raise ValueError(f"latents are stored as {' or '.join(DTYPES)}, got {self.dtype!r}")

    def __str__(self) -> str:
        return hash_of(self.data, self.vae, self.transform, self.dtype)


def hash_module(module: nn.Module) -> str:
    """A hash of a module's class, weights and buffers; of those too that are not saved, for the scale of the latents is one."""
    digest = hashlib.sha256(type(module).__name__.encode())
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()], key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encode_latents(
    source: Source,
    vae: Encoder,
    folder: Path,
    transform: Transform,
    dtype: str = "float16",
    on_bad: str = "error",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    check: Callable[[], None] = lambda: None,
) -> CacheResult:
    """Fill the cache of this source and autoencoder below `folder`, or find it there. `progress(done, total)` after each shard.

    `check` is called before each batch and may raise to leave: whole shards stay, and the next call goes on after them.
    """
    identity = vae if isinstance(vae, nn.Module) else getattr(vae, "vae", None)
    if not isinstance(identity, nn.Module):
        raise ValueError(
            f"the autoencoder must be a torch module, or hold one as .vae, to be identified by its weights; got {type(vae)}"
        )
    key = CacheKey(source.fingerprint, hash_module(identity), transform, dtype)
    path = folder / str(key)[:16]
    if (path / MANIFEST).is_file():
        skipped = _manifest(path)["skipped"]
        if skipped and on_bad == "error":
            name, reason = next(iter(skipped.items()))
            raise BadImage(name, "corrupt", f"{reason} (the cache {path} was made without {len(skipped)} bad images)")
        return CacheResult(True, str(key), path, 0, skipped)
    path.mkdir(parents=True, exist_ok=True)
    shards, encoded, skipped = [], 0, {}
    feed = Feed(source, replace(transform, flip=False), 0, on_bad=on_bad)
    for start in range(0, len(source), ROWS):
        file, stop = path / f"latents-{start:09d}.safetensors", min(start + ROWS, len(source))
        if _skipped_of(file, stop - start) is None:
            notes = Notes({}, {})
            tensors = _encode_rows(feed, vae, transform.flip, DTYPES[dtype], range(start, stop), torch.device(device), notes, check)
            said = {"skipped": json.dumps({error.name: error.reason for error in notes.skipped.values()})}
            _write(file, lambda temporary, tensors=tensors, said=said: save_file(tensors, temporary, said))
            encoded += stop - start
        skipped.update(_skipped_of(file, stop - start) or {})
        shards.append({"file": file.name, "rows": stop - start, "sha256": _sha256(file)})
        if progress is not None:
            progress(stop, len(source))
    manifest = {"key": str(key), "data": key.data, "vae": key.vae, "dtype": dtype, "rows": len(source), "class_names": list(source.class_names),
                "transform": {name: getattr(transform, name) for name in ("size", "crop", "flip", "filter", "background")},
                "shards": shards, "skipped": skipped}  # fmt: skip
    _write(path / MANIFEST, lambda temporary: temporary.write_text(json.dumps(manifest, indent=1)))
    return CacheResult(False, str(key), path, encoded, skipped)


def _encode_rows(
    feed: Feed,
    vae: Encoder,
    flip: bool,
    dtype: torch.dtype,
    rows: range,
    device: torch.device,
    notes: Notes,
    check: Callable[[], None],
) -> dict[str, Tensor]:
    """Mean and std of these images, of their mirror images too where flips are asked for, and their labels."""
    out: dict[str, list[Tensor]] = {}
    for start in range(rows.start, rows.stop, BATCH):
        check()
        indices = range(start, min(start + BATCH, rows.stop))
        loaded = [feed.good(i, found, notes) for i, found in zip(indices, feed.load(indices), strict=True)]
        x = to_float(torch.from_numpy(np.stack([one.stage for one in loaded])).to(device))
        for name, images in (("", x), ("_flip", x.flip(3))) if flip else (("", x),):
            with torch.no_grad():
                mean, std = vae.encode(images)
            if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and mean.abs().max() < torch.finfo(dtype).max):
                raise ValueError(f"latents of images {indices} are not finite in {dtype}: check the autoencoder, or store float32")
            out.setdefault(f"mean{name}", []).append(mean.to("cpu", dtype))
            out.setdefault(f"std{name}", []).append(std.to("cpu", dtype))
        out.setdefault("label", []).append(torch.tensor([one.label for one in loaded], dtype=torch.int64))
    return {name: torch.cat(parts).contiguous() for name, parts in out.items()}


def _skipped_of(file: Path, rows: int) -> dict[str, str] | None:
    """The bad images of a whole shard, None where an interrupted run has left none (its rename came after its last byte)."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as shard:
            return json.loads(shard.metadata()["skipped"]) if shard.get_slice("label").get_shape() == [rows] else None
    except (SafetensorError, KeyError, TypeError):
        return None


def _write(file: Path, fill: Callable[[Path], Any]) -> None:
    """Write beside, reach the disk, rename."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        fill(temporary)
        for place in (temporary, None, file.parent):
            if place is None:
                os.replace(temporary, file)
                continue
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest, its shards checked against their hashes."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for shard in manifest["shards"]:
            if _sha256(path / shard["file"]) != shard["sha256"]:
                raise ValueError(f"{path / shard['file']}: has changed since it was written (wrong sha256)")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: is not a whole latent cache: {error}; delete the folder and cache again") from error
    return manifest


@dataclass
class LatentStream:
    """The training stream of a cache: as Stream, with x0 = mean + std * noise. The shards stay on disk, mapped into memory."""

    path: Path
    seed: int
    batch: int
    rank: int = 0
    world: int = 1
    sample: bool = True  # False: x0 = mean
    class_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if self.batch < 1 or not 0 <= self.rank < self.world:
            raise ValueError(
                f"needs batch >= 1 and 0 <= rank < world, got batch {self.batch}, rank {self.rank}, world {self.world}"
            )
        manifest = _manifest(self.path)
        self.class_names = tuple(manifest["class_names"])
        self.flip: bool = manifest["transform"]["flip"]
        self._shards = [load_file(self.path / shard["file"]) for shard in manifest["shards"]]
        self._starts = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """[c, h, w] of a latent."""
        return tuple(self._shards[0]["mean"].shape[1:])

    def batches(
        self, start_step: int = 0, stop_step: int | None = None, total: int | None = None
    ) -> Iterator[tuple[tuple[int, ...], Batch]]:
        """(ordinals, Batch) of this rank, as Stream.batches."""
        step = start_step
        while (stop_step is None or step < stop_step) and (total is None or step * self.batch < total):
            first = step * self.batch
            ordinals = share(first, self.batch if total is None else min(self.batch, total - first), self.rank, self.world)
            yield tuple(ordinals), self.rows(ordinals)
            step += 1

    def rows(self, ordinals: range) -> Batch:
        """The rows of these places; which side of the mirror and which noise is keyed by (seed, ordinal)."""
        indices = indices_of(ordinals, len(self), self.seed)
        flips = uniform(self.seed, "order/flip", np.asarray(ordinals)) < 0.5 if self.flip else np.zeros(len(indices), dtype=bool)
        x0 = self._gather("mean", indices, flips)
        if self.sample:
            x0 = x0 + self._gather("std", indices, flips) * Rng(self.seed, tuple(ordinals), stream="posterior").normal(
                "posterior", self.shape
            )
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        labels = [int(self._shards[s]["label"][i - self._starts[s]]) for s, i in zip(shards, indices, strict=True)]
        return Batch(x0, torch.tensor(labels, dtype=torch.int64) if self.class_names else None)

    def _gather(self, name: str, indices: np.ndarray, flips: np.ndarray) -> Float[Tensor, "b c h w"]:
        out = torch.empty((len(indices), *self.shape), dtype=torch.float32)
        for row, (index, flip) in enumerate(zip(indices, flips, strict=True)):
            shard = int(np.searchsorted(self._starts, index, side="right")) - 1
            out[row] = self._shards[shard][f"{name}_flip" if flip else name][index - self._starts[shard]]
        return out

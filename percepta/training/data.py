"""The data of a run: images from a source, or the latents of a frozen autoencoder, as rows of each step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from percepta.data import Source, Stream, open_source
from percepta.distributed import World, barrier
from percepta.estimate import Batch
from percepta.training.folder import RunFolder
from percepta.training.settings import Settings

Rows = tuple[tuple[int, ...], Batch]
EXAMPLES = 64  # images that a method may look at before it trains


@dataclass(frozen=True)
class Data:
    """What trains: `batches(first step, last step)` gives this rank's rows of each step."""

    batches: Callable[[int, int], Iterator[Rows]]
    channels: int
    size: int
    num_classes: int | None
    class_names: tuple[str, ...] | None
    fingerprint: str
    count: int
    examples: Tensor
    vae: Any = None


def open_data(settings: Settings, folder: RunFolder, world: World, device: torch.device, note: Callable[[str], None]) -> Data:
    """The source that --data names, as images or, with --vae, as latents."""
    source = open_source(settings.data, settings.size)
    if settings.conditional and not source.num_classes:
        raise ValueError(
            f"--conditional was asked for, but {settings.data} has no labels: use class sub-folders, metadata.jsonl with "
            "`label`, or --no-conditional"
        )
    labelled = bool(source.num_classes) and settings.conditional is not False
    return (_latents if settings.vae else _images)(settings, source, labelled, folder, world, device, note)


def _stream(settings: Settings, source: Source, world: World, device: torch.device) -> Stream:
    return Stream(
        source, settings.size, settings.seed, settings.batch, world.rank, world.size, settings.workers, settings.crop, settings.flip,
        on_bad=settings.on_bad_image, memory_limit_bytes=int(settings.data_memory * 2**30), pin=device.type == "cuda",
    )  # fmt: skip


def _images(settings: Settings, source: Source, labelled: bool, folder: RunFolder, world: World, device: torch.device,
            note: Callable[[str], None]) -> Data:  # fmt: skip
    stream = _stream(settings, source, world, device)
    names = tuple(source.class_names) if labelled else None
    return Data(_labels(stream.batches, labelled), 3, settings.size, source.num_classes if labelled else None, names, source.fingerprint,
                len(source), examples(settings, source))  # fmt: skip


def _labels(batches: Callable[[int, int], Iterator[Rows]], labelled: bool) -> Callable[[int, int], Iterator[Rows]]:
    if labelled:
        return batches
    return lambda start, stop: ((ordinals, Batch(batch.x0)) for ordinals, batch in batches(start, stop))


def examples(settings: Settings, source: Source) -> Tensor:
    """The first images of the stream, whatever the rank."""
    count = min(EXAMPLES, len(source))
    stream = Stream(
        source, settings.size, settings.seed, count, crop=settings.crop, memory_limit_bytes=0, on_bad=settings.on_bad_image
    )
    return next(iter(stream.batches(0, 1)))[1].x0


def _latents(settings: Settings, source: Source, labelled: bool, folder: RunFolder, world: World, device: torch.device,
             note: Callable[[str], None]) -> Data:  # fmt: skip
    from percepta.data.latents import LatentStream, encode_latents
    from percepta.networks import load_autoencoder

    assert settings.vae is not None
    vae = load_autoencoder(vae_folder(settings.vae)).requires_grad_(False).eval()
    vae.to(device)
    cache = Path(settings.cache)
    barrier()
    if world.first:
        note(f"latents: {cache}")
    _ = (LatentStream, encode_latents, cache, labelled, folder)
    raise AssertionError


def vae_folder(path: str) -> Path:
    """An autoencoder's folder: given itself, as a pipeline's `vae/`, or as a run of the recipe `autoencoder`."""
    given = Path(path)
    for folder in (given / "vae", given / "model", given):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(f"--vae {path}: no autoencoder there (no config.json in it, in vae/ or in model/)")

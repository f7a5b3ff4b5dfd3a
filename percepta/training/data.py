"""The data of a run: images from a source, or the latents of a frozen autoencoder, as rows of each step."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from percepta.absent import absent
from percepta.data import Pairs, Source, Stream, Transform, open_source
from percepta.data.captioned import Captioned
from percepta.data.reader import Store
from percepta.distributed import World, by_first
from percepta.estimate import Batch
from percepta.interop.folders import VAES, find_folder, read_json
from percepta.interop.text import find_text
from percepta.training.settings import Settings
from percepta.training.texts import Prompts, cache_root, embed

if TYPE_CHECKING:
    from percepta.data.latents import CacheResult

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
    examples: Callable[[], Tensor]
    vae: Any = None
    latents: Callable[[int], Batch] | None = None  # so many of them, the same on every rank, where it is latents that train
    prompts: Prompts | None = None  # captions, where --init reads text
    source_examples: Callable[[], Tensor] | None = None  # the same of the domain that is translated, where there are two


def open_data(
    settings: Settings, world: World, device: torch.device, note: Callable[[str], None], check: Callable[[], None] = lambda: None
) -> Data:
    """The source that --data names, as images or, with --vae, as latents; `check` may raise to leave the encoding of latents."""
    source = open_source(settings.data, settings.size)
    text = None if settings.init is None else find_text(settings.init)
    if text is not None:
        source = Captioned(source, settings.data, empty=settings.conditional == "no")
        told = [source.class_names[label] for label in source.labels]
        prompts = embed(text, told, settings.size, settings.cache, device, note, check)
        data = (_latents(settings, source, True, world, device, note, check) if settings.vae
                else _images(settings, source, True, world, device))  # fmt: skip
        return replace(data, batches=prompts.conditioned(data.batches), num_classes=None, class_names=None, prompts=prompts)
    if settings.conditional == "yes" and not source.num_classes:
        raise ValueError(
            f"--conditional yes was asked for, but {settings.data} has no labels: use class sub-folders, metadata.jsonl with "
            "`label`, or --conditional no"
        )
    labelled = bool(source.num_classes) and settings.conditional != "no"
    if settings.vae:
        return _latents(settings, source, labelled, world, device, note, check)
    return _images(settings, source, labelled, world, device)


def training_stream(settings: Settings, source: Source | Pairs, world: World, device: torch.device) -> Stream:
    """This rank's images of each step, from memory where the set fits."""
    limit = int(settings.data_memory * 2**30)
    count = len(source.a) + len(source.b) if isinstance(source, Pairs) else len(source)
    needed = Store.bytes_of(count, Transform(settings.size, settings.crop))
    home = "cpu"
    if device.type == "cuda" and needed is not None and needed <= min(limit, torch.cuda.mem_get_info(device)[0] // 10):
        home = device  # a small set lives on the GPU: no copies at all
    return Stream(
        source, settings.size, settings.seed, settings.batch, world.rank, world.size, settings.workers, settings.crop, settings.flip,
        on_bad=settings.on_bad_image, memory_limit_bytes=limit, pin=device.type == "cuda", device=home,
    )  # fmt: skip


def _images(settings: Settings, source: Source, labelled: bool, world: World, device: torch.device) -> Data:
    stream = training_stream(settings, source, world, device)
    names = tuple(source.class_names) if labelled else None
    return Data(_labels(stream.batches, labelled), 3, settings.size, source.num_classes if labelled else None, names, source.fingerprint,
                len(source), partial(examples, settings, source))  # fmt: skip


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


def _latents(
    settings: Settings, source: Source, labelled: bool, world: World, device: torch.device, note: Callable[[str], None],
    check: Callable[[], None],
) -> Data:  # fmt: skip
    """Encode once, free the encoder's memory, train on the cache: the three phases of a latent run."""
    from percepta.data.latents import LatentStream
    from percepta.networks import load_autoencoder

    assert settings.vae is not None
    vae = load_autoencoder(vae_folder(settings.vae)).requires_grad_(False).eval()
    made = by_first(partial(cache_latents, settings, source, vae, device, note, check), "while latents were encoded")
    result = made or cache_latents(settings, source, vae, device, lambda text: None, check)
    vae.to("cpu")
    if device.type == "cuda":
        torch.cuda.empty_cache()
    stream = LatentStream(result.path, settings.seed, settings.batch, world.rank, world.size)
    channels, size, _ = stream.shape
    names = tuple(source.class_names) if labelled else None
    batches = _labels(stream.batches, labelled)
    count, classes = len(source), source.num_classes if labelled else None
    return Data(batches, channels, size, classes, names, result.key, count, partial(examples, settings, source), vae,
                lambda most: stream.rows(range(min(most, len(stream)))))  # fmt: skip


def cache_latents(
    settings: Settings,
    source: Source,
    vae: Any,
    device: torch.device,
    note: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> "CacheResult":
    """Find or fill the latent cache of these settings, and say which."""
    from percepta.data.latents import encode_latents

    folder = cache_root(settings.cache)
    transform = Transform(settings.size, settings.crop, settings.flip)
    started = time.monotonic()
    vae.to(device)
    result = encode_latents(
        source, vae, folder / "latents", transform, on_bad=settings.on_bad_image, device=device,
        check=check, progress=lambda done, total: note(f"encoding latents: {done}/{total} ({done / (time.monotonic() - started):.0f} img/s)"),
    )  # fmt: skip
    note(f"latent cache {'hit' if result.hit else f'miss: {result.encoded} images encoded'}: {result.path}")
    return result


def recorded_data(settings: Settings, resolved: Mapping[str, Any]) -> Data:
    """What a run's config.json says of its data, for a model that is built again; images are opened only if somebody looks at them."""
    from percepta.networks import load_autoencoder

    def none(start: int, stop: int) -> Iterator[Rows]:
        raise ValueError(f"a model that was built again from config.json has no batches, steps {start} to {stop} were asked for")

    channels, size, _ = resolved["shape"]
    names = None if resolved["class_names"] is None else tuple(resolved["class_names"])
    vae = load_autoencoder(vae_folder(settings.vae)).requires_grad_(False).eval() if settings.vae else None
    looked = partial(_first_images, settings)
    text = None if settings.init is None else find_text(settings.init)
    prompts = None if text is None else Prompts(text, (), (), cache_root(settings.cache), settings.size)
    return Data(
        none, channels, size, resolved["num_classes"], names, resolved["data"], resolved["images"], looked, vae, None, prompts
    )


def _first_images(settings: Settings) -> Tensor:
    return examples(settings, open_source(settings.data, settings.size))


def vae_folder(path: str, flag: str = "--vae") -> Path:
    """An autoencoder's folder: given itself, as a pipeline's `vae/`, or as a run of the recipe `autoencoder`."""
    given = Path(path)
    for folder in (given / "vae", given / "model" / "vae", given / "model", given):
        if (folder / "config.json").is_file():
            return folder
    if not given.exists():
        raise ValueError(f"{flag} {absent(path, 'an autoencoder')}")
    raise ValueError(f"{flag} {path}: no autoencoder there (no config.json in it, in vae/ or in model/)")


def with_own_vae(settings: Settings, wanted: bool) -> Settings:
    """A latent pipeline as --init is trained in the latents of its own autoencoder unless --vae names another, where a recipe wants latents."""
    if settings.init is None or settings.vae is not None or not wanted:
        return settings
    folder = find_folder(settings.init)
    folder = folder / "model" if (folder / "model" / "model_index.json").is_file() else folder
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
    has = isinstance(index.get(VAES[0]), list) and bool(index[VAES[0]][-1])
    return replace(settings, vae=settings.init if Path(settings.init).is_dir() else str(folder)) if has else settings

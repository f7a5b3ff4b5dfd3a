"""percepta cache latents: encode a set of images once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from percepta.cli import fail
from percepta.cli.parse import Usage, nearest, parse, to_stdout
from percepta.training.settings import Settings

KINDS = ("latents",)


@dataclass(frozen=True)
class Latents:
    """Encode a set of images with a frozen autoencoder and keep posterior means and deviations.

    Example: percepta cache latents --data ./images --vae ./vae --size 256

    `percepta train NAME --vae` does this by itself and finds the cache again; this command is for doing it ahead, on another machine.
    An interrupted run is continued. A cache is named by the hash of the data, the autoencoder, the size, the crop and the flip.
    """

    vae: str
    """A diffusers autoencoder folder, a pipeline with a vae/, or a run of the recipe `autoencoder`."""
    data: str = "shapes"
    """Images: a folder, .npz, tar shards, hf:NAME, or shapes."""
    size: int = 32
    """Side of the images, in pixels."""
    crop: Literal["center-crop", "stretch", "pad", "none"] = "center-crop"
    """How an image becomes a square."""
    flip: bool = False
    """Encode the mirror images too."""
    cache: Path | None = None
    """Where caches are kept. Default: PERCEPTA_CACHE, or ~/.cache/percepta."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A file that cannot be read: stop and name it, or skip and count it."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        to_stdout("percepta cache latents [flags]   see percepta cache latents --help")
        return 0 if args else 2
    if args[0] not in KINDS:
        raise Usage(
            f"percepta cache: there is nothing called {args[0]!r} to cache{nearest(args[0], KINDS)}; known: {', '.join(KINDS)}"
        )
    command = parse(Latents, args[1:], "percepta cache latents")
    from percepta.data import open_source
    from percepta.networks import load_autoencoder
    from percepta.training.data import cache_latents, vae_folder
    from percepta.training.log import console
    from percepta.training.precision import pick_device
    from percepta.training.signals import Interrupted, stop_on_signals

    settings = Settings(data=command.data, size=command.size, crop=command.crop, flip=command.flip, cache=command.cache,
                        on_bad_image=command.on_bad_image, vae=command.vae)  # fmt: skip
    vae = load_autoencoder(vae_folder(command.vae)).requires_grad_(False).eval()
    source = open_source(command.data, command.size)
    with stop_on_signals() as flag:
        try:
            result = cache_latents(settings, source, vae, pick_device(command.device), console.print, flag.check)
        except Interrupted:
            return fail("stopped; what is encoded is kept, run the same command again to go on", 3)
    record = {"hit": result.hit, "path": str(result.path), "key": result.key, "encoded": result.encoded, "skipped": result.skipped}
    to_stdout(json.dumps(record) if command.json else str(result.path))
    return 0

"""Phases: runs that a method stands on (autoencoders, priors), trained before it by their own recipes and found again by what they are.

A phase's folder is named by its recipe, its flags, and the content of its data and of the models that it stands on itself. It is an ordinary run: it can be
reported, sampled and resumed, and whoever asks for the same later gets it without training. Of two runs that want it at once, one trains and one waits.
"""

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch

from percepta import distributed
from percepta.data import open_source
from percepta.formulation import Denoiser
from percepta.interop import load_pipeline
from percepta.training.config import FREE_ON_RESUME, asked
from percepta.training.data import vae_folder
from percepta.training.recipe import Recipe, Trained
from percepta.training.settings import Settings
from percepta.training.signals import Interrupted
from percepta.training.texts import cache_root

Train = Callable[[Recipe, Settings], bool]  # True where it came to its end
MODELS = ("own", "other", "vae")  # flags that name an autoencoder
PATIENCE = 0.5  # seconds between two looks at what another run trains


def trainer(settings: Settings, train: Train, note: Callable[[str], None], check: Callable[[], None]) -> Trained:
    """For Recipe.prepared: phases in the cache of a run of these settings. `check` may raise to leave."""
    return partial(trained, cache_root(settings.cache) / "phases", train, note, check)


def trained(
    root: Path, train: Train, note: Callable[[str], None], check: Callable[[], None], name: str, recipe: Recipe, settings: Settings
) -> Path:
    """The run of this phase. It is trained, gone on with, or found. Interrupted where a signal came meanwhile."""
    folder = root / f"{recipe.name}-{identity(recipe, settings)}"
    with _alone(folder, partial(note, f"{name}: another run trains it in {folder}; this one waits"), check):
        if _there(folder):
            note(f"{name}: found in {folder}")
            return folder
        note(f"{name}: percepta train {recipe.name}, {settings.steps} steps, in {folder}")
        if not train(recipe, replace(settings, out=folder, resume=True)):
            raise Interrupted(f"while {name} was trained")
    return folder


def _there(folder: Path) -> bool:
    """Whether it came to its end: what rank 0 sees, on every rank."""
    return bool(distributed.agreed(torch.tensor([float(distributed.world().first and (folder / "model").is_dir())])).item())


@contextmanager
def _alone(folder: Path, note: Callable[[], None], check: Callable[[], None]) -> Iterator[None]:
    """No other run looks for this phase, or trains it, inside; it ends with the process, too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:

        def wait() -> None:
            told = False
            while True:
                check()
                try:
                    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not told:
                        note()
                    told = True
                    time.sleep(PATIENCE)

        distributed.by_first(wait, "while another run trained a phase")
        yield


def denoiser_of(run: Path) -> Denoiser:
    """The denoiser that a phase trained, frozen."""
    return load_pipeline(str(run)).denoiser.requires_grad_(False).eval()


def identity(recipe: Recipe, settings: Settings) -> str:
    """What the trained weights follow from: flags, but for those of where and how fast, the images themselves, and the weights of models that flags name."""
    flags = asked(recipe, settings)
    free = FREE_ON_RESUME - {"steps"}
    flags["settings"] = {k: v for k, v in flags["settings"].items() if k not in free and k != "data"}
    for part in ("knobs", "settings"):
        flags[part] |= {k: _weights(v, f"--{k}") for k, v in flags[part].items() if k in MODELS and v is not None}
    content = open_source(settings.data, settings.size).fingerprint
    return blake2b(json.dumps([flags, content], sort_keys=True, default=str).encode(), digest_size=6).hexdigest()


def _weights(path: str, flag: str) -> str:
    """The content of an autoencoder's folder, wherever it lies."""
    total = blake2b(digest_size=16)
    folder = vae_folder(path, flag)
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        total.update(file.name.encode())
        with file.open("rb") as opened:
            while part := opened.read(2**20):
                total.update(part)
    return total.hexdigest()

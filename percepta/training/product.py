"""Product: what a trained model is good for: previews while it trains, and the folder that is exported."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from percepta.formulation import Denoiser
from percepta.networks import Network
from percepta.path import AbstractDiscretePath
from percepta.rng import rng_for
from percepta.samplers import Drawn, check_sampler, sample_images, usual_clip
from percepta.training.settings import Settings

Check = Callable[..., None]  # called at safe places of a long job; raises to leave it


@runtime_checkable
class Product(Protocol):
    def check(self, settings: Settings) -> None:
        """Refuse, before the first step, what a preview could not do."""
        ...

    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        """Images in [-1, 1] and how they were made; the same at every call but for the weights."""
        ...

    def export(self, out: Path, card: Mapping[str, Any]) -> None: ...

    def next_command(self, run: Path) -> str:
        """What a user would type next."""
        ...


@dataclass
class Sampled:
    """A denoiser: previews are samples at fixed seeds, the export is a diffusers pipeline."""

    denoiser: Denoiser
    shape: tuple[int, int, int]
    sampler: str
    vae: Any = None
    class_names: tuple[str, ...] | None = None

    def check(self, settings: Settings) -> None:
        name = settings.sampler or self.sampler
        if not settings.sample_every:
            return
        if settings.guidance != 1 and not getattr(self.denoiser.network, "num_classes", None):
            raise ValueError(f"--guidance {settings.guidance:g} needs a class-conditional model; this one has no classes")
        check_sampler(self.denoiser, name, settings.sample_steps)

    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        rng = rng_for(settings.seed, 0, settings.sample_num, stream="sample", device=device)
        name = settings.sampler or self.sampler
        how = Drawn(name, settings.sample_steps, clip=usual_clip(name, self.vae is None), guidance=settings.guidance)
        network = self.denoiser.network
        assert isinstance(network, Network)
        cond = torch.arange(settings.sample_num, device=device) % network.num_classes if network.num_classes else None
        with lent(self.vae, device):
            images = sample_images(self.denoiser, how, self.shape, rng, cond, self.vae, check)
        weights = "ema" if settings.ema != "none" else "raw"
        return images, {**asdict(how), "seed": settings.seed, "num": settings.sample_num, "weights": weights}

    def export(self, out: Path, card: Mapping[str, Any]) -> None:
        from percepta.interop import SamplerDefaults, export_pipeline

        clip = usual_clip("ddim", self.vae is None) if isinstance(self.denoiser.path, AbstractDiscretePath) else None
        defaults = SamplerDefaults(clip=clip and clip[1])
        export_pipeline(out, self.denoiser, vae=self.vae, sampler=defaults, class_names=self.class_names, card=dict(card))

    def next_command(self, run: Path) -> str:
        return f"percepta sample {run} --num 16 --out images.png"


@contextmanager
def lent(module: nn.Module | None, device: torch.device) -> Iterator[None]:
    """A module on a device for a while: an autoencoder takes room only while it decodes."""
    home = None if module is None else next(module.parameters()).device
    if module is not None:
        module.to(device)
    try:
        yield
    finally:
        if module is not None:
            module.to(home)

"""Product: what a trained model is good for: previews while it trains, and the folder that is exported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from percepta.formulation import Denoiser
from percepta.networks import Network
from percepta.rng import Rng, rng_for
from percepta.samplers import sample
from percepta.training.settings import Settings

Check = Callable[..., None]  # called at safe places of a long job; raises to leave it


class Product(Protocol):
    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        """Images in [-1, 1] and how they were made; the same at every call but for the weights."""
        ...

    def export(self, out: Path, card: Mapping[str, Any]) -> None: ...


@dataclass
class Sampled:
    """A denoiser: previews are samples at fixed seeds, the export is a diffusers pipeline."""

    denoiser: Denoiser
    shape: tuple[int, int, int]
    sampler: str
    vae: Any = None
    class_names: tuple[str, ...] | None = None

    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        rng = rng_for(settings.seed, 0, settings.sample_num, stream="sample", device=device)
        name = settings.sampler or self.sampler
        network = self.denoiser.network
        assert isinstance(network, Network)
        cond = None
        if network.num_classes:
            cond = torch.arange(settings.sample_num, device=device) % network.num_classes
        images = sample_images(
            self.denoiser, name, settings.sample_steps, self.shape, rng, cond, settings.guidance, self.vae, check
        )
        return images, {"sampler": name, "steps": settings.sample_steps, "guidance": settings.guidance, "seed": settings.seed,
                        "num": settings.sample_num, "weights": "ema" if settings.ema != "none" else "raw"}  # fmt: skip

    def export(self, out: Path, card: Mapping[str, Any]) -> None:
        from percepta.interop import export_pipeline

        export_pipeline(out, self.denoiser, vae=self.vae, class_names=self.class_names, card=dict(card))


def sample_images(
    denoiser: Denoiser,
    sampler: str,
    steps: int,
    shape: tuple[int, ...],
    rng: Rng,
    cond: Tensor | None,
    guidance: float,
    vae: Any,
    check: Check,
) -> Tensor:
    """Samples as images in [-1, 1] on the CPU, latents decoded; `check` is called at every sampler step."""
    was_training = denoiser.training
    denoiser.eval()
    try:
        with torch.no_grad():
            x0 = sample(denoiser, sampler, steps, shape=shape, rng=rng, cond=cond, guidance=guidance, callback=check)
            if vae is not None:
                home = next(vae.parameters()).device
                vae.to(x0.device)
                parts = []
                for part in x0.split(16):
                    check()
                    parts.append(vae.decode(part))
                x0 = torch.cat(parts)
                vae.to(home)
        return x0.float().clamp(-1, 1).cpu()
    finally:
        denoiser.train(was_training)

"""A convolutional autoencoder: L1 + multi-scale perceptual L1 + a light pull of the latents to N(0, 1).

    L = |x - x_hat|  +  w_p sum over scales and layers |phi(x) - phi(x_hat)|  +  w_kl KL(q(z|x) || N(0, 1))

The exported AutoencoderKL carries a scaling factor that gives its latents unit deviation, as latent diffusion expects.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from percepta.estimate import Batch, Estimate
from percepta.images import to_uint8
from percepta.networks import Autoencoder, build_autoencoder
from percepta.objectives import L1, Kl, PyramidL1, Term
from percepta.rng import Rng
from percepta.samplers.front import drawing
from percepta.spaces.trunks import Trunk, available_trunk
from percepta.training.method import Method
from percepta.training.product import Check, Readable, exporting, weights_of
from percepta.training.recipe import Context, Recipe
from percepta.training.settings import Settings


@dataclass(frozen=True)
class Reconstruct:
    """x0_hat = decode(mean + std noise), with `mean` and `std` of the posterior as taps."""

    model: Autoencoder

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        mean, std = self.model.encode(batch.x0)
        x0_hat = self.model.decode(mean + std * rng.normal("posterior", mean.shape[1:]))
        return Estimate(x0_hat, batch.x0, taps={"mean": mean, "std": std})


@dataclass
class Coder:
    """Previews are pairs, an image and its reconstruction; the export is an AutoencoderKL folder."""

    model: Autoencoder
    images: Tensor
    judged_by: ClassVar[str] = "reconstructions"

    def check(self, settings: Settings) -> None:
        """Reconstructions need no sampler."""

    @torch.no_grad()
    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        shown = []
        for x in self.images[: max(1, settings.sample_num // 2)].to(device).split(16):
            check()
            shown.append(torch.stack([x, self.model.decode(self.model.encode(x)[0])], 1).flatten(0, 1).clamp(-1, 1).cpu())
        pairs = torch.cat(shown)
        return pairs, {"shows": "pairs: image, reconstruction", "together": 2, "num": len(pairs)}

    @torch.no_grad()
    def judged(
        self, settings: Settings, device: torch.device, check: Check, real: Readable
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], Mapping[str, Any]]:
        """Reconstructions of the first images of the other side, from the mean of the posterior."""
        count, shown = min(settings.eval_num, len(real)), []
        with drawing(self.model):
            for first in range(0, count, 16):
                check()
                images = np.stack(real.read(range(first, min(first + 16, count))))
                x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
                shown.append(to_uint8(self.model.decode(self.model.encode(x)[0])))
        return np.concatenate(shown), {"by": "reconstructions", "num": count, "weights": weights_of(settings)}

    @torch.no_grad()
    def export(self, out: Path, card: Mapping[str, Any]) -> None:
        device = next(self.model.parameters()).device
        latents = torch.cat([self.model.posterior(x.to(device))[0] for x in self.images.split(16)])
        self.model.set_scale(float(latents.std()), float(latents.mean()))
        with exporting(out, card) as work:
            self.model.save_pretrained(work)

    def next_command(self, run: Path) -> str:
        return f"percepta train ddpm --vae {run} --data ... --out runs/latent"


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder(Recipe):
    """Train the autoencoder whose latents a latent diffusion model lives in."""

    name = "autoencoder"
    summary = "convolutional autoencoder with L1 and multi-scale perceptual loss, for --vae"
    example = "percepta train autoencoder --data ./images --size 64 --steps 5000"
    settings = MappingProxyType({"lr": 1e-3, "ema_decay": 0.999, "batch": 32})

    perceptual: Literal["auto", "alex", "squeeze", "vgg16", "vgg19", "none"] = "auto"
    """Network of the perceptual loss; auto takes VGG19 if its weights are here, else AlexNet, SqueezeNet, and says so if none is."""
    perceptual_weight: float = 0.1
    """Weight of the perceptual loss beside L1."""
    scales: int = 4
    """Levels of the image pyramid: 1, 1/2, 1/4, 1/8."""
    kl_weight: float = 1e-6
    """Weight of the KL divergence per latent number."""

    def build(self, context: Context) -> Method:
        if context.vae is not None or context.init is not None:
            raise ValueError("the recipe autoencoder trains an autoencoder from images: leave --vae and --init away")
        model = build_autoencoder(context.network or "ae-pocket", channels=context.channels, size=context.size, seed=context.seed)
        terms = [Term("l1", L1()), Term("kl", Kl(), self.kl_weight)]
        if self.perceptual != "none":
            trunk = Trunk(available_trunk() if self.perceptual == "auto" else self.perceptual)
            terms.insert(1, Term("perceptual", PyramidL1(trunk, self.scales), self.perceptual_weight))
        assert context.examples is not None, "an autoencoder is shown on images"
        return Method(model, Reconstruct(model), terms, Coder(model, context.examples()))

"""What a domain's latents are, given the same image in another autoencoder's latents: the prior of LaDiffGAN's conditional denoising loss.

    z_0 ~ E_own(x)        c = E_other(x)        min |eps - eps_d(z_t, t, c)|^2

Two views of one image: no pairs of images are needed. The denoiser is then frozen and judges a translator (percepta.objectives.prior). INFERRED: the paper says
"conditional", and not on what; here c lies beside z_t as further channels. Without a condition it is `percepta train ddpm --vae`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from percepta.estimate import Batch, Denoise, Estimate
from percepta.formulation import Denoiser, Formulation
from percepta.images import to_uint8
from percepta.networks import Autoencoder, Network, adapt, build, load_autoencoder, load_model, outline_autoencoder
from percepta.networks.latent_prior import GIVEN, Conditioned, save_prior
from percepta.objectives import Denoising, Term, weight_named
from percepta.rng import Rng, rng_for
from percepta.samplers import Drawn, check_sampler, sample_images
from percepta.training.data import vae_folder
from percepta.training.knobs import OUTPUT, PATHS
from percepta.training.method import Method
from percepta.training.product import Check, Readable, eval_steps, exporting, weights_of
from percepta.training.recipe import Context, Recipe
from percepta.training.settings import Settings

TOGETHER = 16  # images that are encoded or drawn at a time


@dataclass(frozen=True)
class DenoiseGiven:
    """Denoise the latents of `own`, told those of `other`: both of the same image, encoded without gradient."""

    denoise: Denoise
    own: Autoencoder
    other: Autoencoder

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        with torch.no_grad():
            mean, std = self.own.encode(batch.x0)
            given = self.other.encode(batch.x0)[0]
        return self.denoise(Batch(mean + std * rng.normal("posterior", mean.shape[1:]), {GIVEN: given}), rng)


@dataclass
class Given:
    """Previews are pairs: an image, and what is drawn when its other latent alone is told. The export is a folder for load_prior."""

    denoiser: Denoiser
    own: Autoencoder
    other: Autoencoder
    images: Tensor
    judged_by: ClassVar[str] = "reconstructions"

    def check(self, settings: Settings) -> None:
        if settings.guidance != 1:
            raise ValueError(
                f"--guidance {settings.guidance:g} needs a condition that can be dropped, and a prior is always told the other latent"
            )
        for steps in ([settings.sample_steps] if settings.sample_every else []) + (
            [eval_steps(settings)] if settings.eval_every else []
        ):
            check_sampler(self.denoiser, self._how(settings, steps))

    @torch.no_grad()
    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        images, how = self.images[: max(1, settings.sample_num // 2)], self._how(settings, settings.sample_steps)
        drawn = [self._drawn(x.to(device), how, rng_for(settings.seed, TOGETHER * k, len(x), 0, "sample", device), check)
                 for k, x in enumerate(images.split(TOGETHER))]  # fmt: skip
        pairs = torch.stack([images, torch.cat(drawn)], 1).flatten(0, 1)
        told = {"sampler": how.sampler, "steps": how.steps, "seed": settings.seed, "weights": weights_of(settings)}
        return pairs, {"shows": "pairs: image, drawn given its other latent", "together": 2, "num": len(pairs), **told}

    @torch.no_grad()
    def judged(
        self, settings: Settings, device: torch.device, check: Check, real: Readable
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], Mapping[str, Any]]:
        """One image drawn for each of the first of the other side."""
        count, how, shown = min(settings.eval_num, len(real)), self._how(settings, eval_steps(settings)), []
        for first in range(0, count, TOGETHER):
            images = np.stack(real.read(range(first, min(first + TOGETHER, count))))
            x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
            shown.append(to_uint8(self._drawn(x, how, rng_for(settings.seed, first, len(x), 0, "eval", device), check)))
        told = {"sampler": how.sampler, "steps": how.steps, "seed": settings.seed, "weights": weights_of(settings)}
        return np.concatenate(shown), {"by": "images drawn given their other latents", "num": count, **told}

    def _how(self, settings: Settings, steps: int) -> Drawn:
        return Drawn(settings.sampler or TrainPrior.sampler, steps)

    def _drawn(self, x: Float[Tensor, "b 3 h w"], how: Drawn, rng: Rng, check: Check) -> Tensor:
        shape = (self.own.latent_channels, x.shape[2] // self.own.factor, x.shape[3] // self.own.factor)
        return sample_images(self.denoiser, how, shape, rng, {GIVEN: self.other.encode(x)[0]}, self.own, check)

    def export(self, out: Path, card: Mapping[str, Any]) -> None:
        with exporting(out, card) as work:
            save_prior(work, self.denoiser, self.own, self.other)

    def next_command(self, run: Path) -> str:
        return "percepta train ladiffgan --source ... --target ... --out runs/ladiffgan"


@dataclass(frozen=True, kw_only=True)
class TrainPrior(Recipe):
    """Train a diffusion model of one domain's latents that is told the same image in another autoencoder's latents."""

    name = "prior"
    summary = "latent diffusion told another autoencoder's latent of the same image: the judge of ladiffgan's translations"
    example = "percepta train prior --data ./photos --own runs/ae-photos --other runs/ae-paintings"

    own: str | None = None
    """The autoencoder of the images' own domain, whose latents are denoised: a run of the recipe autoencoder, or a folder. Needed."""
    other: str | None = None
    """The autoencoder of the other domain, whose latents of the same images are the condition. Needed, with as many pixels to a latent."""
    predict: Literal["eps", "x0", "v"] = "eps"
    """What the network predicts."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule."""
    timesteps: int = 1000
    """Steps of the schedule."""

    @property
    def stands_on(self) -> Mapping[str, Path | str]:
        return {flag: given for flag, given in (("--own", self.own), ("--other", self.other)) if given is not None}

    def formulation(self) -> Formulation:
        return Formulation(PATHS[self.schedule](self.timesteps), OUTPUT[self.predict])

    def check(self, settings: Settings) -> None:
        for flag in ("vae", "init"):
            if getattr(settings, flag) is not None:
                raise ValueError(f"the recipe prior begins with fresh weights in the latents of --own: leave --{flag} away")
        own, other = (outline_autoencoder(folder) for folder in self._folders())
        if own.factor != other.factor:
            raise ValueError(
                f"--own makes a latent of {own.factor} pixels and --other of {other.factor}: they are laid side by side, and need the same"
            )
        if settings.size % own.factor:
            raise ValueError(f"--size {settings.size} is no multiple of {own.factor}, the pixels that a latent is wide")

    def build(self, context: Context) -> Method:
        own, other = (load_autoencoder(folder).requires_grad_(False).eval() for folder in self._folders())
        if own.factor != other.factor:
            raise ValueError(f"--own makes a latent of {own.factor} pixels and --other of {other.factor}: they need the same")
        formulation = self.formulation()
        network = self._network(context, own.latent_channels, other.latent_channels, context.size // own.factor)
        denoiser = Denoiser(Conditioned(network, own.latent_channels), formulation)
        term = Term("denoising", Denoising(), weight=weight_named(formulation.output))
        assert context.examples is not None, "a prior is shown on images"
        images = context.examples() if context.trains else torch.zeros(0, 3, context.size, context.size)
        return Method(denoiser, DenoiseGiven(Denoise(denoiser), own, other), [term], Given(denoiser, own, other, images))

    def _folders(self) -> tuple[Path, Path]:
        if self.own is None or self.other is None:
            raise ValueError(
                "the recipe prior needs two autoencoders: --own, whose latents it denoises, and --other, whose latents it is told"
            )
        return vae_folder(self.own, "--own"), vae_folder(self.other, "--other")

    def _network(self, context: Context, channels: int, beside: int, size: int) -> Network:
        """A preset, or what lies in a folder."""
        name = context.network or "unet-pocket"
        if "/" not in name and not name.startswith("."):
            return build(name, channels=channels, size=size, seed=context.seed, beside=beside)
        network = adapt(load_model(name))
        if network.in_channels != channels + beside or network.conditional:
            raise ValueError(
                f"--network reads {network.in_channels} channels{' and a condition' * network.conditional}; the two latents are {channels} and {beside}, "
                "and nothing else is told"
            )
        if network.sample_size != size:
            network.resize(size)
        return network

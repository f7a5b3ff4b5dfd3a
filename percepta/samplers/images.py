"""Samples as images: drawn by a solver of ours or a scheduler of diffusers, latents decoded, in [-1, 1] on the CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.formulation import Cond
from percepta.rng import Rng
from percepta.samplers.front import SOLVERS, sample, solver
from percepta.samplers.grids import grid
from percepta.samplers.guidance import guided
from percepta.samplers.schedulers import scheduler_named, with_scheduler
from percepta.samplers.step import AnyDenoiser

DECODED = 16  # latents decoded at a time: a decoder needs far more memory per image than a sampler does


@runtime_checkable
class Decoder(Protocol):
    def decode(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Drawn:
    """How images are drawn. `sampler` is one of SOLVERS or names a diffusers scheduler; `clip` bounds x0_hat in ddim and ddpm."""

    sampler: str
    steps: int = 50
    spacing: str | None = None
    eta: float = 0.0
    clip: tuple[float, float] | None = None
    guidance: float = 1.0


def usual_clip(sampler: str, pixels: bool) -> tuple[float, float] | None:
    """Pixels end at -1 and 1, and the samplers of discrete paths may know it; latents have no such bound."""
    return (-1.0, 1.0) if pixels and sampler in ("ddim", "ddpm") else None


def check_sampler(denoiser: AnyDenoiser, how: Drawn) -> None:
    """ValueError where there is no such sampler, or what is asked of it is not its to give: eta, clip, or so many steps on this path."""
    if how.sampler in SOLVERS:
        solver(how.sampler, eta=how.eta, clip=how.clip)
        grid(denoiser.path, how.steps, how.spacing)
        return
    scheduler_named(how.sampler, denoiser, how.spacing)
    if how.eta != 0 or how.clip is not None:
        raise ValueError(f"eta and clip belong to our own samplers ddim and ddpm, not to diffusers' {how.sampler}; leave them out")


@torch.no_grad()
def sample_images(
    denoiser: AnyDenoiser,
    how: Drawn,
    shape: tuple[int, ...],
    rng: Rng,
    cond: Cond = None,
    vae: Decoder | None = None,
    check: Callable[..., None] = lambda *_: None,
    batch_size: int = 64,
) -> Float[Tensor, "b c h w"]:
    """The images of the rng's rows; `check` is called before every step and every decoded part, and may raise to leave."""
    if how.sampler in SOLVERS:
        x0 = sample(
            denoiser, how.sampler, how.steps, shape=shape, rng=rng, cond=cond, guidance=how.guidance, spacing=how.spacing,
            eta=how.eta, clip=how.clip, batch_size=batch_size, callback=check,
        )  # fmt: skip
    else:
        check()
        x0 = with_scheduler(
            guided(denoiser, how.guidance), how.sampler, how.steps, shape=shape, rng=rng, cond=cond, spacing=how.spacing,
            batch_size=batch_size,
        )  # fmt: skip
    if vae is not None:
        parts = []
        for part in x0.split(DECODED):
            check()
            parts.append(vae.decode(part))
        x0 = torch.cat(parts)
    return x0.float().clamp(-1, 1).cpu()

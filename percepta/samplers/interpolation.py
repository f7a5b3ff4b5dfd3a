"""Between two images: the walk over the sphere on which their noises lie, and images of noises that are given.

MMD-DDM (equation 8): x_T(a) = sin((1 - a) theta) / sin(theta) x_T(0) + sin(a theta) / sin(theta) x_T(1), where theta is
the angle between the two. A mean of two noises would be too short, and its image grey; the walk keeps the length.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.formulation import Cond
from percepta.samplers.front import SOLVERS, drawing, solver
from percepta.samplers.grids import grid
from percepta.samplers.guidance import guided
from percepta.samplers.images import DECODED, Decoder, Drawn
from percepta.samplers.step import AnyDenoiser, integrate, start


def slerp(first: Float[Tensor, "*d"], second: Float[Tensor, "*d"], alphas: Float[Tensor, " n"]) -> Float[Tensor, "n *d"]:
    """The noises at `alphas` between 0 (first) and 1 (second)."""
    a, b = first.double(), second.double()
    cos = ((a * b).sum() / (a.norm() * b.norm())).clamp(-1, 1)
    theta = torch.arccos(cos)
    if theta.sin() < 1e-6:
        raise ValueError(
            f"a walk needs two different noises, got two that point the same or opposite way (cosine {float(cos):.6f})"
        )
    t = alphas.double().reshape(-1, *[1] * first.ndim)
    return ((((1 - t) * theta).sin() * a + (t * theta).sin() * b) / theta.sin()).to(first.dtype)


@torch.no_grad()
def images_of_noise(
    denoiser: AnyDenoiser,
    how: Drawn,
    noise: Float[Tensor, "b *d"],
    cond: Cond = None,
    vae: Decoder | None = None,
    check: Callable[..., None] = lambda *_: None,
) -> Float[Tensor, "b c h w"]:
    """As `sample_images`, from standard normal numbers that are given; for samplers that add no noise of their own."""
    step = solver(how.sampler, eta=how.eta, clip=how.clip) if how.sampler in SOLVERS else None
    if step is None or step.noisy:
        raise ValueError(
            f"images of given noise need a sampler that adds none: ddim with eta 0, euler, heun, rk4 or dpmpp, not {how.sampler}"
        )
    times = grid(denoiser.path, how.steps, how.spacing)
    network = guided(denoiser, how.guidance)
    with drawing(denoiser):
        x0 = integrate(step, network, start(denoiser.path, float(times[0]), noise), times, cond=cond, callback=check)
    if vae is not None:
        x0 = torch.cat([vae.decode(part) for part in x0.split(DECODED)])
    return x0.float().clamp(-1, 1).cpu()

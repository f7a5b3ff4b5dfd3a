"""The front door: images from a denoiser, by the name of a solver. Image k depends on (seed, k), on no batch size.

Every batch is drawn by `rng.select`, so that memory is bounded by the batch and the images are the same however they are split.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.estimate import take
from percepta.formulation import Cond
from percepta.path import Times
from percepta.rng import Rng
from percepta.samplers.adaptive import adaptive
from percepta.samplers.ancestral import Clip, ddim, ddpm
from percepta.samplers.grids import as_grid, grid
from percepta.samplers.guidance import guided
from percepta.samplers.multistep import dpmpp_2m
from percepta.samplers.runge_kutta import euler, heun, rk4
from percepta.samplers.step import AnyDenoiser, State, Step, integrate, start

SOLVERS: dict[str, Callable[[], Step]] = {
    "ddim": ddim, "ddpm": ddpm, "euler": euler, "heun": heun, "rk4": rk4, "dpmpp": dpmpp_2m, "adaptive": adaptive,
}  # fmt: skip


def solver(name: str, *, eta: float = 0.0, clip: Clip = None) -> Step:
    """A sampler by name. `eta` belongs to ddim, `clip` to ddim and ddpm."""
    if name not in SOLVERS:
        raise ValueError(f"unknown sampler {name!r}; known: {', '.join(SOLVERS)}; diffusers' schedulers run through with_scheduler")
    if eta != 0 and name != "ddim":
        raise ValueError(f"eta belongs to the sampler ddim, got eta = {eta} for {name}; leave it out, or use ddim")
    if clip is not None and name not in ("ddim", "ddpm"):
        raise ValueError(f"clipping x0 belongs to the samplers ddim and ddpm, got clip = {clip} for {name}; leave it out")
    if name == "ddim":
        return ddim(eta, clip)
    return ddpm(clip=clip) if name == "ddpm" else SOLVERS[name]()


@contextmanager
def drawing(denoiser: AnyDenoiser | nn.Module) -> Iterator[None]:
    """No graph, and eval mode for whatever was in training mode (dropout would else be active in the chain)."""
    changed = [m for m in denoiser.modules() if m.training] if isinstance(denoiser, nn.Module) else []
    for module in changed:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in changed:
            module.training = True


def sample_batches(
    denoiser: AnyDenoiser,
    step: Step,
    times: Times,
    *,
    shape: Sequence[int],
    rng: Rng,
    cond: Cond = None,
    batch_size: int = 64,
    callback: Callable[[int, State, float], None] | None = None,
) -> Iterator[Float[Tensor, "b *d"]]:
    """The images of the rng's rows, a batch at a time, without gradient: 50,000 images are written as they come."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    rows = _rows(cond)
    if rows not in (None, len(rng)):
        raise ValueError(f"the condition has {rows} rows, {len(rng)} images are asked for")
    times = as_grid(denoiser.path, times)
    for first in range(0, len(rng), batch_size):
        part = slice(first, first + batch_size)
        with drawing(denoiser):
            mine = rng.select(part)
            x = start(denoiser.path, float(times[0]), mine.normal("x_T", shape))
            images = integrate(step, denoiser, x, times, cond=take(cond, part), rng=mine, callback=callback)
        yield images


def sample(  # one keyword per flag of `percepta sample`: more than eight, each with the meaning it has there
    denoiser: AnyDenoiser,
    sampler: str | Step = "ddim",
    steps: int | Times = 50,
    *,
    shape: Sequence[int],
    rng: Rng,
    cond: Cond = None,
    guidance: float = 1.0,
    spacing: str | None = None,
    eta: float = 0.0,
    clip: Clip = None,
    batch_size: int = 64,
    callback: Callable[[int, State, float], None] | None = None,
) -> Float[Tensor, "b *d"]:
    """len(rng) samples of `shape` ([c, h, w]), about in [-1, 1] for images: rng = rng_for(seed, 0, count, stream="sample").

    `steps` is a number, spread by `spacing`, or a grid of times. A `sampler` that is a Step carries its own eta and clip.
    `guidance` asks the network for its null condition; wrap the denoiser with `guided` to say more.
    `callback(i, state, t)` is called before each step of each batch.
    """
    if isinstance(sampler, Step) and (eta != 0 or clip is not None):
        raise ValueError(f"the sampler {sampler.name} is ready-made: give eta and clip to it, not to sample")
    if isinstance(steps, Tensor) and spacing is not None:
        raise ValueError(f"the times are given, spacing {spacing!r} has nothing to spread; leave it out")
    step = sampler if isinstance(sampler, Step) else solver(sampler, eta=eta, clip=clip)
    times = steps if isinstance(steps, Tensor) else grid(denoiser.path, steps, spacing)
    batches = sample_batches(
        guided(denoiser, guidance), step, times, shape=shape, rng=rng, cond=cond, batch_size=batch_size, callback=callback
    )
    return torch.cat(list(batches))


def _rows(cond: Cond) -> int | None:
    if cond is None:
        return None
    return len(cond) if isinstance(cond, Tensor) else len(next(iter(cond.values())))

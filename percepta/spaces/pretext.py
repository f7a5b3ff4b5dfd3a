"""How a small network is taught on the samples at hand: their classes where they have some, and otherwise to recognise two views of one
sample among others (SimCLR, Chen et al. 2020, eq. 1). The encoder `domain` reads images, the latent LPIPS latents.

The number of steps is fixed, not the time, and every random number comes from the seed: the same samples and seed give the same weights on
a machine. It trains on the CPU.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """What decides the weights beside data and seed; all of it is part of the cache key, so raise `version` when the code changes them.

    `max_images`: of larger sets, evenly spread ones are taken. `held`: share of labelled samples, to say how good it became.
    """

    version: int = 2
    steps: int = 300
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.02
    max_images: int = 20_000
    held: float = 0.1
    temperature: float = 0.2


def head_for(width: int, labels: Int64[Tensor, "n"] | None, generator: torch.Generator) -> nn.Module:
    """What is put on features while they are learnt: a logit for each class, or SimCLR's projection."""
    classes = 64 if labels is None else int(labels.max()) + 1
    with torch.random.fork_rng(devices=[]):  # modules draw their first weights from the global generator, before ours replace them
        head = (
            nn.Linear(width, classes)
            if labels is not None
            else nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
        )
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=width**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
    return head


def teach(
    network: nn.Module, samples: Tensor, labels: Tensor | None, recipe: Recipe, generator: torch.Generator,
    note: Callable[[str], None], check: Callable[[], None], what: str,
) -> list[float]:  # fmt: skip
    """All steps; the losses. `network` maps samples to logits or projections; samples are drawn with replacement.

    A loss that is not finite ends it with an error; `check` is called at each step and may raise to leave. `what` is it called in notes.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    losses: list[float] = []
    for step in range(recipe.steps):
        check()
        done = step / recipe.steps
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, (step + 1) / (0.1 * recipe.steps)) * (0.5 + 0.5 * math.cos(math.pi * done))
        rows = _distinct(len(samples), recipe.batch, generator)
        x = floats(samples[rows])
        if labels is None:
            views = torch.cat([view(x, generator), view(x, generator)])
            loss = nt_xent(network(views), recipe.temperature)
        else:
            loss = F.cross_entropy(network(shifted(x, generator)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"training the {what}: the loss is {losses[-1]} at step {step + 1}; check the data")
        if (step + 1) % max(1, recipe.steps // 5) == 0:
            note(f"{what}: step {step + 1} of {recipe.steps}, loss {losses[-1]:.3f}")
    return losses


@torch.no_grad()
def accuracy(network: nn.Module, samples: Tensor, labels: Int64[Tensor, "n"]) -> float:
    """The share of samples whose class it names."""
    guesses = torch.cat([network(floats(part)).argmax(1) for part in samples.split(256)])
    return float((guesses == labels).double().mean())


def _distinct(count: int, batch: int, generator: torch.Generator) -> Tensor:
    """A batch without repetitions: a sample must not be its own negative."""
    return torch.randperm(count, generator=generator)[: min(batch, count)]


def floats(samples: Tensor) -> Tensor:
    """What a network reads: images of 8 bits in [-1, 1], latents as they are."""
    wide = samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples
    return wide.contiguous(memory_format=torch.channels_last)


def _flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    flip = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)


def shifted(x: Float[Tensor, "b c s s"], generator: torch.Generator) -> Float[Tensor, "b c s s"]:
    """Each sample flipped or not, and moved by up to an eighth of its side."""
    size, pad = x.shape[-1], x.shape[-1] // 8
    wide = F.pad(x, (pad,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * pad + 1, (2, len(x)), generator=generator)
    rows, cols = (start[:, None] + torch.arange(size) for start in (top, left))
    moved = wide.permute(0, 2, 3, 1)[torch.arange(len(x))[:, None, None], rows[:, :, None], cols[:, None, :]]
    return _flipped(moved.permute(0, 3, 1, 2), generator)


def view(x: Float[Tensor, "b c s s"], generator: torch.Generator) -> Float[Tensor, "b c s s"]:
    """One view of SimCLR: a part of the sample (40 to 100% of it), flipped or not, brightness, contrast and channels changed a little."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((len(x), *shape), generator=generator)

    side = uniform(0.4, 1.0).sqrt()
    theta = torch.zeros(len(x), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = uniform(-1, 1, 2) * (1 - side)[:, None]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    part = _flipped(F.grid_sample(x, grid, padding_mode="border", align_corners=False), generator)
    mean = part.mean((1, 2, 3), keepdim=True)
    part = (part - mean) * uniform(0.7, 1.3, 1, 1, 1) + mean + uniform(-0.3, 0.3, 1, 1, 1)
    return (part * uniform(0.85, 1.15, x.shape[1], 1, 1)).contiguous(memory_format=torch.channels_last)


def nt_xent(z: Float[Tensor, "b2 d"], temperature: float) -> Float[Tensor, ""]:
    """SimCLR's loss; rows k and k + b are the two views of sample k."""
    z = F.normalize(z)
    similar = z @ z.T / temperature
    similar.fill_diagonal_(float("-inf"))
    return F.cross_entropy(similar, torch.arange(len(z)).roll(len(z) // 2))

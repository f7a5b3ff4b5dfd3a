"""How much of the structure of a batch a denoiser keeps (SADM, figure 5): affinities of noised images after denoising, beside two that are known.

    labels      1 where two images are of one class, else 0
    clean       R(Psi(x_i), Psi(x_j)) of the images themselves
    level s     R(Psi(xh_i), Psi(xh_j)), xh what the denoiser makes of x + noise of the level s = sigma/alpha

A model with labels is told none: they would say which images belong together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from percepta.data import Source, Transform
from percepta.data.order import uniform
from percepta.data.reader import Feed, Loaded
from percepta.data.transforms import to_float
from percepta.discrepancies.affinity import affinity, affinity_correlation
from percepta.formulation import Denoiser
from percepta.networks import Autoencoder, Network
from percepta.probes.look import Found, pixels
from percepta.reports.figures import Words, heat_maps, strip
from percepta.rng import rng_for
from percepta.spaces import Space

EACH = 2  # images of a class in a group
BLOCK = 64  # images that are read at a time


@dataclass(frozen=True)
class Denoised:
    """A model at work on groups of images [g, n, 3, s, s] with their labels; `levels` are sigma/alpha in latents, where there is a `vae`."""

    denoiser: Denoiser
    groups: Tensor
    labels: Int[Tensor, "g n"]
    space: Space
    figures: Path
    levels: tuple[float, ...] = (0.5, 2.0, 8.0)
    seed: int = 0
    vae: Autoencoder | None = None
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        network = self.denoiser.network
        assert isinstance(network, Network)
        if network.reads.needed:
            raise ValueError(
                f"this model is told {', '.join(network.reads.needed)}: affinities are looked at in models of images or classes"
            )
        if len(set(self.levels)) != len(self.levels) or not all(0 < level < float("inf") for level in self.levels):
            raise ValueError(f"noise levels are numbers above 0, each once, got {', '.join(f'{level:g}' for level in self.levels)}")

    def guesses(self, x: Float[Tensor, "n c s s"], first: int, level: float) -> tuple[Tensor, Tensor]:
        """(noised, denoised) images; noised latents are no image and are shown decoded."""
        path, device = self.denoiser.path, x.device
        z = x if self.vae is None else self.vae.encode(x)[0]
        t = path.time_of_level(torch.full((len(x),), level, dtype=torch.float64))
        alpha, sigma = (float(value[0]) for value in (path.alpha(t), path.sigma(t)))
        noise = rng_for(self.seed, first, len(x), stream="affinity", device=device).normal(f"level {level:g}", z.shape[1:])
        z_t = alpha * z + sigma * noise
        network = self.denoiser.network
        assert isinstance(network, Network)
        z_hat = self.denoiser(z_t, t, network.null_condition(len(x), device))
        made = (z_t / alpha, z_hat) if self.vae is None else (self.vae.decode(z_t / alpha), self.vae.decode(z_hat))
        return made[0].clamp(-1, 1), made[1].clamp(-1, 1)


@torch.no_grad()
def affinities(look: Denoised) -> Found:
    """numbers["level-200"] (in per cent): the root mean squared distance of the affinity after denoising from that of the labels and from the clean
    one, beside the diagonal, and its correlation with each; "clean" has those of the images themselves to the labels. Means over the groups."""
    device = next(look.denoiser.parameters()).device
    numbers: dict[str, list[dict[str, float]]] = {}
    shown: dict[str, np.ndarray] = {}
    rows: list[list[Any]] = []
    for place, (images, labels) in enumerate(zip(look.groups, look.labels, strict=True)):
        look.check()
        x = images.to(device)
        truth = (labels[:, None] == labels[None]).float().to(device)
        clean = affinity(look.space.features(x, {})[0].flatten(1))
        numbers.setdefault("clean", []).append(compared(clean, truth, clean))
        maps, pictures = {"labels": truth, "clean images": clean}, [pixels(x)]
        for level in look.levels:
            noisy, guess = look.guesses(x, place * len(x), level)
            found = affinity(look.space.features(guess, {})[0].flatten(1))
            numbers.setdefault(f"level-{round(100 * level)}", []).append(compared(found, truth, clean))
            maps[f"denoised from {level:g}"] = found
            pictures += [pixels(noisy), pixels(guess)]
        if not place:
            shown, rows = {name: value.cpu().double().numpy() for name, value in maps.items()}, pictures
    return Found(
        _means(numbers), _figures(look, shown, rows), {"levels": list(look.levels), "groups": len(look.groups), "each": EACH}
    )


def compared(found: Float[Tensor, "n n"], truth: Float[Tensor, "n n"], clean: Float[Tensor, "n n"]) -> dict[str, float]:
    off = ~torch.eye(len(found), dtype=torch.bool, device=found.device)
    out = {}
    for name, other in (("label", truth), ("clean", clean)):
        out[f"{name}_distance"] = float((found - other)[off].square().mean().sqrt())
        out[f"{name}_correlation"] = float(affinity_correlation(other, found))
    return out


def _means(numbers: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    return {name: {key: float(np.mean([one[key] for one in found])) for key in found[0]} for name, found in numbers.items()}


def _figures(look: Denoised, shown: dict[str, np.ndarray], rows: list[list[Any]]) -> list[Path]:
    count = len(look.labels[0])
    levels = ", ".join(f"{level:g}" for level in look.levels)
    heat = Words(
        title="Affinities",
        caption=f"How alike {count} images are to each other, {EACH} of a class side by side: by their labels, as they are, and denoised from the "
        f"noise levels {levels} (sigma/alpha).",
        alt=f"{len(shown)} maps of {count} by {count}; where structure is kept, bright squares of {EACH} stay along the diagonal",
    )
    seen = Words(
        title="What was denoised",
        caption=f"The {count} images; below, for each of the noise levels {levels}, the noised images and what the model makes of them in one step.",
        alt=f"{len(rows)} rows of {count} images",
    )
    return [heat_maps(look.figures, "affinities", shown, heat), strip(look.figures, "denoised", rows, seen)]


def labelled_groups(source: Source, groups: int, num: int, size: int, crop: str = "center-crop") -> tuple[Tensor, Tensor]:
    """([g, n, 3, s, s], [g, n]): each group has EACH images of each of num / EACH classes, side by side; no image comes twice."""
    if groups < 1 or num < 2 * EACH or num % EACH:
        raise ValueError(
            f"a group has {EACH} images of each of two classes or more, and there is one group or more: got {groups} of {num}"
        )
    classes, feed = num // EACH, Feed(source, Transform(size, crop), 0)
    waiting: dict[int, list[np.ndarray]] = {}
    images, labels = list[np.ndarray](), list[int]()
    order = np.argsort(uniform(0, "affinity", np.arange(len(source))))  # a folder's first images are all of one class
    for first in range(0, len(order), BLOCK):
        for found in feed.load(order[first : first + BLOCK]):
            if isinstance(found, Loaded) and found.label >= 0:
                waiting.setdefault(found.label, []).append(found.stage)
        while len(full := [label for label, kept in waiting.items() if len(kept) >= EACH]) >= classes:
            for label in sorted(full, key=lambda label: (-len(waiting[label]), label))[:classes]:
                images += [waiting[label].pop() for _ in range(EACH)]
                labels += [label] * EACH
            if len(labels) == groups * num:
                x = to_float(torch.from_numpy(np.stack(images)))
                return x.reshape(groups, num, *x.shape[1:]), torch.tensor(labels).reshape(groups, num)
    raise ValueError(
        f"{groups} groups of {num} images, {EACH} of each of {classes} classes, are not in this set of {len(source)}: ask for fewer, or give "
        "images with labels (a folder for each class)"
    )

"""A latent LPIPS for an autoencoder of one's own: a small VGG16 that is taught on its latents.

    folder = train_latent_lpips(latents, cache, labels)     # [n, C, s, s] as the diffusion model sees them
    space = LatentLpips(folder)

It learns the classes of the latents where there are enough of each, and otherwise to tell latents apart under augmentation, as the encoder
`domain` does (percepta.spaces.pretext). Views of a latent are cut, mirrored and scaled as those of an image are, which is only nearly what happens to
the latent of an image that is treated so. The published network learnt ImageNet's classes on crops alone and then people's judgements; here
nobody judged, so the channels have equal weights, 1/C.

A number in it compares models in one and the same latent space, under one and the same network, and with nothing that is published.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from percepta.spaces.latent_lpips import KIND, LatentLpips, random_vgg
from percepta.spaces.pretext import Recipe, accuracy, head_for, teach

VERSION = 1  # raise it where this file changes the weights
SMALL = (8, 16, 32, 64, 64)  # an eighth of VGG16's widths: about a minute on two cores for latents of 16 x 16
LEAST = 16  # latents
PER_CLASS = 8  # latents on average: of fewer, a network learns its examples by heart
WHAT = "latent LPIPS"


def train_latent_lpips(
    latents: Float[Tensor, "n z s s2"],
    folder: str | Path,
    labels: Int64[Tensor, "n"] | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    widths: Sequence[int] = SMALL,
    note: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """The folder of the network for these latents, below `folder`; trained if it is not there yet.

    Found again by what the latents and labels are, the widths, the recipe and the seed. `check` is called often, and may raise to leave.
    """
    recipe = recipe or Recipe()
    _check(latents, labels)
    chosen = torch.linspace(0, len(latents) - 1, min(len(latents), recipe.max_images), dtype=torch.float64).long()
    known = None if labels is None else labels.cpu()[chosen]
    classes = 0 if known is None else len(known.unique())
    method = "supervised" if classes > 1 and len(chosen) >= PER_CLASS * classes else "contrastive"
    taught = known if method == "supervised" else None
    samples = latents.detach().cpu()[chosen].float().contiguous()
    target = Path(folder) / _key(
        samples, taught, (VERSION, json.dumps(asdict(recipe), sort_keys=True), *widths, seed, len(latents))
    )
    if (target / KIND.facts).is_file():
        note(f"{WHAT}: found in {target}")
        return target
    note(f"{WHAT}: training on {len(samples):,} latents, {method}")
    network, reached, held = _fit(samples, taught, widths, recipe, seed, note, check)
    facts = {
        "method": method, "classes": classes if taught is not None else 0, "latents": len(samples), "of": len(latents), "seed": seed,
        "channels": samples.shape[1], "size": samples.shape[-1], "widths": list(widths), "reached": reached, "held": held,
        "version": VERSION, "recipe": asdict(recipe), "channel_weights": "uniform",
    }  # fmt: skip
    KIND.save(network.state_dict(), facts, target)
    note(f"{WHAT}: {LatentLpips(target).about}")
    return target


def _check(latents: Tensor, labels: Tensor | None) -> None:
    if len(latents) < LEAST:
        raise ValueError(f"a {WHAT} needs at least {LEAST} latents to be trained on, got {len(latents)}")
    if latents.shape[2] != latents.shape[3] or latents.shape[3] < 4:
        raise ValueError(f"a {WHAT} is trained on square latents of 4 x 4 or more, got {latents.shape[2]} x {latents.shape[3]}")
    if not bool(latents.isfinite().all()):
        raise ValueError("some latents are not finite: check the autoencoder that made them")
    if labels is not None and len(labels) != len(latents):
        raise ValueError(f"each latent has one label: got {len(latents)} latents and {len(labels)} labels")
    if labels is not None and int(labels.min()) < 0:
        raise ValueError(f"labels are classes, 0 or more, got {int(labels.min())}; leave them out where there are none")


def _key(latents: Tensor, labels: Tensor | None, parts: Sequence[object]) -> str:
    digest = sha256(f"{tuple(latents.shape)}".encode())
    for part in latents.split(1024):
        digest.update(part.numpy().tobytes())
    digest.update(b"" if labels is None else labels.numpy().tobytes())
    digest.update("\t".join(map(str, parts)).encode())
    return digest.hexdigest()[:24]


def _fit(
    latents: Tensor, labels: Tensor | None, widths: Sequence[int], recipe: Recipe, seed: int,
    note: Callable[[str], None], check: Callable[[], None],
) -> tuple[nn.Sequential, float, int]:  # fmt: skip
    """The network, the accuracy on held-out latents or the last losses' mean, and how many were held out."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(latents), generator=generator)
    held = 0 if labels is None else min(1000, int(recipe.held * len(latents)))
    seen, kept = order[held:], order[:held]
    network = random_vgg(latents.shape[1], widths, seed).to(memory_format=torch.channels_last)
    taught = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head_for(widths[-1], labels, generator))
    losses = teach(taught, latents[seen], None if labels is None else labels[seen], recipe, generator, note, check, WHAT)
    taught.eval()
    if labels is not None and held:
        return network, accuracy(taught, latents[kept], labels[kept]), held
    tail = losses[-max(1, len(losses) // 10) :]
    return network, sum(tail) / len(tail), held

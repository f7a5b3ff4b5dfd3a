"""Latents scaled as if they were images (LPL, figure 11): how far from the latents of images that were scaled.

    z_s = resize(E(x), s, mode)          against E(x_s), x_s = resize(x, s, bilinear)
    D(z_s)                               against x_s, with D(E(x_s)) as what the autoencoder itself loses

Were latents small images, the first difference would be small. Where sides shrink, bilinear and bicubic antialias, on both sides.
"""

from collections import defaultdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from percepta.probes.look import Found, Look, decibel, pixels
from percepta.reports.figures import Words, strip

MODES = ("nearest", "bilinear", "bicubic")
SHOWN = 2  # images of each scale in the picture


def interpolation(look: Look) -> Found:
    """numbers["bicubic-130"]: latent_mse in scaled latents, latent_mse_raw in the autoencoder's own, image_mse and psnr; "encoded-130" is the
    autoencoder's own loss. Mean squared errors are means over all images, psnr is theirs."""
    side = look.images.shape[-1] // look.vae.factor
    numbers: dict[str, Any] = {}
    rows: list[list[Any]] = []
    for scale in look.scales:
        target = round(side * scale)
        if target < 2 or target == side:
            raise ValueError(
                f"a scale of {scale:g} makes latents of {side} x {side} into {target} x {target}: give others, or a larger --size"
            )
        sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for first, x in look.batches():
            shown = _one(look, x, target, sums)
            rows += [] if first else [[picture[k] for picture in shown] for k in range(min(SHOWN, len(x)))]
        numbers |= {f"{mode}-{round(100 * scale)}": _means(found, len(look.images), target / side) for mode, found in sums.items()}
    count = len(rows) // len(look.scales)
    across = f"{count} images at each of the scales {', '.join(f'{scale:g}' for scale in look.scales)}"
    words = Words(
        title="Scaled latents",
        caption=f"{across}, a row each. From the left: the scaled image; encoded and decoded; its latent scaled by {', '.join(MODES)}, decoded.",
        alt=f"{len(rows)} rows of five images; the further right, the more blurred or blocky",
    )
    return Found(numbers, [strip(look.figures, "interpolation", rows, words)], {"scales": list(look.scales), "modes": list(MODES)})


@torch.no_grad()
def _one(look: Look, x: Tensor, target: int, sums: dict[str, dict[str, float]]) -> list[list[Any]]:
    """Adds a batch at one scale to the sums; its images in each way, all of one size."""
    scaled = resized(x, target * look.vae.factor, "bilinear").clamp(-1, 1)
    true, z = look.vae.encode(scaled)[0], look.vae.encode(x)[0]
    columns = [scaled]
    for mode in ("encoded", *MODES):
        latent = true if mode == "encoded" else resized(z, target, mode)
        image, gap = look.decode(latent), latent - true
        found = sums[mode]
        found["latent_mse"] += _sum(gap)
        found["latent_mse_raw"] += _sum(gap / look.vae.scale)
        found["image_mse"] += _sum(image - scaled)
        found["latent_variance"] += float(true.var((2, 3), correction=0).mean(1).sum())
        columns.append(image)
    return [pixels(column[:SHOWN], x.shape[-1]) for column in columns]


def resized(x: Float[Tensor, "b c h w"], side: int, mode: str) -> Float[Tensor, "b c s s"]:
    if mode == "nearest":
        return interpolate(x, (side, side), mode="nearest")
    return interpolate(x, (side, side), mode=mode, align_corners=False, antialias=side < x.shape[-1])


def _sum(error: Tensor) -> float:
    """Over images, of the mean square of each."""
    return float(error.double().square().mean((1, 2, 3)).sum())


def _means(found: dict[str, float], count: int, scale: float) -> dict[str, Any]:
    means = {name: value / count for name, value in found.items()}
    relative = means["latent_mse"] / max(means.pop("latent_variance"), 1e-12)
    return {**means, "latent_error": relative, "psnr": decibel(means["image_mse"]), "scale": scale}

"""A latent disturbed in one patch (LPL, figure 12): how much of the image changes beyond the patch's own pixels.

    e = mean_c (D(z + n) - D(z))^2       n: noise of half the latents' variance inside the patch, 0 outside

Were each latent a pixel of its own, e would be 0 outside. The patch lies in the middle, so that every side has as far to go.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.probes.look import Found, Look, pixels
from percepta.reports.figures import Words, field_map, strip
from percepta.rng import rng_for

SHARE = 0.5  # of the latents' variance, as in the paper
SHOWN = 4
VISIBLE = 1 / 127.5  # one of 255 steps


def perturbation(look: Look) -> Found:
    """numbers: share_outside of the squared error, changed_outside of the pixels, rmse on both sides, and beyond-K: the share of the squared
    error that lies more than K latents away from the patch."""
    side, factor = look.images.shape[-1] // look.vae.factor, look.vae.factor
    patch = max(1, side // 8) if look.patch is None else look.patch
    if not 1 <= patch < side:
        raise ValueError(f"a patch of {patch} x {patch} does not fit into latents of {side} x {side}: --patch is 1 to {side - 1}")
    if look.draws < 1:
        raise ValueError(f"noise is drawn at least once per image, got --draws {look.draws}")
    latents = torch.cat([_encoded(look, x) for _, x in look.batches()])
    deviation = (SHARE * latents.var((0, 2, 3), keepdim=True, correction=0)).sqrt()
    top = (side - patch) // 2
    error, changed, rows = _errors(look, latents, deviation, slice(top, top + patch))
    away = distances(side * factor, top * factor, patch * factor)
    outside = away > 0
    total = float(error.sum())
    if total == 0:
        raise ValueError("the noise changed no pixel: is this a trained autoencoder?")
    numbers: dict[str, Any] = {
        "share_outside": float(error[outside].sum()) / total,
        "changed_outside": float(changed[outside].mean()),
        "rmse_inside": float(error[~outside].mean().sqrt()),
        "rmse_outside": float(error[outside].mean().sqrt()),
        **{f"beyond-{k}": float(error[away > k * factor].sum()) / total for k in (1, 2, 4, 8, 16) if k * factor < int(away.max())},
    }
    figures = _pictures(look, error, rows, (top * factor, top * factor, patch * factor, patch * factor))
    return Found(
        numbers, figures, {"patch": patch, "noise_share": SHARE, "draws": look.draws, "latent_side": side, "factor": factor}
    )


@torch.no_grad()
def _encoded(look: Look, x: Tensor) -> Tensor:
    return look.vae.encode(x)[0]


@torch.no_grad()
def _errors(look: Look, latents: Tensor, deviation: Tensor, place: slice) -> tuple[Tensor, Tensor, list[list[Any]]]:
    """The mean squared error and the share of changed images at each pixel, over images and draws; rows for the picture."""
    error = changed = torch.zeros(look.images.shape[-2:], dtype=torch.float64)
    rows: list[list[Any]] = []
    patch = place.stop - place.start
    for first, x in look.batches():
        z = latents[first : first + len(x)]
        before = look.decode(z)
        for draw in range(look.draws):
            noise = rng_for(look.seed, first, len(x), stream="probe", device=z.device).normal(
                f"patch/{draw}", (z.shape[1], patch, patch)
            )
            disturbed = z.clone()
            disturbed[:, :, place, place] += deviation * noise
            after = look.decode(disturbed)
            gap = (after - before).double().cpu()
            error = error + gap.square().mean(1).sum(0)
            changed = changed + (gap.abs().amax(1) >= VISIBLE).double().sum(0)
            if first == draw == 0:
                shown = [pixels(images[:SHOWN]) for images in (before, after, 8 * (after - before))]
                rows = [[column[k] for column in shown] for k in range(len(shown[0]))]
    count = len(look.images) * look.draws
    return error / count, changed / count, rows


def distances(side: int, start: int, length: int) -> Float[Tensor, "s s"]:
    """Of each pixel to the nearest one of the square, along the axis where it is farther: 0 inside."""
    line = torch.arange(side)
    along = torch.maximum(start - line, line - (start + length - 1)).clamp_min(0)
    return torch.maximum(along[:, None], along[None]).float()


def _pictures(look: Look, error: Tensor, rows: list[list[Any]], box: tuple[int, int, int, int]) -> list[Any]:
    floor = float(error.max()) * 1e-8
    about = f"{len(look.images)} images, {look.draws} draws each"
    mean = field_map(
        look.figures, "perturbation", error.clamp_min(floor).log10().numpy(), box,
        Words("Error of the image where one patch of the latent is disturbed",
              f"Squared error of the decoded image, logarithm to base 10, mean over {about}. The square is the patch's own pixels.",
              "A map that is brightest inside a square in its middle and falls off around it"),
        "log10 squared error",
    )  # fmt: skip
    examples = strip(
        look.figures, "perturbation-images", rows,
        Words("Images before and after", "A row per image: decoded; decoded with noise in the middle patch; the difference times 8 (grey: none).",
              f"{len(rows)} rows of three images"),
    )  # fmt: skip
    return [mean, examples]

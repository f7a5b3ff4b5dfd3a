"""Feature maps of a decoder and their outliers (LPL, figure 13 and algorithm 1): patches whose values are far from all others of their channel.

At each layer: the share of places that the mask drops, the channels that have any, and the maps with most of them as pictures. `peak` says how
far the greatest value of a map is from its mean, in deviations; a map of normal numbers has a peak of about 4. A map that is one number (`flat`, a
channel that a ReLU has closed) has no outliers here; the mask itself drops all of it.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from percepta.discrepancies.lpl import FINEST, keep_mask
from percepta.probes.look import Found, Look
from percepta.reports.figures import Words, strip
from percepta.spaces.decoder import Decoder

SHOWN = 4  # maps of a layer in the picture
SIDE = 192  # of a map there
MARK = (214, 69, 24)


@dataclass
class _Layer:
    """Sums over batches, and the maps with most outliers so far: (dropped, peak, image, channel, map, mask)."""

    images: int = 0
    dropped: Tensor = field(default_factory=lambda: torch.zeros(()))
    hit: float = 0.0
    flat: float = 0.0
    peaks: list[Tensor] = field(default_factory=list)
    worst: list[tuple[float, float, int, int, Tensor, Tensor]] = field(default_factory=list)

    def add(self, first: int, feature: Tensor, keep: Tensor) -> None:
        flat = feature.amax((2, 3)) == feature.amin((2, 3))
        keep = keep | flat[:, :, None, None]
        share = 1 - keep.double().mean((2, 3))
        spread, mean = torch.std_mean(feature.double(), (2, 3))
        away = (feature.double() - mean[:, :, None, None]).abs().amax((2, 3)) / spread.clamp_min(1e-12)
        self.images += len(feature)
        self.dropped = self.dropped + share.sum(0).cpu()
        self.hit += float((share > 0).double().mean(1).sum())
        self.flat += float(flat.double().mean(1).sum())
        self.peaks.append(away.flatten().cpu())
        order = (share + 1e-6 * away).flatten().argsort(descending=True)
        best = order[: 4 * SHOWN].tolist()  # some may be other images of one channel, which is shown once
        for place in best:
            k, c = divmod(int(place), share.shape[1])
            self.worst.append((float(share[k, c]), float(away[k, c]), first + k, c, feature[k, c].cpu(), keep[k, c].cpu()))
        self.worst = _once(sorted(self.worst, key=lambda one: (-one[0], -one[1])))


def _once(worst: list[tuple[float, float, int, int, Tensor, Tensor]]) -> list[tuple[float, float, int, int, Tensor, Tensor]]:
    """Of each channel the first; few."""
    seen: dict[int, Any] = {}
    for one in worst:
        seen.setdefault(one[3], one)
    return list(seen.values())[:SHOWN]


@torch.no_grad()
def outliers(look: Look) -> Found:
    """numbers["layer-0"], the mid block, and so on: dropped, channels_hit, median and greatest peak, and the maps in the picture."""
    space = Decoder(look.vae)
    layers = [_Layer() for _ in space.layers]
    for first, x in look.batches():
        features = space(look.vae.encode(x)[0])
        for layer, feature, width in zip(layers, features, _widths(look, space), strict=True):
            layer.add(first, feature, keep_mask(feature, width))
    numbers = {
        f"layer-{k}": {"upscale": fineness, "pixels": width, "masked_by_lpl": width <= FINEST, **_told(layer)}
        for k, layer, fineness, width in zip(space.layers, layers, space.upscale, _widths(look, space), strict=True)
    }
    return Found(numbers, [_picture(look, layers)], {"layers": list(space.layers)})


def _widths(look: Look, space: Decoder) -> list[int]:
    """How many pixels a place of each layer is wide."""
    return [max(1, look.vae.factor // fineness) for fineness in space.upscale]


def _told(layer: _Layer) -> dict[str, Any]:
    peaks, share = torch.cat(layer.peaks), layer.dropped / layer.images
    return {
        "channels": len(share),
        "dropped": float(share.mean()),
        "dropped_most": float(share.max()),
        "channels_hit": layer.hit / layer.images,
        "flat": layer.flat / layer.images,
        "peak_median": float(peaks.median()),
        "peak_most": float(peaks.max()),
        "maps": [{"image": image, "channel": channel, "dropped": dropped, "peak": peak}
                 for dropped, peak, image, channel, _, _ in layer.worst],
    }  # fmt: skip


def _picture(look: Look, layers: list[_Layer]) -> Any:
    rows = []
    for layer in layers:
        tiles = []
        for _, _, _, _, feature, keep in layer.worst:
            tiles += [_tile(feature), _tile(feature, keep)]
        rows.append(tiles)
    words = Words(
        title="Feature maps of the decoder with most outliers",
        caption=f"A row per layer, the mid block first; {SHOWN} channels of {len(look.images)} images, each as it is and with what the mask drops "
        "in orange. Grey goes from the least to the greatest value of a map, so that a map with one far outlier is flat.",
        alt=f"{len(rows)} rows of grey maps, in pairs",
    )
    return strip(look.figures, "outliers", rows, words)


def _tile(feature: Float[Tensor, "h w"], keep: Bool[Tensor, "h w"] | None = None) -> UInt8[np.ndarray, "s s 3"]:
    """One map in grey, of a common side; what is dropped in colour."""
    low, high = feature.min(), feature.max()
    grey = ((feature - low) / (high - low).clamp_min(1e-12) * 255).round().byte().numpy()
    out = np.repeat(grey[..., None], 3, axis=2)
    if keep is not None:
        out[~keep.numpy()] = MARK
    places = (np.arange(SIDE) * len(out)) // SIDE  # nearest, from any side
    return out[places][:, places]

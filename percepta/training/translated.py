"""What a trained translator is good for: previews with the way back, translations of a test set to be judged, and a folder of both generators."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from percepta.images import to_uint8
from percepta.networks.translation import Direction, Pair, other
from percepta.samplers.front import drawing
from percepta.training.product import Check, Readable, weights_of
from percepta.training.settings import Settings

TOGETHER = 16  # images that are translated at a time


@dataclass
class Translated:
    """`a` and `b`: the first images of each domain, in [-1, 1]. `source`: the set of A that an evaluation translates; the other side are images of B."""

    pair: Pair
    a: Float[Tensor, "n 3 h w"]
    b: Float[Tensor, "m 3 h w"]
    source: str | None = None
    judged_by: ClassVar[str] = "translations"

    def check(self, settings: Settings) -> None:
        """A translation needs no sampler."""

    @torch.no_grad()
    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        """Rows of three: an image, its translation, and the way back; half of them from A, half from B."""
        each, rows = max(1, settings.sample_num // 6), []
        with drawing(self.pair):
            ways: tuple[tuple[Direction, Tensor], ...] = (("a2b", self.a), ("b2a", self.b))
            for direction, images in ways:
                for x in images[:each].to(device).split(TOGETHER):
                    check()
                    there = self.pair.translate(x, direction)
                    back = self.pair.translate(there, other(direction))
                    rows.append(torch.stack([x, there, back], 1).flatten(0, 1).clamp(-1, 1).cpu())
        shown = torch.cat(rows)
        return shown, {
            "shows": "threes: image, translation, and back; first a2b, then b2a",
            "together": 3,
            "num": len(shown),
            "weights": weights_of(settings),
        }

    @torch.no_grad()
    def judged(
        self, settings: Settings, device: torch.device, check: Check, real: Readable
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], Mapping[str, Any]]:
        """Images of A as B."""
        from percepta.training.evaluating import images_of

        if self.source is None:
            raise ValueError("an evaluation translates images of the source domain, and there are none")
        images_of_a = images_of(settings, self.source)
        count, shown = min(settings.eval_num, len(images_of_a)), []
        with drawing(self.pair):
            for first in range(0, count, TOGETHER):
                check()
                images = np.stack(images_of_a.read(range(first, min(first + TOGETHER, count))))
                x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
                shown.append(to_uint8(self.pair.translate(x, "a2b")))
        return np.concatenate(shown), {"by": "translations", "direction": "a2b", "num": count, "weights": weights_of(settings)}

    def export(self, out: Path, card: Mapping[str, Any]) -> None:
        self.pair.save_pretrained(out)

    def next_command(self, run: Path) -> str:
        return f"percepta translate {run} IMAGES OUT"

"""What a trained translator is good for: previews with the way back, translations of test sets to be judged, and a folder of both generators."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.networks.translation import SIZE_FILE, Direction, Pair, other
from percepta.samplers.front import drawing
from percepta.training.attention import looked
from percepta.training.product import Check, exporting, weights_of
from percepta.training.settings import Settings

if TYPE_CHECKING:  # a run without evaluations does not import them
    from percepta.evaluation.translation import TestSets

TOGETHER = 16  # images that are translated at a time


@dataclass
class Translated:
    """`a` and `b`: the first images of each domain, in [-1, 1]. `source`: the set of A that an evaluation translates."""

    pair: Pair
    a: Float[Tensor, "n 3 h w"]
    b: Float[Tensor, "m 3 h w"]
    source: str | None = None
    judged_by: ClassVar[str] = "translations"

    def check(self, settings: Settings) -> None:
        """A translation needs no sampler."""

    @torch.no_grad()
    def preview(self, settings: Settings, device: torch.device, check: Check) -> tuple[Tensor, Mapping[str, Any]]:
        """A row per image: the image, where the generator looks if it has attention, its translation, and the way back; half of them from A, half from B."""
        each, rows, names = max(1, settings.sample_num // 6), [], ["image", "attention", "translation", "back"]
        with drawing(self.pair):
            ways: tuple[tuple[Direction, Tensor], ...] = (("a2b", self.a), ("b2a", self.b))
            for direction, images in ways:
                for x in images[:each].to(device).split(TOGETHER):
                    check()
                    there, attention = looked(self.pair, x, direction)
                    back = self.pair.translate(there, other(direction))
                    row = dict(zip(names, (x, attention, there, back), strict=True))
                    rows.append({name: shown.clamp(-1, 1).cpu() for name, shown in row.items() if shown is not None})
        names = list(rows[0])
        shown = torch.cat([torch.stack(list(row.values()), 1).flatten(0, 1) for row in rows])
        return shown, {
            "shows": f"rows of {', '.join(names)}; first a2b, then b2a",
            "columns": names,
            "rows": {"a2b": len(self.a[:each]), "b2a": len(self.b[:each])},
            "num": len(shown),
            "weights": weights_of(settings),
        }

    def judged(
        self, settings: Settings, device: torch.device, check: Check, real: Any
    ) -> tuple[Callable[[Tensor, Direction], Tensor], Mapping[str, Any]]:
        """What translates the test sets `real` as they are judged (percepta.evaluation.translation), in both directions."""

        def translate(x: Tensor, direction: Direction) -> Tensor:
            with drawing(self.pair):
                return self.pair.translate(x.to(device), direction)

        return translate, {"by": "translations", "weights": weights_of(settings)}

    def tests(self, settings: Settings) -> "TestSets":
        """The sets that are judged: the images of A, and --eval-data or the training images of B; each cut as training does."""
        from percepta.data.domains import pairing_of
        from percepta.evaluation.sets import ImageSet, open_side
        from percepta.evaluation.translation import TestSets
        from percepta.training.evaluating import images_of

        if self.source is None:
            raise ValueError("an evaluation translates images of the source domain, and there are none")
        b = settings.eval_data or settings.data
        if Path(b).suffix == ".npz" and not isinstance(open_side(b), ImageSet):
            raise ValueError(
                f"--eval-data {b} holds statistics: translations are judged in both directions, which needs images of B"
            )
        sides = images_of(settings, self.source), images_of(settings, b)
        for side, name in zip(sides, (self.source, b), strict=True):
            side.name = name
        return TestSets(*sides, pairing_of(self.source, b), settings.eval_num)

    def export(self, out: Path, card: Mapping[str, Any]) -> None:
        with exporting(out, card) as work:
            self.pair.save_pretrained(work)
            (work / SIZE_FILE).write_text(json.dumps({"size": self.a.shape[-1]}) + "\n")

    def next_command(self, run: Path) -> str:
        return f"percepta translate {run} IMAGES OUT"

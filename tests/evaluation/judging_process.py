"""One pass in a process of its own: what test_passes.py kills, and starts as ranks."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from small_extractor import Small

from percepta import distributed
from percepta.evaluation import passes
from percepta.evaluation.sets import ImageSet, open_side


class Slow(Small):
    """Takes its time, so that it can be killed in the middle."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.pause = pause

    def __call__(self, images, layers):
        time.sleep(self.pause)
        return super().__call__(images, layers)


def main(images: str, caches: list[str], out: str, pause: float, bad: str) -> None:
    """A pass for each cache folder, in all of which {rank} is this process's; then one that stops at the first bad image."""
    torch.set_num_threads(1)
    passes.CHUNK = 8
    with distributed.joined("cpu", 60) as world:
        for number, cache in enumerate(caches):
            judge(images, Path(cache.format(rank=world.rank)), f"{out}-{number}-{world.rank}", pause, bad)
        if bad == "skip":
            try:
                judge(images, Path(caches[0]).with_name("error"), f"{out}-error-{world.rank}", pause, "error")
            except (ValueError, RuntimeError) as error:
                Path(f"{out}-error-{world.rank}.txt").write_text(f"{type(error).__name__}: {error}")


def judge(images: str, cache: Path, out: str, pause: float, bad: str) -> None:
    extractor = Slow(pause)
    lines: list[str] = []
    side = open_side(images, on_bad=bad)
    assert isinstance(side, ImageSet)
    found = passes.extract(side, {extractor: ["7", "logits"]}, cache, 3, note=lines.append)
    arrays = {layer: found["small", layer].array for layer in ("7", "logits")}
    np.savez(f"{out}.npz", scatter=found["small", "7"].moments().scatter.numpy(), **arrays)
    report = {"images": extractor.images, "notes": lines, "facts": side.facts(), "len": len(side)}
    Path(f"{out}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","), sys.argv[3], float(sys.argv[4]), sys.argv[5])

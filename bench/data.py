"""P17's data path: a folder of 32-px PNGs through Stream, against torch's DataLoader over a per-sample dataset that decodes with Pillow.

The peer is the usual training script's: decode, random flip, to tensor, normalise, per sample, batched by the DataLoader. Also peers with their
images decoded beforehand, since memory alone explains a part of the gap: with torchvision's transforms, as its CIFAR10 class is used (44 us, what
the goal was set against), and with the same steps written out by hand. All sides are timed in
turn, epoch after epoch, and compared by their medians: one epoch of Stream decodes (first), the others gather (steady).

    python bench/data.py [--quick] [--json]
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _common import about, finish, headline, parser
from PIL import Image
from torchvision import transforms

from percepta.data import Stream, open_source

SIZE, BATCH = 32, 128


class PerSample(torch.utils.data.Dataset):
    """The peer: one image at a time, with the usual transforms; `keep` decodes all beforehand."""

    def __init__(self, root: Path, keep: bool) -> None:
        self.paths = sorted(root.glob("*.png"))
        self.kept = [self.decode(path) for path in self.paths] if keep else None

    @staticmethod
    def decode(path: Path) -> Image.Image:
        with Image.open(path) as file:
            return file.convert("RGB")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = self.decode(self.paths[index]) if self.kept is None else self.kept[index]
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return (x.flip(2) if torch.rand(()) < 0.5 else x).sub(0.5).div(0.5)


class Torchvision(torch.utils.data.Dataset):
    """Images in memory as arrays, and torchvision's transforms: its CIFAR10 class."""

    def __init__(self, root: Path) -> None:
        self.arrays = [np.asarray(PerSample.decode(path)) for path in sorted(root.glob("*.png"))]
        self.transform = transforms.Compose(
            [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
        )

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.fromarray(self.arrays[index]))


def torchvision_peer(root: Path) -> Callable[[int], Iterator[torch.Tensor]]:
    loader = torch.utils.data.DataLoader(Torchvision(root), BATCH, shuffle=True, drop_last=True)
    return lambda epoch: iter(loader)


def peer(root: Path, keep: bool, workers: int) -> Callable[[int], Iterator[torch.Tensor]]:
    loader = torch.utils.data.DataLoader(PerSample(root, keep), BATCH, shuffle=True, num_workers=workers, drop_last=True,
                                         persistent_workers=workers > 0)  # fmt: skip
    return lambda epoch: iter(loader)


def ours(root: Path, count: int, **options) -> Callable[[int], Iterator[torch.Tensor]]:
    stream = Stream(open_source(root), SIZE, 0, BATCH, flip=True, **options)
    steps = count // BATCH
    return lambda epoch: (batch.x0 for _, batch in stream.batches(epoch * steps, (epoch + 1) * steps))


def write_images(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for k in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(root / f"{k:06d}.png")


def measure(count: int, rounds: int) -> dict:
    """Microseconds per image of each side: the first epoch, and the median of the later ones."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, count)
        sides = {
            "stream": ours(root, count),
            "stream, nothing kept": ours(root, count, memory_limit_bytes=0),
            "loader, 0 workers": peer(root, False, 0),
            "loader, 2 workers": peer(root, False, 2),
            "loader, torchvision's CIFAR10, 0 workers": torchvision_peer(root),
            "loader, decoded before, by hand, 0 workers": peer(root, True, 0),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for epoch in range(rounds + 1):
            for name, batches in sides.items():
                started = time.perf_counter()
                seen = sum(len(x) for x in batches(epoch))
                times[name].append((time.perf_counter() - started) / seen * 1e6)
    return {name: {"first": t[0], "steady": statistics.median(t[1:])} for name, t in times.items()}


def main() -> None:
    ask = parser(__doc__, "about 20 seconds: 2,048 images instead of 20,480")
    ask.set_defaults(threads=1)  # torch's own: leaves the cores to the loaders of all sides
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    found = measure(*(2048, 5) if asked.quick else (20480, 9))
    steady = found["stream"]["steady"]
    ratios = {f"{name} / stream": side["steady"] / steady for name, side in found.items() if name.startswith("loader")}
    facts = about("pillow", "numpy")
    if not asked.json:
        print(headline(facts))
        print(f"{'':44}{'first epoch':>14}{'steady':>10}   us per image, {SIZE} px, batch {BATCH}")
        for name, side in found.items():
            print(f"{name:44}{side['first']:14.1f}{side['steady']:10.2f}   {side['steady'] / steady:6.1f}x")
    finish(asked.json, ratios, us_per_image=found, about=facts)


if __name__ == "__main__":
    main()

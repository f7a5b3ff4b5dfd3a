"""What all probes of an autoencoder share: the images that are looked at, and the record of what was found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from percepta.data import Source, Transform
from percepta.data.reader import Feed, Notes
from percepta.data.transforms import to_float
from percepta.images import to_uint8
from percepta.networks import Autoencoder


@dataclass(frozen=True)
class Look:
    """One look at an autoencoder: with which images [n, 3, s, s], where the pictures go, and the knobs that a probe may read.

    `check` is called between batches and may raise to leave.
    """

    vae: Autoencoder
    images: Tensor
    figures: Path
    scales: tuple[float, ...] = (0.5, 1.3, 2.0)
    patch: int | None = None
    draws: int = 4
    seed: int = 0
    batch: int = 4
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        factor, side = self.vae.factor, self.images.shape[-1]
        if side % factor or side < 2 * factor:
            raise ValueError(f"this autoencoder needs images of a multiple of {factor} pixels, at least {2 * factor}, got {side}")

    def batches(self) -> Iterator[tuple[int, Float[Tensor, "b c s s"]]]:
        """The images a few at a time, on the autoencoder's device, each time with the place of the first."""
        device = next(self.vae.parameters()).device
        for first in range(0, len(self.images), self.batch):
            self.check()
            yield first, self.images[first : first + self.batch].to(device)

    def decode(self, z: Float[Tensor, "b z i j"]) -> Float[Tensor, "b c h w"]:
        """As a file would hold it: clamped to [-1, 1]."""
        return self.vae.decode(z).clamp(-1, 1)


@dataclass(frozen=True)
class Found:
    """`numbers` by name, with no dot in a name, `figures` the pictures, and `how` what decided the numbers beyond the images."""

    numbers: dict[str, Any]
    figures: list[Path]
    how: dict[str, Any] = field(default_factory=dict)


def first_images(source: Source, num: int, size: int, crop: str = "center-crop") -> Float[Tensor, "n 3 s s"]:
    """`num` images, evenly spread over the set: a set's first images are often all of one class."""
    if num < 1:
        raise ValueError(f"at least one image is looked at, got {num}")
    count = min(num, len(source))
    indices = [k * len(source) // count for k in range(count)]
    feed, notes = Feed(source, Transform(size, crop), 0), Notes({}, {})
    stages = [feed.good(index, found, notes).stage for index, found in zip(indices, feed.load(indices), strict=True)]
    return to_float(torch.from_numpy(np.stack(stages)))


def pixels(images: Float[Tensor, "b c h w"], side: int | None = None) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Each image as uint8, by whole pixels or bilinear brought to a side where one is given."""
    if side is not None and images.shape[-1] != side:
        mode = "nearest" if side % images.shape[-1] == 0 else "bilinear"
        options = {} if mode == "nearest" else {"antialias": True, "align_corners": False}
        images = torch.nn.functional.interpolate(images.float(), (side, side), mode=mode, **options)
    return list(to_uint8(images))


def decibel(mse: float, peak: float = 2.0) -> float | None:
    """Peak signal to noise of images in [-1, 1]; None where nothing differs."""
    return None if mse == 0 else float(10 * np.log10(peak**2 / mse))

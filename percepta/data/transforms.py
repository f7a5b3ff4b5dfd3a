"""From an image of any size to size x size: a fixed stage per image, then a random one per place in the stream.

The fixed stage (resize, centre crop, padding) depends on the file alone, so its result can be kept; the random stage (where to
crop, whether to flip) is keyed by (seed, ordinal) and moves bytes without arithmetic. Both paths of the stream therefore give
the same bits.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, UInt8
from PIL import Image
from torch import Tensor

from percepta.data.image import BACKGROUNDS, BadImage
from percepta.data.order import uniform

CROPS = {
    "center-crop": "shorter side to size, then the middle (guided-diffusion's)",
    "random-crop": "shorter side to size, then a random place along the longer one (the diffusers scripts')",
    "stretch": "both sides to size; the aspect ratio changes",
    "pad": "longer side to size, the rest filled with the background",
    "jitter": "both sides to size * 286/256, then a random crop (U-GAT-IT's)",
    "none": "every file must be size x size already",
}
FILTERS = {
    "adm": "halved by boxes while at least twice too large, then bicubic: guided-diffusion's, as ADM's reference statistics assume",
    "lanczos": "EDM's dataset tool",
    "bicubic": "a = -1/2",
    "bilinear": "a triangle",
    "box": "a mean",
}
STILL = {"random-crop": "center-crop", "jitter": "stretch"}  # what stands for a crop of which training draws the place
MAX_STAGE = 2**26  # pixels of the resized image: a 1 x 10000 file must not become 256 x 2560000


def still(crop: str) -> str:
    """This crop for images that are judged: cut the same way each time."""
    return STILL.get(crop, crop)


class Draws(NamedTuple):
    """The random stage of some rows, as numbers in [0, 1) and choices."""

    top: Float64[np.ndarray, " b"]
    left: Float64[np.ndarray, " b"]
    flip: Bool[np.ndarray, " b"]


@dataclass(frozen=True)
class Transform:
    """`crop` one of CROPS, `filter` one of FILTERS (both antialias when shrinking), `flip` mirrors half of the samples."""

    size: int
    crop: str = "center-crop"
    flip: bool = False
    filter: str = "adm"
    background: str = "white"

    def __post_init__(self) -> None:
        for what, known in (("crop", CROPS), ("filter", FILTERS), ("background", BACKGROUNDS)):
            if getattr(self, what) not in known:
                raise ValueError(f"unknown {what} {getattr(self, what)!r}; known: {', '.join(known)}")
        if self.size < 1:
            raise ValueError(f"the image size must be at least 1, got {self.size}")

    @property
    def random(self) -> bool:
        """Whether the place of the crop is drawn."""
        return self.crop in ("random-crop", "jitter")

    @property
    def stage_size(self) -> int | None:
        """The side of the fixed stage's square result; None where it depends on the file."""
        if self.crop == "random-crop":
            return None
        return round(self.size * 286 / 256) if self.crop == "jitter" else self.size

    def stage(self, image: UInt8[np.ndarray, "h w 3"], name: str) -> tuple[UInt8[np.ndarray, "3 H W"], tuple[str, ...]]:
        """The fixed stage, channels first, and the names of what it did beyond the asked (upsampled)."""
        height, width = image.shape[:2]
        target = self._target(height, width, name)
        if target != (height, width):
            image = _resize(image, target, self.filter)
        if self.crop == "center-crop":
            top, left = ((side - self.size) // 2 for side in image.shape[:2])
            image = image[top : top + self.size, left : left + self.size]
        elif self.crop == "pad":
            full = np.empty((self.size, self.size, 3), dtype=np.uint8)
            full[:] = BACKGROUNDS[self.background]
            top, left = ((self.size - side) // 2 for side in image.shape[:2])
            full[top : top + image.shape[0], left : left + image.shape[1]] = image
            image = full
        enlarged = target[0] > height or target[1] > width
        return np.ascontiguousarray(image.transpose(2, 0, 1)), ("upsampled",) if enlarged else ()

    def _target(self, height: int, width: int, name: str) -> tuple[int, int]:
        """What the fixed stage resizes to."""
        if self.crop in ("stretch", "jitter"):
            side = self.stage_size
            assert side is not None
            return side, side
        if self.crop == "none":
            if (height, width) != (self.size, self.size):
                raise BadImage(
                    name,
                    "wrong-size",
                    f"is {width} x {height}, asked for {self.size} x {self.size} without resizing; "
                    "choose a crop, for example center-crop",
                )
            return height, width
        side = max(height, width) if self.crop == "pad" else min(height, width)
        target = max(1, round(height * self.size / side)), max(1, round(width * self.size / side))
        if target[0] * target[1] > MAX_STAGE:
            raise BadImage(
                name,
                "oversized",
                f"is {width} x {height}: at a shorter side of {self.size} that is {target[1]} x {target[0]}, "
                f"more than {MAX_STAGE:,} pixels",
            )
        return target

    def draws(self, seed: int, name: str, ordinals: np.ndarray) -> Draws:
        """The random numbers of these places; all zero where nothing is random."""
        none = np.zeros(len(ordinals))
        top, left = (uniform(seed, f"{name}/{side}", ordinals) if self.random else none for side in ("top", "left"))
        return Draws(top, left, uniform(seed, f"{name}/flip", ordinals) < 0.5 if self.flip else none.astype(bool))

    def place_one(
        self, stage: UInt8[np.ndarray, "3 H W"], top: float, left: float, flip: bool | np.bool_
    ) -> UInt8[np.ndarray, "3 s s"]:
        """The random stage of one image."""
        y, x = int(top * (stage.shape[1] - self.size + 1)), int(left * (stage.shape[2] - self.size + 1))
        stage = stage[:, y : y + self.size, x : x + self.size]
        return stage[:, :, ::-1] if flip else stage

    def place(self, stage: UInt8[Tensor, "b 3 S S"], draws: Draws) -> UInt8[Tensor, "b 3 s s"]:
        """The random stage of rows of one size, on their device. The rows must be the caller's own: flips are made in place."""
        if self.random:
            room = stage.shape[2] - self.size + 1
            rows = [
                stage[k, :, y : y + self.size, x : x + self.size]
                for k, (y, x) in enumerate(zip((draws.top * room).astype(int), (draws.left * room).astype(int), strict=True))
            ]
            stage = torch.stack(rows) if rows else stage[:, :, : self.size, : self.size]
        if draws.flip.any():
            rows = torch.from_numpy(np.flatnonzero(draws.flip)).to(stage.device, non_blocking=True)
            stage[rows] = stage[rows].flip(3)
        return stage


def _resize(image: UInt8[np.ndarray, "h w 3"], target: tuple[int, int], name: str) -> UInt8[np.ndarray, "H W 3"]:
    picture = Image.fromarray(image)
    if name == "adm":
        while picture.width >= 2 * target[1] and picture.height >= 2 * target[0]:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
        name = "bicubic"
    return np.asarray(picture.resize((target[1], target[0]), Image.Resampling[name.upper()]))


def to_float(images: UInt8[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """0 .. 255 to [-1, 1], with the same bits on every device: the difference is exact, the product is rounded once."""
    return images.to(torch.float32).sub_(127.5).mul_(1 / 127.5)

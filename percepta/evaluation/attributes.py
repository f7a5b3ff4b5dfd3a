"""What a translation of a built-in shape shows: which shape, and which colour.

Nothing is learnt for it. Where a scene's shape lies is known, and so is what an image of it is mixed of (percepta.data.shapes),

    image = (1 - c) (b_0 + b_x x + b_y y) + c (i_0 + i_1 t_1 + i_2 t_2 + i_3 t_3)

with the cover c of a shape and the textures t. Each shape is fitted to the image with free colours b and i, by least squares, and the one that
leaves the smallest rest is what the image shows. Its colour is that of the mean ink, whatever darkens it. A real image is read without
a mistake, but for a few; how many is told beside every result.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor

from percepta.data import Shapes
from percepta.data.shapes import COLOURS, SHAPES, Attributes, parts

LARGEST = 32  # px; larger images are made smaller first: every shape is told at that size
BLOCK = 64  # images at a time
DARKEST = 0.55  # of the ink that a texture leaves
RIDGE = 1e-6


class Shown(NamedTuple):
    """What images show, as places in SHAPES and COLOURS."""

    shape: Int64[np.ndarray, " n"]
    colour: Int64[np.ndarray, " n"]


class Accuracy(NamedTuple):
    """The share of images that show what their scenes hold."""

    shape: float
    colour: float


def comparable(a: Shapes, b: Shapes) -> bool:
    """Whether a translation between the two is to keep shape and colour: the same shapes occur in both."""
    return set(a.shown) == set(b.shown)


def accuracy(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], scenes: Attributes, domain: str, among: Sequence[str] = SHAPES
) -> Accuracy:
    """Of images that should show these scenes as `domain` does; `among`: the shapes that occur."""
    found = recognised(images, scenes, domain, among)
    return Accuracy(float((found.shape == scenes.shape).mean()), float((found.colour == scenes.colour).mean()))


def recognised(
    images: Sequence[UInt8[np.ndarray, "h w 3"]], scenes: Attributes, domain: str, among: Sequence[str] = SHAPES
) -> Shown:
    """What is seen at the places of the scenes."""
    if len(images) != len(scenes.shape) or not len(images):
        raise ValueError(f"each image needs its scene, got {len(images)} images and {len(scenes.shape)} scenes")
    kinds = np.array([SHAPES.index(name) for name in among])
    shapes, colours = [], []
    for start in range(0, len(images), BLOCK):
        rows = slice(start, start + BLOCK)
        shown = Attributes(*(value[rows] for value in scenes))
        pixels = _pixels(images[rows])
        rests = [_rest(pixels, shown._replace(shape=np.full_like(shown.shape, kind)), domain) for kind in kinds]
        shapes.append(kinds[np.stack(rests).argmin(0)])
        colours.append(_nearest(_ink(pixels, shown, domain)))
    return Shown(np.concatenate(shapes), np.concatenate(colours))


def _pixels(images: Sequence[np.ndarray]) -> Float64[np.ndarray, "n s s 3"]:
    """In [0, 1], square, and no larger than LARGEST."""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).double() / 255
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"shapes are square images, got {x.shape[-1]} x {x.shape[-2]}")
    if x.shape[-1] > LARGEST:
        x = F.interpolate(x, (LARGEST, LARGEST), mode="area")
    return x.permute(0, 2, 3, 1).numpy()


def _columns(shown: Attributes, size: int, domain: str, textures: bool) -> Tensor:
    """What an image is a sum of, [n, s*s, k]: background, its two slopes, the ink, and where each texture darkens it."""
    cover, dark = (torch.from_numpy(part).double() for part in parts(shown, size, domain))
    along = torch.linspace(-0.5, 0.5, size, dtype=torch.float64)
    open_ = 1 - cover
    columns = [open_, open_ * along[None, None, :], open_ * along[None, :, None], cover]
    if textures and domain == "filled":
        columns += list((cover[:, None] * dark).unbind(1))
    return torch.stack(columns, -1).flatten(1, 2)


def _fitted(pixels: Float64[np.ndarray, "n s s 3"], columns: Float[Tensor, "n p k"]) -> tuple[Tensor, Tensor]:
    """Coefficients [n, k, 3], and what they leave of each image [n]. A column that is empty (a texture that a small shape has no room for) gets 0."""
    y = torch.from_numpy(pixels).flatten(1, 2)
    square = columns.mT @ columns + RIDGE * torch.eye(columns.shape[-1], dtype=torch.float64)
    found = torch.linalg.solve(square, columns.mT @ y)
    return found, (y - columns @ found).square().sum((1, 2))


def _rest(pixels: Float64[np.ndarray, "n s s 3"], shown: Attributes, domain: str) -> Float64[np.ndarray, " n"]:
    return _fitted(pixels, _columns(shown, pixels.shape[1], domain, True))[1].numpy()


def _ink(pixels: Float64[np.ndarray, "n s s 3"], shown: Attributes, domain: str) -> Float64[np.ndarray, "n 3"]:
    """The mean colour of the true shape."""
    return _fitted(pixels, _columns(shown, pixels.shape[1], domain, False))[0][:, 3].numpy()


def _nearest(ink: Float64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
    """The colour that some darkening of it is nearest to."""
    colours = np.array(list(COLOURS.values())) / 255
    share = (ink @ colours.T / (colours**2).sum(1)).clip(DARKEST, 1)  # of each colour, what fits best
    return ((ink[:, None] - share[..., None] * colours) ** 2).sum(-1).argmin(1)

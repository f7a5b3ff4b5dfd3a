"""Images of any size through networks that were trained at one: whole and resized, in overlapping windows, or as they are with mirrored borders.

    resize   the shorter side becomes the training size, the aspect stays; the translation is brought back to the size of the image
    tile     windows of the training size, a quarter overlapping, faded into each other: details at full size, each window on its own
    pad      the image as it is, its borders mirrored up to sides that the network takes

A window that is larger than the image is filled up with its mirror image. Images are [3, h, w] in [-1, 1] on the CPU.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Fit = Literal["resize", "tile", "pad"]
FITS: tuple[Fit, ...] = get_args(Fit)
LONGEST = 8  # resize: the longer side is at most this many times the shorter one; a thinner image is widened on its way through
LEAST = 16  # px: what the networks need
Translate = Callable[[Tensor], Tensor]  # [k, 3, h, w] to the same of the other domain


class Parts(NamedTuple):
    """What the network is given for one image, and how the image comes back from the translations of it."""

    given: Float[Tensor, "k 3 H W"]
    back: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fitting:
    """`size`: the training size, None where it is unknown. `fixed`: the network takes this size only. `multiple`: of which sides are multiples."""

    fit: Fit
    size: int | None
    fixed: bool = False
    multiple: int = 4

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"an image is fitted by {', '.join(FITS)}, got {self.fit!r}")
        if self.fit == "pad":
            if self.fixed:
                raise ValueError(f"this model translates images of {self.size} px only: fit them by resize or tile, not by pad")
        elif self.size is None:
            raise ValueError(
                f"the model's folder does not say at which size it was trained, which {self.fit} needs: give the size, or fit by pad"
            )
        if self.size is not None and (self.size < LEAST or self.size % self.multiple):
            raise ValueError(f"the size is to be a multiple of {self.multiple} from {LEAST} px, got {self.size}")

    def parts(self, image: Float[Tensor, "3 h w"]) -> Parts:
        h, w = image.shape[-2:]
        if self.fit == "pad":
            tall, wide = (max(LEAST, math.ceil(side / self.multiple) * self.multiple) for side in (h, w))
            return Parts(mirrored(image, tall, wide)[None], lambda out: centre(out[0], h, w))
        assert self.size is not None
        if self.fit == "resize":
            return Parts(resized(image, *self._inside(h, w))[None], lambda out: resized(out[0], h, w))
        return tiles(image, self.size)

    def _inside(self, h: int, w: int) -> tuple[int, int]:
        """Height and width of a resized image."""
        size = self.size
        assert size is not None
        if self.fixed:
            return size, size

        def side(length: int) -> int:
            whole = round(length * size / min(h, w) / self.multiple) * self.multiple
            return min(max(whole, size), LONGEST * size)

        return side(h), side(w)


def translate_all(
    translate: Translate, images: Sequence[Tensor], fitting: Fitting, batch: int = 16, check: Callable[[], None] = lambda: None
) -> list[Tensor]:
    """The translations of images of any sizes; parts of one size go through the network together, `batch` at a time."""
    every = [fitting.parts(image) for image in images]
    alike: dict[tuple[int, ...], list[int]] = {}
    for k, parts in enumerate(every):
        alike.setdefault(tuple(parts.given.shape[1:]), []).append(k)
    out: list[Tensor | None] = [None] * len(images)
    for members in alike.values():
        done = []
        for some in torch.cat([every[k].given for k in members]).split(batch):
            check()
            done.append(_translated(translate, some))
        counts = [len(every[k].given) for k in members]
        for k, mine in zip(members, torch.cat(done).split(counts), strict=True):
            out[k] = every[k].back(mine)
    return [image for image in out if image is not None]


def _translated(translate: Translate, x: Tensor) -> Tensor:
    try:
        y = translate(x).float().clamp(-1, 1).cpu()
    except RuntimeError as error:  # a GPU says it by a class, the CPU's allocator by its text
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ValueError(
            f"the memory is too small for {len(x)} x {x.shape[-1]} x {x.shape[-2]} px at once: use a smaller batch, or fit by tile"
        ) from error
    if not torch.isfinite(y).all():
        raise ValueError("the model's translation is not finite: was it trained to the end? See its metrics.jsonl")
    return y


def resized(image: Float[Tensor, "3 h w"], height: int, width: int) -> Float[Tensor, "3 H W"]:
    """Bicubic, with antialiasing where it shrinks; untouched where the size is right."""
    if image.shape[-2:] == (height, width):
        return image
    out = F.interpolate(image[None], (height, width), mode="bicubic", antialias=True, align_corners=False)
    return out[0].clamp(-1, 1)


def mirrored(image: Float[Tensor, "3 h w"], height: int, width: int) -> Float[Tensor, "3 H W"]:
    """The image in the middle of a larger one, reflected at its borders as often as that takes; a single pixel repeats."""
    rows, columns = (_reflections(n, to) for n, to in zip(image.shape[-2:], (height, width), strict=True))
    return image[:, rows][:, :, columns]


def _reflections(n: int, to: int) -> Tensor:
    period = max(1, 2 * (n - 1))
    place = (torch.arange(to) - (to - n) // 2) % period
    return torch.where(place < n, place, period - place)


def centre(image: Float[Tensor, "3 H W"], height: int, width: int) -> Float[Tensor, "3 h w"]:
    """What `mirrored` put in the middle."""
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[:, top : top + height, left : left + width]


def tiles(image: Float[Tensor, "3 h w"], size: int) -> Parts:
    """Windows of size x size over the image, and their mean, weighted by ramps that fall towards the borders."""
    h, w = image.shape[-2:]
    whole = mirrored(image, max(h, size), max(w, size))
    tall, wide = whole.shape[-2:]
    corners = [(top, left) for top in starts(tall, size) for left in starts(wide, size)]
    ramp = (torch.arange(size) + 0.5).minimum(size - 0.5 - torch.arange(size)).clamp(max=size / 4)
    weight = ramp[:, None] * ramp

    def back(out: Tensor) -> Tensor:
        total, weights = torch.zeros_like(whole), torch.zeros(tall, wide)
        for (top, left), window in zip(corners, out, strict=True):
            total[:, top : top + size, left : left + size] += window * weight
            weights[top : top + size, left : left + size] += weight
        return centre(total / weights, h, w)

    return Parts(torch.stack([whole[:, top : top + size, left : left + size] for top, left in corners]), back)


def starts(length: int, size: int) -> list[int]:
    """Where windows begin: evenly, from border to border, each over at least a quarter of the one before."""
    count = math.ceil((length - size) / (size * 3 // 4))
    return [round(k * (length - size) / count) for k in range(count + 1)] if count else [0]

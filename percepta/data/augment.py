"""Augmentation that does not leak into samples: EDM's (Karras et al. 2022, appendix F.2; the idea is Karras et al. 2020's).

An image may be mirrored, scaled, turned, stretched and moved before it is noised, and the network is told how by nine numbers. They are zero
for an image that was left alone, and zero when the network samples: so it learns from the altered images and draws none.

    label   x flip, y flip, scale, cos(angle) - 1, sin(angle), stretch cos(axis), stretch sin(axis), move x, move y

Scale, stretch and move are standard normal numbers; one stands for a factor of 2^0.2 (stretch: its inverse across the axis) and for an
eighth of the side. Angles go counterclockwise, moves to the right and down.

An image is resampled once for all of it: mirrored at its borders without end, doubled by the wavelet sym6, read bilinearly there, and halved
by the same wavelet. Doubling and halving alone give the image back, and so are moves by whole pixels exact. (The authors mirror once
and go on in grey, which only the rarest transforms reach; and they resample the images that were left alone as well.)
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from percepta.estimate import moved
from percepta.rng import Rng

LABEL = 9  # numbers that tell a network what was done
SCALE = STRETCH = 0.2  # log2 of the factor that the number 1 stands for
MOVE = 0.125  # of the side
SYM6 = (  # Daubechies' least asymmetric wavelet with six vanishing moments: its low-pass, by which images are decomposed
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466, 0.787641141030194,
    0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
REACH = 5  # fine places left of a pixel's own that its taps begin: the largest tap lies on the pixel


@dataclass(frozen=True)
class Transforms:
    """What is done to each image, in this order, as float64 on the CPU; zero is nothing. Angles are radians, the rest as in the label."""

    x_flip: Float[Tensor, "b"]
    y_flip: Float[Tensor, "b"]
    scale: Float[Tensor, "b"]
    angle: Float[Tensor, "b"]
    stretch: Float[Tensor, "b"]
    axis: Float[Tensor, "b"]
    move: Float[Tensor, "b 2"]

    def label(self) -> Float[Tensor, "b 9"]:
        turned = (self.angle.cos() - 1, self.angle.sin())
        along = (self.stretch * self.axis.cos(), self.stretch * self.axis.sin())
        return torch.stack([self.x_flip, self.y_flip, self.scale, *turned, *along, *self.move.unbind(1)], 1)

    def resampled(self) -> Tensor:
        """The images that more than flips are done to."""
        return torch.stack([self.scale, self.angle, self.stretch, *self.move.unbind(1)]).ne(0).any(0).nonzero()[:, 0]

    def inverse(self) -> Float[Tensor, "b 2 2"]:
        """Where (x right, y down from the centre) a place of the new image comes from, once the move is taken back."""
        factor = torch.exp2(STRETCH * self.stretch)
        squeeze = torch.diag_embed(torch.stack([1 / factor, factor], 1))
        turned = _turn(self.angle) @ _turn(-self.axis) @ squeeze @ _turn(self.axis)
        return turned * torch.exp2(-SCALE * self.scale)[:, None, None]

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        for flip, axis in ((self.x_flip, 3), (self.y_flip, 2)):
            x = torch.where(moved(flip > 0, x.device)[:, None, None, None], x.flip(axis), x)
        rows = self.resampled()
        if len(rows) == 0:
            return x
        there = moved(rows, x.device)
        return x.index_copy(0, there, _resample(x[there], self.inverse()[rows], self.move[rows]))


@dataclass(frozen=True)
class Augment:
    """(images, rng) -> augmented images and their labels. Half of the images are mirrored from left to right; each of the other five is done with
    probability `p`, to each image by its own numbers. Pixels may leave [-1, 1] a little, as the wavelet overshoots at edges."""

    p: float

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise ValueError(f"--augment is a probability between 0 and 1, got {self.p}")

    def __call__(self, x0: Float[Tensor, "b c h w"], rng: Rng) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 9"]]:
        drawn = self.draw(rng)
        return drawn(x0), moved(drawn.label().float(), x0.device)

    def draw(self, rng: Rng) -> Transforms:
        """Few numbers that decide much: on the CPU, the same on every device."""
        rng = rng.to("cpu").fork("augment")

        def chosen(name: str) -> Tensor:
            return (rng.uniform(f"{name}?") < self.p).double()

        def normal(name: str, *shape: int) -> Tensor:
            return rng.normal(name, shape, torch.float64)

        def angle(name: str) -> Tensor:
            return (2 * rng.uniform(name) - 1) * math.pi

        return Transforms(
            x_flip=(rng.uniform("x-flip") < (0.5 if self.p > 0 else 0.0)).double(),
            y_flip=(rng.uniform("y-flip") < self.p / 2).double(),
            scale=chosen("scale") * normal("scale"),
            angle=chosen("angle") * angle("angle"),
            stretch=chosen("stretch") * normal("stretch"),
            axis=(rng.uniform("axis?") < 0.5) * angle("axis"),
            move=chosen("move")[:, None] * normal("move", 2),
        )


def _turn(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _resample(x: Tensor, inverse: Tensor, move: Tensor) -> Tensor:
    """In the precision of the image whatever the step has: rounded coordinates would shake it."""
    h, w = x.shape[2:]
    assert min(h, w) > 1, f"an image of {h} x {w} has no mirror image beside its border"
    with torch.autocast(x.device.type, enabled=False):
        up_y, up_x = (doubling(n, x.dtype, x.device) for n in (h, w))
        down_y, down_x = (halving(n, x.dtype, x.device) for n in (h, w))
        back = moved((2 * MOVE * move * torch.tensor([w, h])).to(x.dtype), x.device)
        to_x, to_y = (moved(inverse[:, axis].to(x.dtype), x.device) for axis in (0, 1))
        dx, dy = ((torch.arange(-REACH, 2 * n + REACH, dtype=x.dtype, device=x.device) - (n - 1))[None] for n in (w, h))
        dx, dy = dx - back[:, :1], dy - back[:, 1:]  # fine places, from the centre

        def coordinate(row: Tensor, n: int) -> Tensor:
            place = row[:, 0, None, None] * dx[:, None, :] + row[:, 1, None, None] * dy[:, :, None] + (n - 1)
            return place.remainder(4 * n - 4) / (2 * n - 2) - 1

        grid = torch.stack([coordinate(to_x, w), coordinate(to_y, h)], -1)
        read = grid_sample(up_y @ x @ up_x.T, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return down_y @ read @ down_x.T


@cache
def doubling(n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "m n"]:
    """[4n - 3, n]: n pixels, mirrored for ever, at twice the resolution: one period, and its first place again. Pixel i lies at 2i."""
    place = torch.arange(4 * n - 3)
    out = torch.zeros(len(place), n, dtype=torch.float64)
    for k, tap in enumerate(SYM6):
        rows = place[(place + REACH - k) % 2 == 0]
        pixel = (rows + REACH - k).div(2, rounding_mode="floor") % (2 * n - 2)
        out[rows, n - 1 - (n - 1 - pixel).abs()] += tap  # each row once
    return out.to(device, dtype)


@cache
def halving(n: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "n m"]:
    """[n, 2n + 10]: back to n pixels, from the fine places -5 .. 2n + 4; the transpose of doubling."""
    out = torch.zeros(n, 2 * n + 2 * REACH, dtype=torch.float64)
    for k, tap in enumerate(SYM6):
        out[torch.arange(n), 2 * torch.arange(n) + k] = tap
    return out.to(device, dtype)

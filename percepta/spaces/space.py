"""Space: a frozen map from samples to a tuple of feature tensors, and the graph that spaces form.

A Space may stand on another one (`Vgg(on=Decode(vae))`): it then reads that one's features instead of the samples, and the
upstream is computed once for all its readers. A Space declares what it reads and refuses the rest.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.discrepancies.layers import squared_error

Features = tuple[Tensor, ...]


@dataclass(frozen=True)
class Reads:
    """What a Space accepts: images in [-1, 1] or latents, how many channels, how small a side."""

    kind: str = "images"  # images | latents | anything
    channels: int | None = 3
    min_size: int = 1

    def check(self, x: Tensor, reader: str) -> None:
        if self.kind == "anything":
            return
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(f"{reader} reads float {self.kind} [b, c, h, w], got {x.dtype} {tuple(x.shape)}")
        if self.channels is not None and x.shape[1] != self.channels:
            advice = (
                "are these of another autoencoder?"
                if self.kind == "latents"
                else "latents are decoded first: Space(on=Decode(vae))"
            )
            raise ValueError(f"{reader} reads {self.kind} of {self.channels} channels, got {x.shape[1]}; {advice}")
        if min(x.shape[2:]) < self.min_size:
            raise ValueError(f"{reader} needs at least {self.min_size} x {self.min_size}, got {x.shape[2]} x {x.shape[3]}")


class Space(nn.Module):
    """forward(*upstream) -> features. Frozen and in eval mode for good; gradients pass through it to its input.

    `name` is what records call it ("alex", "inception"): metrics in a space that a model was trained against are marked by it. Where a
    class gives none, it is the class's own in lower case.
    """

    reads = Reads()
    name: str = ""
    resizes = False  # brings images of any size to its own

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.name:
            cls.name = cls.__name__.lower()

    def __init__(self, on: "Space | None" = None) -> None:
        super().__init__()
        self.on = on

    def freeze(self) -> "Space":
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Space":
        """A Space stays in eval mode: batch norm statistics of a frozen network never move."""
        return super().train(False)

    def features(self, x: Float[Tensor, "b c *d"], known: MutableMapping["Space", Features]) -> Features:
        """The features of x, each Space of the graph computed at most once."""
        if self not in known:
            upstream = (x,) if self.on is None else self.on.features(x, known)
            if self.on is None:
                self.reads.check(x, type(self).__name__)
            known[self] = self(*upstream)
        return known[self]

    def between(self, x: Features, y: Features) -> Float[Tensor, "b"]:
        """How far the features of each pair are apart: the mean squared error of each layer, summed. A calibrated space has its own."""
        return squared_error(x, y)


class Pixels(Space):
    """The samples themselves."""

    reads = Reads("anything", None)

    def forward(self, x: Tensor) -> Features:
        return (x,)


class Resized(Space):
    """Another space, reading images that were brought to size x size first: T of Cas-DM's equation 13."""

    def __init__(self, space: Space, size: int) -> None:
        super().__init__()
        if space.on is not None:
            raise ValueError(f"the space {space.name} stands on another: resize below that, or give the size None")
        if size < space.reads.min_size:
            raise ValueError(f"the space {space.name} needs images of {space.reads.min_size} pixels or more, got the size {size}")
        self.space, self.size = space, size
        self.name, self.reads = space.name, Reads(space.reads.kind, space.reads.channels)
        self.freeze()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Features:
        return self.space(resized(x, self.size))

    def between(self, x: Features, y: Features) -> Float[Tensor, "b"]:
        return self.space.between(x, y)


def enlarging(space: Space, size: int) -> Space:
    """The space, or, where images of this side are too small for it, the same on images enlarged by the least whole factor."""
    factor = -(-space.reads.min_size // size)
    return space if factor <= 1 else Resized(space, factor * size)


def resized(x: Float[Tensor, "b c h w"], size: int) -> Float[Tensor, "b c s s"]:
    """Bilinear to size x size, without antialiasing, as the perceptual losses of the papers do it."""
    if x.shape[-2:] == (size, size):
        return x
    return torch.nn.functional.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)

"""Metric: how far an estimate is from its target as a metric function sees it (Cas-DM, eq. 13).

    L = d( f(T x0), f(T x0_hat) )

T resizes to 224 x 224, bilinear; the range stays [-1, 1], and each space f brings it to its own normalisation. d is the space's own: LPIPS,
DISTS, or the mean squared error of each layer, summed.

No clamp: x0_hat may leave [-1, 1], as a network's output does, and its gradient comes back from there. The targets are images: a set in
[0, 255] passes through every network without an error, and trains against nonsense, so it is refused.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.estimate import Estimate
from percepta.objectives.term import AbstractPerSample
from percepta.spaces.space import Features, Resized, Space

SIZE = 224  # eq. 13
FARTHEST = 1.5  # of a target in [-1, 1]: some autoencoders and resizes overshoot a little


class Metric(AbstractPerSample):
    """The distance of each x0_hat to its x0 in `space`. `size`: both are resized to it first; None leaves them as they are. A space that
    brings images to a size of its own (DINOv2, CLIP, domain) gets them as they are in any case, and so does one that reads latents.

    The features of targets that are known beforehand are computed once, by `of`; `between` takes them.
    """

    def __init__(self, space: Space, size: int | None = SIZE) -> None:
        if size is not None and size < 1:
            raise ValueError(f"images are resized to 1 pixel or more, or None leaves them as they are; got {size}")
        latents = space.reads.kind == "latents"
        self.space = space if size is None or space.resizes or latents else Resized(space, size)
        self._looked = False

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        self._check(est)
        self._check_range(est.x0)
        real, fake = est.features(self.space)
        return self.space.between(real, fake)

    @torch.no_grad()
    def of(self, x0: Float[Tensor, "b c h w"]) -> Features:
        """The features of targets, for `between`."""
        self._check_range(x0)
        return self.space.features(x0, {})

    def between(self, real: Features, est: Estimate) -> Float[Tensor, "b"]:
        """The same distance, where `of` has given the features of est.x0 before."""
        self._check(est)
        if len(real[0]) != len(est):
            raise ValueError(f"known features of {len(real[0])} targets do not belong to an estimate of {len(est)} images")
        return self.space.between(real, self.space.features(est.x0_hat, {}))

    def _check(self, est: Estimate) -> None:
        if not est.paired or est.x0.shape != est.x0_hat.shape:
            raise ValueError(
                f"a metric function compares an image with its own target, got {tuple(est.x0_hat.shape)} and {tuple(est.x0.shape)}"
                f"{'' if est.paired else ', unpaired'}: use Mmd for sets"
            )
        self.space.reads.check(est.x0_hat, f"the metric {self.space.name}")

    def _check_range(self, x0: Tensor) -> None:
        """Of every batch on a CPU; elsewhere of the first one, since a device waits where a number is read from it."""
        if self.space.reads.kind == "latents" or (self._looked and x0.device.type != "cpu"):
            return
        self._looked = True
        farthest = float(x0.detach().abs().max()) if x0.numel() else 0.0
        if not farthest <= FARTHEST:
            raise ValueError(
                f"the metric {self.space.name} expects images in [-1, 1], got values up to {farthest:.4g}: bring them there first"
            )

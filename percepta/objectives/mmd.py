"""Mmd: the squared maximum mean discrepancy of generated and real features (MMD-DDM, eq. 7), as an objective of the whole batch.

The kernel batch is the global one: ranks gather their features with gradient, and what splits the batch for memory's sake does not
change the loss. Pixels beyond [-1, 1] are clamped for the space, which expects none, while the gradient passes: a hard clamp would leave a
saturated pixel without any.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from percepta.discrepancies.mmd import CUBIC, AbstractKernel, mmd2
from percepta.distributed import gather_rows
from percepta.estimate import Estimate
from percepta.objectives.term import AbstractPerBatch
from percepta.spaces import Space

Clamp = Literal["straight", "hard", "none"]


class Mmd(AbstractPerBatch):
    """MMD^2 in the first feature of `space`, one row per image. `chunk`: images that go through the space at a time with a graph."""

    def __init__(self, space: Space, kernel: AbstractKernel = CUBIC, chunk: int | None = None, clamp: Clamp = "straight") -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"a chunk has 1 image or more, got {chunk}")
        if clamp not in ("straight", "hard", "none"):
            raise ValueError(f"clamp is straight, hard or none, got {clamp!r}")
        self.space, self.kernel, self.chunk = space, kernel, chunk
        self.clamp: Clamp = clamp

    def __call__(self, est: Estimate) -> Float[Tensor, ""]:
        with torch.no_grad():
            real = self._in_chunks(est.x0)
        return mmd2(gather_rows(self._in_chunks(est.x0_hat)), gather_rows(real), self.kernel)

    def _in_chunks(self, x: Tensor) -> Tensor:
        if self.chunk is None or not torch.is_grad_enabled():
            return torch.cat([self.rows(part) for part in x.split(self.chunk or max(1, len(x)))])
        parts = [checkpoint(self.rows, part, use_reentrant=False, preserve_rng_state=False) for part in x.split(self.chunk)]
        return torch.cat(parts)  # pyright: ignore[reportArgumentType]

    def rows(self, x: Tensor) -> Tensor:
        """Features of images, a row each."""
        features = self.space.features(clamped(x, self.clamp), {})
        if len(features) != 1:
            raise ValueError(
                f"MMD reads one feature per image, the space {self.space.name} gives {len(features)}: name one layer of it"
            )
        return features[0].flatten(1)


def clamped(x: Tensor, how: Clamp) -> Tensor:
    """Within [-1, 1]; `straight` passes the gradient as if nothing had been clamped."""
    if how == "none":
        return x
    inside = x.clamp(-1, 1)
    return inside if how == "hard" else x + (inside - x).detach()

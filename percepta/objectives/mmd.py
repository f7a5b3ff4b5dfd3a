"""Mmd: the squared maximum mean discrepancy of generated and real features (MMD-DDM, eq. 7), as an objective of the whole batch.

The kernel batch is the global one: ranks gather their features with gradient, and what splits the batch for memory's sake does not
change the loss. Pixels beyond [-1, 1] are clamped for the space, which expects none, while the gradient passes: a hard clamp would leave a
saturated pixel without any.

The real side has no gradient, and real images come again in every epoch: their features are kept, by the images' bytes, so that each is
computed once. Computing is done in chunks of one size, or a row's last bits would depend on which rows were known before.
"""

from collections.abc import Callable
from hashlib import blake2b
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
    """MMD^2 in the first feature of `space`, one row per image. `chunk`: images that go through the space at a time.

    `memory`: bytes of real features to keep, which need a `chunk`; 0 for none.
    """

    def __init__(
        self, space: Space, kernel: AbstractKernel = CUBIC, chunk: int | None = None, clamp: Clamp = "straight", memory: int = 2**30
    ) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"a chunk has 1 image or more, got {chunk}")
        if clamp not in ("straight", "hard", "none"):
            raise ValueError(f"clamp is straight, hard or none, got {clamp!r}")
        self.space, self.kernel, self.chunk = space, kernel, chunk
        self.clamp: Clamp = clamp
        self.known = Known(self.rows, chunk, memory) if chunk is not None and memory else None

    def __call__(self, est: Estimate) -> Float[Tensor, ""]:
        with torch.no_grad():
            real = self._in_chunks(est.x0) if self.known is None else self.known(est.x0)
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


class Known:
    """Features of images by their bytes, kept in at most `memory` bytes; `chunk` images are computed at a time, always."""

    def __init__(self, rows: Callable[[Tensor], Tensor], chunk: int, memory: int) -> None:
        self.rows, self.chunk, self.memory = rows, chunk, memory
        self.kept: dict[bytes, Tensor] = {}
        self.bytes = self.computed = 0

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        keys = [blake2b(image.tobytes(), digest_size=16).digest() for image in x.detach().float().cpu().contiguous().numpy()]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        new = sorted(row for key, row in first.items() if key not in self.kept)
        found: dict[bytes, Tensor] = {}
        for start in range(0, len(new), self.chunk):
            some = new[start : start + self.chunk]
            full = [*some, *[some[-1]] * (self.chunk - len(some))]
            found |= zip((keys[row] for row in some), self.rows(x[full]), strict=False)
            self.computed += len(some)
        out = torch.stack([found[key] if key in found else self.kept[key] for key in keys])
        for key, row in found.items():
            if self.bytes + row.nbytes > self.memory:
                break
            self.kept[key] = row.clone()
            self.bytes += row.nbytes
        return out

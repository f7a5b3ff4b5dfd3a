"""Rows: one row of features per image, for objectives that judge a whole batch: a chunk of images at a time, and again in the backward pass.

Pixels beyond [-1, 1] are clamped for the space, which expects none, while the gradient passes: a hard clamp would leave a saturated pixel without
any. Latents are decoded first.

Real images come again in every epoch: their features are kept, by the images' bytes, so that each is computed once. Computing is done in chunks
of one size, or a row's last bits would depend on which rows were known before.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from percepta.spaces import Space

Clamp = Literal["straight", "hard", "none"]
MEMORY = 2**30  # bytes of real features to keep
PART = 2**18  # words of images that are multiplied at a time: more fall out of a processor's cache


@runtime_checkable
class Decodes(Protocol):
    def decode(self, z: Tensor) -> Tensor: ...


class Rows:
    """Images (or latents, of which `decoder` makes images) to rows of the first feature of `space`. `chunk`: images that go through at a time.

    `memory`: bytes of real features to keep, which need a `chunk`; 0 for none.
    """

    def __init__(
        self, space: Space, chunk: int | None = None, clamp: Clamp = "straight", memory: int = MEMORY, decoder: Decodes | None = None
    ) -> None:  # fmt: skip
        if chunk is not None and chunk < 1:
            raise ValueError(f"a chunk has 1 image or more, got {chunk}")
        if clamp not in ("straight", "hard", "none"):
            raise ValueError(f"clamp is straight, hard or none, got {clamp!r}")
        self.space, self.chunk, self.decoder = space, chunk, decoder
        self.clamp: Clamp = clamp
        self.known = Known(self.of, chunk, memory) if chunk is not None and memory else None
        self.version = 0

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Float[Tensor, "b d"]:
        """With gradient, where it is enabled; memory is that of one chunk. `weights` stand in for the space's own."""
        parts = x.split(self.chunk or max(1, len(x)))
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([self.of(part, weights) for part in parts])
        again = [checkpoint(self.of, part, weights, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(again)  # pyright: ignore[reportArgumentType]

    def real(self, x: Tensor) -> Float[Tensor, "b d"]:
        """Without gradient, and of images that were seen before without computing."""
        with torch.no_grad():
            if self.known is None:
                return self(x)
            if (version := sum(p._version for p in self.space.parameters())) != self.version:  # others were loaded
                self.forget()
                self.version = version
            return self.known(x)

    def anew(self, x: Tensor) -> Float[Tensor, "b d"]:
        """The same to the bit, of a space that is about to move: nothing is looked up, and nothing kept."""
        with torch.no_grad():
            return self(x) if self.known is None else self.known.anew(x)

    def forget(self) -> None:
        """What is known belongs to other weights: to be called before the space moves. A fused optimizer leaves no sign that it has."""
        if self.known is not None:
            self.known.clear()

    def of(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Float[Tensor, "b d"]:
        """All at once."""
        images = clamped(x if self.decoder is None else self.decoder.decode(x), self.clamp)
        if weights is None or self.space.on is not None:
            features = self.space.features(images, {})
        else:
            self.space.reads.check(images, type(self.space).__name__)
            features = functional_call(self.space, dict(weights), (images,))
        if len(features) != 1:
            raise ValueError(
                f"one feature per image is read, and the space {self.space.name} gives {len(features)}: name one layer of it"
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

    def clear(self) -> None:
        self.kept.clear()
        self.bytes = 0

    def anew(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Of every image, as if none were known, and none is kept."""
        rows: list[Tensor] = []
        for part in x.split(self.chunk):
            filling = part[-1:].expand(self.chunk - len(part), *part.shape[1:])
            rows.append(self.rows(torch.cat([part, filling]))[: len(part)])
        self.computed += len(x)
        return torch.cat(rows)

    def __call__(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        keys = fingerprints(x)
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        new = sorted(row for key, row in first.items() if key not in self.kept)
        found = dict(zip((keys[row] for row in new), self.anew(x[new]), strict=True)) if new else {}
        out = torch.stack([found[key] if key in found else self.kept[key] for key in keys])
        for key, row in found.items():
            if self.bytes + row.nbytes > self.memory:
                break
            self.kept[key] = row.clone()
            self.bytes += row.nbytes
        return out


def fingerprints(x: Float[Tensor, "b c h w"]) -> list[bytes]:
    """128 bits of each image, found where the images are: two sums of its words times fixed odd numbers, modulo 2^64.

    A hash of the bytes themselves would bring all images to the CPU, and takes two to four times as long there.
    """
    words = x.detach().float().contiguous().flatten(1).view(torch.int32)
    factors = _factors(words.shape[1], x.device)
    parts = words.split(max(1, PART // words.shape[1]))
    keys = torch.cat([torch.stack([(part * factor).sum(1) for factor in factors], dim=1) for part in parts])
    return [row.tobytes() for row in keys.cpu().numpy()]


@lru_cache(maxsize=4)
def _factors(count: int, device: torch.device) -> Tensor:
    drawn = torch.randint(-(2**63), 2**63 - 1, (2, count), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    return (drawn | 1).to(device)

"""Randomness that depends on what is drawn, never on who draws it.

Every random number of a run is a function of (seed, stream, name, ordinal): the ordinal of a sample counts all samples the run
has seen, over all ranks and steps. Two ranks, four micro-batches or a resumed run therefore draw the same times and the same
noise as one uninterrupted process, and no random state has to be saved. Samples are drawn in blocks of eight neighbours, so
that a GPU launches one kernel for eight rows; a batch that cuts a block draws the whole block and keeps its rows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

CPU = torch.device("cpu")
BLOCK = 8  # neighbouring samples that share one generator; part of the definition: another value gives other numbers


def mix(*parts: int | str) -> int:
    """A 63-bit seed from any mixture of numbers and names; the same on every platform and Python."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Rng:
    """Random numbers for a batch whose rows know their place in the whole stream of samples.

    `ordinals` are the rows' places, `step` the optimizer step (for what is drawn once per batch), `stream` separates uses that
    must not share numbers (training, sampling, evaluation). Each `name` is an independent source: drawing one does not move another.
    """

    seed: int
    ordinals: tuple[int, ...]
    step: int = 0
    stream: str = "train"
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.ordinals)

    def normal(self, name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers on the rng's device, [rows, *shape]."""
        return self._draw(name, tuple(shape), dtype, "normal_")

    def uniform(self, name: str) -> Tensor:
        """One uniform number in [0, 1) per row, float64 on the CPU: few numbers that decide times and choices."""
        return self.to("cpu")._draw(name, (), torch.float64, "uniform_")

    def once(self, name: str) -> torch.Generator:
        """A CPU generator for what is drawn once per step: the same on every rank and in every micro-batch of the step."""
        return torch.Generator().manual_seed(mix(self.seed, self.stream, name, "step", self.step))

    def select(self, rows: Sequence[int] | slice) -> "Rng":
        """The randomness of some of the rows: what they draw does not change."""
        kept = self.ordinals[rows] if isinstance(rows, slice) else tuple(self.ordinals[i] for i in rows)
        return replace(self, ordinals=kept)

    def fork(self, stream: str) -> "Rng":
        """The same rows in a stream of their own."""
        return replace(self, stream=f"{self.stream}/{stream}")

    def to(self, device: torch.device | str) -> "Rng":
        return replace(self, device=torch.device(device))

    def _draw(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, fill: str) -> Tensor:
        out = torch.empty((len(self.ordinals), *shape), dtype=dtype, device=self.device)
        generator = torch.Generator(device=self.device)
        row = 0
        while row < len(self.ordinals):
            block, offset = divmod(self.ordinals[row], BLOCK)
            count = 1  # rows of this block that follow each other
            while (
                row + count < len(self.ordinals)
                and self.ordinals[row + count] == block * BLOCK + offset + count
                and offset + count < BLOCK
            ):
                count += 1
            generator.manual_seed(mix(self.seed, self.stream, name, block))
            if count == BLOCK:
                getattr(out[row : row + BLOCK], fill)(generator=generator)
            else:
                drawn = torch.empty((BLOCK, *shape), dtype=dtype, device=self.device)
                getattr(drawn, fill)(generator=generator)
                out[row : row + count] = drawn[offset : offset + count]
            row += count
        return out


def rng_for(seed: int, first: int, rows: int, step: int = 0, stream: str = "train", device: torch.device | str = "cpu") -> Rng:
    """The randomness of `rows` samples that follow each other from place `first`."""
    return Rng(seed, tuple(range(first, first + rows)), step, stream, torch.device(device))


def seed_torch(seed: int, device: torch.device) -> None:
    """torch.manual_seed for the devices in use (dropout draws there): that one also takes a stack trace for each kind of device that is not."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)

"""Count, mean and scatter of rows of features: all that a Frechet distance reads, streamed and merged exactly in float64.

Chunks are centred on their own means and merged by Chan, Golub & LeVeque (1979):

    n = n_a + n_b,   delta = m_b - m_a,   m = m_a + delta n_b / n,   S = S_a + S_b + delta delta^T n_a n_b / n

Raw sums of x x^T would cancel where features lie far from 0, and sums about a fixed shift need a shift that every rank and every resumed
run agrees on before it has seen a row; this needs neither. Floating-point sums depend on their order, so the order is part of the
definition: rows are cut into chunks of CHUNK and the chunks merged from first to last. Whoever works out chunks elsewhere (another rank, an
earlier run) and merges them in that order has the same bits, on the same hardware with as many threads.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from percepta.discrepancies.frechet import Gaussian
from percepta.evaluation.blocks import AnyRows, check_rows, slices

CHUNK = 2048


@dataclass(frozen=True)
class Moments:
    """count, mean and scatter = sum (x - mean)(x - mean)^T, in float64."""

    count: int
    mean: Float64[Tensor, "d"]
    scatter: Float64[Tensor, "d d"]

    @classmethod
    def of(cls, rows: AnyRows, chunk: int = CHUNK) -> "Moments":
        """Of all rows, `chunk` at a time."""
        check_rows(1, rows=rows)
        return cls.total(cls.of_chunk(rows[part]) for part in slices(len(rows), chunk))

    @classmethod
    def of_chunk(cls, rows: AnyRows) -> "Moments":
        """Of rows that are one chunk."""
        wide = torch.as_tensor(rows, dtype=torch.float64) if isinstance(rows, Tensor) else torch.from_numpy(rows.astype("float64"))
        mean = wide.mean(0)
        centred = wide - mean
        return cls(len(wide), mean, centred.T @ centred)

    @classmethod
    def total(cls, parts: "Iterable[Moments]") -> "Moments":
        """The parts merged from first to last."""
        walk = iter(parts)
        first = next(walk, None)
        if first is None:
            raise ValueError("there are no moments to merge: no rows were read")
        for part in walk:
            first = first + part
        return first

    def __add__(self, other: "Moments") -> "Moments":
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"moments of {len(self.mean)} and {len(other.mean)} dimensions cannot be merged")
        count = self.count + other.count
        delta = other.mean - self.mean
        shift = torch.outer(delta, delta).mul_(self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), shift.add_(self.scatter).add_(other.scatter))

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased one, over count - 1, as numpy.cov."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two rows or more, got {self.count}")
        return self.scatter / (self.count - 1)

    def gaussian(self) -> Gaussian:
        return Gaussian(self.mean, self.covariance, self.count)

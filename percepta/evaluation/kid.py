"""KID (Binkowski et al. 2018): the unbiased squared MMD with the cubic kernel, averaged over random subsets.

Subsets are drawn as torch-fidelity draws them (numpy's legacy generator, generated side first, without replacement), so values agree
with its own. A value below 0 is possible and right: the estimator's mean is 0 for equal distributions.

The kernel of all rows is worked out once, in blocks, and summed over every subset at the same time: with the 0/1 matrix S of subsets by
rows, the sums are the row sums of (S_i K_ij) * S_j. Where the sets are so large that this costs more than the subsets' own kernels, those
are worked out one subset after another by the same code. K_xx is symmetric: only its blocks on and above the diagonal are computed. A constant
taken off the kernel changes nothing (`discrepancies.mmd`) and keeps float32's digits.
"""

import numpy as np
import torch
from torch import Tensor

from percepta.discrepancies.mmd import Polynomial
from percepta.evaluation.blocks import BLOCK, AnyRows, check_rows, plain_products, product, slices, take


def kid(
    real: AnyRows, fake: AnyRows, subsets: int = 100, size: int = 1000, seed: int = 2020,
    kernel: Polynomial = Polynomial(), block: int = BLOCK,  # noqa: B008  (frozen)
) -> tuple[float, float]:  # fmt: skip
    """(mean, spread) of the squared MMD over the subsets."""
    check_rows(2, real=real, fake=fake)
    if subsets < 1 or size < 2:
        raise ValueError(f"KID needs at least 1 subset of at least 2 rows, got {subsets} of {size}")
    if size > min(len(real), len(fake)):
        raise ValueError(
            f"subsets of {size} rows cannot be drawn from {len(real)} real and {len(fake)} generated ones: choose a smaller size"
        )
    draw = np.random.RandomState(seed)
    picks = [(draw.choice(len(fake), size, replace=False), draw.choice(len(real), size, replace=False)) for _ in range(subsets)]
    with plain_products():
        evaluate = _Sums(kernel, _centre(real, fake, kernel), block)
        if _whole_is_cheaper(len(real), len(fake), subsets, size, block):
            values = evaluate.mmd2(real, fake, _chosen([p[1] for p in picks], len(real)), _chosen([p[0] for p in picks], len(fake)))
        else:
            ones = torch.ones(1, size)
            values = torch.cat([evaluate.mmd2(take(real, r), take(fake, f), ones, ones) for f, r in picks])
    return values.mean().item(), values.std(correction=0).item()


def _whole_is_cheaper(real: int, fake: int, subsets: int, size: int, block: int) -> bool:
    """By the number of kernel values to work out."""

    def pairs(m: int, n: int) -> int:
        return m * n + sum(k * (k + block) // 2 for k in (m, n))

    return pairs(real, fake) <= subsets * pairs(size, size)


def _chosen(picks: list[np.ndarray], count: int) -> Tensor:
    """[subsets, count]: 1 where a row belongs to a subset."""
    out = torch.zeros(len(picks), count)
    return out.scatter_(1, torch.from_numpy(np.stack(picks)), 1.0)


def _centre(real: AnyRows, fake: AnyRows, kernel: Polynomial) -> float:
    """About the mean of the kernel between the two sides."""
    return kernel(take(fake, slice(0, 256)), take(real, slice(0, 256))).mean().item()


class _Sums:
    """Sums of kernel - centre over subsets, in blocks of rows."""

    def __init__(self, kernel: Polynomial, centre: float, block: int) -> None:
        self.kernel = kernel
        self.centre = centre
        self.block = block

    def mmd2(self, real: AnyRows, fake: AnyRows, s_real: Tensor, s_fake: Tensor) -> Tensor:
        """[subsets]: the unbiased estimate of each subset; the S matrices hold 1 where a row belongs to it."""
        size = s_real[0].sum().item()
        within = self._within(real, s_real) + self._within(fake, s_fake)
        return within / (size * (size - 1)) - 2 * self._between(real, fake, s_real, s_fake) / size**2

    def _pairs(self, x: Tensor, y: Tensor) -> Tensor:
        gamma = 1 / x.shape[1] if self.kernel.gamma is None else self.kernel.gamma
        base = product(x, y).mul_(gamma).add_(self.kernel.coef0)
        return base.pow_(self.kernel.degree).sub_(self.centre)

    def _between(self, x: AnyRows, y: AnyRows, s_x: Tensor, s_y: Tensor) -> Tensor:
        total = torch.zeros(len(s_x), dtype=torch.float64)
        for i in slices(len(x), self.block):
            left = take(x, i)
            for j in slices(len(y), self.block):
                total += self._summed(self._pairs(left, take(y, j)), s_x[:, i], s_y[:, j])
        return total

    def _within(self, x: AnyRows, s: Tensor) -> Tensor:
        """Over pairs of different rows."""
        total = torch.zeros(len(s), dtype=torch.float64)
        blocks = slices(len(x), self.block)
        for n, i in enumerate(blocks):
            left = take(x, i)
            for j in blocks[n:]:
                k = self._pairs(left, left if i == j else take(x, j))
                if i == j:
                    k.fill_diagonal_(0)
                total += self._summed(k, s[:, i], s[:, j]) * (1 if i == j else 2)
        return total

    @staticmethod
    def _summed(k: Tensor, s_x: Tensor, s_y: Tensor) -> Tensor:
        """Each subset's sum over a block of pairs, on the CPU."""
        s_x, s_y = s_x.to(k.device), s_y.to(k.device)
        return (product(s_y.contiguous(), k) * s_x).sum(1, dtype=torch.float64).cpu()

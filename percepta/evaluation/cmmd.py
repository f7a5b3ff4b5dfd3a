"""CMMD (Jayasumana et al. 2024): 1000 times the squared MMD of CLIP embeddings under one radial kernel of bandwidth 10.

The authors' estimator is the biased one, diagonals included (Gretton et al. 2012, eq. 5), on embeddings of length 1. There all kernel
values lie between 0.98 and 1, so their distances from 1 are summed, in float64: sums of the values themselves lose four digits in float32.
"""

import torch
from torch import Tensor

from percepta.evaluation.blocks import BLOCK, AnyRows, check_rows, plain_products, product, slices, take

BANDWIDTH = 10.0
SCALE = 1000.0


def cmmd(x: AnyRows, y: AnyRows, normalise: bool = True, block: int = BLOCK) -> float:
    """The distance of two sets of embeddings, each row scaled to length 1 first unless `normalise` is False. Symmetric in x and y."""
    check_rows(1, x=x, y=y)
    with plain_products():
        return SCALE * (_mean(x, x, normalise, block) + _mean(y, y, normalise, block) - 2 * _mean(x, y, normalise, block))


def _unit(rows: Tensor, normalise: bool) -> Tensor:
    if not normalise:
        return rows
    length = rows.norm(dim=1, keepdim=True)
    if (length == 0).any():
        raise ValueError("an embedding of length 0 has no direction: CMMD cannot be worked out for it")
    return rows / length


def _mean(x: AnyRows, y: AnyRows, normalise: bool, block: int) -> float:
    """Mean of k - 1 over all pairs of rows; of equal sides only the blocks on and above the diagonal are worked out."""
    total = 0.0
    for i, rows in enumerate(slices(len(x), block)):
        a = _unit(take(x, rows), normalise)
        a_norm = a.square().sum(1, keepdim=True)
        for columns in slices(len(y), block)[i if x is y else 0 :]:
            b = _unit(take(y, columns), normalise)
            d2 = product(-2 * a, b, b.square().sum(1)).add_(a_norm)
            part = d2.mul_(-1 / (2 * BANDWIDTH**2)).expm1_().sum(dtype=torch.float64).item()
            total += part * (2 if x is y and columns != rows else 1)
    return total / (len(x) * len(y))

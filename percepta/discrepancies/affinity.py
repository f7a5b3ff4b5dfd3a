"""Affinity: how alike the samples of a batch are to each other, and how far two such matrices are apart (SADM, Yang et al. 2024).

    M_ij = R(f_i, f_j)        gap = 1/n^2 sum_ij eta_ij D(M_ij, M'_ij)

R is the cosine of two features by default, D the square: each term is then at most 4 eta. Whatever R is, a factor on all features changes nothing:
without that, features that grow would make any gap as large as one likes, and a critic would do nothing else.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Relation = Literal["cosine", "euclidean", "kernel"]
Distance = Literal["l2", "l1"]
TINY = 1e-6


def affinity(x: Float[Tensor, "n d"], relation: Relation = "cosine") -> Float[Tensor, "n n"]:
    """The relation of each pair of rows, in float32 or better, under autocast too.

    cosine: of the angle between them. euclidean: their distance over the mean distance of all pairs. kernel: exp(-d^2/(2 s^2)) with s^2 the
    mean squared distance of all pairs.
    """
    if relation not in ("cosine", "euclidean", "kernel"):
        raise ValueError(f"a relation is cosine, euclidean or kernel, got {relation!r}")
    with torch.autocast(
        x.device.type, enabled=False
    ):  # products of bfloat16 have three digits, and what counts are small differences
        return _relation(x.to(torch.promote_types(x.dtype, torch.float32)), relation)


def _relation(x: Tensor, relation: Relation) -> Tensor:
    if relation == "cosine":
        unit = F.normalize(x, dim=1, eps=TINY)
        return unit @ unit.T
    squared = squared_distances(x)
    pairs = max(len(x) * (len(x) - 1), 1)
    if relation == "kernel":
        return (-squared / (2 * squared.sum() / pairs + TINY**2)).exp()
    far = squared > 0
    distance = torch.where(far, squared, 1).sqrt() * far  # the root has no gradient at 0, and the diagonal is there
    return distance / (distance.sum() / pairs + TINY)


def squared_distances(x: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    """|x_i - x_j|^2, exactly 0 on the diagonal; about the mean of the rows, which costs no digits."""
    x = x - x.mean(0, keepdim=True).detach()
    gram = x @ x.T
    norms = gram.diagonal()
    squared = (norms[:, None] + norms[None] - 2 * gram).clamp(min=0)
    return squared * ~torch.eye(len(x), dtype=torch.bool, device=x.device)


def affinity_gap(
    real: Float[Tensor, "n n"], fake: Float[Tensor, "n n"], distance: Distance = "l2", eta: Float[Tensor, "n"] | float = 1.0
) -> Float[Tensor, ""]:
    """The mean over all n^2 pairs, the diagonal with them. An eta for each sample weighs a pair by the root of the product of its two."""
    if distance not in ("l2", "l1"):
        raise ValueError(f"a distance is l2 or l1, got {distance!r}")
    gap = (real - fake).square() if distance == "l2" else (real - fake).abs()
    if isinstance(eta, Tensor):
        root = eta.to(gap).sqrt()
        gap = gap * root[:, None] * root[None]
        return gap.mean() if len(gap) else gap.sum()
    return eta * (gap.mean() if len(gap) else gap.sum())


def affinity_correlation(real: Float[Tensor, "n n"], fake: Float[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Pearson's correlation of the two matrices' entries beside the diagonal: 1 where the structure is the same. 0 where one is constant."""
    n = len(real)
    if n < 3:
        return real.new_zeros(())
    off = 1 - torch.eye(n, dtype=real.dtype, device=real.device)  # factors, not places: those would have to be counted, with a wait
    a, b = ((m - (m * off).sum() / (n * n - n)) * off for m in (real, fake))
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return torch.where(scale > 0, (a * b).sum() / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0)

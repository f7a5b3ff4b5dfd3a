"""Inception Score (Salimans et al. 2016): exp of the mean KL(p(y|x) || p(y)), per split, then mean and spread over the splits.

torch-fidelity shuffles the rows with a fixed seed and cuts 10 splits; ADM's evaluator cuts runs of 5,000 in the order of the file, the last
one as short as it comes, and reports the mean alone. Both in float64 from the logits, one split in memory at a time.
"""

from itertools import pairwise

import numpy as np
import torch

from percepta.evaluation.blocks import AnyRows, check_rows, take

ADM_SPLIT = 5000


def inception_score(
    logits: AnyRows, splits: int | None = 10, split_size: int | None = None, seed: int | None = 2020
) -> tuple[float, float]:
    """(mean, spread over the splits). Either `splits` of rows shuffled with `seed` (None: as they come), or runs of `split_size` rows
    in order."""
    check_rows(1, logits=logits)
    count = len(logits)
    if split_size is not None:
        if split_size < 1:
            raise ValueError(f"a split has at least one row, got {split_size}")
        cuts = [*range(0, count, split_size), count]
    elif splits is not None and 1 <= splits <= count:
        cuts = [k * count // splits for k in range(splits + 1)]
    else:
        raise ValueError(f"between 1 and {count} splits can be cut from {count} rows, got {splits}; or give their size")
    order = np.arange(count)
    if split_size is None and seed is not None:
        order = np.random.RandomState(seed).permutation(count)
    scores = [_score(take(logits, order[a:b]).double()) for a, b in pairwise(cuts)]
    return float(np.mean(scores)), float(np.std(scores))


@torch.no_grad()
def _score(logits: torch.Tensor) -> float:
    p = logits.softmax(1)
    q = p.mean(0)
    # KL averaged over rows = sum q log(1/q) - sum p log(1/p); xlogy, because a class of probability 0 adds nothing
    return (torch.special.xlogy(p, p).sum(1).mean() - torch.special.xlogy(q, q).sum()).exp().item()

"""LPIPS diversity: the mean LPIPS distance of pairs of generated images. It falls where a model repeats itself.

Pairs are drawn without repetition by a fixed seed, or all of them taken where there are no more than asked for; the number belongs to its
`pairs`, and says nothing about quality: noise is diverse.
"""

from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from percepta.spaces.lpips import Lpips, trunk_hash

DIVERSITY_SPACE = "lpips-alex"
PAIRS = 1000


def draw_pairs(count: int, pairs: int, seed: int) -> Int64[np.ndarray, "p 2"]:
    """Distinct pairs i < j of `count` images."""
    if count < 2:
        raise ValueError(f"LPIPS diversity needs at least 2 images, got {count}")
    if pairs < 1:
        raise ValueError(f"LPIPS diversity needs at least one pair, got {pairs}")
    total = count * (count - 1) // 2
    chosen = range(total) if total <= pairs else np.random.default_rng(seed).choice(total, pairs, replace=False).tolist()
    out = []
    for k in chosen:  # k = j (j - 1) / 2 + i
        j = (1 + isqrt(1 + 8 * k)) // 2
        out.append((k - j * (j - 1) // 2, j))
    return np.array(out, dtype=np.int64)


def diversity_facts(count: int) -> dict[str, Any]:
    """What the protocol says of the diversity of so many images."""
    pairs = min(PAIRS, count * (count - 1) // 2)
    return {"weights": trunk_hash("alex"), "resize": "none", "precision": "fp32", "layers": ["lpips"], "pairs": pairs}


def lpips_diversity(
    read: Callable[[Sequence[int]], Sequence[np.ndarray]],
    count: int,
    pairs: int = PAIRS,
    seed: int = 0,
    device: str = "cpu",
    batch: int = 16,
    space: Lpips | None = None,
) -> float:
    """The mean over `pairs` pairs. `read(indices)` gives uint8 images [h, w, 3]; `space` is LPIPS on AlexNet unless another is given."""
    chosen = draw_pairs(count, pairs, seed)
    distance = (Lpips("alex") if space is None else space).to(device)
    total = 0.0
    for start in range(0, len(chosen), batch):
        part = chosen[start : start + batch]
        names = sorted(set(part.ravel().tolist()))
        images = dict(zip(names, (_as_tensor(image) for image in read(names)), strict=True))
        shapes = {tuple(image.shape[1:]) for image in images.values()}
        if len(shapes) > 1:
            raise ValueError(f"LPIPS diversity compares images of one size, got {sorted(shapes)[:3]}: bring them to one size first")
        with torch.no_grad():
            stacked = torch.stack([images[name] for name in names]).to(device)
            distance.reads.check(stacked, "LPIPS diversity")
            features = distance(stacked)
            place = {name: row for row, name in enumerate(names)}
            left, right = (torch.tensor([place[int(i)] for i in side], device=device) for side in part.T)
            values = distance.between(tuple(f[left] for f in features), tuple(f[right] for f in features))
            total += float(values.double().sum())
    return total / len(chosen)


def _as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 127.5 - 1

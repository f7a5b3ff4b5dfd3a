"""Rows of features in blocks: what the pairwise metrics share.

Rows are [n, d], float32, a tensor or an array (a memory map too): only the rows of a block are ever in memory together.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 2048  # a block of pairs is 16 MiB

AnyRows = Float[Tensor, "_ _"] | Float[np.ndarray, "_ _"]  # several in one signature: `check_rows` compares them


def check_rows(needed: int, **sides: AnyRows) -> None:
    """Every side has two axes, the same dimension as the others, and at least `needed` rows."""
    for name, rows in sides.items():
        if rows.ndim != 2:
            raise ValueError(f"{name}: rows of features have two axes, [n, d], got {tuple(rows.shape)}")
        if len(rows) < needed:
            raise ValueError(f"{name}: at least {needed} rows are needed, got {len(rows)}")
    dims = {name: rows.shape[1] for name, rows in sides.items()}
    if len(set(dims.values())) > 1:
        raise ValueError(f"the sides differ in dimension: {dims}. Were they read from the same layer?")


def take(rows: AnyRows, which: slice | np.ndarray | Tensor) -> Float[Tensor, "k d"]:
    """Some rows, in float32: tensors stay on their device, arrays are copied from the file."""
    if isinstance(rows, Tensor):
        return rows[torch.from_numpy(which) if isinstance(which, np.ndarray) else which].float().contiguous()
    return torch.from_numpy(np.array(rows[which.cpu().numpy() if isinstance(which, Tensor) else which], dtype=np.float32))


def slices(count: int, block: int) -> list[slice]:
    return [slice(k, min(k + block, count)) for k in range(0, count, block)]


def product(x: Float[Tensor, "m d"], y: Float[Tensor, "n d"], bias: Float[Tensor, "n"] | None = None) -> Float[Tensor, "m n"]:
    """x y^T (+ bias), float32. On the CPU by oneDNN's own entry: it is true float32 and up to twice as fast as `mm` where that is MKL's."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, y, bias, "none", [], "")
    return torch.nn.functional.linear(x, y, bias)


@contextmanager
def plain_products() -> Iterator[None]:
    """Full float32 and no gradients inside, whatever the program has chosen: TF32 has three digits, and a metric needs six."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)

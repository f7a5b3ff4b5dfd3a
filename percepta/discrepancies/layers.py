"""The plain distance of features that come in layers, for networks that nobody has calibrated: Cas-DM's ResNet, Inception and Swin.

    d(x, y) = sum_l mean over all of layer l of (x_l - y_l)^2

The paper gives neither layers nor reduction; a mean per layer makes the weight of a term independent of the size of the image.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def squared_error(x: Sequence[Tensor], y: Sequence[Tensor]) -> Float[Tensor, "b"]:
    """The distance of each pair, in float32 or better, whatever precision the features have."""
    if len(x) != len(y) or not x:
        raise ValueError(f"a pair has the same layers, at least one: got {len(x)} and {len(y)}")
    total = x[0].new_zeros(len(x[0]), dtype=torch.promote_types(x[0].dtype, torch.float32))
    for one, other in zip(x, y, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"features of a pair have one shape, got {tuple(one.shape)} and {tuple(other.shape)}")
        total = total + (one.to(total.dtype) - other.to(total.dtype)).square().flatten(1).mean(1)
    return total

"""LPL's distance as a function of features (Berrada et al. 2025, eq. 5 and Alg. 1), whatever decoder they come from.

    d(x, y) = sum_l w_l mean_c mean_p  keep_{l,c,p} (x'_{l,c,p} - y'_{l,c,p})^2

x' and y' are features whose channels were standardised, by default both with the mean and deviation (over places) of the prediction, inside
the graph. The mean cancels in the difference then, so that this is (x - y)^2 / var(y). Means over places, not sums: a weight would depend on
the size of the image otherwise. w_l = 1/upscale_l, since errors about double where the resolution does.
"""

from collections.abc import Sequence
from math import ceil

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool2d

NORMS = ("predicted", "separate", "target", "pixel", "pixel-target")
OUTLIERS = ("none", "target", "prediction", "union")
LAYER_WEIGHTS = ("upscale", "halving", "equal")
EPS = 1e-8  # of a variance or a squared length
FINEST = 2  # outliers are looked for where a feature's place is at most so many pixels wide, as the authors' code has it


def layer_weights(upscale: Sequence[int], rule: str = "upscale") -> tuple[float, ...]:
    """upscale: 1/r. halving: 2^(-r/r_1), as one reading of the paper has it, far smaller for fine layers. equal: 1."""
    if rule == "halving":
        return tuple(2.0 ** (-r / upscale[0]) for r in upscale)
    if rule not in LAYER_WEIGHTS:
        raise ValueError(f"layer weights are {', '.join(LAYER_WEIGHTS)}, got {rule!r}")
    return tuple(1.0 / r if rule == "upscale" else 1.0 for r in upscale)


def lpl(
    real: Sequence[Float[Tensor, "b _ _ _"]],
    fake: Sequence[Float[Tensor, "b _ _ _"]],
    weights: Sequence[float],
    norm: str = "predicted",
    outliers: str = "none",
    pixels: Sequence[int] | None = None,
) -> Float[Tensor, "b"]:
    """The distance of each pair, in float32 or better. `pixels`: how many pixels of the image a place of each layer is wide, which the search
    for outliers needs."""
    if not len(real) == len(fake) == len(weights) or not real:
        raise ValueError(f"as many weights as layers are needed: {len(real)} and {len(fake)} layers, {len(weights)} weights")
    if outliers != "none" and pixels is None:
        raise ValueError("outliers are looked for at a scale: say how many pixels a place of each layer is wide")
    total = fake[0].new_zeros(len(fake[0]), dtype=torch.promote_types(fake[0].dtype, torch.float32))
    with torch.autocast(fake[0].device.type, enabled=False):
        for layer, (x, y, weight) in enumerate(zip(real, fake, weights, strict=True)):
            if x.shape != y.shape:
                raise ValueError(f"features of a pair have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
            x, y = x.to(total.dtype), y.to(total.dtype)
            error = squared_difference(x, y, norm)
            if pixels is not None and outliers != "none" and pixels[layer] <= FINEST:
                error = kept_mean(error, kept(x, y, pixels[layer], outliers))
            else:
                error = error.mean((2, 3))
            total = total + weight * error.mean(1)
    return total


def squared_difference(real: Tensor, fake: Tensor, norm: str) -> Tensor:
    """The squared difference of each place after normalising."""
    if norm == "predicted":
        return (real - fake).square() / (variance(fake) + EPS)
    if norm == "target":
        return (real - fake).square() / (variance(real) + EPS)
    if norm == "separate":
        return (standardised(real) - standardised(fake)).square()
    if norm == "pixel":
        return (real / length(real) - fake / length(fake)).square()
    if norm == "pixel-target":
        return ((real - fake) / length(real)).square()
    raise ValueError(f"norm is one of {', '.join(NORMS)}, got {norm!r}")


def variance(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
    return x.var((2, 3), keepdim=True, correction=0)


def standardised(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return (x - x.mean((2, 3), keepdim=True)) / (variance(x) + EPS).sqrt()


def length(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    """Over the channels of each place."""
    return (x.square().sum(1, keepdim=True) + EPS).sqrt()


def kept_mean(error: Float[Tensor, "b c h w"], keep: Bool[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
    """Over the places that are kept; 0 where none is."""
    return torch.where(keep, error, 0).sum((2, 3)) / keep.sum((2, 3)).clamp_min(1)


@torch.no_grad()
def kept(real: Tensor, fake: Tensor, pixels: int, outliers: str) -> Bool[Tensor, "b c h w"]:
    """The places that take part, by the outliers of the target, the prediction or either."""
    sides = {"target": (real,), "prediction": (fake,), "union": (real, fake)}
    if outliers not in sides:
        raise ValueError(f"outliers are those of target, prediction or union, or none, got {outliers!r}")
    masks = [keep_mask(side, pixels) for side in sides[outliers]]
    return masks[0] if len(masks) == 1 else masks[0] & masks[1]


@torch.no_grad()
def keep_mask(feature: Float[Tensor, "b c h w"], pixels: int = 1) -> Bool[Tensor, "b c h w"]:
    """False at outliers: places beyond the 2% and 98% quantile of their channel by more than two deviations, opened (specks vanish) and then
    grown. Patches of 1 or 2 places are never found at full resolution; a channel with more than 2% of outliers hides them all.

    Most channels have none. A channel is free of them iff its greatest value lies below q2 + m and its least above q1 - m, that is, iff fewer
    than k2 values have f + m <= max, and fewer than n - k1 + 1 have f - m >= min. Both are counted, and only the other channels are sorted.
    """
    x = feature.to(torch.promote_types(feature.dtype, torch.float32)).flatten(2).flatten(0, 1)
    n = x.shape[1]
    low, high = ranks(n)
    margin = 2 * x.std(1, keepdim=True) if n > 1 else torch.zeros_like(x)
    least, greatest = x.aminmax(dim=1, keepdim=True)
    above, below = (x + margin <= greatest).sum(1), (x - margin >= least).sum(1)
    found = ((above >= high) | (below >= n - low + 1)).nonzero()[:, 0]
    out = torch.ones_like(x, dtype=torch.bool)
    if len(found):
        some, m = x[found], margin[found]
        q1, q2 = some.kthvalue(low, 1, keepdim=True).values, some.kthvalue(high, 1, keepdim=True).values
        inside = (q1 - m < some) & (some < q2 + m)
        out[found] = opened(inside.unflatten(1, feature.shape[2:]), pixels).flatten(1)
    return out.view(feature.shape)


def ranks(n: int) -> tuple[int, int]:
    """Which smallest values of n are the 2% and the 98% quantile; both exist for every n."""
    return max(1, int(n * 0.02)), max(1, int(n * 0.98))


def opened(inside: Bool[Tensor, "k h w"], pixels: int) -> Bool[Tensor, "k h w"]:
    """Outliers shrunk by 3 pixels' width and grown by 5: on the mask of what is kept, a dilation and then an erosion."""
    grow, shrink = ceil(3 / pixels), ceil(5 / pixels)
    grow, shrink = 1 if grow == 2 else grow, 3 if shrink == 2 else shrink
    keep = inside[:, None].float()
    keep = max_pool2d(keep, grow, 1, grow // 2)
    return -max_pool2d(-keep, shrink, 1, shrink // 2)[:, 0] > 0.5

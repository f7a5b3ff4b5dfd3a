"""LPL's distance as a function of features (Berrada et al. 2025, eq. 5 and Alg. 1), whatever decoder they come from.

    d(x, y) = sum_l w_l mean_c mean_p  keep_{l,c,p} (x'_{l,c,p} - y'_{l,c,p})^2

x' and y' are features whose channels were standardised, by default both with the mean and deviation (over places) of the prediction, inside
the graph. The mean cancels in the difference then, so that this is (x - y)^2 / var(y). Means over places, not sums: a weight would depend on
the size of the image otherwise. w_l = 1/upscale_l, since errors about double where the resolution does.
"""

from collections.abc import Sequence
from math import ceil

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import max_pool2d

NORMS = ("predicted", "separate", "target", "pixel", "pixel-target")
OUTLIERS = ("none", "target", "prediction", "union")
LAYER_WEIGHTS = ("upscale", "halving", "equal")
FLOOR = 1e-3  # the smallest variance of a channel, as a part of the layer's mean: a dead channel must not be blown up
EPS = 1e-8  # of a variance or a squared length
SLACK = 1e-4  # relative, of sums in float32
FINEST = 2  # outliers are looked for where a feature's place is at most so many pixels wide, as the authors' code has it


def layer_weights(upscale: Sequence[int], rule: str = "upscale", first: int = 1) -> tuple[float, ...]:
    """upscale: 1/r. halving: 2^(-r/r_1), as one reading of the paper has it, far smaller for fine layers; r_1 is `first`. equal: 1."""
    if rule == "halving":
        return tuple(2.0 ** (-r / first) for r in upscale)
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
            if norm in NORMS[:3] and x.shape[2] * x.shape[3] < 2:
                raise ValueError("a channel is standardised over its places, and there is one: decode larger latents or windows")
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
        return (real - fake).square() / floored(variance(fake))
    if norm == "target":
        return (real - fake).square() / floored(variance(real))
    if norm == "separate":
        return (standardised(real) - standardised(fake)).square()
    if norm == "pixel":
        return (real / length(real) - fake / length(fake)).square()
    if norm == "pixel-target":
        return ((real - fake) / length(real)).square()
    raise ValueError(f"norm is one of {', '.join(NORMS)}, got {norm!r}")


def variance(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
    return x.var((2, 3), keepdim=True, correction=0)


def floored(var: Float[Tensor, "b c 1 1"]) -> Float[Tensor, "b c 1 1"]:
    """At least a thousandth of the layer's mean: a channel that is nearly constant, as behind a closed ReLU, would speak for all others."""
    return torch.maximum(var, FLOOR * var.detach().mean(1, keepdim=True)) + EPS


def standardised(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return (x - x.mean((2, 3), keepdim=True)) / floored(variance(x)).sqrt()


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

    Most channels have none, which is shown without sorting them (`suspects`).
    """
    x = feature.to(torch.promote_types(feature.dtype, torch.float32)).flatten(2).flatten(0, 1)
    out = torch.ones_like(x, dtype=torch.bool)
    found = suspects(x, feature.shape[2:], pixels)
    if len(found):
        some = x[found]
        low, high = ranks(x.shape[1])
        m = 2 * some.std(1, keepdim=True) if x.shape[1] > 1 else torch.zeros_like(some)
        q1, q2 = some.kthvalue(low, 1, keepdim=True).values, some.kthvalue(high, 1, keepdim=True).values
        inside = ((q1 - m < some) & (some < q2 + m)) | (m == 0)  # a channel that is one number has no outliers, and is not one
        out[found] = opened(inside.unflatten(1, feature.shape[2:]), pixels).flatten(1)
    return out.view(feature.shape)


def suspects(x: Float[Tensor, "k n"], shape: Sequence[int], pixels: int) -> Int64[Tensor, "s"]:
    """The channels of which it is not sure that nothing is masked.

    Where more than 2% of a channel lie above mean + a deviations, its upper quantile q2 does, and outliers lie above that by the margin m; so it is
    below. If the places that are so far out hold no block that survives the opening, the outliers among them hold none. `a` is the largest of a few for which
    the count is right. Rounding is on the safe side: a margin a little too small suspects too many.
    """
    n = x.shape[1]
    low, high = ranks(n)
    mean, square = x.mean(1, keepdim=True), torch.linalg.vector_norm(x, dim=1, keepdim=True).square() / n
    deviation = (square - mean.square() - SLACK * square).clamp_min(0).sqrt()
    margin = (2 - SLACK) * deviation
    left = torch.arange(len(x), device=x.device)
    for a in (1.9, 1.0, 0.0):
        some, middle, width = (x, mean, deviation) if len(left) == len(x) else (x[left], mean[left], deviation[left])
        upper, lower, m = middle + a * width, middle - a * width, margin if len(left) == len(x) else margin[left]
        sure = (count(some <= upper) < high) & (count(some < lower) >= low)
        far = (some > upper + m) | (some < lower - m)
        block = has_block(far.unflatten(1, tuple(shape)), ceil(3 / pixels) > 2)
        left = left[(~sure | block).nonzero()[:, 0]]
        if not len(left):
            break
    return left


def count(where: Bool[Tensor, "k n"]) -> Tensor:
    """Of each row. A sum of bytes is several times faster than one of booleans."""
    return where.view(torch.uint8).sum(1, dtype=torch.int32)


def has_block(far: Bool[Tensor, "k h w"], threes: bool) -> Bool[Tensor, "k"]:
    """Whether any 3 x 3 neighbourhood, cut off at the edges, is full; without `threes` whether anything is."""
    if threes:
        for axis in (1, 2):
            size = far.shape[axis]
            if size > 1:
                ends = (
                    far.narrow(axis, 0, 1) & far.narrow(axis, 1, 1),
                    far.narrow(axis, size - 1, 1) & far.narrow(axis, size - 2, 1),
                )
                inner = (
                    [far.narrow(axis, 0, size - 2) & far.narrow(axis, 1, size - 2) & far.narrow(axis, 2, size - 2)]
                    if size > 2
                    else []
                )
                far = torch.cat([ends[0], *inner, ends[1]], axis)
    return far.flatten(1).view(torch.uint8).amax(1) > 0


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

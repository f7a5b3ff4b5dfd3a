"""The layers of the FID network of 2015-12-05 (Szegedy et al. 2015, table 1), arranged for speed without changing what they compute.

Batch norm is folded into weight and bias. The 1x1 convolutions that read the same input are one convolution. Average pooling is done after
its 1x1 convolution instead of before it, on fewer channels: both are linear, and the weights of a pooling window sum to one at the
borders too, so the bias passes through unchanged. A ReLU comes after the max pooling or the concatenation that follows it.

Three details make this network the FID one: average pooling does not count the padding, the last block (Mixed_7c) has a max pooling
where Mixed_7b has the average, and logits are 1008.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-3  # of every batch norm
Shape = tuple[int, int, int] | tuple[int, int, int, int]  # channels, kernel height and width, stride


class Convolutions(nn.Conv2d):
    """Convolutions of one input and one shape, side by side in one. `sources`: the name and channels of each."""

    def __init__(
        self, channels: int, sources: Mapping[str, int], kernel: tuple[int, int] = (1, 1), stride: int = 1, pad: bool = True
    ):
        padding = (kernel[0] // 2, kernel[1] // 2) if pad and stride == 1 else 0
        super().__init__(channels, sum(sources.values()), kernel, stride, padding)
        self.sources = dict(sources)

    def load(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        pairs = [folded(tensors, f"{prefix}{name}") for name in self.sources]
        with torch.no_grad():
            self.weight.copy_(torch.cat([weight for weight, _ in pairs]))
            assert self.bias is not None
            self.bias.copy_(torch.cat([bias for _, bias in pairs]))


def folded(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of `name.conv` with `name.bn` in them, in float64 on the way; a file that has no `bn` is folded already."""
    weight = tensors[f"{name}.conv.weight"].double()
    if f"{name}.bn.weight" not in tensors:
        return weight, tensors[f"{name}.conv.bias"].double()
    scale, shift, mean, var = (tensors[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var"))
    scale = scale / (var + EPS).sqrt()
    return weight * scale.view(-1, 1, 1, 1), shift - mean * scale


class Tower(nn.Module):
    """Convolutions one after another, `name_2`, `name_3` ..; `head` is how many channels of the block's shared 1x1 come before them.

    The last ReLU is the block's. With `fork`, the last step is a 1x3 and a 3x1 convolution side by side, `a` and `b`.
    """

    def __init__(self, channels: int, name: str, head: int, shapes: tuple[Shape, ...], fork: int = 0) -> None:
        super().__init__()
        self.name, self.head = name, head
        chain, width = [], head or channels
        for step, (out, *kernel) in enumerate(shapes, 2):
            stride = kernel[2] if len(kernel) == 3 else 1
            chain.append(Convolutions(width, {f"{name}_{step}" if head else name: out}, (kernel[0], kernel[1]), stride))
            width = out
        ends = []
        if fork:
            step = f"{name}_{len(shapes) + 2}"
            ends = [Convolutions(width, {f"{step}a": fork}, (1, 3)), Convolutions(width, {f"{step}b": fork}, (3, 1))]
            width = 2 * fork
        else:
            ends = [chain.pop()]
        self.chain, self.ends, self.width = nn.ModuleList(chain), nn.ModuleList(ends), width

    def forward(self, x: Tensor) -> list[Tensor]:
        for layer in self.chain:
            x = layer(x).relu_()
        return [layer(x) for layer in self.ends]


class Block(nn.Module):
    """One Mixed block: a 1x1 branch of `direct` channels, towers, and a pooling branch, joined in this order.

    `pool` is "avg" or "max" followed by a 1x1 convolution to `pooled` channels, or "halve": a max pooling of stride 2 alone.
    """

    def __init__(self, channels: int, direct: int, towers: tuple[Tower, ...], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.direct, self.pool, self.widths = direct, pool, [tower.head for tower in towers]
        self.towers = nn.ModuleList(towers)
        heads = {"branch1x1": direct} if direct else {}
        heads |= {f"{tower.name}_1": tower.head for tower in towers if tower.head}
        heads |= {"branch_pool": pooled} if pool == "avg" else {}
        self.heads = Convolutions(channels, heads)
        self.after_pool = Convolutions(channels, {"branch_pool": pooled}) if pool == "max" else None
        self.width = direct + sum(tower.width for tower in towers) + (pooled or channels)

    def forward(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """The block's output, and the first channels of its 1x1 branch by themselves (the spatial features)."""
        heads = self.heads(x)
        parts, begin = ([heads[:, : self.direct]] if self.direct else []), self.direct
        for tower, width in zip(self.towers, self.widths, strict=True):
            parts += tower(F.relu(heads[:, begin : begin + width]) if width else x)
            begin += width
        if self.after_pool is not None:
            parts.append(self.after_pool(F.max_pool2d(x, 3, stride=1, padding=1)))
        elif self.pool == "avg":
            parts.append(F.avg_pool2d(heads[:, begin:], 3, stride=1, padding=1, count_include_pad=False))
        else:
            parts.append(F.max_pool2d(x, 3, stride=2))
        return torch.cat(parts, 1).relu_(), heads[:, :first].relu()


def block_a(channels: int, pooled: int) -> Block:
    fives = Tower(channels, "branch5x5", 48, ((64, 5, 5),))
    threes = Tower(channels, "branch3x3dbl", 64, ((96, 3, 3), (96, 3, 3)))
    return Block(channels, 64, (fives, threes), "avg", pooled)


def block_b(channels: int) -> Block:
    once = Tower(channels, "branch3x3", 0, ((384, 3, 3, 2),))
    twice = Tower(channels, "branch3x3dbl", 64, ((96, 3, 3), (96, 3, 3, 2)))
    return Block(channels, 0, (once, twice), "halve")


def block_c(channels: int, c: int) -> Block:
    once = Tower(channels, "branch7x7", c, ((c, 1, 7), (192, 7, 1)))
    twice = Tower(channels, "branch7x7dbl", c, ((c, 7, 1), (c, 1, 7), (c, 7, 1), (192, 1, 7)))
    return Block(channels, 192, (once, twice), "avg", 192)


def block_d(channels: int) -> Block:
    threes = Tower(channels, "branch3x3", 192, ((320, 3, 3, 2),))
    sevens = Tower(channels, "branch7x7x3", 192, ((192, 1, 7), (192, 7, 1), (192, 3, 3, 2)))
    return Block(channels, 0, (threes, sevens), "halve")


def block_e(channels: int, pool: str) -> Block:
    once = Tower(channels, "branch3x3", 384, (), fork=384)
    twice = Tower(channels, "branch3x3dbl", 448, ((384, 3, 3),), fork=384)
    return Block(channels, 320, (once, twice), pool, 192)

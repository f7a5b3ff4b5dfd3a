"""Critics of unpaired translation: maps of logits, one per patch, from images. Each gives a list of tensors [b, ...].

    UgatitCritic        Kim et al. 2020: a global and a local one, spectral norm, a class activation map in each
    PatchCritic         Zhu et al. 2017 (CycleGAN): patches of 70 x 70 px, instance norm
    MultiscaleCritic    Liu et al. 2017 (UNIT), Huang et al. 2018 (MUNIT): the same at full, half and quarter size

Depth follows the size of the images: every map of logits is at least 2 x 2, so that a critic has patches to judge. Where the published depth leaves less,
there are as few layers as that asks for. From 128 px up (32 px for PatchCritic) all are as published.
"""

from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from percepta.networks.translation_parts import LEAST, first_weights
from percepta.networks.ugatit import Cam

SLOPE = 0.2
START = 15  # power iterations before the first step, as PyTorch takes


class Spectral(nn.Module):
    """W -> W / sigma(W), its largest singular value, by power iteration (Miyato et al. 2018).

    The vectors move in `settle`, once after each step of the optimizer, and not in each forward pass as in PyTorch: what a critic says then depends on
    weights and images alone, in any number of micro-batches and passes.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(torch.randn_like(rows[:, 0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn_like(rows[0]), dim=0))
        for _ in range(START):
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        rows, u, v = weight.flatten(1), self.get_buffer("u"), self.get_buffer("v")
        v.copy_(F.normalize(rows.T @ u, dim=0))
        u.copy_(F.normalize(rows @ v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        # copies: a step may settle while a graph that was built before it is alive
        u, v = self.get_buffer("u").clone(), self.get_buffer("v").clone()
        # no product of matrices, which autocast would round: sigma in half precision shakes every weight
        sigma = (u * (weight.flatten(1) * v).sum(1)).sum()
        return weight * (1 / sigma)  # not a quotient: its gradient takes twice as many passes over the weights


def spectral(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    parametrize.register_parametrization(layer, "weight", Spectral(layer.weight))
    return layer


def settle(critic: nn.Module) -> None:
    """One power iteration of every layer with spectral norm."""
    for module in critic.modules():
        if isinstance(module, parametrize.ParametrizationList):
            for norm in module:
                if isinstance(norm, Spectral):
                    norm.iterate(module.original)


def halvings(size: int, most: int, least: int) -> int:
    """How often a side can be halved and still be `least` px, up to `most` times; at least once."""
    return max(1, min(most, (size // least).bit_length() - 1))


def _check_size(size: int) -> None:
    if size < LEAST:
        raise ValueError(f"critics judge images of {LEAST} px or more, got {size}")


def _check_images(x: Tensor, size: int) -> None:
    if min(x.shape[-2:]) < size:
        raise ValueError(
            f"images of {x.shape[-1]} x {x.shape[-2]} px: this critic was built for sides of {size} px or more; build it for their shorter side"
        )


class CamPatches(nn.Module):
    """U-GAT-IT's critic of `layers` layers: all but the last two halve. The published 7 see 286 px, the published 5 see 70."""

    def __init__(self, layers: int, channels: int, std: float | None) -> None:
        super().__init__()
        strides = [2] * (layers - 2) + [1]
        widths = [3] + [channels * 2**i for i in range(layers - 1)]
        convs = [
            nn.Conv2d(c_in, c_out, 4, stride, 1, padding_mode="reflect")
            for (c_in, c_out), stride in zip(pairwise(widths), strides, strict=True)
        ]
        c = widths[-1]
        self.cam = Cam(nn.Linear(c, 1, bias=False), nn.Linear(c, 1, bias=False))
        self.last = nn.Conv2d(c, 1, 4, 1, 1, bias=False, padding_mode="reflect")
        self.convs = nn.Sequential(*convs)
        if std is not None:
            first_weights(self, partial(nn.init.normal_, std=std))
        for layer in (*convs, self.cam.gap, self.cam.gmp, self.last):  # not the mix, as published
            spectral(layer)

    def forward(self, x: Tensor) -> list[Tensor]:
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
        mixed, logits = self.cam(x)
        return [self.last(F.leaky_relu(mixed, SLOPE)), logits]


class UgatitCritic(nn.Module):
    """[global map, global CAM logits, local map, local CAM logits]. The local one has two layers less, and at least three.

    `settle` follows each step of the optimizer.
    """

    def __init__(self, size: int, channels: int = 64, std: float | None = 0.02) -> None:
        super().__init__()
        _check_size(size)
        self.size = size
        layers = halvings(size, 5, 4) + 2  # the last two layers take a pixel each off the side
        self.wide = CamPatches(layers, channels, std)
        self.local = CamPatches(max(3, layers - 2), channels, std)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        _check_images(x, self.size)
        return [*self.wide(x), *self.local(x)]

    def settle(self) -> None:
        settle(self)


class PatchCritic(nn.Module):
    """[map]. Three halvings at most; channels double up to eight times the first."""

    def __init__(self, size: int, channels: int = 64, std: float = 0.02) -> None:
        super().__init__()
        _check_size(size)
        self.size = size
        deep = halvings(size, 3, 4)
        widths = [min(2**i, 8) * channels for i in range(deep + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(SLOPE)]
        for i, (c_in, c_out) in enumerate(pairwise(widths), 1):
            layers += [nn.Conv2d(c_in, c_out, 4, 2 if i < deep else 1, 1), nn.InstanceNorm2d(c_out), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        first_weights(self, partial(nn.init.normal_, std=std))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        _check_images(x, self.size)
        return [self.layers(x)]


class MultiscaleCritic(nn.Module):
    """[map of each scale], the finest first. Four halvings each, as far as the side of the scale allows; no normalisation."""

    def __init__(self, size: int, channels: int = 64, scales: int = 3, layers: int = 4, std: float = 0.02) -> None:
        super().__init__()
        _check_size(size)
        if not (1 <= scales <= 3 and layers >= 1):
            raise ValueError(f"a multi-scale critic has 1 to 3 scales and 1 or more layers, got {scales} and {layers}")
        self.size = size
        self.scales = nn.ModuleList(self._scale(channels, halvings(size >> i, layers, 2)) for i in range(scales))
        first_weights(self, partial(nn.init.normal_, std=std))

    @staticmethod
    def _scale(channels: int, layers: int) -> nn.Sequential:
        out: list[nn.Module] = []
        widths = [3] + [channels * 2**i for i in range(layers)]
        for c_in, c_out in pairwise(widths):
            out += [nn.Conv2d(c_in, c_out, 4, 2, 1, padding_mode="reflect"), nn.LeakyReLU(SLOPE)]
        return nn.Sequential(*out, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        _check_images(x, self.size)
        maps = []
        for scale in self.scales:
            maps.append(scale(x))
            x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return maps

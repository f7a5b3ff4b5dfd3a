"""U-GAT-IT's generators (Kim et al. 2020, arXiv 1907.10830): attention by class activation maps, and a normalisation that chooses between layer and
instance.

    encoder     7 x 7 conv, two that halve the side, residual blocks, all with instance norm
    CAM         pooled features (mean; maximum) x their weights w = a logit each: was this an image of the source domain?
                the features, weighted by w of either pooling, are mixed to attention; its sum over channels is the heat map
    decoder     residual blocks with AdaLIN, two steps of doubling with LIN, 7 x 7 conv, tanh

    LIN = gamma (rho (x - mu_I)/sigma_I + (1 - rho) (x - mu_L)/sigma_L) + beta,    rho in [0, 1] per channel

with mean and standard deviation of each channel (I) or of all (L). In AdaLIN gamma and beta come from the attention: from its means (light, any size of
image) or from all of it (full, one size). The authors' PyTorch port takes the variance of the columns' variances for sigma^2; here it is the variance, as
in the paper. Widths, blocks and biases are the port's (MIT), first weights the paper's: N(0, 0.02).
"""

from functools import partial
from typing import NamedTuple

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from percepta.networks.translation import DIRECTIONS, Direction, Pair
from percepta.networks.translation_parts import DOWNS, LEAST, counted, ends, first_weights, fits
from percepta.rng import Rng

EPS = 1e-5


def layer_instance(
    x: Float[Tensor, "b c h w"], rho: Float[Tensor, "1 c 1 1"], gamma: Float[Tensor, "#b c 1 1"], beta: Float[Tensor, "#b c 1 1"]
) -> Float[Tensor, "b c h w"]:
    """gamma (rho IN(x) + (1 - rho) LN(x)) + beta, as one scale and one shift per channel: x is read twice and written once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    var, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
    var_all, mean_all = torch.var_mean(mean, 1, correction=0, keepdim=True)
    var_all = var_all + var.mean(1, keepdim=True)  # of all = between channels + within them
    instance, layer = rho * (var + EPS).rsqrt(), (1 - rho) * (var_all + EPS).rsqrt()
    shift = beta - gamma * (instance * mean + layer * mean_all)
    return torch.addcmul(shift, wide, gamma * (instance + layer)).to(x.dtype)


class AdaLIN(nn.Module):
    """`gamma` and `beta` are given; begins as nine tenths of instance norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), 0.9))

    def forward(
        self, x: Float[Tensor, "b c h w"], gamma: Float[Tensor, "b c"], beta: Float[Tensor, "b c"]
    ) -> Float[Tensor, "b c h w"]:
        return layer_instance(x, self.rho, gamma[:, :, None, None], beta[:, :, None, None])


class LIN(nn.Module):
    """`gamma` and `beta` are weights; begins as layer norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rho = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return layer_instance(x, self.rho, self.gamma, self.beta)


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False, padding_mode="reflect")


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        norm = nn.InstanceNorm2d
        self.branch = nn.Sequential(conv(channels, channels), norm(channels), nn.ReLU(), conv(channels, channels), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class AdaResidual(nn.Module):
    """Both of its normalisations take the same gamma and beta."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0, self.norm0 = conv(channels, channels), AdaLIN(channels)
        self.conv1, self.norm1 = conv(channels, channels), AdaLIN(channels)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        h = F.relu(self.norm0(self.conv0(x), gamma, beta))
        return x + self.norm1(self.conv1(h), gamma, beta)


class Cam(nn.Module):
    """x -> (mixed attention before its nonlinearity, logits [b, 2] by mean and by maximum). Critics have one too."""

    def __init__(self, gap: nn.Linear, gmp: nn.Linear) -> None:
        super().__init__()
        self.gap, self.gmp = gap, gmp
        self.mix = nn.Conv2d(2 * gap.in_features, gap.in_features, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 2"]]:
        w_gap, w_gmp = self.gap.weight, self.gmp.weight  # [1, c]; once: a parametrised weight is computed at each look
        logits = torch.cat([F.linear(x.mean((2, 3)), w_gap), F.linear(x.amax((2, 3)), w_gmp)], 1)
        of_gap, of_gmp = self.mix.weight.chunk(2, 1)
        # mix(cat[x w_gap, x w_gmp]) is linear in x: one kernel, without weighing x twice
        kernel = of_gap * w_gap[:, :, None, None] + of_gmp * w_gmp[:, :, None, None]
        return F.conv2d(x, kernel, self.mix.bias), logits


class Generated(NamedTuple):
    image: Float[Tensor, "b 3 h w"]
    logits: Float[Tensor, "b 2"]  # whether it was given an image of its source domain
    heat: Float[Tensor, "b 1 rows columns"]  # a quarter as high and wide: where it looks; has its gradient


class UgatitGenerator(nn.Module):
    """One direction. `full`: the side of its images, where gamma and beta are read from all of the attention."""

    def __init__(self, channels: int, blocks: int, full: int | None) -> None:
        super().__init__()
        norm, half, c = nn.InstanceNorm2d, 2 * channels, 4 * channels
        head = [conv(3, channels, 7), norm(channels), nn.ReLU(), conv(channels, half, 3, 2), norm(half), nn.ReLU()]
        head += [conv(half, c, 3, 2), norm(c), nn.ReLU()]
        self.encoder = nn.Sequential(*head, *(Residual(c) for _ in range(blocks)))
        self.cam = Cam(nn.Linear(c, 1, bias=False), nn.Linear(c, 1, bias=False))
        self.full = full
        read = c if full is None else c * (full >> DOWNS) ** 2
        self.mlp = nn.Sequential(nn.Linear(read, c, bias=False), nn.ReLU(), nn.Linear(c, c, bias=False), nn.ReLU())
        self.gamma, self.beta = nn.Linear(c, c, bias=False), nn.Linear(c, c, bias=False)
        self.blocks = nn.ModuleList(AdaResidual(c) for _ in range(blocks))
        double = nn.Upsample(scale_factor=2.0)
        tail = [double, conv(c, half), LIN(half), nn.ReLU(), double, conv(half, channels), LIN(channels), nn.ReLU()]
        self.decoder = nn.Sequential(*tail, conv(channels, 3, 7), nn.Tanh())

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Generated:
        if self.full is not None and x.shape[-2:] != (self.full, self.full):
            raise ValueError(
                f"images of {x.shape[-1]} x {x.shape[-2]} px: this U-GAT-IT is full, its layer over all of a feature map fits "
                f"{self.full} x {self.full} px alone; resize or tile them to that, or train the light one, which takes any size"
            )
        mixed, logits = self.cam(self.encoder(fits(x)))
        attention = F.relu(mixed)
        read = self.mlp(attention.mean((2, 3)) if self.full is None else attention.flatten(1))
        gamma, beta = self.gamma(read), self.beta(read)
        h = attention
        for block in self.blocks:
            h = block(h, gamma, beta)
        return Generated(self.decoder(h), logits, attention.sum(1, keepdim=True))


class UgatitPair(Pair):
    """Two generators that share nothing. The light one takes images of any size, the full one squares of `sample_size` alone.

    `std` is that of the first weights; None leaves PyTorch's own, as the authors' port does.
    """

    @register_to_config
    def __init__(
        self, sample_size: int = 256, channels: int = 64, blocks: int = 4, light: bool = True, std: float | None = 0.02
    ) -> None:
        super().__init__()
        counted(sample_size=sample_size, channels=channels, blocks=blocks)
        if not light and (sample_size < LEAST or sample_size % self.multiple):
            raise ValueError(
                f"a full U-GAT-IT is made for images of one size, a multiple of {self.multiple} from {LEAST} px; got {sample_size}: "
                "choose such a size, or the light one"
            )
        full = None if light else sample_size
        self.a2b, self.b2a = UgatitGenerator(channels, blocks, full), UgatitGenerator(channels, blocks, full)
        if std is not None:
            first_weights(self, partial(nn.init.normal_, std=std))

    def translate(self, x: Float[Tensor, "b 3 h w"], direction: Direction, seed: int = 0) -> Float[Tensor, "b 3 h w"]:
        """The same for every seed: nothing is drawn."""
        return self.generated(x, direction).image

    def generated(self, x: Float[Tensor, "b 3 h w"], direction: Direction) -> Generated:
        """The translation with its logits and heat map."""
        start, _ = ends(direction)
        return (self.a2b if start == "a" else self.b2a)(x)

    def taps(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"], rng: Rng) -> dict[str, Tensor]:
        """Draws nothing from `rng`."""
        n, domains, out = len(a), {"a": a, "b": b}, {"real_a": a, "real_b": b}
        for way in DIRECTIONS:
            source, target = ends(way)
            # one pass for both: samples do not see each other
            image, logits, heat = self.generated(torch.cat([domains[source], domains[target]]), way)
            out |= {f"fake_{target}": image[:n], f"same_{target}": image[n:], f"heat_{way}": heat[:n].detach()}
            out |= {f"cam_{way}_real": logits[:n], f"cam_{way}_same": logits[n:]}
        out["cycle_a"] = self.translate(out["fake_b"], "b2a")
        out["cycle_b"] = self.translate(out["fake_a"], "a2b")
        return out

    @torch.no_grad()
    def settle(self) -> None:
        """rho back into [0, 1]."""
        for module in self.modules():
            if isinstance(module, AdaLIN | LIN):
                module.rho.clamp_(0, 1)

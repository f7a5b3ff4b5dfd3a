"""What the networks of UNIT and MUNIT are made of (Liu et al. 2017, Huang et al. 2018): convolutions over reflected borders,
instance norm without parameters, residual blocks without an activation after the sum. Written from the papers and their settings.

No layer keeps statistics of the images it has seen: every image is normalised by itself, in training and afterwards.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from percepta.networks.translation import Direction, checked

DOWNS = 2  # stride-2 convolutions: a code is a quarter of the image high and wide
LEAST = 16  # px: the side of a code is then 4, and MUNIT's style encoder can halve it twice more


def reflected(c_in: int, c_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution that halves the image where its stride is 2, and else keeps its size."""
    return nn.Conv2d(c_in, c_out, kernel, stride, (kernel - stride + 1) // 2, padding_mode="reflect")


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = reflected(channels, channels, 3), reflected(channels, channels, 3)
        self.norm = nn.InstanceNorm2d(channels)  # has no parameters: one is enough
        self.relu = nn.ReLU()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.norm(self.conv2(self.relu(self.norm(self.conv1(x)))))


def residuals(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(channels) for _ in range(count)))


def stem(channels: int, downs: int, normed: bool) -> nn.Sequential:
    """A 7 x 7 convolution of the image, then halvings; the first DOWNS of them double the channels."""
    widths = [channels * 2 ** min(i, DOWNS) for i in range(downs + 1)]
    layers: list[nn.Module] = []
    for i, width in enumerate(widths):
        layers.append(reflected(3, width, 7) if i == 0 else reflected(widths[i - 1], width, 4, 2))
        layers += [nn.InstanceNorm2d(width), nn.ReLU()] if normed else [nn.ReLU()]
    return nn.Sequential(*layers)


def layer_norm(channels: int) -> nn.GroupNorm:
    """Layer norm over channels and positions, one gain and shift a channel; first gains are U(0, 1), as published."""
    norm = nn.GroupNorm(1, channels)
    nn.init.uniform_(norm.weight)
    return norm


def ascent(channels: int) -> nn.Sequential:
    """Doublings by neighbours, each with a 5 x 5 convolution that halves the channels, and a 7 x 7 one to the image in [-1, 1].

    Layer norm, not instance norm, after them: that would take away the mean and scale of each channel, which is where a style is."""
    layers: list[nn.Module] = []
    for width in (2 * channels, channels):
        layers += [nn.Upsample(scale_factor=2.0), reflected(2 * width, width, 5), layer_norm(width), nn.ReLU()]
    return nn.Sequential(*layers, reflected(channels, 3, 7), nn.Tanh())


def first_weights(model: nn.Module, fill: Callable[[Tensor], object]) -> None:
    """Weights of every convolution and linear layer by `fill`, zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fill(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def fits(x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The images, where every pair can read them."""
    if min(x.shape[-2:]) < LEAST:
        raise ValueError(
            f"images of {x.shape[-1]} x {x.shape[-2]} px: their sides are to be at least {LEAST} px; resize or pad them first"
        )
    return checked(x, 2**DOWNS)


def ends(direction: Direction) -> tuple[str, str]:
    """The domain that a direction starts from, and the one that it leads to."""
    if direction not in ("a2b", "b2a"):
        raise ValueError(f"a pair translates a2b or b2a, got {direction!r}")
    return (direction[0], direction[2])


def counted(**counts: int) -> None:
    """Channels and the like, checked."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is to be at least 1, got {value}")

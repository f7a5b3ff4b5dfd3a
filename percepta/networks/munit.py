"""MUNIT (Huang et al. 2018): an image is a content, which both domains have, and a style of its own domain.

    recon_a  = D_a(content(a), style(a))
    fake_b   = D_b(content(a), s_b), s_b ~ N(0, I)         s_b is style_draw_b
    cycle_a  = D_a(content(fake_b), style(a))
    content_ab = content(fake_b) should be content_a       style_ab = style(fake_b) should be style_draw_b

A style enters the decoder as means and scales of the channels in its residual blocks: AdaIN (Huang and Belongie 2017),
    AdaIN(x; gamma, beta) = gamma (x - mean(x)) / sd(x) + beta, per image and channel, gamma and beta from the style by an MLP.
"""

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from percepta.networks.translation import Direction, Pair
from percepta.networks.translation_parts import DOWNS, ascent, counted, ends, first_weights, fits, reflected, residuals, stem
from percepta.rng import Rng, rng_for

STYLE_DOWNS = 4  # the style encoder halves the image four times


def adain(
    x: Float[Tensor, "b c h w"], gamma: Float[Tensor, "b c"], beta: Float[Tensor, "b c"], eps: float = 1e-5
) -> Float[Tensor, "b c h w"]:
    return F.instance_norm(x, eps=eps) * gamma[:, :, None, None] + beta[:, :, None, None]


class StyledResidual(nn.Module):
    """A residual block whose norms take their gains and shifts from outside: [b, 4 c], gamma and beta of each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = reflected(channels, channels, 3), reflected(channels, channels, 3)

    def forward(self, x: Float[Tensor, "b c h w"], style: Float[Tensor, "b c4"]) -> Float[Tensor, "b c h w"]:
        gamma1, beta1, gamma2, beta2 = style.chunk(4, dim=1)
        return x + adain(self.conv2(F.relu(adain(self.conv1(x), gamma1, beta1))), gamma2, beta2)


class ContentStyle(nn.Module):
    """The autoencoder of one domain: content and style of an image, and back."""

    def __init__(self, channels: int, blocks: int, style_dim: int, hidden: int) -> None:
        super().__init__()
        width = channels * 2**DOWNS
        self.content = nn.Sequential(stem(channels, DOWNS, True), residuals(width, blocks))
        # no norm here: it would take away the means and scales, which are the style
        self.style = nn.Sequential(
            stem(channels, STYLE_DOWNS, False), nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, style_dim, 1), nn.Flatten()
        )
        self.affine = nn.Sequential(
            nn.Linear(style_dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, blocks * 4 * width)
        )
        self.blocks = nn.ModuleList(StyledResidual(width) for _ in range(blocks))
        self.ascent = ascent(channels)

    def decode(self, content: Float[Tensor, "b c h4 w4"], style: Float[Tensor, "b s"]) -> Float[Tensor, "b 3 h w"]:
        for block, affine in zip(self.blocks, self.affine(style).chunk(len(self.blocks), dim=1), strict=True):
            content = block(content, affine)
        return self.ascent(content)


class MunitPair(Pair):
    """An autoencoder for each domain; they share nothing."""

    @register_to_config
    def __init__(self, channels: int = 64, blocks: int = 4, style_dim: int = 8, hidden: int = 256) -> None:
        super().__init__()
        counted(channels=channels, blocks=blocks, style_dim=style_dim, hidden=hidden)
        self.a, self.b = (ContentStyle(channels, blocks, style_dim, hidden) for _ in "ab")
        first_weights(self, nn.init.kaiming_normal_)

    def _domain(self, name: str) -> ContentStyle:
        return self.a if name == "a" else self.b

    def _one_way(self, x: Tensor, start: str, end: str, rng: Rng) -> dict[str, Tensor]:
        home, away = self._domain(start), self._domain(end)
        content, style = home.content(x), home.style(x)
        draw = rng.normal(f"style_{end}", (self.config["style_dim"],)).to(style)
        fake = away.decode(content, draw)
        content_again, style_again = away.content(fake), away.style(fake)
        return {
            f"real_{start}": x,
            f"recon_{start}": home.decode(content, style),
            f"fake_{end}": fake,
            f"cycle_{start}": home.decode(content_again, style),
            f"content_{start}": content,
            f"content_{start}{end}": content_again,
            f"style_draw_{end}": draw,
            f"style_{start}{end}": style_again,
        }

    def taps(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"], rng: Rng) -> dict[str, Tensor]:
        return self._one_way(fits(a), "a", "b", rng) | self._one_way(fits(b), "b", "a", rng)

    def style_of(self, seed: int) -> Float[Tensor, "1 s"]:
        """The style that a seed stands for, the same on every device."""
        return rng_for(seed, 0, 1, stream="translate").normal("style", (self.config["style_dim"],))

    def restyle(self, x: Float[Tensor, "b 3 h w"], direction: Direction, style: Float[Tensor, "b s"]) -> Float[Tensor, "b 3 h w"]:
        """Images in given styles of the other domain, a row each: drawn ones, or `style` of example images."""
        start, end = ends(direction)
        return self._domain(end).decode(self._domain(start).content(fits(x)), style)

    def translate(self, x: Float[Tensor, "b 3 h w"], direction: Direction, seed: int = 0) -> Float[Tensor, "b 3 h w"]:
        """All images in one style, which `seed` draws: an image comes out the same whatever is beside it in the batch."""
        style = self.style_of(seed).to(x.device, x.dtype)
        return self.restyle(x, direction, style.expand(len(x), -1))

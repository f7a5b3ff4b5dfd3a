"""CycleGAN's generators (Zhu et al. 2017): Johnson et al.'s network for style transfer, one for each direction.

A 7 x 7 convolution, two halvings, residual blocks at a quarter of the size, two doublings by transposed convolutions and a 7 x 7
convolution to the image. Borders are reflected, at the ends and in the blocks; instance norm has no parameters.
"""

from functools import partial
from itertools import pairwise

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from percepta.networks.translation import Direction, Pair
from percepta.networks.translation_parts import DOWNS, counted, ends, first_weights, fits, reflected, residuals
from percepta.rng import Rng


def blocks_for(size: int) -> int:
    """6 residual blocks up to 128 px, 9 from 256 px (the paper's appendix); between them, 6."""
    return 9 if size >= 256 else 6


class Generator(nn.Sequential):
    """Images [b, 3, h, w] in [-1, 1] to images of the same size."""

    def __init__(self, channels: int, blocks: int) -> None:
        def settled(conv: nn.Module, width: int) -> list[nn.Module]:
            return [conv, nn.InstanceNorm2d(width), nn.ReLU()]

        widths = [channels * 2**i for i in range(DOWNS + 1)]
        layers = settled(reflected(3, channels, 7), channels)
        for c, wider in pairwise(widths):
            layers += settled(nn.Conv2d(c, wider, 3, stride=2, padding=1), wider)
        layers.append(residuals(widths[-1], blocks))
        for wider, c in pairwise(widths[::-1]):
            layers += settled(nn.ConvTranspose2d(wider, c, 3, stride=2, padding=1, output_padding=1), c)
        super().__init__(*layers, reflected(channels, 3, 7), nn.Tanh())
        first_weights(self, partial(nn.init.normal_, std=0.02))


class CycleganPair(Pair):
    """Two generators that share nothing. Without `blocks` their number follows from the size of the images in training."""

    @register_to_config
    def __init__(self, sample_size: int = 256, channels: int = 64, blocks: int | None = None) -> None:
        super().__init__()
        blocks = blocks_for(sample_size) if blocks is None else blocks
        counted(sample_size=sample_size, channels=channels, blocks=blocks)
        self.a2b, self.b2a = Generator(channels, blocks), Generator(channels, blocks)

    def taps(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"], rng: Rng) -> dict[str, Tensor]:
        """Draws nothing from `rng`."""
        fake_b, fake_a = self.a2b(fits(a)), self.b2a(fits(b))
        return {
            "real_a": a,
            "real_b": b,
            "fake_a": fake_a,
            "fake_b": fake_b,
            "cycle_a": self.b2a(fake_b),
            "cycle_b": self.a2b(fake_a),
            "same_a": self.b2a(a),
            "same_b": self.a2b(b),
        }

    def translate(self, x: Float[Tensor, "b 3 h w"], direction: Direction, seed: int = 0) -> Float[Tensor, "b 3 h w"]:
        """The same for every seed: nothing is drawn."""
        start, _ = ends(direction)
        return (self.a2b if start == "a" else self.b2a)(fits(x))

"""UNIT (Liu et al. 2017): an autoencoder per domain, whose codes are one latent space.

    mu_a = E_a(a)                        the encoder gives the mean alone; the variance is fixed at 1
    recon_a = D_a(mu_a + eta)            fake_b = D_b(mu_a + eta), eta ~ N(0, I), of the same code
    mu_cycle_a = E_b(fake_b)             cycle_a = D_a(mu_cycle_a + eta'), eta' ~ N(0, I)

The latent space is shared by sharing weights: the last residual block of the encoders and the first of the decoders, as in the paper's
appendix. The code that the authors published later shares none and leaves it to the cycle: `shared=0`. Widths, depths and norms
are those of that code.
"""

from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn

from percepta.networks.translation import Direction, Pair
from percepta.networks.translation_parts import DOWNS, ascent, counted, ends, first_weights, fits, residuals, stem
from percepta.rng import Rng


class UnitPair(Pair):
    """Encoders are encode_a and encode_b, then join; decoders are part, then decode_a and decode_b. What is shared is one module."""

    @register_to_config
    def __init__(self, channels: int = 64, blocks: int = 4, shared: int = 1) -> None:
        super().__init__()
        counted(channels=channels, blocks=blocks)
        if not 0 <= shared <= blocks:
            raise ValueError(f"of {blocks} residual blocks 0 to {blocks} can be shared, got shared={shared}")
        width, own = channels * 2**DOWNS, blocks - shared
        self.encode_a, self.encode_b = (nn.Sequential(stem(channels, DOWNS, True), residuals(width, own)) for _ in "ab")
        self.join, self.part = residuals(width, shared), residuals(width, shared)
        self.decode_a, self.decode_b = (nn.Sequential(residuals(width, own), ascent(channels)) for _ in "ab")
        first_weights(self, nn.init.kaiming_normal_)

    def mean(self, x: Float[Tensor, "b 3 h w"], domain: str) -> Float[Tensor, "b c h4 w4"]:
        """mu of images of a domain, "a" or "b"."""
        return self.join((self.encode_a if domain == "a" else self.encode_b)(x))

    def decode(self, z: Float[Tensor, "b c h4 w4"], domain: str) -> Float[Tensor, "b 3 h w"]:
        return (self.decode_a if domain == "a" else self.decode_b)(self.part(z))

    def _one_way(self, x: Tensor, start: str, end: str, rng: Rng) -> dict[str, Tensor]:
        def noised(mu: Tensor, name: str) -> Tensor:
            return mu + rng.normal(f"{name}_{start}", mu.shape[1:]).to(mu)

        mu = self.mean(x, start)
        z = noised(mu, "eta")
        fake = self.decode(z, end)
        mu_cycle = self.mean(fake, end)
        return {
            f"real_{start}": x,
            f"recon_{start}": self.decode(z, start),
            f"fake_{end}": fake,
            f"cycle_{start}": self.decode(noised(mu_cycle, "eta_cycle"), start),
            f"mu_{start}": mu,
            f"mu_cycle_{start}": mu_cycle,
        }

    def taps(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"], rng: Rng) -> dict[str, Tensor]:
        return self._one_way(fits(a), "a", "b", rng) | self._one_way(fits(b), "b", "a", rng)

    def translate(self, x: Float[Tensor, "b 3 h w"], direction: Direction, seed: int = 0) -> Float[Tensor, "b 3 h w"]:
        """From the mean, without noise: the same for every seed."""
        start, end = ends(direction)
        return self.decode(self.mean(fits(x), start), end)

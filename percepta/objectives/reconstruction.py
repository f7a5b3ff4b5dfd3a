"""What an autoencoder is judged by besides perception: absolute error, and the pull of its latents towards N(0, 1)."""

from jaxtyping import Float
from torch import Tensor

from percepta.estimate import Estimate
from percepta.objectives.term import AbstractPerSample, per_sample


class L1(AbstractPerSample):
    """mean |x0 - x0_hat| per sample."""

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        return per_sample((est.x0 - est.x0_hat).abs())


class Kl(AbstractPerSample):
    """KL(N(mean, std^2) || N(0, 1)) per latent number, from the taps `mean` and `std`."""

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        mean, std = est.taps["mean"], est.taps["std"]
        return per_sample((mean**2 + std**2 - 1) / 2 - std.log())

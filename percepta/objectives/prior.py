"""What latent diffusion knows of a domain, as terms that any translator takes (LaDiffGAN, 2024). The translator alone is needed afterwards.

    LatentDiffusionGan     z = E_d(x), the same t for both:  D(q(z_real, t), t) -> 1, D(q(z_fake, t), t) -> 0, and G fools D
    LatentMatching         no critic: the frozen denoiser's hidden features of the same two, their means over the batch
    ConditionalDenoising   |eps - eps_d(z_t, t, c)|^2 of the frozen denoiser of E_d's latents, told c = E_s of another picture

INFERRED: the paper's main text is not to be had. The abstract names a "latent diffusion GAN loss" that aligns latent features of generated and training
images under "different amounts of Gaussian noise", and a "heterogeneous conditional denoising loss" with "image-level supervision"; formulas, weights,
times and conditioning are this library's reading. docs/interpretation.md has the list.

Encoders and denoisers are frozen for good, by whoever opened them: nothing is switched here, and the gradient passes through them. A latent is the mean of
its posterior. Noise and times come from the estimate's own random numbers, row by row: micro-batches and ranks change nothing.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from percepta.discrepancies.gan import least_squares, right
from percepta.distributed import gather_rows
from percepta.estimate import Estimate
from percepta.formulation import Denoiser, expand, noise_of
from percepta.networks import Autoencoder, Network
from percepta.networks.hidden import hidden_layer, stopped_after
from percepta.networks.latent_critic import LatentCritic
from percepta.networks.latent_prior import GIVEN, LatentPrior
from percepta.objectives.adversarial import tap, told_apart
from percepta.objectives.term import AbstractPerBatch, AbstractPerSample, TrainsCritic, per_sample
from percepta.path import AbstractDiscretePath, AbstractPath, Times
from percepta.rng import Rng

Option = Literal["A", "B", "C"]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Between:
    """Times drawn evenly between two fractions of a path, 0 its clean end: of T steps, those from low T up to high T."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(
                f"times lie between two fractions of the path, 0 <= low < high <= 1, got {self.low:g} and {self.high:g}"
            )

    @classmethod
    def read(cls, text: str) -> "Between":
        """From "0.02:0.8"."""
        try:
            low, high = map(float, text.split(":"))
        except ValueError:
            raise ValueError(f"times are two fractions of the path as in 0.02:0.8, got {text!r}") from None
        return cls(low, high)

    def draw(self, path: AbstractPath, rng: Rng) -> Times:
        u = rng.uniform("t")
        if not isinstance(path, AbstractDiscretePath):
            return path.t_min + (self.low + u * (self.high - self.low)) * (path.t_max - path.t_min)
        steps = self.steps(path.num_steps)
        return path.time_of((steps.start + u * len(steps)).floor())

    def steps(self, num: int) -> range:
        """Those of `num` steps that are drawn."""
        found = range(round(self.low * num), round(self.high * num))
        if not found:
            raise ValueError(f"of {num} steps none lies between {self.low:g} and {self.high:g}: give a wider range")
        return found


class LatentDiffusionGan(AbstractPerSample, TrainsCritic):
    """Option A of the latent diffusion GAN loss: a critic that is told the time compares noised latents of one domain. INFERRED.

    `real` and `fake` are taps of the estimate; without them x0 and x0_hat. `told`: the share of patches that the critic takes for real though they are not.
    """

    def __init__(
        self, encoder: Autoencoder, critic: LatentCritic, path: AbstractPath, times: Between = Between(),
        real: str | None = None, fake: str | None = None,
    ) -> None:  # fmt: skip
        self.encoder, self.critic, self.path, self.times = frozen(encoder, "encoder"), critic, path, times
        self.real, self.fake = real, fake
        self.told: dict[str, Tensor] = {}

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        rng = own_numbers(est, f"latent-gan/{self.fake}")
        z_t, time = self._noised(latents(est, self.encoder, self.fake), self.times.draw(self.path, rng), rng)
        logits = self.critic(z_t, time)
        self.told = {"fooled": right(logits, True)}
        return least_squares(logits, 1)

    def critic_loss(self, est: Estimate, rng: Rng) -> Float[Tensor, ""]:
        """The time of a row is that of its real and of its made image; each has noise of its own."""
        mine = rng.fork(f"latent-critic/{self.fake}")
        t = self.times.draw(self.path, mine)
        real, time = self._noised(latents(est, self.encoder, self.real, "x0").detach(), t, mine.fork("real"))
        fake, _ = self._noised(latents(est, self.encoder, self.fake).detach(), t, mine.fork("fake"))
        return told_apart(self.critic(torch.cat([real, fake]), time.repeat(2)), len(real))

    def _noised(self, z: Tensor, t: Times, rng: Rng) -> tuple[Tensor, Tensor]:
        """z_t, and the time as the critic is told it."""
        z_t, _ = noised(z, t, rng, self.path)
        return z_t, self.path.network_time(t).float().to(z_t.device)


class LatentMatching(AbstractPerBatch):
    """Option B: the frozen denoiser of a domain's latents is the critic, and does not learn. INFERRED.

        |m(fake) - m(real)|^2 / |m(real)|^2         m: the mean over the batch of what the mid block makes of z_t

    Of each of its channels the mean and the deviation over the image count. Nothing is paired, so sets are compared, by their means (feature matching,
    Salimans et al. 2016): batches of a few images say little, and one image pulls to another. Made of more than one domain's latents, it is a term each.
    """

    def __init__(
        self, encoder: Autoencoder, denoiser: Denoiser, times: Between = Between(), real: str | None = None, fake: str | None = None
    ) -> None:  # fmt: skip
        network = denoiser.network
        if not isinstance(network, Network) or network.conditional or network.in_channels != encoder.latent_channels:
            raise ValueError(
                "hidden features are read in an unconditional denoiser of the encoder's latents: a run of percepta train ddpm --vae"
            )
        self.encoder, self.denoiser, self.times = frozen(encoder, "encoder"), frozen(denoiser, "denoiser"), times
        self.layer = hidden_layer(network)
        self.real, self.fake = real, fake

    def __call__(self, est: Estimate) -> Float[Tensor, ""]:
        rng = own_numbers(est, f"latent-matching/{self.fake}")
        t = self.times.draw(self.denoiser.path, rng)
        with torch.no_grad():
            real = gather_rows(self._hidden(latents(est, self.encoder, self.real, "x0"), t, rng.fork("real"))).mean(0)
        fake = gather_rows(self._hidden(latents(est, self.encoder, self.fake), t, rng.fork("fake"))).mean(0)
        return (fake - real).square().sum() / real.square().sum()

    def _hidden(self, z: Tensor, t: Times, rng: Rng) -> Float[Tensor, "b d"]:
        z_t, _ = noised(z, t, rng, self.denoiser.path)
        with stopped_after(self.layer) as found:
            self.denoiser(z_t, t)
        flat = found[0].float().flatten(2)
        return torch.cat([flat.mean(2), (flat.var(2, correction=0) + 1e-8).sqrt()], 1)


class ConditionalDenoising(AbstractPerSample):
    """The heterogeneous conditional denoising loss, for one direction of a translator, s to d. `prior` denoises E_d's latents, told E_s's. INFERRED.

        A    z_0 = E_d(G(x_s)), c = E_s(x_s):    |eps - eps_d(z_t, t, c)|^2, back through the denoiser and E_d into G
        B    z_0 = E_d(x_d), c = E_s(G'(x_d)):   the same; G', which makes s of d, is to tell the denoiser what it needs
        C    as A, score distillation (Poole et al. 2023): dL/dz_0 = sigma^2 (eps_d - eps), not through the denoiser

    The prior was trained on E_d(x_d) and E_s(x_d), two views of one image: no pairs are needed. A alone is least where G's latents are smooth: it stands
    beside critics and cycles.
    """

    def __init__(
        self,
        prior: LatentPrior,
        direction: Literal["a2b", "b2a"] = "a2b",
        option: Option = "A",
        times: Between = Between(0.02, 0.8),
    ) -> None:
        if direction not in ("a2b", "b2a") or option not in ("A", "B", "C"):
            raise ValueError(f"a direction is a2b or b2a and an option A, B or C, got {direction!r} and {option!r}")
        self.prior: LatentPrior = frozen(prior, "prior")
        self.direction, self.option, self.times = direction, option, times

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        rng, path = own_numbers(est, f"denoising/{self.direction}/{self.option}"), self.prior.denoiser.path
        source, target = self.direction.split("2")
        real = self.option == "B"
        z = latents(est, self.prior.own, f"real_{target}" if real else f"fake_{target}")
        given = latents(est, self.prior.other, f"fake_{source}" if real else f"real_{source}")
        t = self.times.draw(path, rng)
        z_t, eps = noised(z, t, rng, path)
        if self.option == "C":
            with torch.no_grad():
                eps_hat = self._eps(z_t, t, given)
            step = expand(path.sigma(t) ** 2, z) * (eps_hat - eps)
            return per_sample((z - (z - step).detach()).square() / 2)
        return per_sample((self._eps(z_t, t, given) - eps).square())

    def _eps(self, z_t: Tensor, t: Times, given: Tensor) -> Tensor:
        return noise_of(self.prior.denoiser(z_t, t, {GIVEN: given}), z_t, t, self.prior.denoiser.path)


def latents(est: Estimate, encoder: Autoencoder, name: str | None, otherwise: Literal["x0", "x0_hat"] = "x0_hat") -> Tensor:
    """E(tap), shared by all terms of a step that have the same encoder."""
    tap(est, name, est.x0)  # raises where there is none
    return est.encoded(encoder, name or otherwise)


def noised(z: Tensor, t: Times, rng: Rng, path: AbstractPath) -> tuple[Tensor, Tensor]:
    """z_t = alpha z + sigma eps, and eps."""
    eps = rng.normal("eps", z.shape[1:], z.dtype).to(z.device)
    return expand(path.alpha(t), z) * z + expand(path.sigma(t), z) * eps, eps


def own_numbers(est: Estimate, name: str) -> Rng:
    """The rows' random numbers, in a stream of their own."""
    if est.rng is None:
        raise ValueError(
            "this objective draws noise, and the estimate has no random numbers: Translate gives them, or Estimate(..., rng=rng)"
        )
    return est.rng.fork(name)


def frozen(module: M, what: str) -> M:
    """The module, if it neither learns nor is in training mode."""
    if any(p.requires_grad for p in module.parameters()) or any(part.training for part in module.modules()):
        raise ValueError(f"the {what} judges and does not learn: freeze it first, with .requires_grad_(False).eval()")
    return module

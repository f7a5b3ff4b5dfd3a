"""What a network's output means, how times are drawn, and the Denoiser: where every noise convention ends.

    x0_hat = c_skip x_t + c_out F(c_in x_t, c_time)

An Output is one function from a path and times to these four coefficients. Above this file nothing knows whether a network
predicts the clean image, the noise, a velocity or EDM's residual.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from percepta.path import AbstractDiscretePath, AbstractPath, Rectified, Times, VarianceExploding, path_from_config
from percepta.rng import Rng

Cond = Tensor | Mapping[str, Tensor] | None


class Coefficients(NamedTuple):
    c_skip: Times
    c_out: Times
    c_in: Times
    c_time: Times


Output = Callable[[AbstractPath, Times], Coefficients]


def clean(path: AbstractPath, t: Times) -> Coefficients:
    """The network predicts x0."""
    one = torch.ones_like(t)
    return Coefficients(torch.zeros_like(t), one, one, path.network_time(t))


def noise(path: AbstractPath, t: Times) -> Coefficients:
    """The network predicts eps (Ho et al. 2020): x0 = (x_t - sigma eps)/alpha."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    return Coefficients(1 / alpha, -sigma / alpha, torch.ones_like(t), path.network_time(t))


def velocity(path: AbstractPath, t: Times) -> Coefficients:
    """The network predicts v = alpha eps - sigma x0 (Salimans and Ho 2022) on a variance-preserving path: x0 = alpha x_t - sigma v."""
    if not isinstance(path, AbstractDiscretePath):
        raise ValueError(
            f"v-prediction needs a variance-preserving path (LinearBeta, Cosine), got {type(path).__name__}; "
            "for a flow use the output 'flow'"
        )
    alpha, sigma = path.alpha(t), path.sigma(t)
    return Coefficients(alpha, -sigma, torch.ones_like(t), path.network_time(t))


def flow(path: AbstractPath, t: Times) -> Coefficients:
    """The network predicts dx_t/dt = alpha' x0 + sigma' eps; on Rectified this is eps - x0, and x0 = x_t - t v."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    d_alpha, d_sigma = path.velocity(t)
    det = alpha * d_sigma - sigma * d_alpha
    return Coefficients(d_sigma / det, -sigma / det, torch.ones_like(t), path.network_time(t))


SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1], Karras et al. 2022


def edm(path: AbstractPath, t: Times) -> Coefficients:
    """Karras et al. 2022, table 1: the network sees unit variance and predicts a target of unit variance at every level."""
    if not isinstance(path, VarianceExploding):
        raise ValueError(f"EDM preconditioning needs the path VarianceExploding, got {type(path).__name__}")
    total = t**2 + SIGMA_DATA**2
    return Coefficients(SIGMA_DATA**2 / total, t * SIGMA_DATA / total.sqrt(), 1 / total.sqrt(), path.network_time(t))


OUTPUTS: dict[str, Output] = {f.__name__: f for f in (clean, noise, velocity, flow, edm)}


class AbstractTimes(ABC):
    """How training times are drawn: a function of uniform numbers, so that every sample's time is its own."""

    @abstractmethod
    def draw(self, path: AbstractPath, rng: Rng) -> Times: ...


@dataclass(frozen=True)
class UniformTimes(AbstractTimes):
    """Every knot of a discrete path alike; U(t_min, t_max) on a continuous one."""

    def draw(self, path: AbstractPath, rng: Rng) -> Times:
        u = rng.uniform("t")
        if isinstance(path, AbstractDiscretePath):
            return path.time_of((u * path.num_steps).floor())
        return path.t_min + u * (path.t_max - path.t_min)


@dataclass(frozen=True)
class LogNormalTimes(AbstractTimes):
    """EDM's ln(sigma) ~ N(mean, std^2); defaults of Karras et al. 2022, table 1."""

    mean: float = -1.2
    std: float = 1.2

    def draw(self, path: AbstractPath, rng: Rng) -> Times:
        return (self.mean + self.std * rng.to("cpu").normal("t", (), torch.float64)).exp()


@dataclass(frozen=True)
class LogitNormalTimes(AbstractTimes):
    """SD3's t = sigmoid(N(mean, std^2)) (Esser et al. 2024, section 3.1)."""

    mean: float = 0.0
    std: float = 1.0

    def draw(self, path: AbstractPath, rng: Rng) -> Times:
        t = torch.sigmoid(self.mean + self.std * rng.to("cpu").normal("t", (), torch.float64))
        return t.clamp(path.t_min, path.t_max)


TIMES: dict[str, type[AbstractTimes]] = {"uniform": UniformTimes, "lognormal": LogNormalTimes, "logit-normal": LogitNormalTimes}


class Noised(NamedTuple):
    """A noised batch and what made it."""

    x0: Float[Tensor, "b *d"]
    eps: Float[Tensor, "b *d"]
    t: Times
    x_t: Float[Tensor, "b *d"]


def expand(coefficient: Tensor, like: Tensor) -> Tensor:
    """One number per sample, shaped, typed and placed to multiply a batch."""
    return coefficient.to(like.dtype).to(like.device, non_blocking=True).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Formulation:
    """A path, the meaning of the network's output on it, and the distribution of training times."""

    path: AbstractPath
    output: str = "noise"
    times: AbstractTimes = UniformTimes()

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS:
            raise ValueError(f"unknown output {self.output!r}; known: {', '.join(OUTPUTS)}")
        ends = self.coefficients(torch.tensor([self.path.t_min, self.path.t_max], dtype=torch.float64))  # a mismatch shows here
        if not all(bool(c.isfinite().all()) for c in ends):
            raise ValueError(
                f"the output {self.output!r} cannot be read at the ends of {type(self.path).__name__}: at t = {self.path.t_max:g} "
                "nothing of the image is left to divide by; use 'clean' or 'flow'"
            )

    def coefficients(self, t: Times) -> Coefficients:
        return OUTPUTS[self.output](self.path, t)

    def noised(self, x0: Float[Tensor, "b *d"], rng: Rng, t: Times | None = None) -> Noised:
        """x_t = alpha x0 + sigma eps, times drawn unless given."""
        if len(rng) != len(x0):
            raise ValueError(f"the random numbers are for {len(rng)} samples, the batch has {len(x0)}")
        t = self.times.draw(self.path, rng) if t is None else t
        eps = rng.normal("eps", x0.shape[1:], x0.dtype)
        x_t = expand(self.path.alpha(t), x0) * x0
        x_t += expand(self.path.sigma(t), x0) * eps  # in place: a temporary costs as much as the arithmetic
        return Noised(x0, eps, t, x_t)

    def target(self, noised: Noised) -> Float[Tensor, "b *d"]:
        """What a perfect network would put out: (x0 - c_skip x_t)/c_out."""
        c = self.coefficients(noised.t)
        return (noised.x0 - expand(c.c_skip, noised.x0) * noised.x_t) / expand(c.c_out, noised.x0)

    def to_config(self) -> dict[str, Any]:
        name = next(k for k, v in TIMES.items() if v is type(self.times))
        return {"path": self.path.to_config(), "output": self.output, "times": {"name": name, **asdict(self.times)}}  # pyright: ignore[reportArgumentType, reportCallIssue]


def formulation_from_config(config: Mapping[str, Any]) -> Formulation:
    """The inverse of `Formulation.to_config`."""
    times = dict(config["times"])
    return Formulation(path_from_config(config["path"]), config["output"], TIMES[times.pop("name")](**times))


FLOW = Formulation(Rectified(), "flow", LogitNormalTimes())
EDM = Formulation(VarianceExploding(), "edm", LogNormalTimes())


class Denoiser(nn.Module):
    """A network and the meaning of its output: (x_t, t, cond) -> x0_hat.

    `network` maps (x, time, cond) to its raw output, of which the first channels (as many as x has) are read; further ones, a
    learned variance for instance, are returned by `full` under the tap "extra". Arithmetic outside the network is float32 or better,
    whatever precision the network runs in: this is the only place that sees both.
    """

    def __init__(self, network: nn.Module, formulation: Formulation) -> None:
        super().__init__()
        self.network = network
        self.formulation = formulation

    @property
    def path(self) -> AbstractPath:
        return self.formulation.path

    def full(self, x_t: Float[Tensor, "b c *d"], t: Times, cond: Cond = None) -> tuple[Float[Tensor, "b c *d"], dict[str, Tensor]]:
        if t.shape != (len(x_t),) or t.device.type != "cpu":
            raise ValueError(
                f"one time per sample is needed, on the CPU: {len(x_t)} samples, times of shape {tuple(t.shape)} on {t.device}"
            )
        c = self.formulation.coefficients(t)
        x_in = x_t if bool((c.c_in == 1).all()) else expand(c.c_in, x_t) * x_t
        raw = self.network(x_in, c.c_time.float().to(x_t.device, non_blocking=True), cond)
        channels = x_t.shape[1]
        if raw.shape[1] < channels or raw.shape[2:] != x_t.shape[2:]:
            raise ValueError(
                f"the network maps {tuple(x_t.shape)} to {tuple(raw.shape)}: it needs at least {channels} output channels "
                "and the input's size"
            )
        wide = torch.promote_types(x_t.dtype, torch.float32)
        out = raw[:, :channels].to(wide)
        x0_hat = expand(c.c_out, out) * out
        if self.formulation.output != "clean":
            x0_hat += expand(c.c_skip, out) * x_t.to(wide)
        return x0_hat, {"output": out} | ({"extra": raw[:, channels:]} if raw.shape[1] > channels else {})

    def forward(self, x_t: Float[Tensor, "b c *d"], t: Times, cond: Cond = None) -> Float[Tensor, "b c *d"]:
        return self.full(x_t, t, cond)[0]


def as_x0_hat(
    output: str, raw: Shaped[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], t: Times, path: AbstractPath
) -> Float[Tensor, "b *d"]:
    """The clean estimate that a raw output of the named kind stands for."""
    c = OUTPUTS[output](path, t)
    return expand(c.c_skip, x_t) * x_t + expand(c.c_out, x_t) * raw.to(x_t.dtype)


def noise_of(x0: Float[Tensor, "b *d"], x_t: Float[Tensor, "b *d"], t: Times, path: AbstractPath) -> Float[Tensor, "b *d"]:
    """The eps that a clean estimate implies: (x_t - alpha x0)/sigma."""
    return (x_t - expand(path.alpha(t), x_t) * x0) / expand(path.sigma(t), x_t)

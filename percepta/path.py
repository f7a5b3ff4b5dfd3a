"""Paths from clean data to noise: x_t = alpha(t) x0 + sigma(t) eps, with t = 0 clean, everywhere in Percepta.

A variance-preserving path of T steps has its knots at t = k/T: DDPM's timestep k (0 .. T-1) is t = (k+1)/T, and abar(0) = 1. Between
the knots log abar is linear in t, so that `velocity` is the exact derivative of `alpha` and `sigma` off the knots too.
Times are float64 vectors on the CPU, one number per sample, wherever the images are: schedules need the digits (and MPS has no
float64), a hundred numbers are computed faster than a GPU kernel is launched, and a gate by noise level costs no synchronisation.
Coefficients cross to the images' device and dtype where they multiply them (`formulation.expand`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Times = Float[Tensor, "*b"]


class AbstractPath(ABC):
    """alpha(t), sigma(t) and what follows from them. `t_max` is where sampling starts, `t_min` the least time that is trained."""

    t_min: float
    t_max: float

    @abstractmethod
    def alpha(self, t: Times) -> Times: ...

    @abstractmethod
    def sigma(self, t: Times) -> Times: ...

    @abstractmethod
    def velocity(self, t: Times) -> tuple[Times, Times]:
        """(d alpha/dt, d sigma/dt)."""

    @abstractmethod
    def network_time(self, t: Times) -> Times:
        """The number that networks of this family were trained to read: DDPM's timestep, a flow's 1000 t, EDM's ln(sigma)/4."""

    @abstractmethod
    def time_of_level(self, level: Times) -> Times:
        """The inverse of `level`: the time at which sigma/alpha has this value."""

    def level(self, t: Times) -> Times:
        """Noise-to-signal ratio sigma/alpha: the unit of LPL's threshold and of EDM's sigma."""
        return self.sigma(t) / self.alpha(t)

    def snr(self, t: Times) -> Times:
        """Signal-to-noise ratio alpha^2/sigma^2."""
        return (self.alpha(t) / self.sigma(t)) ** 2

    def to_config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, **asdict(self)}  # pyright: ignore[reportArgumentType]


class AbstractDiscretePath(AbstractPath):
    """A variance-preserving path given by a table of betas: alpha = sqrt(abar), sigma = sqrt(1 - abar), abar_k = prod (1 - beta)."""

    num_steps: int
    t_max = 1.0

    @abstractmethod
    def _betas(self) -> Float[Tensor, "T"]:
        """The betas of the T steps, float64."""

    @cached_property
    def betas(self) -> Float[Tensor, "T"]:
        betas = self._betas()
        if betas.ndim != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
            raise ValueError(
                f"betas must be a vector with values in (0, 1], got shape {tuple(betas.shape)}, "
                f"range {float(betas.min()):.3g} to {float(betas.max()):.3g}"
            )
        return betas

    @cached_property
    def abar(self) -> Float[Tensor, "knots"]:
        """abar at the T+1 knots, float64; abar[0] = 1 is the clean end, abar[k+1] belongs to DDPM's timestep k."""
        return torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - self.betas, 0)])

    @property
    def t_min(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 1 / self.num_steps

    def time_of(self, k: Tensor | Sequence[int]) -> Times:
        """DDPM's timesteps k in 0 .. T-1 as times; -1 is the clean end."""
        return (torch.as_tensor(k, dtype=torch.float64) + 1) / self.num_steps

    def network_time(self, t: Times) -> Times:
        return t * self.num_steps - 1

    def _log_abar(self, t: Times) -> tuple[Times, Times]:
        """log abar and its derivative."""
        if t.numel() and not bool(((t >= 0) & (t <= 1 + 1e-6)).all()):
            raise ValueError(
                f"times of a {self.num_steps}-step path lie in [0, 1], got {float(t.min()):.4g} to {float(t.max()):.4g}; "
                "turn DDPM's timesteps into times with path.time_of(k)"
            )
        table = self._table(t.device, t.dtype)
        u = t * self.num_steps
        left = u.floor().clamp(max=self.num_steps - 1).long()
        slope = table[left + 1] - table[left]
        return table[left] + (u - left) * slope, slope * self.num_steps

    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        key = (device, dtype)
        if key not in self._tables:
            # a zero terminal SNR has log abar = -inf: keep it finite, alpha is then 1e-20
            self._tables[key] = self.abar.clamp(min=1e-40).log().to(device=device, dtype=dtype)
        return self._tables[key]

    @cached_property
    def _tables(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    def alpha(self, t: Times) -> Times:
        return (self._log_abar(t)[0] / 2).exp()

    def sigma(self, t: Times) -> Times:
        return (-torch.expm1(self._log_abar(t)[0])).sqrt()

    def velocity(self, t: Times) -> tuple[Times, Times]:
        log_abar, slope = self._log_abar(t)
        return (log_abar / 2).exp() * slope / 2, -log_abar.exp() * slope / (2 * (-torch.expm1(log_abar)).sqrt())

    def time_of_level(self, level: Times) -> Times:
        log_abar = -torch.log1p(level.double() ** 2)  # level^2 = (1 - abar)/abar
        table = self._table(level.device, torch.float64)
        right = torch.searchsorted(-table, -log_abar).clamp(1, self.num_steps)
        return ((right - 1) + (log_abar - table[right - 1]) / (table[right] - table[right - 1])) / self.num_steps


@dataclass(frozen=True)
class LinearBeta(AbstractDiscretePath):
    """Ho et al. 2020: betas linear from 1e-4 to 0.02 over 1000 steps. `scaled` is Stable Diffusion's: linear in sqrt(beta)."""

    num_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    scaled: bool = False

    def _betas(self) -> Tensor:
        if self.scaled:
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps, dtype=torch.float64) ** 2
        return torch.linspace(self.beta_start, self.beta_end, self.num_steps, dtype=torch.float64)


@dataclass(frozen=True)
class Cosine(AbstractDiscretePath):
    """Nichol and Dhariwal 2021: abar = cos^2((t + s)/(1 + s) pi/2), each beta capped at 0.999."""

    num_steps: int = 1000
    offset: float = 0.008
    max_beta: float = 0.999

    def _betas(self) -> Tensor:
        t = torch.arange(self.num_steps + 1, dtype=torch.float64) / self.num_steps
        abar = torch.cos((t + self.offset) / (1 + self.offset) * torch.pi / 2) ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=self.max_beta)


@dataclass(frozen=True)
class BetaTable(AbstractDiscretePath):
    """Any other table of betas: what a foreign scheduler was trained with."""

    table: tuple[float, ...]

    @property
    def num_steps(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.table)

    def _betas(self) -> Tensor:
        return torch.tensor(self.table, dtype=torch.float64)


@dataclass(frozen=True)
class Rectified(AbstractPath):
    """Rectified flow: x_t = (1 - t) x0 + t eps. `time_scale` is what the network reads per unit of t (SD3's transformers: 1000)."""

    t_min: float = 1e-5
    t_max: float = 1.0
    time_scale: float = 1000.0

    def alpha(self, t: Times) -> Times:
        return 1 - t

    def sigma(self, t: Times) -> Times:
        return t

    def velocity(self, t: Times) -> tuple[Times, Times]:
        return -torch.ones_like(t), torch.ones_like(t)

    def network_time(self, t: Times) -> Times:
        return t * self.time_scale

    def time_of_level(self, level: Times) -> Times:
        return level / (1 + level)


@dataclass(frozen=True)
class VarianceExploding(AbstractPath):
    """EDM (Karras et al. 2022): x_t = x0 + t eps, the time is the noise's standard deviation."""

    t_min: float = 0.002
    t_max: float = 80.0

    def alpha(self, t: Times) -> Times:
        return torch.ones_like(t)

    def sigma(self, t: Times) -> Times:
        return t

    def velocity(self, t: Times) -> tuple[Times, Times]:
        return torch.zeros_like(t), torch.ones_like(t)

    def network_time(self, t: Times) -> Times:
        return t.log() / 4

    def time_of_level(self, level: Times) -> Times:
        return level


PATHS: dict[str, type[AbstractPath]] = {c.__name__: c for c in (LinearBeta, Cosine, BetaTable, Rectified, VarianceExploding)}


def path_from_config(config: dict[str, Any]) -> AbstractPath:
    """The inverse of `to_config`."""
    fields = dict(config)
    name = fields.pop("name")
    if name not in PATHS:
        raise ValueError(f"unknown path {name!r}; known: {', '.join(PATHS)}")
    if "table" in fields:
        fields["table"] = tuple(fields["table"])
    return PATHS[name](**fields)

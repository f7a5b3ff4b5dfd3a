"""Time grids: which times a sampler visits, as a decreasing float64 vector whose last entry is the clean end, 0.

Images at few steps differ strongly between the dialects, so each is named and its list is tested. k: DDPM's timesteps 0 .. T-1:

    leading       k = i (T//S) + offset, i < S        diffusers' DDIM; Stable Diffusion has offset 1
    leading-code  range(0, T, T//S)                   the lists of the DDIM and MMD-DDM code: 16 evaluations for S = 15 of T = 1000
    linspace      S values from 0 to T-1, rounded     improved-diffusion's "S", diffusers' linspace
    trailing      round(T - i T/S) - 1                starts at T-1, whatever S is (Lin et al. 2023)
    quadratic     linspace(0, sqrt(0.8 T), S)^2       Song et al. 2020's for CIFAR-10; a timestep that comes twice is visited once
    karras        sigma^(1/rho) linear                Karras et al. 2022, equation 5; the level sigma/alpha on any path that has one
    logsnr        log(sigma/alpha) linear             DPM-Solver's
    uniform       t linear                            rectified flow
    shifted       m t/(1 + (m - 1) t), t linear       Esser et al. 2024, equation 23: more steps where there is much noise
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from percepta.path import AbstractDiscretePath, AbstractPath, Rectified, Times


class Knobs(NamedTuple):
    """What some spacings take besides the number of steps."""

    offset: int = 0
    rho: float = 7.0
    shift: float = 3.0


def _leading(path: AbstractDiscretePath, steps: int, knobs: Knobs) -> Tensor:
    return torch.arange(steps) * (path.num_steps // steps) + knobs.offset


def _leading_code(path: AbstractDiscretePath, steps: int, knobs: Knobs) -> Tensor:
    return torch.arange(0, path.num_steps, path.num_steps // steps) + knobs.offset


def _linspace(path: AbstractDiscretePath, steps: int, knobs: Knobs) -> Tensor:
    if steps < 2:
        raise ValueError("linspace spacing of one step would visit timestep 0 only, where there is no noise; use 'trailing'")
    return torch.linspace(0, path.num_steps - 1, steps, dtype=torch.float64).round().long()


def _trailing(path: AbstractDiscretePath, steps: int, knobs: Knobs) -> Tensor:
    return (path.num_steps - torch.arange(steps, dtype=torch.float64) * (path.num_steps / steps)).round().long().flip(0) - 1


def _quadratic(path: AbstractDiscretePath, steps: int, knobs: Knobs) -> Tensor:
    if steps < 2:
        raise ValueError("quadratic spacing of one step would visit timestep 0 only, where there is no noise; use 'trailing'")
    return (torch.linspace(0, (0.8 * path.num_steps) ** 0.5, steps, dtype=torch.float64) ** 2 + 1e-9).long().unique()


def _levels(path: AbstractPath) -> tuple[float, float]:
    ends = path.level(torch.tensor([path.t_min, path.t_max], dtype=torch.float64)).tolist()
    if not 0 < ends[0] < ends[1] < 1e10:
        raise ValueError(
            f"a grid by noise level needs finite levels, those of {type(path).__name__} go from {ends[0]:.3g} to {ends[1]:.3g}; "
            f"use one of: {', '.join(_known(path, by_level=False))}"
        )
    return ends[0], ends[1]


def _karras(path: AbstractPath, steps: int, knobs: Knobs) -> Tensor:
    low, high = (end ** (1 / knobs.rho) for end in _levels(path))
    return path.time_of_level(torch.linspace(high, low, max(steps, 2), dtype=torch.float64)[:steps] ** knobs.rho)


def _logsnr(path: AbstractPath, steps: int, knobs: Knobs) -> Tensor:
    low, high = torch.tensor(_levels(path), dtype=torch.float64).log().tolist()
    return path.time_of_level(torch.linspace(high, low, max(steps, 2), dtype=torch.float64)[:steps].exp())


def _uniform(path: AbstractPath, steps: int, knobs: Knobs) -> Tensor:
    return torch.linspace(path.t_max, 0, steps + 1, dtype=torch.float64)[:-1]


def _shifted(path: AbstractPath, steps: int, knobs: Knobs) -> Tensor:
    t = _uniform(path, steps, knobs)
    return knobs.shift * t / (1 + (knobs.shift - 1) * t)


BY_STEP: dict[str, Callable[[AbstractDiscretePath, int, Knobs], Tensor]] = {
    "leading": _leading, "leading-code": _leading_code, "linspace": _linspace, "trailing": _trailing, "quadratic": _quadratic,
}  # fmt: skip
BY_LEVEL: dict[str, Callable[[AbstractPath, int, Knobs], Tensor]] = {"karras": _karras, "logsnr": _logsnr}
BY_TIME: dict[str, Callable[[AbstractPath, int, Knobs], Tensor]] = {"uniform": _uniform, "shifted": _shifted}
SPACINGS: tuple[str, ...] = (*BY_STEP, *BY_LEVEL, *BY_TIME)


def _known(path: AbstractPath, by_level: bool = True) -> tuple[str, ...]:
    """The spacings that suit a path, its default first."""
    if isinstance(path, AbstractDiscretePath):
        return (*BY_STEP, *(BY_LEVEL if by_level else ()))
    return tuple(BY_TIME) if isinstance(path, Rectified) else tuple(BY_LEVEL)


def grid(
    path: AbstractPath, steps: int, spacing: str | None = None, *, offset: int = 0, rho: float = 7.0, shift: float = 3.0
) -> Times:
    """The times of `steps` steps, [steps + 1], decreasing to 0. Without a spacing: leading, karras or uniform, as the path is.

    `offset` moves the leading dialects (diffusers' steps_offset), `rho` bends karras, `shift` is the m of shifted.
    """
    spacing = _known(path)[0] if spacing is None else spacing
    if spacing not in _known(path):
        raise ValueError(f"spacing {spacing!r} does not suit the path {type(path).__name__}; use one of: {', '.join(_known(path))}")
    most = path.num_steps if isinstance(path, AbstractDiscretePath) and spacing in BY_STEP else None
    if steps < 1 or (most is not None and steps > most):
        raise ValueError(
            f"steps must be 1 or more{'' if most is None else f' and at most {most}, the steps of the path'}, got {steps}"
        )
    knobs = Knobs(offset, rho, shift)
    if spacing not in BY_STEP:
        return as_grid(path, torch.cat([{**BY_LEVEL, **BY_TIME}[spacing](path, steps, knobs), torch.zeros(1, dtype=torch.float64)]))
    assert isinstance(path, AbstractDiscretePath)
    k = torch.tensor(timesteps(path, steps, spacing, offset))
    return as_grid(path, torch.cat([path.time_of(k), torch.zeros(1, dtype=torch.float64)]))


def timesteps(path: AbstractDiscretePath, steps: int, spacing: str, offset: int = 0) -> list[int]:
    """DDPM's timesteps of a spacing that counts in them, decreasing."""
    k = BY_STEP[spacing](path, steps, Knobs(offset))
    if int(k.max()) >= path.num_steps or int(k.min()) < 0:
        raise ValueError(
            f"spacing {spacing!r} with offset {offset} visits timestep {int(k.max())}; the path ends at {path.num_steps - 1}"
        )
    return k.flip(0).tolist()


def as_grid(path: AbstractPath, times: Times) -> Times:
    """A grid given by hand, checked: float64, at least two times, decreasing, within the path."""
    if times.ndim != 1 or len(times) < 2 or times.dtype != torch.float64 or times.device.type != "cpu":
        raise ValueError(
            f"a time grid is a float64 CPU vector of at least two times, got {times.dtype} {tuple(times.shape)} on {times.device}"
        )
    if not bool((times[1:] < times[:-1]).all()):
        raise ValueError(
            f"a time grid decreases strictly, from noise to clean (t = 0), got {[round(t, 6) for t in times[:6].tolist()]} ..."
        )
    if float(times[-1]) < 0 or float(times[0]) > path.t_max * (1 + 1e-6):
        raise ValueError(
            f"times of {type(path).__name__} lie in [0, {path.t_max:g}], got {float(times[-1]):g} to {float(times[0]):g}; "
            "turn DDPM's timesteps into times with path.time_of(k)"
        )
    return times

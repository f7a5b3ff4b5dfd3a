"""Averages of weights over training: three profiles, one store; and any power profile afterwards, from snapshots.

Every average here is   theta_hat <- beta theta_hat + (1 - beta) theta   with another beta:

    classic         a constant, or rising as (1 + n)/(10 + n) with the number n of updates (Tarvainen and Valpola 2017; diffusers)
    half-life       0.5^(batch / min(halflife, rampup * images))                       (Karras et al. 2022, in images, with ramp-up)
    power function  (1 - batch/images)^(gamma + 1): theta(tau) weighs (gamma + 1) tau^gamma / t^(gamma + 1) at t,
                    a profile that stretches with training                         (Karras et al. 2024, arXiv 2312.02696, section 3)

sigma_rel, the width of the power profile relative to t, is its standard deviation; from the moments (gamma+1)/(gamma+2) and
(gamma+1)/(gamma+3):   sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
Averages are float32 (float64 for float64 weights) whatever the weights are; buffers are taken from the model as they are.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from percepta.training.checkpoint import CheckpointError, load, save, step_of
from percepta.training.optim import norm_of


class AbstractDecay(ABC):
    """beta of one update: the `updates`-th (from 0), with `batch` images since the last one, `images` in all including these."""

    @abstractmethod
    def beta(self, updates: int, images: int, batch: int) -> float: ...


@dataclass(frozen=True)
class Classic(AbstractDecay):
    """A decay per step. `warmup` as in diffusers: "ramp" is (1 + n)/(10 + n), "power" is 1 - (1 + n)^(-2/3), "none" is at once.

    With a warm-up the first update copies the weights; without, the average starts at the weights that the Ema was made with.
    """

    decay: float = 0.9999  # Dhariwal and Nichol 2021; DiT
    warmup: str = "ramp"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or self.warmup not in ("ramp", "power", "none"):
            raise ValueError(f"a decay lies in [0, 1) and its warm-up is ramp, power or none; got {self.decay}, {self.warmup!r}")

    def beta(self, updates: int, images: int, batch: int) -> float:
        if self.warmup == "none":
            return self.decay
        if updates == 0:
            return 0.0
        return min(self.decay, (1 + updates) / (10 + updates) if self.warmup == "ramp" else 1 - (1 + updates) ** (-2 / 3))


@dataclass(frozen=True)
class HalfLife(AbstractDecay):
    """Half of the weight lies on the last `halflife` images; at the start, on the last `rampup` of all images seen before."""

    halflife: float = 500_000  # Karras et al. 2022, table 7
    rampup: float | None = 0.05

    def __post_init__(self) -> None:
        if self.halflife <= 0 or (self.rampup is not None and self.rampup <= 0):
            raise ValueError(f"a half-life in images and its ramp-up are positive, got {self.halflife} and {self.rampup}")

    def beta(self, updates: int, images: int, batch: int) -> float:
        halflife = self.halflife if self.rampup is None else min(self.halflife, self.rampup * (images - batch))
        return 0.5 ** (batch / halflife) if halflife > 0 else 0.0


@dataclass(frozen=True)
class Power(AbstractDecay):
    """The power profile of relative width `sigma_rel`."""

    sigma_rel: float = 0.05

    def __post_init__(self) -> None:
        gamma_of(self.sigma_rel)

    def beta(self, updates: int, images: int, batch: int) -> float:
        return (1 - batch / images) ** (gamma_of(self.sigma_rel) + 1)


def gamma_of(sigma_rel: float) -> float:
    """The root above -1 of gamma^3 + 7 gamma^2 + (16 - s) gamma + (12 - s) = 0 with s = sigma_rel^-2."""
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel lies between 0 and {12**-0.5:.4f} (gamma = 0, the plain mean of all weights), got {sigma_rel}")
    s = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - s, 12.0 - s]).real.max())


def sigma_rel_of(gamma: float) -> float:
    return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


POWER = {"0.050": Power(0.05), "0.100": Power(0.10)}  # what Karras et al. 2024 track to reconstruct all others


class Ema:
    """Averages of a model's trainable weights, one per named profile.

    Make it when the model is on its device, and call `update` after each optimizer step with the images seen so far, over all
    ranks. `tensors` and `state` go into a checkpoint, `load` takes them back. Weights frozen at that time are not averaged.
    `guard` looks for a weight that is not finite before each update: one more pass over the weights, and one synchronisation.
    """

    def __init__(self, model: nn.Module, profiles: AbstractDecay | Mapping[str, AbstractDecay], guard: bool = True) -> None:
        self.model = model
        self.profiles = {"ema": profiles} if isinstance(profiles, AbstractDecay) else {f"ema-{k}": v for k, v in profiles.items()}
        self.guard = guard
        self.updates, self.images = 0, 0
        self._named = {k: p for k, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
        if not self._named or not self.profiles:
            raise ValueError(f"nothing to average: {len(self._named)} trainable parameters, {len(self.profiles)} profiles")
        wide = {k: torch.promote_types(p.dtype, torch.float32) for k, p in self._named.items()}
        self._averages = {name: {k: p.detach().to(wide[k], copy=True) for k, p in self._named.items()} for name in self.profiles}
        self._swapped = False

    @torch.no_grad()
    def update(self, images: int) -> None:
        """One step of every average; `images` counts all images of the run up to here."""
        batch = images - self.images
        if batch <= 0:
            raise ValueError(f"an average is updated once per step with all images so far: {images} does not follow {self.images}")
        if self._swapped:
            raise ValueError("the model holds an average now: leave `swap` before the next update")
        weights = [p.detach() for p in self._named.values()]
        if self.guard and not bool(norm_of(weights).isfinite()):
            self._refuse_nonfinite()
        for name, profile in self.profiles.items():
            averages = list(self._averages[name].values())
            wide = [p.to(a.dtype) for p, a in zip(weights, averages, strict=True)]  # float32 weights are not copied
            torch._foreach_lerp_(averages, wide, 1 - profile.beta(self.updates, images, batch))
        self.updates, self.images = self.updates + 1, images

    def averaged(self, profile: str | None = None) -> dict[str, Tensor]:
        """A state dict of the model with its averages; all else (buffers, frozen weights) is the model's own, not a copy."""
        averages = self._averages[self._profile(profile)]
        by_tensor = {id(self._named[k]): average for k, average in averages.items()}  # tied weights have two names
        every = self.model.state_dict(keep_vars=True)
        return {k: by_tensor.get(id(x), x).detach() for k, x in every.items() if isinstance(x, Tensor)}

    @contextmanager
    def swap(self, profile: str | None = None) -> Iterator[None]:
        """The model computes with its averages inside, and gets its own weights back, to the bit, however the block ends."""
        averages = self._averages[self._profile(profile)]
        if self._swapped:
            raise ValueError("the model holds an average already: `swap` does not nest")
        weights = [p.detach() for p in self._named.values()]
        own = [p.clone() for p in weights]
        try:
            self._swapped = True
            torch._foreach_copy_(weights, list(averages.values()))
            yield
        finally:
            torch._foreach_copy_(weights, own)
            self._swapped = False

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """For a checkpoint: file stem -> name -> average."""
        return {name: dict(averages) for name, averages in self._averages.items()}

    def state(self) -> dict[str, Any]:
        return {"updates": self.updates, "images": self.images, "profiles": {k: _describe(v) for k, v in self.profiles.items()}}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """What `tensors` and `state` gave. Other profiles or weights are an error; files that are not averages are ignored."""
        if state["profiles"] != self.state()["profiles"]:
            raise ValueError(f"the checkpoint averages with {state['profiles']}, the run with {self.state()['profiles']}: "
                             "resume with its flags")  # fmt: skip
        for name, averages in self._averages.items():
            given = tensors.get(name, {})
            if odd := given.keys() ^ averages.keys() or {k for k in averages if given[k].shape != averages[k].shape}:
                raise ValueError(f"the averages {name!r} do not fit this model: {_some(odd)} missing, unknown or of another shape")
            for k, average in averages.items():
                average.copy_(given[k])
        self.updates, self.images = int(state["updates"]), int(state["images"])

    def snapshot(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Stores the power averages as they are now, for `reconstruct`: hashed, written at once or not at all."""
        widths = {name: p.sigma_rel for name, p in self.profiles.items() if isinstance(p, Power)}
        if not widths or self.images == 0:
            raise ValueError(f"snapshots are of power averages after an update; here: {self.profiles}, {self.updates} updates")
        stored = {name: {k: a.to(dtype) for k, a in self._averages[name].items()} for name in widths}
        for name, averages in stored.items():
            if bad := [k for k, a in averages.items() if not bool(a.isfinite().all())]:
                raise ValueError(f"{_some(bad)} of {name!r} does not fit into {dtype}: store snapshots as torch.float32")
        return save(folder, self.images, stored, {"images": self.images, "sigma_rel": widths}, keep_last=None)

    def _profile(self, name: str | None) -> str:
        if name is None:
            return next(iter(self.profiles))
        for key in (name, f"ema-{name}"):
            if key in self.profiles:
                return key
        raise ValueError(f"there is no average {name!r}; there are {', '.join(self.profiles)}")

    def _refuse_nonfinite(self) -> None:
        bad = [k for k, p in self._named.items() if not bool(p.isfinite().all())]
        if bad:  # none: the norm overflows, the weights do not
            raise ValueError(f"{_some(bad)} is not finite after {self.images} images: the averages are left as they were; "
                             "go back to the last good checkpoint")  # fmt: skip


def reconstruct(folder: str | Path, sigma_rel: float, images: int | None = None) -> dict[str, Tensor]:
    """The average of width `sigma_rel` at `images` (default: the last snapshot) as if it had been tracked: float32, by name.

    Profiles of the snapshots p_i are combined to the nearest profile of that width: least squares with weights that sum to 1.
    Snapshots are read one at a time. The result holds the averaged weights only: `model.load_state_dict(..., strict=False)`.
    """
    places = {step: path for path in Path(folder).glob("checkpoint-*") if (step := step_of(path)) is not None}
    if not places:
        raise CheckpointError(f"no snapshots in {folder}: train with the power-function average and snapshots on")
    images = max(places) if images is None else images
    used = sorted(step for step in places if step <= images)
    if not used:
        raise ValueError(f"no snapshot at or before {images} images; there are {sorted(places)}")
    widths = load(places[used[0]]).state["sigma_rel"]
    pairs = [(step, name) for step in used for name in widths]
    solved = solve_profile([(step, gamma_of(widths[name])) for step, name in pairs], (images, gamma_of(sigma_rel)))
    weights = dict(zip(pairs, solved, strict=True))
    total: dict[str, Tensor] = {}
    for step in used:
        snapshot = load(places[step])
        if snapshot.state["sigma_rel"] != widths:
            raise CheckpointError(f"{snapshot.path} has the profiles {snapshot.state['sigma_rel']}, the first one {widths}")
        for name in widths:
            if total and total.keys() != snapshot.tensors[name].keys():
                raise CheckpointError(f"{snapshot.path} is of another model than the snapshots before it")
            for k, x in snapshot.tensors[name].items():
                total[k] = total.get(k, torch.zeros(x.shape)).add_(x.float(), alpha=weights[step, name])
    return total


def solve_profile(sources: Sequence[tuple[float, float]], target: tuple[float, float]) -> list[float]:
    """Weights c, sum 1, with the least  integral of (sum_i c_i p_i - p)^2;  profiles are given as (t, gamma).

    For a power profile ending at t, with m the earlier of two ends, the inner product is the integral of a power of tau:
        <p_a, p_b> = (g_a + 1)(g_b + 1)/(g_a + g_b + 1)  m^(g_a + g_b + 1) / (t_a^(g_a + 1) t_b^(g_b + 1))
    The normal equations are solved with a ridge: neighbouring profiles are nearly parallel, and large weights of opposite sign
    would amplify the rounding of stored weights. The sum is held at 1 by a Lagrange multiplier: what is constant stays exact.
    """
    t, gamma = np.array([*sources, target], dtype=np.float64).T
    t = t / t[-1]
    m = np.minimum(t[:, None], t)
    power = gamma[:, None] + 1
    inner = power * power.T / (power + power.T - 1) * np.exp(power * np.log(m / t[:, None]) + power.T * np.log(m / t)) / m
    n = len(sources)
    scale = 1 / np.sqrt(np.diag(inner)[:n])  # unit profiles: the ridge means the same for all
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = inner[:n, :n] * scale[:, None] * scale + 1e-9 * np.eye(n)
    system[:n, n] = system[n, :n] = scale
    solution = np.linalg.lstsq(system, np.append(inner[:n, n] * scale, 1.0), rcond=1e-15)[0]
    return [float(c) for c in solution[:n] * scale]


def _describe(profile: AbstractDecay) -> dict[str, Any]:
    return {"name": type(profile).__name__, **asdict(profile)}  # pyright: ignore[reportArgumentType]


def _some(names: Any) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

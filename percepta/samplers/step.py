"""The cut that all samplers share: a Step takes a State from time t to a time s < t, with noise that was drawn outside.

A step hides nothing: what a multistep method remembers is in the State, and the noise is an argument. Any chain can therefore be
run once without a graph, its States kept, and each step run again alone with a graph, to the bit, by code that does not know which
sampler it is:

    denoise = Bound(denoiser, cond)
    for i in reversed(range(len(times) - 1)):
        after = step(denoise, states[i], float(times[i]), float(times[i + 1]), step_noise(step, rng, i, states[i].x))
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.formulation import Cond
from percepta.path import AbstractDiscretePath, AbstractPath, Times
from percepta.rng import Rng
from percepta.samplers.grids import as_grid


@runtime_checkable
class AnyDenoiser(Protocol):
    """What a sampler asks of a denoiser: `path`, and (x_t, t, cond) -> x0_hat with one float64 CPU time per sample."""

    @property
    def path(self) -> AbstractPath: ...

    def __call__(self, x_t: Tensor, t: Times, cond: Cond = None, /) -> Tensor: ...


class Bound(NamedTuple):
    """A denoiser and its condition: what a step calls, with one time for the whole batch."""

    denoiser: AnyDenoiser
    cond: Cond = None

    @property
    def path(self) -> AbstractPath:
        return self.denoiser.path

    def __call__(self, x_t: Float[Tensor, "b *d"], t: float) -> Float[Tensor, "b *d"]:
        return self.denoiser(x_t, torch.full((len(x_t),), t, dtype=torch.float64), self.cond)

    def full(self, x_t: Float[Tensor, "b *d"], t: float) -> tuple[Float[Tensor, "b *d"], dict[str, Tensor]]:
        """x0_hat and the taps, for a sampler that reads a learned variance."""
        return full_of(self.denoiser, x_t, torch.full((len(x_t),), t, dtype=torch.float64), self.cond)


def full_of(denoiser: AnyDenoiser, x_t: Tensor, t: Times, cond: Cond) -> tuple[Tensor, dict[str, Tensor]]:
    """A denoiser's x0_hat and taps, where it has taps."""
    full = getattr(denoiser, "full", None)
    if full is None:
        raise ValueError(
            "this sampler reads a learned variance, which a percepta.Denoiser returns (its method `full`) and a "
            f"{type(denoiser).__name__} does not; use another sampler or variance='fixed_small'"
        )
    return full(x_t, t, cond)


class State(NamedTuple):
    """Where a chain stands: the sample, and what a multistep method remembers of earlier steps."""

    x: Tensor
    memory: tuple[Tensor, ...] = ()


Advance = Callable[[Bound, State, float, float, Tensor | None], State]


@dataclass(frozen=True)
class Step:
    """A sampler: how to go from t to s < t, and what that costs.

    `calls` and `last_calls` count network evaluations of a step and of the step that ends at the clean end t = 0 (None where the
    method chooses them as it goes). `noisy` says whether a step takes noise. `order` is the order of convergence in the step size.
    """

    name: str
    advance: Advance
    calls: int | None = 1
    last_calls: int | None = 1
    noisy: bool = False
    order: int = 1

    def __call__(self, denoise: Bound, state: State, t: float, s: float, noise: Tensor | None = None) -> State:
        if self.noisy and noise is None:
            raise ValueError(f"the sampler {self.name} takes noise in every step: pass step_noise(step, rng, i, x)")
        return self.advance(denoise, state, t, s, noise)

    def evaluations(self, times: Times) -> int | None:
        """Network evaluations over a grid of times; None for an adaptive method."""
        if self.calls is None or self.last_calls is None:
            return None
        inner = len(times) - 2
        return inner * self.calls + (self.last_calls if float(times[-1]) == 0 else self.calls)


@lru_cache(maxsize=4096)
def coefficients(path: AbstractPath, t: float) -> tuple[float, float]:
    """(alpha, sigma) at one time; kept, since a chain asks for the same few times again in every batch."""
    at = torch.tensor([t], dtype=torch.float64)
    return path.alpha(at).item(), path.sigma(at).item()


def start(path: AbstractPath, t: float, noise: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
    """The sample that a chain starts from at time t: unit variance on a variance-preserving path, sigma(t) eps on the others."""
    return noise if isinstance(path, AbstractDiscretePath) else noise * coefficients(path, t)[1]


def step_noise(step: Step, rng: Rng | None, i: int, x: Tensor) -> Tensor | None:
    """The noise of step i: a source of its own, so that it can be drawn again in any order."""
    if not step.noisy:
        return None
    if rng is None:
        raise ValueError(f"the sampler {step.name} is stochastic: pass rng=rng_for(seed, first, rows, stream='sample')")
    if len(rng) != len(x):
        raise ValueError(f"the random numbers are for {len(rng)} samples, the batch has {len(x)}")
    return rng.normal(f"step-{i}", x.shape[1:], x.dtype)


def integrate(
    step: Step,
    denoiser: AnyDenoiser,
    x: Float[Tensor, "b *d"],
    times: Times,
    *,
    cond: Cond = None,
    rng: Rng | None = None,
    callback: Callable[[int, State, float], None] | None = None,
) -> Float[Tensor, "b *d"]:
    """Run x from times[0] down to times[-1]. `callback(i, state, t)` sees the State before step i, which is all a replay needs."""
    points = as_grid(denoiser.path, times).tolist()
    denoise, state = Bound(denoiser, cond), State(x)
    for i, (t, s) in enumerate(pairwise(points)):
        if callback is not None:
            callback(i, state, t)
        state = step(denoise, state, t, s, step_noise(step, rng, i, state.x))
    return state.x

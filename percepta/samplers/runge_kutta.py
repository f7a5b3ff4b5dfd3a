"""Explicit Runge-Kutta methods on the probability-flow ODE dx/dt = alpha' x0 + sigma' eps: Euler, Heun (EDM's algorithm 1), RK4.

The ODE is solved in the frame where it is smoothest and where the literature solves it: on a discrete variance-preserving path the
scaled sample y = x/alpha against the noise level c = sigma/alpha, where dy/dc = eps; on other paths x against t (Karras et al.
2022; rectified flow, whose alpha is 0 at t = 1). At t = 0 eps = (x - alpha x0)/sigma is 0/0, so a step that ends there uses a rule
whose stages all lie before it and which keeps the order of the whole: Euler's for Heun (EDM's choice: 35 evaluations for 18 steps),
and Ralston's third-order rule for RK4.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.path import AbstractDiscretePath, AbstractPath, Rectified
from percepta.samplers.step import Bound, State, Step, coefficients


class Frame(NamedTuple):
    """A clock c of the ODE, the scale of x in its frame (y = x/scale), and the slope dy/dc for a clean estimate."""

    clock: Callable[[float], float]
    time: Callable[[float], float]
    scale: Callable[[float], float]
    slope: Callable[[Tensor, Tensor, float], Tensor]
    straight: Callable[[Tensor, Tensor, float, float], Tensor]  # Euler's x at s, from x and x0_hat at t


def frame_of(path: AbstractPath) -> Frame:
    def eps(x: Tensor, x0: Tensor, t: float) -> Tensor:
        alpha, sigma = coefficients(path, t)
        return (x - alpha * x0) / sigma

    def by_level(x: Tensor, x0: Tensor, t: float, s: float) -> Tensor:
        alpha, sigma = coefficients(path, s)
        return alpha * x0 + sigma * eps(x, x0, t)  # as y + (c_s - c_t) eps, without its cancellation where alpha is tiny

    def velocity(x: Tensor, x0: Tensor, t: float) -> Tensor:
        d_alpha, d_sigma = (v.item() for v in path.velocity(_vector(t)))
        return d_alpha * x0 + d_sigma * eps(x, x0, t)

    def level(t: float) -> float:
        alpha, sigma = coefficients(path, t)
        return sigma / alpha

    if isinstance(path, AbstractDiscretePath):
        return Frame(
            clock=level,
            time=lambda c: path.time_of_level(_vector(c)).item(),
            scale=lambda t: coefficients(path, t)[0],
            slope=eps,
            straight=by_level,
        )
    return Frame(lambda t: t, lambda c: c, lambda t: 1.0, velocity, lambda x, x0, t, s: x + (s - t) * velocity(x, x0, t))


class Tableau(NamedTuple):
    """Butcher's: the stages' places in the step, their weights on earlier stages, and the weights of the result."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


EULER = Tableau((0.0,), ((),), (1.0,))
HEUN = Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2))
RALSTON3 = Tableau((0.0, 1 / 2, 3 / 4), ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9))
CLASSIC4 = Tableau((0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def _rk_step(tableau: Tableau, denoise: Bound, x: Float[Tensor, "b *d"], t: float, s: float) -> Float[Tensor, "b *d"]:
    """One step. Every stage is Euler's step plus the difference of slopes from the first: digits cancel in the small part only."""
    frame = frame_of(denoise.path)
    span = frame.clock(s) - frame.clock(t)
    x0 = denoise(x, t)
    slopes = [frame.slope(x, x0, t)]

    def reach(u: float, weights: tuple[float, ...]) -> Tensor:
        out = frame.straight(x, x0, t, u)
        for weight, slope in zip(weights[1:], slopes[1:], strict=False):
            if weight:
                out = out + frame.scale(u) * span * weight * (slope - slopes[0])
        return out

    for node, weights in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
        u = s if node == 1 else frame.time(frame.clock(t) + node * span)
        x_u = reach(u, weights)
        slopes.append(frame.slope(x_u, denoise(x_u, u), u))
    return reach(s, tableau.weights)


def _solver(name: str, tableau: Tableau, last: Tableau, order: int, churn: "Churn | None") -> Step:
    def advance(denoise: Bound, state: State, t: float, s: float, noise: Tensor | None) -> State:
        x = state.x
        if churn is not None and noise is not None:
            x, t = churn.applied(denoise.path, x, t, noise)
        return State(_rk_step(last if s == 0 else tableau, denoise, x, t, s))

    return Step(name, advance, len(tableau.nodes), len(last.nodes), churn is not None, order)


class Churn(NamedTuple):
    """EDM's stochasticity (algorithm 2): where low <= level <= high, raise the level by the share `gamma` with noise of deviation
    `scale` before a step. In the paper's terms gamma = min(S_churn/steps, sqrt(2) - 1): `Churn.of(40, steps=256)`."""

    gamma: float
    low: float = 0.0
    high: float = math.inf
    scale: float = 1.0

    @classmethod
    def of(cls, s_churn: float, steps: int, low: float = 0.05, high: float = 50.0, scale: float = 1.003) -> "Churn":
        """The paper's numbers; low, high and scale default to its table 5 for ImageNet-64."""
        return cls(min(s_churn / steps, math.sqrt(2) - 1), low, high, scale)

    def applied(self, path: AbstractPath, x: Tensor, t: float, noise: Tensor) -> tuple[Tensor, float]:
        level = path.level(_vector(t)).item()
        if not self.low <= level <= self.high or self.gamma == 0:
            return x, t
        raised = path.time_of_level(_vector(level * (1 + self.gamma))).item()
        if isinstance(path, AbstractDiscretePath | Rectified) and not raised < path.t_max * (1 + 1e-9):
            raise ValueError(
                f"churn of {self.gamma:.3g} raises the noise at t = {t:.4g} above that of the path's end; start lower, or give it a lower `high`"
            )
        (alpha_t, _), (alpha_u, _) = coefficients(path, t), coefficients(path, raised)
        added = level * math.sqrt((1 + self.gamma) ** 2 - 1)
        return alpha_u / alpha_t * x + alpha_u * added * self.scale * noise, raised


def euler(churn: Churn | None = None) -> Step:
    """First order, one evaluation a step. Without churn it is DDIM on every path built in."""
    return _solver("euler", EULER, EULER, 1, churn)


def heun(churn: Churn | None = None) -> Step:
    """EDM's second-order sampler: two evaluations a step, one in the last."""
    return _solver("heun", HEUN, EULER, 2, churn)


def rk4() -> Step:
    """The classical fourth-order method: four evaluations a step, three in the last."""
    return _solver("rk4", CLASSIC4, RALSTON3, 4, None)


def _vector(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)

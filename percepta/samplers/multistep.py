"""DPM-Solver++(2M) (Lu et al. 2022b): second order at one evaluation a step, by remembering the last clean estimate.

With lambda = log(alpha/sigma), h = lambda_s - lambda_t and h' the step before:

    D = x0_t + h/(2 h') (x0_t - x0_before),    x_s = sigma_s/sigma_t x_t + alpha_s (1 - e^-h) D

The first step, and the last to t = 0 (h is infinite there), are of first order, as in diffusers. It runs on any path: where
alpha is 0 (a flow's t = 1) h is infinite too, e^-h is 0, and the correction of the step after it vanishes by itself.
"""

import math

import torch
from torch import Tensor

from percepta.path import AbstractPath
from percepta.samplers.step import Bound, State, Step, coefficients


def _log_snr(path: AbstractPath, t: float) -> float:
    alpha, sigma = coefficients(path, t)
    return math.inf if sigma == 0 else -math.inf if alpha == 0 else math.log(alpha / sigma)


def dpmpp_2m() -> Step:
    """DPM-Solver++(2M), midpoint form."""

    def advance(denoise: Bound, state: State, t: float, s: float, noise: Tensor | None) -> State:
        alpha_s, sigma_s = coefficients(denoise.path, s)
        now = _log_snr(denoise.path, t)
        h = _log_snr(denoise.path, s) - now
        x0 = estimate = denoise(state.x, t)
        if state.memory and s > 0:
            before, lambda_before = state.memory
            estimate = x0 + h / (2 * (now - lambda_before.item())) * (x0 - before)
        x = sigma_s / coefficients(denoise.path, t)[1] * state.x - alpha_s * math.expm1(-h) * estimate
        return State(x, (x0, torch.tensor(now, dtype=torch.float64)))

    return Step("dpmpp", advance, order=2)

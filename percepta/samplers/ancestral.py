"""DDIM (Song et al. 2020) and DDPM (Ho et al. 2020), written for any path.

With var = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, the variance that the forward process adds from s to t (the respaced beta):

    DDIM   x_s = alpha_s x0 + sqrt(sigma_s^2 - sig^2) eps + sig z,    sig = eta sigma_s/sigma_t sqrt(var)
    DDPM   x_s = alpha_s var/sigma_t^2 x0 + (alpha_t/alpha_s) sigma_s^2/sigma_t^2 x_t + sqrt(variance) z

All are of the chain that is sampled, never of the training chain: under respacing alpha_t/alpha_s spans the whole stride
(equation 17 of Cas-DM holds only so). No noise enters in the step to t = 0.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from percepta.path import AbstractPath
from percepta.samplers.step import Bound, State, Step, coefficients

Clip = tuple[float, float] | None
VARIANCES = ("fixed_small", "fixed_large", "learned")


def _checked(clip: Clip) -> Clip:
    if clip is not None and not clip[0] < clip[1]:
        raise ValueError(f"clip is (lowest, highest) value of x0, got {clip}; images in [-1, 1] take (-1, 1)")
    return clip


def _added_variance(path: AbstractPath, t: float, s: float) -> float:
    (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(path, t), coefficients(path, s)
    return sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2


def ddim(eta: float = 0.0, clip: Clip = None, clip_noise: bool = False) -> Step:
    """DDIM: eta 0 is deterministic, eta 1 has DDPM's variance.

    `clip` clamps x0_hat. As in diffusers, eps is the network's own all the same; `clip_noise` computes it anew from the clipped
    x0_hat, as improved-diffusion does (diffusers' use_clipped_model_output).
    """
    if eta < 0:
        raise ValueError(f"eta must be 0 (deterministic) or more, got {eta}")
    clip = _checked(clip)

    def advance(denoise: Bound, state: State, t: float, s: float, noise: Tensor | None) -> State:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(denoise.path, t), coefficients(denoise.path, s)
        x0 = denoise(state.x, t)
        kept = x0 if clip is None else x0.clamp(*clip)
        eps = (state.x - alpha_t * (kept if clip_noise else x0)) / sigma_t
        if noise is None or s == 0:
            return State(alpha_s * kept + sigma_s * eps)
        sig = eta * sigma_s / sigma_t * math.sqrt(_added_variance(denoise.path, t, s))
        if sig > sigma_s:
            raise ValueError(f"eta = {eta} asks for more noise than there is at t = {s:.4g}; use a smaller eta or more steps")
        return State(alpha_s * kept + math.sqrt(sigma_s**2 - sig**2) * eps + sig * noise)

    return Step("ddim", advance, noisy=eta > 0)


def ddpm(variance: str = "fixed_small", clip: Clip = None) -> Step:
    """Ancestral sampling. fixed_small is the posterior's variance, fixed_large the respaced beta. `learned` lies between both, in
    the log, where the network's further channels v in [-1, 1] say: frac = (v + 1)/2 (Nichol and Dhariwal 2021, equation 15)."""
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; known: {', '.join(VARIANCES)}")
    clip = _checked(clip)

    def advance(denoise: Bound, state: State, t: float, s: float, noise: Tensor | None) -> State:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients(denoise.path, t), coefficients(denoise.path, s)
        x0, taps = denoise.full(state.x, t) if variance == "learned" else (denoise(state.x, t), {})
        x0 = x0 if clip is None else x0.clamp(*clip)
        added = _added_variance(denoise.path, t, s)
        mean = alpha_s * added / sigma_t**2 * x0 + alpha_t / alpha_s * (sigma_s / sigma_t) ** 2 * state.x
        if s == 0:
            return State(mean)
        posterior = (sigma_s / sigma_t) ** 2 * added
        assert noise is not None
        if variance == "learned":
            return State(mean + _learned_deviation(taps, state.x, added, posterior) * noise)
        return State(mean + math.sqrt(posterior if variance == "fixed_small" else added) * noise)

    return Step("ddpm", advance, noisy=True)


def _learned_deviation(taps: Mapping[str, Tensor], x: Tensor, beta: float, posterior: float) -> Tensor:
    v = taps.get("extra")
    if v is None or v.shape != x.shape:
        got = "none" if v is None else str(tuple(v.shape))
        raise ValueError(
            f"variance='learned' needs a network with {2 * x.shape[1]} output channels, the second half of them the variance; "
            f"got further channels {got} beside x0_hat {tuple(x.shape)}; use variance='fixed_small'"
        )
    frac = (v.to(x.dtype) + 1) / 2
    return (0.5 * (frac * math.log(beta) + (1 - frac) * math.log(posterior))).exp()

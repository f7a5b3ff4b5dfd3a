"""What Cas-DM and Dual Diffusion ask beside the error of x0' (equations 5, 12 and 14 of Cas-DM).

They read an Estimate whose x0_hat is x0', with the taps `eps` (eps'), `ratio` (r, one channel per pixel) and `star` (x0*).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.estimate import Estimate
from percepta.formulation import expand
from percepta.objectives.term import AbstractPerSample, per_sample
from percepta.path import AbstractDiscretePath, Times


class NoiseError(AbstractPerSample):
    """mean (eps - eps')^2 per sample: all that the first network is ever trained by."""

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        eps = tap(est, "eps")
        assert est.noised is not None
        return per_sample((est.noised.eps - wide(eps)) ** 2)


class MixedMean(AbstractPerSample):
    """The mean of the next step: only r learns by it. Both guesses count as constants, and all is float32 or better.

    mu is affine in x0, so mu~ - (r mu_x0' + (1 - r) mu_eps') = c_t (x0 - (r x0' + (1 - r) x0*)), with c_t = sqrt(abar_{t-1}) beta_t/(1 - abar_t).
    c_t^2 is about 1e-6 for most t: as printed, r's gradient is very small (Adam does not mind, a weight decay would). `plain` leaves c_t out.
    """

    def __init__(self, plain: bool = False) -> None:
        self.plain = plain

    def __call__(self, est: Estimate) -> Float[Tensor, "b"]:
        r, star = wide(tap(est, "ratio")), wide(tap(est, "star")).detach()
        with torch.autocast(r.device.type, enabled=False):
            error = per_sample((wide(est.x0) - r * wide(est.x0_hat).detach() - (1 - r) * star) ** 2)
            return error if self.plain else error * expand(step_coefficient(est.known_path, est.t) ** 2, error)


def step_coefficient(path: object, t: Times) -> Times:
    """c_t = sqrt(abar_{t-1}) beta_t/(1 - abar_t), what an error of x0 comes to in the mean of DDPM's step."""
    if not isinstance(path, AbstractDiscretePath):
        raise ValueError(f"the mean of a step belongs to discrete paths (linear, cosine), got {type(path).__name__}")
    knot = (t * path.num_steps).round().long()
    now, before = path.abar[knot], path.abar[knot - 1]
    return before.sqrt() * (1 - now / before) / (1 - now)


def wide(x: Tensor) -> Tensor:
    """Float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def tap(est: Estimate, name: str) -> Tensor:
    if name not in est.taps:
        raise ValueError(f"this estimate has no {name!r}: use the recipes casdm or dual, whose networks give it")
    return est.taps[name]

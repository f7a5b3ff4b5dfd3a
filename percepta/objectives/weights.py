"""Weights per noise level, all of them for the squared error of x0_hat.

Whatever a network predicts, the loss on its output is a weighted loss on the clean estimate: eps-MSE is SNR times x0-MSE, v-MSE is
(SNR + 1) times it. A weight here is a function of an Estimate; the plain loss of each output convention is one of them.
"""

from collections.abc import Callable
from functools import partial

import torch

from percepta.estimate import Estimate
from percepta.formulation import SIGMA_DATA
from percepta.path import Times

Weight = Callable[[Estimate], Times]


def clean(est: Estimate) -> Times:
    """Plain x0-MSE."""
    return torch.ones_like(est.t)


def noise(est: Estimate) -> Times:
    """eps-MSE (Ho et al. 2020, "simple")."""
    return est.snr


def velocity(est: Estimate) -> Times:
    """v-MSE on a variance-preserving path (Salimans and Ho 2022, "SNR+1")."""
    return est.snr + 1


def flow(est: Estimate) -> Times:
    """MSE of a flow's velocity: on Rectified 1/t^2, in general (1/c_out)^2 of the output `flow`."""
    path = est.known_path
    alpha, sigma = path.alpha(est.t), path.sigma(est.t)
    d_alpha, d_sigma = path.velocity(est.t)
    return ((alpha * d_sigma - sigma * d_alpha) / sigma) ** 2


def edm(est: Estimate) -> Times:
    """(sigma^2 + sd^2)/(sigma sd)^2 (Karras et al. 2022): unit weight on EDM's own output."""
    level = est.level
    return (level**2 + SIGMA_DATA**2) / (level * SIGMA_DATA) ** 2


def min_snr(est: Estimate, gamma: float = 5.0) -> Times:
    """min(SNR, gamma) (Hang et al. 2023): on eps-MSE this is min(SNR, gamma)/SNR, on v-MSE min(SNR, gamma)/(SNR + 1)."""
    return est.snr.clamp(max=gamma)


def soft_min_snr(est: Estimate, gamma: float = 5.0) -> Times:
    """A smooth min_snr: SNR gamma/(SNR + gamma)."""
    snr = est.snr
    return snr * gamma / (snr + gamma)


def max_snr(est: Estimate) -> Times:
    """max(SNR, 1) (Salimans and Ho 2022, "truncated SNR")."""
    return est.snr.clamp(min=1.0)


def p2(est: Estimate, k: float = 1.0, gamma: float = 1.0) -> Times:
    """SNR/(k + SNR)^gamma (Choi et al. 2022): perception-prioritised eps-MSE."""
    snr = est.snr
    return snr / (k + snr) ** gamma


WEIGHTS: dict[str, Weight] = {
    "clean": clean,
    "noise": noise,
    "velocity": velocity,
    "flow": flow,
    "edm": edm,
    "min-snr": min_snr,
    "soft-min-snr": soft_min_snr,
    "max-snr": max_snr,
    "p2": p2,
}


def weight_named(name: str, gamma: float | None = None) -> Weight:
    """The weight of this name; `gamma` where it has one."""
    if name not in WEIGHTS:
        raise ValueError(f"unknown weight {name!r}; known: {', '.join(WEIGHTS)}")
    if gamma is None:
        return WEIGHTS[name]
    if name not in ("min-snr", "soft-min-snr", "p2"):
        raise ValueError(f"the weight {name!r} has no gamma; min-snr, soft-min-snr and p2 have one")
    with_gamma = {"min-snr": min_snr, "soft-min-snr": soft_min_snr, "p2": p2}
    return partial(with_gamma[name], gamma=gamma)

"""Rectified flow (Liu et al. 2023; Esser et al. 2024): x_t = (1 - t) x0 + t eps, the network predicts eps - x0."""

from dataclasses import dataclass
from typing import Literal

from percepta.formulation import Formulation, LogitNormalTimes, UniformTimes
from percepta.objectives.weights import flow
from percepta.path import Rectified
from percepta.training.method import Method
from percepta.training.recipe import Context, Recipe, denoising_method


@dataclass(frozen=True, kw_only=True)
class Flow(Recipe):
    """Train a flow-matching model in pixels, or with --vae in latents; sampled with Euler's method."""

    name = "flow"
    summary = "rectified flow matching with logit-normal times, sampled as an ODE"
    example = "percepta train flow --data ./images --size 32 --steps 5000"
    sampler = "euler"

    times: Literal["logit-normal", "uniform"] = "logit-normal"
    """How training times are drawn."""
    t_mean: float = 0.0
    """logit-normal: mean of logit(t)."""
    t_std: float = 1.0
    """logit-normal: standard deviation of logit(t)."""
    cond_dropout: float = 0.1
    """Probability with which a label is dropped in training, so that guidance can be used."""

    def stated(self) -> Formulation:
        times = LogitNormalTimes(self.t_mean, self.t_std) if self.times == "logit-normal" else UniformTimes()
        return Formulation(Rectified(), "flow", times)

    def build(self, context: Context) -> Method:
        formulation = self.stated()
        context.check_init(formulation)
        return denoising_method(context, formulation, flow, self.cond_dropout, network="unet-pocket", sampler=self.sampler)

"""Samplers: functions from noise to images, by way of any denoiser. Each solver is one small file; all are differentiable."""

from percepta.samplers.adaptive import adaptive
from percepta.samplers.ancestral import ddim, ddpm
from percepta.samplers.front import SOLVERS, sample, sample_batches, solver
from percepta.samplers.grids import SPACINGS, as_grid, grid
from percepta.samplers.guidance import Guided, guided
from percepta.samplers.images import Drawn, check_sampler, sample_images, usual_clip
from percepta.samplers.multistep import dpmpp_2m
from percepta.samplers.runge_kutta import Churn, euler, heun, rk4
from percepta.samplers.schedulers import with_scheduler
from percepta.samplers.step import AnyDenoiser, Bound, State, Step, integrate, start, step_noise

__all__ = [
    "SOLVERS",
    "SPACINGS",
    "AnyDenoiser",
    "Bound",
    "Churn",
    "Drawn",
    "Guided",
    "State",
    "Step",
    "adaptive",
    "as_grid",
    "check_sampler",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "euler",
    "grid",
    "guided",
    "heun",
    "integrate",
    "rk4",
    "sample",
    "sample_batches",
    "sample_images",
    "solver",
    "start",
    "step_noise",
    "usual_clip",
    "with_scheduler",
]

"""Any diffusers scheduler as a sampler: a bridge from x0_hat to the output kind that the scheduler expects.

A scheduler holds its sample in one of three ways, and each needs the path that goes with it: DDPM's family a variance-preserving
x_t (`scale_model_input` turns a sigma-scheduler's sample into it), the FlowMatch family the flow's x_t, the EDM family x0 + sigma n
with a raw output before EDM's preconditioning. Noise that a scheduler draws comes from one generator per image.
"""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from percepta.estimate import take
from percepta.formulation import SIGMA_DATA, Cond, noise_of
from percepta.path import AbstractDiscretePath, Rectified, VarianceExploding
from percepta.rng import Rng, mix
from percepta.samplers.front import SOLVERS, drawing
from percepta.samplers.step import AnyDenoiser


def with_scheduler(
    denoiser: AnyDenoiser, scheduler: Any, steps: int, *, shape: Sequence[int], rng: Rng, cond: Cond = None, spacing: str | None = None,
    batch_size: int = 64,
) -> Float[Tensor, "b *d"]:  # fmt: skip
    """len(rng) samples by a diffusers scheduler: a name ("UniPCMultistep" will do) or an instance with its own settings.

    A name gets the denoiser's own betas, no clipping, and `spacing` (leading, linspace or trailing) where the scheduler has one. Without
    one it keeps its usual spacing, but leading where that would start at a step with nothing left of the image to divide by (cosine).
    `steps` is the scheduler's num_inference_steps.
    """
    if not isinstance(scheduler, str) and spacing is not None:
        raise ValueError(f"{type(scheduler).__name__} is ready-made: give timestep_spacing to it, not spacing to with_scheduler")
    scheduler = scheduler_named(scheduler, denoiser, spacing) if isinstance(scheduler, str) else scheduler
    kind = _kind(scheduler)
    _check_path(kind, scheduler, denoiser)
    untouched, out = torch.get_rng_state(), []
    for first in range(0, len(rng), batch_size):
        part = slice(first, first + batch_size)
        with drawing(denoiser):
            out.append(_chain(kind, denoiser, scheduler, steps, rng.select(part), shape, take(cond, part)))
    if not torch.equal(untouched, torch.get_rng_state()):
        raise ValueError(
            f"{type(scheduler).__name__} drew noise from the global generator, so that its images cannot be repeated; "
            "use a scheduler whose step takes a generator, or a deterministic one"
        )
    return torch.cat(out)


def _chain(
    kind: str, denoiser: AnyDenoiser, scheduler: Any, steps: int, rng: Rng, shape: Sequence[int], cond: Cond
) -> Float[Tensor, "b *d"]:
    scheduler.set_timesteps(steps)
    generators = [torch.Generator(rng.device).manual_seed(mix(rng.seed, rng.stream, "scheduler", k)) for k in rng.ordinals]
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    # flow matching starts from unit noise and names no factor
    x = rng.normal("x_T", shape) * (1.0 if kind == "flow" else float(scheduler.init_noise_sigma))
    for timestep in scheduler.timesteps:
        x_t = x if kind == "flow" else scheduler.scale_model_input(x, timestep)
        x_t, t = (x, _edm_time(scheduler)) if kind == "edm" else (x_t, _time(kind, scheduler, timestep, denoiser))
        times = torch.full((len(x),), t, dtype=torch.float64)
        output = _output(kind, scheduler, denoiser(x_t, times, cond), x_t, times, denoiser)
        x = scheduler.step(output, timestep, x, **options).prev_sample
    return x


SPACINGS = ("leading", "linspace", "trailing")  # diffusers' own
CLEAR = 1e3  # sigma/alpha beyond which an x0 read from a noise prediction is noise: the cosine schedule ends at 2e4, the linear one at 157


def scheduler_named(name: str, denoiser: AnyDenoiser, spacing: str | None = None) -> Any:
    import diffusers

    cls = getattr(diffusers, name if name.endswith("Scheduler") else f"{name}Scheduler", None)
    if cls is None:
        known = sorted(k.removesuffix("Scheduler") for k in dir(diffusers) if k.endswith("Scheduler") and "Flax" not in k)
        near = difflib.get_close_matches(name, (*SOLVERS, *known), 1)
        hint = f", did you mean {near[0]}?" if near else ";"
        raise ValueError(f"there is no sampler {name!r}{hint} Known: {', '.join(SOLVERS)}, and of diffusers: {', '.join(known)}")
    parameters, path = inspect.signature(cls.__init__).parameters, denoiser.path
    wanted: dict[str, Any] = {"clip_sample": False, "thresholding": False, "skip_prk_steps": True}
    if isinstance(path, AbstractDiscretePath):
        wanted |= {"num_train_timesteps": path.num_steps, "trained_betas": path.betas.numpy(), "set_alpha_to_one": True}
    if isinstance(path, VarianceExploding):
        wanted |= {"sigma_min": path.t_min, "sigma_max": path.t_max, "sigma_data": SIGMA_DATA}
    if spacing is not None:
        if "timestep_spacing" not in parameters or spacing not in SPACINGS:
            known = f"known: {', '.join(SPACINGS)}" if "timestep_spacing" in parameters else "it has one of its own: leave it out"
            raise ValueError(f"{cls.__name__} cannot take the spacing {spacing!r}; {known}")
        wanted["timestep_spacing"] = spacing
    elif isinstance(path, AbstractDiscretePath) and path.level(torch.tensor([path.t_max], dtype=torch.float64)) > CLEAR:
        wanted["timestep_spacing"] = "leading"
    return cls(**{k: v for k, v in wanted.items() if k in parameters})


def _kind(scheduler: Any) -> str:
    """flow | edm | discrete"""
    name = type(scheduler).__name__
    if name.startswith("FlowMatch") or scheduler.config.get("prediction_type") == "flow_prediction":
        return "flow"
    return "edm" if name.startswith(("EDM", "CosineDPM")) else "discrete"


def _check_path(kind: str, scheduler: Any, denoiser: AnyDenoiser) -> None:
    path, name = denoiser.path, type(scheduler).__name__
    suits = {"flow": Rectified, "edm": VarianceExploding, "discrete": AbstractDiscretePath}[kind]
    if not isinstance(path, suits):
        raise ValueError(
            f"{name} samples on the path {suits.__name__.removeprefix('Abstract')}, the denoiser's is {type(path).__name__}; "
            "take a scheduler of the same family (FlowMatch* for flows, EDM* for EDM)"
        )
    if isinstance(path, AbstractDiscretePath):
        theirs = getattr(scheduler, "alphas_cumprod", None)
        if (
            theirs is None
            or len(theirs) != path.num_steps
            or not torch.allclose(theirs.double(), path.abar[1:], rtol=1e-3, atol=1e-6)
        ):
            raise ValueError(f"{name} was set up with another noise schedule than the denoiser's {path}; pass its name instead, "
                             "and it gets the right betas")  # fmt: skip
    if kind == "edm" and scheduler.config.get("sigma_data") != SIGMA_DATA:
        raise ValueError(
            f"{name} has sigma_data {scheduler.config.get('sigma_data')}, the denoiser {SIGMA_DATA}; pass its name instead"
        )


def _edm_time(scheduler: Any) -> float:
    return float(scheduler.sigmas[scheduler.step_index])


def _time(kind: str, scheduler: Any, timestep: Tensor, denoiser: AnyDenoiser) -> float:
    if kind == "flow":
        return float(timestep) / scheduler.config.num_train_timesteps
    assert isinstance(denoiser.path, AbstractDiscretePath)
    return (float(timestep) + 1) / denoiser.path.num_steps


def _output(kind: str, scheduler: Any, x0: Tensor, x_t: Tensor, t: Tensor, denoiser: AnyDenoiser) -> Tensor:
    """What the scheduler wants the network to have said."""
    prediction = scheduler.config.get("prediction_type", "flow_prediction")
    if kind == "edm":
        level, sign = t[0].item(), -1 if prediction == "v_prediction" else 1
        skip = SIGMA_DATA**2 / (level**2 + SIGMA_DATA**2)
        return (x0 - skip * x_t) * (level**2 + SIGMA_DATA**2) ** 0.5 / (sign * level * SIGMA_DATA)
    eps = noise_of(x0, x_t, t, denoiser.path)
    if kind == "flow":
        return eps - x0
    if prediction == "v_prediction":
        return denoiser.path.alpha(t[:1]).item() * eps - denoiser.path.sigma(t[:1]).item() * x0
    known = {"epsilon": eps, "sample": x0}
    if prediction not in known:
        raise ValueError(
            f"{type(scheduler).__name__} expects the output {prediction!r}; known: epsilon, sample, v_prediction, flow_prediction"
        )
    return known[prediction]

"""Formulation <-> diffusers scheduler: what a scheduler's configuration says about the network beside it, and the reverse.

Only what the network was trained with crosses: path and output. How images were sampled (spacing, clipping, guidance) is kept apart,
in SamplerDefaults. Read: https://huggingface.co/docs/diffusers/api/schedulers/overview.
"""

from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch

from percepta.formulation import EDM, FLOW, SIGMA_DATA, Formulation
from percepta.path import AbstractDiscretePath, AbstractPath, BetaTable, Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.samplers.grids import BY_STEP, timesteps

PREDICTION = {"noise": "epsilon", "clean": "sample", "velocity": "v_prediction"}
SOLVERS = {"discrete": ("ddim", "ddpm", "dpmpp"), "flow": ("euler",), "edm": ("euler", "dpmpp")}
SPACINGS = {
    "ddim": ("leading", "trailing"),
    "ddpm": ("leading", "linspace", "trailing"),
    "dpmpp": ("trailing",),
}  # as percepta.samplers


class UnknownMeaning(ValueError):
    """Nothing beside the weights tells how the network was trained: give a formulation."""


@dataclass(frozen=True)
class SamplerDefaults:
    """How an exported pipeline samples unless told otherwise. None: the path's usual solver and spacing, no clipping.

    `clip` bounds x0_hat to [-clip, clip] in every step (DDIM and DDPM only); `shift` is the m of a flow's shifted grid; `guidance` 1 is
    none. `exact` says that the network was trained for this very chain, so that one that is nearly the same will not do.

    Only what diffusers samples as percepta.samplers does can be exported: its DDIM steps back by T//S whatever the grid, and its DPM-Solver++
    has leading and linspace grids of its own. Other grids of DDIM without noise and of DDPM travel as lists of timesteps (`listed`), for a
    scheduler that can read lists: DPM-Solver++ of order 1, which is DDIM, and DDPM's own.
    """

    solver: str | None = None
    steps: int = 50
    spacing: str | None = None
    eta: float = 0.0
    clip: float | None = None
    guidance: float = 1.0
    shift: float = 3.0
    exact: bool = False

    def resolved(self, formulation: Formulation) -> "SamplerDefaults":
        """With the path's usual solver and spacing filled in; ValueError where diffusers has no such scheduler."""
        kind = kind_of(formulation)
        solver = SOLVERS[kind][0] if self.solver is None else self.solver
        if solver not in SOLVERS[kind]:
            raise ValueError(
                f"diffusers has no scheduler for the solver {solver!r} on {type(formulation.path).__name__}; "
                f"export with one of: {', '.join(SOLVERS[kind])}"
            )
        known = SPACINGS[solver] if kind == "discrete" else ("uniform", "shifted") if kind == "flow" else ("karras",)
        path, spacing = formulation.path, known[0] if self.spacing is None else self.spacing
        if spacing == "leading-code" and isinstance(path, AbstractDiscretePath) and path.num_steps % self.steps == 0:
            spacing = "leading"  # the same list
        made = replace(self, solver=solver, spacing=spacing)
        if (spacing not in known or made._uneven(path)) and made.listed(formulation) is None:
            raise ValueError(
                f"diffusers' {solver} on {type(path).__name__} does not sample with the spacing {spacing!r} of {self.steps} steps as "
                f"Percepta does; export with one of: {', '.join(known)}"
                + (", steps a divisor of the path's" if made._uneven(path) else "")
                + (", or without eta and clipping" if kind == "discrete" and solver == "ddim" and spacing in BY_STEP else "")
            )
        if self.clip is not None and solver not in ("ddim", "ddpm"):
            raise ValueError(
                f"clipping x0 is part of diffusers' DDIM and DDPM schedulers only, got clip={self.clip} with {solver!r}"
            )
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")
        return made

    def _uneven(self, path: AbstractPath) -> bool:
        """Whether diffusers' DDIM would leave its own grid."""
        if not isinstance(path, AbstractDiscretePath) or self.solver != "ddim" or self.spacing != "trailing":
            return False
        return path.num_steps % self.steps != 0

    def listed(self, formulation: Formulation) -> list[int] | None:
        """The timesteps, where the chain can only be told to diffusers as a list of them."""
        path = formulation.path
        if not isinstance(path, AbstractDiscretePath) or self.spacing not in BY_STEP:
            return None
        plain = self.solver == "ddpm" or (self.solver == "ddim" and self.eta == 0 and self.clip is None)
        if not plain or (self.spacing in SPACINGS[self.solver or ""] and not self._uneven(path)):
            return None
        return timesteps(path, self.steps, self.spacing)


def kind_of(formulation: Formulation) -> str:
    """discrete | flow | edm: which of diffusers' three families of schedulers fits."""
    path, output = formulation.path, formulation.output
    if isinstance(path, AbstractDiscretePath) and output in PREDICTION:
        return "discrete"
    if isinstance(path, Rectified) and output == "flow":
        return "flow"
    if isinstance(path, VarianceExploding) and output == "edm":
        return "edm"
    raise ValueError(
        f"no scheduler of diffusers reads the output {output!r} on the path {type(path).__name__}; export knows noise, clean and "
        "velocity on a table of betas, flow on Rectified, and edm on VarianceExploding"
    )


def beta_config(path: AbstractDiscretePath) -> dict[str, Any]:
    """The betas as schedulers name them; what has no name travels as a table."""
    common = {"num_train_timesteps": path.num_steps}
    if isinstance(path, LinearBeta):
        schedule = "scaled_linear" if path.scaled else "linear"
        return {
            **common,
            "beta_schedule": schedule,
            "beta_start": path.beta_start,
            "beta_end": path.beta_end,
            "trained_betas": None,
        }
    if path == Cosine(path.num_steps):
        return {**common, "beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    return {**common, "trained_betas": path.betas.tolist()}


def scheduler_for(formulation: Formulation, defaults: SamplerDefaults, learned_variance: bool = False) -> diffusers.SchedulerMixin:
    """The scheduler that samples as `defaults` say and tells a reader how the network was trained."""
    defaults, path = defaults.resolved(formulation), formulation.path
    if isinstance(path, AbstractDiscretePath):
        return _discrete_scheduler(path, PREDICTION[formulation.output], defaults, learned_variance)
    if isinstance(path, VarianceExploding):
        cls = diffusers.EDMEulerScheduler if defaults.solver == "euler" else diffusers.EDMDPMSolverMultistepScheduler
        return cls(sigma_min=path.t_min, sigma_max=path.t_max, sigma_data=SIGMA_DATA, prediction_type="epsilon")
    assert isinstance(path, Rectified)
    if path.time_scale != int(path.time_scale):
        raise ValueError(f"diffusers' flow schedulers scale time by a whole number, got time_scale={path.time_scale}")
    shift = defaults.shift if defaults.spacing == "shifted" else 1.0
    return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=int(path.time_scale), shift=shift)


def _discrete_scheduler(
    path: AbstractDiscretePath, prediction: str, defaults: SamplerDefaults, learned: bool
) -> diffusers.SchedulerMixin:
    betas = beta_config(path)
    common = {"prediction_type": prediction, "timestep_spacing": defaults.spacing, "steps_offset": 0}
    listed = defaults.listed(Formulation(path, {v: k for k, v in PREDICTION.items()}[prediction])) is not None
    if listed:
        common["timestep_spacing"] = "leading"
    if listed and defaults.solver == "ddim":
        return diffusers.DPMSolverMultistepScheduler(**betas, **common, algorithm_type="dpmsolver++", solver_order=1)
    if defaults.solver == "dpmpp":
        return diffusers.DPMSolverMultistepScheduler(**betas, **common, algorithm_type="dpmsolver++", solver_order=2)
    clip = {"clip_sample": defaults.clip is not None, "clip_sample_range": 1.0 if defaults.clip is None else defaults.clip}
    if defaults.solver == "ddpm":
        return diffusers.DDPMScheduler(**betas, **common, **clip, variance_type="learned_range" if learned else "fixed_small")
    return diffusers.DDIMScheduler(**betas, **common, **clip, set_alpha_to_one=True)


def scheduler_from_config(config: dict[str, Any]) -> diffusers.SchedulerMixin:
    """The scheduler that a scheduler_config.json describes, defaults filled in."""
    name = config.get("_class_name")
    cls = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise UnknownMeaning(
            f"the scheduler {name!r} is not one of diffusers {diffusers.__version__}; give the formulation yourself "
            "(--predict eps|x0|v|flow|edm and --schedule linear|cosine)"
        )
    return cls.from_config(config)  # pyright: ignore[reportAttributeAccessIssue]


def formulation_of(config: dict[str, Any]) -> Formulation:
    """What a scheduler_config.json says about how its network was trained."""
    scheduler = scheduler_from_config(config)
    known: dict[str, Any] = dict(scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
    name, prediction = type(scheduler).__name__, known.get("prediction_type", "epsilon")
    if name.startswith("FlowMatch") or known.get("use_flow_sigmas") or prediction == "flow_prediction":
        if known.get("invert_sigmas"):
            raise UnknownMeaning(f"{name} with invert_sigmas counts time from data to noise; give the formulation yourself")
        return Formulation(Rectified(time_scale=float(known["num_train_timesteps"])), "flow", FLOW.times)
    if name.startswith("EDM"):
        if known["sigma_data"] != SIGMA_DATA or prediction != "epsilon":
            raise ValueError(
                f"{name} with sigma_data={known['sigma_data']} and prediction_type={prediction!r}: only sigma_data={SIGMA_DATA} with "
                "'epsilon' (the residual of Karras et al. 2022) is known here"
            )
        return Formulation(VarianceExploding(known["sigma_min"], known["sigma_max"]), "edm", EDM.times)
    outputs = {v: k for k, v in PREDICTION.items()}
    if prediction not in outputs or not hasattr(scheduler, "betas") or name == "CMStochasticIterativeScheduler":
        raise UnknownMeaning(
            f"{name} (prediction_type {prediction!r}) does not say what the network's output means; give the formulation yourself "
            "(--predict eps|x0|v|flow|edm and --schedule linear|cosine)"
        )
    return Formulation(_path_of(scheduler, known), outputs[prediction])


def _path_of(scheduler: Any, known: dict[str, Any]) -> AbstractDiscretePath:
    steps, schedule = known["num_train_timesteps"], known.get("beta_schedule")
    if known.get("trained_betas") is not None and not known.get("rescale_betas_zero_snr"):
        return BetaTable(tuple(float(b) for b in known["trained_betas"]))
    if not known.get("rescale_betas_zero_snr"):
        if schedule in ("linear", "scaled_linear"):
            return LinearBeta(steps, known["beta_start"], known["beta_end"], schedule == "scaled_linear")
        if schedule == "squaredcos_cap_v2":
            return Cosine(steps)
    return BetaTable(tuple(scheduler.betas.to(torch.float64).tolist()))


def defaults_of(config: dict[str, Any]) -> SamplerDefaults:
    """The sampling habits in a scheduler_config.json, as far as Percepta samples in the same way; otherwise the path's usual ones."""
    scheduler = scheduler_from_config(config)
    known: dict[str, Any] = dict(scheduler.config)  # pyright: ignore[reportAttributeAccessIssue]
    name, usual = type(scheduler).__name__, SamplerDefaults()
    if name == "FlowMatchEulerDiscreteScheduler":
        shift = float(known.get("shift") or 1.0)
        return SamplerDefaults("euler", spacing="shifted" if shift != 1 else "uniform", shift=shift if shift != 1 else usual.shift)
    solvers = {
        "DDIMScheduler": "ddim",
        "DDPMScheduler": "ddpm",
        "EDMEulerScheduler": "euler",
        "EDMDPMSolverMultistepScheduler": "dpmpp",
    }
    solver = solvers.get(name)
    if (
        name == "DPMSolverMultistepScheduler"
        and known.get("timestep_spacing") == "trailing"
        and known["algorithm_type"] == "dpmsolver++"
    ):
        solver = "dpmpp" if known.get("prediction_type") in PREDICTION.values() and not known.get("use_karras_sigmas") else None
    if solver not in SPACINGS or name.startswith("EDM"):
        return SamplerDefaults(solver)
    clip = float(known.get("clip_sample_range", 1.0)) if known.get("clip_sample") and solver != "dpmpp" else None
    spacing = known.get("timestep_spacing")
    even = solver != "ddim" or spacing != "trailing" or known["num_train_timesteps"] % usual.steps == 0
    return SamplerDefaults(solver, spacing=spacing if spacing in SPACINGS[solver] and even else None, clip=clip)

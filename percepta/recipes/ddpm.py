"""DDPM (Ho et al. 2020; Nichol and Dhariwal 2021; Salimans and Ho 2022).

x_t = alpha x0 + sigma eps; the network predicts eps, x0 or v; the loss is the squared error of what it predicts, or another weight.
`--metric` adds metric functions on the clean estimate: with `--predict x0` the baseline of Cas-DM that harms itself by them.
"""

import math
from dataclasses import dataclass
from typing import Literal

from percepta.formulation import Denoiser, Formulation
from percepta.networks import Cascade, Network
from percepta.objectives.weights import weight_named
from percepta.path import AbstractDiscretePath
from percepta.training.knobs import OUTPUT, PATHS, WithMetric
from percepta.training.method import Method
from percepta.training.recipe import Context, denoising_method

SCALE = 1000  # of the times that improved-diffusion's networks read


@dataclass(frozen=True, kw_only=True)
class Ddpm(WithMetric):
    """Train a denoising diffusion model in pixels, or with --vae in latents."""

    name = "ddpm"
    summary = "denoising diffusion: predicts eps, x0 or v on a linear or cosine schedule"
    example = "percepta train ddpm --data ./images --size 32 --steps 5000"

    predict: Literal["eps", "x0", "v"] | None = None
    """What the network predicts. Default: eps, or what --init was trained for."""
    schedule: Literal["linear", "cosine"] | None = None
    """Noise schedule. Default: cosine, or that of --init."""
    timesteps: int | None = None
    """Steps of the schedule. Default: 1000, or those of --init."""
    rescale_timesteps: bool = False
    """Show the network every timestep on a scale of 1000 whatever --timesteps is, as improved-diffusion, casdm and dual do. Default: as
    schedulers of diffusers number them, 0 .. T-1, or as --init has it."""
    weight: Literal["clean", "noise", "velocity", "min-snr", "soft-min-snr", "max-snr", "p2"] | None = None
    """Weight of each noise level in the squared error of x0. Default: the plain squared error of what is predicted."""
    gamma: float | None = None
    """gamma of min-snr, soft-min-snr (default 5) and p2 (default 1)."""
    cond_dropout: float = 0.1
    """Probability with which a label is dropped in training, so that guidance can be used."""

    def stated(self) -> Formulation | None:
        return self.formulation() if self.predict and self.schedule else None

    def formulation(self) -> Formulation:
        return Formulation(PATHS[self.schedule or "cosine"](self.timesteps or 1000), OUTPUT[self.predict or "eps"])

    def _check_init(self, init: Denoiser) -> None:
        """What the flags say must be so; what they leave open is as --init has it."""
        was, path = init.formulation, init.formulation.path
        wrong = {
            "--predict": self.predict is not None and OUTPUT[self.predict] != was.output,
            "--schedule": self.schedule is not None and not isinstance(path, PATHS[self.schedule]),
            "--timesteps": self.timesteps is not None and getattr(path, "num_steps", None) != self.timesteps,
            "--rescale-timesteps": self.rescale_timesteps and not self._rescaled(init),
        }
        if isinstance(getattr(init.network, "model", None), Cascade):
            raise ValueError(
                "--init is a model of casdm or dual, of which this recipe would train the mixture alone: use their recipe"
            )
        if was.output in ("flow", "edm"):
            raise ValueError(f"--init predicts {was.output!r}: train it with the recipe flow or edm")
        if any(wrong.values()):
            raise ValueError(
                f"--init predicts {was.output!r} on {path.to_config()}: leave {', '.join(k for k, v in wrong.items() if v)} away"
            )

    def _rescaled(self, init: Denoiser) -> bool:
        path, factor = init.formulation.path, getattr(init.network, "time_factor", 1.0)
        return isinstance(path, AbstractDiscretePath) and math.isclose(factor, SCALE / path.num_steps)

    def build(self, context: Context) -> Method:
        formulation = self.formulation()
        if context.init is not None:
            formulation = context.init.formulation
            self._check_init(context.init)
        weight = weight_named(self.weight or formulation.output, self.gamma)
        metrics = self.metric_terms(context)
        method = denoising_method(context, formulation, weight, self.cond_dropout, "unet-pocket", self.sampler, metrics)
        if self.rescale_timesteps and context.init is None:
            network, path = method.model.network, formulation.path
            assert isinstance(network, Network) and isinstance(path, AbstractDiscretePath)
            network.scale_time(SCALE / path.num_steps)
        return method

"""MMD-DDM (Aiello et al. 2023): finetune a pretrained model so that a few steps of a sampler give the distribution of the data.

    L = MMD^2( phi(sample_K(x_T; theta)), phi(x) )

K steps from noise, features phi of a frozen space, the unbiased MMD of the whole batch, and its gradient through the whole chain. Nothing
is denoised in training, and no pair of images is compared: only sets are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from percepta.discrepancies.mmd import CUBIC, AbstractKernel, Linear, Rbf
from percepta.formulation import Denoiser
from percepta.objectives import Mmd, Term
from percepta.path import AbstractDiscretePath
from percepta.rollout import Rollout
from percepta.samplers import Drawn, grid, solver
from percepta.spaces.extractor import split_name
from percepta.spaces.opening import open_space
from percepta.training.method import Method
from percepta.training.product import Sampled
from percepta.training.recipe import Context, Recipe

MICRO = 16  # images that go through the network and the space together, unless --micro-batch says otherwise
KERNELS: dict[str, AbstractKernel] = {"cubic": CUBIC, "linear": Linear(), "rbf": Rbf()}


@dataclass(frozen=True, kw_only=True)
class TrainMmd(Recipe):
    """Finetune --init so that it samples well in a few steps."""

    name = "mmd"
    summary = "finetune a pretrained pipeline to sample in 5 to 20 steps, by MMD through the sampling chain"
    example = "percepta train mmd --init ./pipeline --data ./images --sampler-steps 5"
    settings = MappingProxyType({
        "steps": 500, "batch": 128, "optimizer": "adam", "lr": 5e-6, "ema": "none", "checkpoint_every": 50, "sample_every": 100,
    })  # fmt: skip

    sampler_steps: int = 5
    """Steps of the chain, in training and afterwards."""
    solver: Literal["ddim", "ddpm", "euler", "heun", "rk4", "dpmpp"] | None = None
    """Sampler of the chain. Default: ddim; euler for flows and EDM."""
    spacing: str | None = None
    """How its steps are spread over time: leading, trailing, quadratic, ... Default: the path's usual one."""
    eta: float = 0.0
    """Noise of ddim: 0 is deterministic, 1 is DDPM's."""
    clip_x0: bool = False
    """Bound each guess of x0 to [-1, 1] in the chain (ddim and ddpm); such pixels get no gradient."""
    space: str = "inception-2048"
    """Where sets are compared: inception-2048, inception-768, clip, dinov2, alex, domain (trained on --data), pixels; several
    as NAME or NAME:WEIGHT between commas."""
    kernel: Literal["cubic", "linear", "rbf"] = "cubic"
    """cubic: (x.y/d + 1)^3. linear: x.y. rbf: exp(-|x - y|^2/d)."""
    clamp: Literal["straight", "hard", "none"] = "straight"
    """Pixels beyond [-1, 1] before the space: clamped with the gradient passed on, clamped without it (the authors' code), or left."""
    backprop: Literal["auto", "replay", "checkpoint", "full"] = "replay"
    """The way to the gradient: replay needs the memory of one step of one micro-batch, full that of the whole chain and less
    time; auto takes full where it fits, and its last bits may differ after --resume on a machine with less memory."""

    def build(self, context: Context) -> Method:
        if context.init is None:
            raise ValueError("the recipe mmd finetunes a pretrained model: say which with --init")
        if context.vae is not None:
            raise ValueError("the recipe mmd finetunes pixel models: leave --vae away")
        denoiser = Denoiser(context.chosen_network("unet-pocket"), context.init.formulation)
        how, micro = self._drawn(denoiser), context.micro_batch or MICRO
        step = solver(how.sampler, eta=how.eta, clip=how.clip)
        rollout = Rollout(denoiser, step, grid(denoiser.path, how.steps, how.spacing), backprop=self.backprop, micro=micro)
        product = Sampled(denoiser, (context.channels, context.size, context.size), how.sampler, None, context.class_names, how)
        return Method(denoiser, rollout, list(self._terms(context)), product)

    def _drawn(self, denoiser: Denoiser) -> Drawn:
        name = self.solver or ("ddim" if isinstance(denoiser.path, AbstractDiscretePath) else "euler")
        return Drawn(name, self.sampler_steps, self.spacing, self.eta, (-1.0, 1.0) if self.clip_x0 else None)

    def _terms(self, context: Context) -> Iterator[Term]:
        wanted = weighted(self.space)
        for name, weight in wanted.items():
            domain = context.domain() if split_name(name)[0] == "domain" and context.domain is not None else None
            objective = Mmd(open_space(name, domain), KERNELS[self.kernel], context.micro_batch or MICRO, self.clamp)
            yield Term("mmd" if len(wanted) == 1 else f"mmd/{name}", objective, weight)


def weighted(text: str) -> dict[str, float]:
    """ "clip:0.5, domain" is clip with weight 0.5 and domain with 1."""
    out: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.partition(":")
        try:
            out[name] = float(weight or 1)
        except ValueError:
            out[name] = math.nan
        if not 0 < out[name] < math.inf:
            raise ValueError(f"--space {part}: after the colon stands a weight above 0, as in {name}:0.5")
    if not out:
        raise ValueError(f"--space names no space, got {text!r}")
    return out

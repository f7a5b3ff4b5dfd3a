"""MMD-DDM (Aiello et al. 2023): finetune a pretrained model so that a few steps of a sampler give the distribution of the data.

    L = MMD^2( phi(sample_K(x_T; theta)), phi(x) )

K steps from noise, features phi of a frozen space, the unbiased MMD of the whole batch, and its gradient through the whole chain. Nothing
is denoised in training, and no pair of images is compared: only sets are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from percepta.discrepancies.mmd import kernel_named
from percepta.estimate import Denoise, DenoiseLatents
from percepta.formulation import Denoiser
from percepta.networks import Autoencoder, Network, image_size
from percepta.objectives import Denoising, Mmd, Term
from percepta.objectives.weights import WEIGHTS
from percepta.rollout import Rollout
from percepta.samplers import Drawn, grid, solver
from percepta.spaces.extractor import split_name
from percepta.spaces.opening import open_space, weighted
from percepta.spaces.space import enlarging
from percepta.training.method import Beside, Method
from percepta.training.product import Sampled, exportable
from percepta.training.recipe import Context, Recipe

MICRO = 16  # images that go through the network and the space together, unless --micro-batch says otherwise

PAPER: Mapping[str, Any] = {"steps": 500, "batch": 128, "lr": 5e-6, "clip": None}
CODE: Mapping[str, Any] = {**PAPER, "clip": 0.5, "clamp": "hard", "spacing": "leading-code"}
PRESETS = {  # the paper's values and, where they differ, those of its authors' code
    "paper-cifar10": {**PAPER, "size": 32},
    "paper-celeba": {**PAPER, "size": 64},
    "paper-imagenet64": {**PAPER, "size": 64},
    "paper-church": {**PAPER, "size": 256},
    "code-cifar10": {**CODE, "size": 32, "batch": 64},
    "code-cifar10-clip": {**CODE, "size": 32, "space": "clip"},
    "code-celeba": {**CODE, "size": 64},
    "code-church": {**CODE, "size": 256, "batch": 32, "lr": 1e-6, "clip": 1.0},
}


@dataclass(frozen=True, kw_only=True)
class TrainMmd(Recipe):
    """Finetune --init so that it samples well in a few steps."""

    name = "mmd"
    summary = "finetune a pretrained pipeline to sample in 5 to 20 steps, by MMD through the sampling chain"
    example = "percepta train mmd --init ./pipeline --data ./images --sampler-steps 5"
    settings = MappingProxyType({
        "steps": 500, "batch": 128, "optimizer": "adam", "lr": 5e-6, "ema": "none", "checkpoint_every": 50, "sample_every": 100,
    })  # fmt: skip
    presets = MappingProxyType(PRESETS)
    size_of_init = True
    latents_of_init = False  # it compares images, and decodes by itself

    sampler_steps: int = 5
    """Steps of the chain, in training and afterwards."""
    solver: Literal["ddim", "ddpm", "euler", "dpmpp"] | None = None
    """Sampler of the chain. Default: ddim; euler for flows and EDM."""
    spacing: str | None = None
    """How its steps are spread over time: leading, trailing, quadratic, ... Default: that of diffusers' scheduler for the solver."""
    eta: float = 0.0
    """Noise of ddim: 0 is deterministic, 1 is DDPM's."""
    clip_x0: bool = False
    """Bound each guess of x0 to [-1, 1] in the chain (ddim and ddpm); such pixels get no gradient."""
    chain_guidance: float = 1.0
    """Classifier-free guidance in the chain, in training and afterwards; 1 is none."""
    space: str = "inception-2048"
    """Where sets are compared: inception-2048, inception-768, clip, dinov2, alex, domain (trained on --data), pixels; several
    as NAME or NAME:WEIGHT between commas."""
    kernel: Literal["cubic", "linear", "rbf"] = "cubic"
    """cubic: (x.y/d + 1)^3. linear: x.y. rbf: exp(-|x - y|^2/(2 s^2))."""
    bandwidth: str | None = None
    """rbf: s, or several between commas for an equal mixture: numbers, `median` (the median distance of real features) or multiples
    of it as 0.5*median. Default: s^2 = d/2."""
    clamp: Literal["straight", "hard", "none"] = "straight"
    """Pixels beyond [-1, 1] before the space: clamped with the gradient passed on, clamped without it (the authors' code), or left."""
    denoising_weight: float = 0.0
    """Weight of the plain denoising loss beside the MMD, which keeps other numbers of steps alive; 0 leaves it out."""
    backprop: Literal["auto", "replay", "checkpoint", "full"] = "replay"
    """The way to the gradient: replay needs the memory of one step of one micro-batch, full that of the whole chain and less
    time; auto takes full where it fits, and its last bits may differ after --resume on a machine with less memory."""

    def build(self, context: Context) -> Method:
        init = context.init
        if init is None:
            raise ValueError("the recipe mmd finetunes a pretrained model: say which with --init")
        if context.vae is not None:
            raise ValueError(
                "the recipe mmd compares images: leave --vae away; a latent pipeline brings its own autoencoder with --init"
            )
        images, vae, size = context, None, getattr(init.network, "sample_size", None)
        if context.init_vae is not None:
            vae = Autoencoder(context.init_vae).requires_grad_(False).eval()
            context = context.in_latents(vae)
        denoiser = Denoiser(context.chosen_network("unet-pocket"), init.formulation)
        made_for = image_size(size, vae)
        if made_for not in (None, images.size):
            raise ValueError(f"--init makes images of {made_for} px, and --size is {images.size}: say --size {made_for}")
        how, micro = self._drawn(denoiser, context), context.micro_batch or MICRO
        shape = (context.channels, context.size, context.size)
        rollout = Rollout(
            denoiser, solver(how.sampler, eta=how.eta, clip=how.clip), grid(denoiser.path, how.steps, how.spacing), how.guidance,
            self.backprop, micro, vae, None if vae is None else shape,
        )  # fmt: skip
        product = Sampled(denoiser, shape, how.sampler, vae, context.class_names, how, context.prompts)
        terms = list(self._terms(images, micro)) if context.trains else []
        return Method(denoiser, rollout, terms, product, beside=self._beside(denoiser, vae, micro))

    def _drawn(self, denoiser: Denoiser, context: Context) -> Drawn:
        """The chain, as a scheduler of diffusers will draw it; ValueError where there is none that does."""
        guided = self.chain_guidance
        network = denoiser.network
        assert isinstance(network, Network)
        text = None if context.prompts is None else context.prompts.text
        if guided != 1 and text is None and not network.num_classes:
            raise ValueError(f"--chain-guidance {guided:g} needs a class-conditional model; that of --init has no classes")
        if guided != 1 and text is None and not network.reads.null_label:
            raise ValueError(
                f"--chain-guidance {guided:g} needs a model that knows images without a class; that of --init does not"
            )
        if self.eta and (self.solver or "ddim") != "ddim":
            raise ValueError(f"--eta belongs to --solver ddim, got {self.eta:g} with {self.solver}")
        clip = (-1.0, 1.0) if self.clip_x0 else None
        spacing = text.sampler.spacing if text is not None and self.spacing is None else self.spacing
        return exportable(denoiser.formulation, self.solver, Drawn("", self.sampler_steps, spacing, self.eta, clip, guided))

    def _terms(self, context: Context, micro: int) -> Iterator[Term]:
        wanted = weighted(self.space)
        for name, weight in wanted.items():
            domain = context.domain() if split_name(name)[0] == "domain" and context.domain is not None else None
            objective = Mmd(enlarging(open_space(name, domain), context.size), chunk=micro, clamp=self.clamp)
            objective.kernel = kernel_named(self.kernel, self.bandwidth, partial(examples, objective, context))
            yield Term("mmd" if len(wanted) == 1 else f"mmd/{name}", objective, weight)

    def _beside(self, denoiser: Denoiser, vae: Autoencoder | None, micro: int) -> list[Beside]:
        """The plain denoising loss, where it has a weight."""
        if not 0 <= self.denoising_weight < float("inf"):
            raise ValueError(f"--denoising-weight must be 0 or more, got {self.denoising_weight:g}")
        network = denoiser.network
        assert isinstance(network, Network)
        plain = Denoise(denoiser, 0.1 if network.reads.null_label or network.null_keys else 0.0)
        term = Term("denoising", Denoising(), self.denoising_weight, weight=WEIGHTS[denoiser.formulation.output])
        return [Beside(plain if vae is None else DenoiseLatents(plain, vae), [term], micro)] if self.denoising_weight else []


def examples(objective: Mmd, context: Context) -> Tensor:
    """Features of the first real images: the same at every start and on every rank."""
    if context.examples is None:
        raise ValueError("a bandwidth of the median distance needs images: there are no examples in this context")
    device = next((p.device for p in objective.space.parameters()), torch.device("cpu"))
    with torch.no_grad():
        return objective.rows(context.examples().to(device))

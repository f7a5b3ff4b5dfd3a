"""EDM (Karras et al. 2022): preconditioned denoising under ln(sigma) ~ N(-1.2, 1.2^2), weight (sigma^2 + sd^2)/(sigma sd)^2."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from percepta.formulation import Formulation, LogNormalTimes
from percepta.objectives.weights import edm
from percepta.path import VarianceExploding
from percepta.training.knobs import WithAugment
from percepta.training.method import Method
from percepta.training.recipe import Context, denoising_method

# Table 7: 200 million images, the rate rising over the first 10 million, no clipping; labels are not dropped
PAPER: Mapping[str, Any] = {"optimizer": "adam", "clip": None, "ema_halflife": 500_000, "cond_dropout": 0.0}
PRESETS = {
    "paper-cifar10": {
        **PAPER, "network": "ddpmpp-32", "size": 32, "batch": 512, "lr": 1e-3, "steps": 390_625, "warmup": 19_531, "augment": 0.12,
        "sample_steps": 18,
    },
    "paper-ffhq64": {
        **PAPER, "network": "ddpmpp-64", "size": 64, "batch": 256, "lr": 2e-4, "steps": 781_250, "warmup": 39_063, "augment": 0.15,
        "sample_steps": 40,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Edm(WithAugment):
    """Train a denoiser with EDM's preconditioning in pixels, or with --vae in latents; sampled with Heun."""

    name = "edm"
    summary = "EDM: preconditioned denoising over log-normal noise levels, sampled with Heun"
    example = "percepta train edm --data ./images --size 32 --steps 5000"
    sampler = "heun"
    settings = MappingProxyType({"ema": "edm", "ema_halflife": 50_000, "sample_steps": 18})
    presets = MappingProxyType(PRESETS)

    sigma_min: float = 0.002
    """Least noise of the sampler, in units of the data."""
    sigma_max: float = 80.0
    """Largest noise of the sampler, in units of the data."""
    p_mean: float = -1.2
    """Mean of ln(sigma) in training."""
    p_std: float = 1.2
    """Standard deviation of ln(sigma) in training."""
    cond_dropout: float = 0.1
    """Probability with which a label is dropped in training, so that guidance can be used."""

    def stated(self) -> Formulation:
        return Formulation(VarianceExploding(self.sigma_min, self.sigma_max), "edm", LogNormalTimes(self.p_mean, self.p_std))

    def build(self, context: Context) -> Method:
        formulation = self.stated()
        context.check_init(formulation)
        return denoising_method(context, formulation, edm, self.cond_dropout, "unet-pocket", self.sampler, augment=self.augment)

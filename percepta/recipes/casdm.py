"""Cas-DM (An et al. 2024): two networks in a cascade, so that a metric function helps the clean estimate and leaves the noise estimate alone.

    eps' = theta(x_t, t)                            L_theta = |eps - eps'|^2
    x0*  = (x_t - sigma eps')/alpha                 a constant for all that follows
    x0', r = phi(x0*, t)                            L_phi = |x0 - x0'|^2 + |mu~ - mu(r)|^2 + 0.1 metric(x0, x0')

Samplers use r x0' + (1 - r) x0*. Dual Diffusion (Benny and Wolf 2022) has one network for eps', x0' and r: there the metric reaches all.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from torch import Tensor

from percepta.estimate import Batch, Denoise, Estimate
from percepta.formulation import Denoiser, Formulation
from percepta.networks import Cascade, CascadeSpec, build_cascade, parts_of
from percepta.objectives import Denoising, Term
from percepta.objectives.cascade import MixedMean, NoiseError
from percepta.path import Cosine, LinearBeta
from percepta.rng import Rng
from percepta.training.knobs import WithMetric
from percepta.training.method import Method
from percepta.training.product import Sampled
from percepta.training.recipe import Context

PATHS = {"linear": LinearBeta, "cosine": Cosine}
PAPER: Mapping[str, Any] = {"timesteps": 4000, "steps": 400_000, "batch": 128, "lr": 1e-4, "sample_steps": 100}
PRESETS = {
    "paper-cifar10": {**PAPER, "size": 32, "network": "iddpm-32", "conditional": "no"},
    "paper-64": {**PAPER, "size": 64, "network": "adm-64", "conditional": "no"},
}


@dataclass(frozen=True, kw_only=True)
class Mixing(WithMetric):
    """A recipe for networks that estimate eps', x0' and the share r of each."""

    settings = MappingProxyType({"clip": None})  # clipping by one norm would couple what the method keeps apart
    presets = MappingProxyType(PRESETS)

    schedule: Literal["linear", "cosine"] | None = None
    """Noise schedule. Default: cosine, or that of --init."""
    timesteps: int | None = None
    """Steps of the schedule. Default: 1000 (the paper has 4000), or those of --init."""
    ratio: Literal["sigmoid", "raw"] = "sigmoid"
    """How r, the share of x0' in the sampled estimate, is read from the network's output."""
    clamp_x0: float | None = 1.0
    """Bound of x0*, the clean estimate by way of the noise, in training and in sampling; None leaves it, and it is huge where there is
    much noise."""
    x0_weight: float = 1.0
    """Weight of the squared error of x0'."""
    mu_weight: float = 1.0
    """Weight of the squared error of the mixed mean, by which r learns."""
    plain_mu: bool = False
    """The mixed mean's error in units of x0, without the factor c_t^2, which is about 1e-6 for most t."""
    cond_dropout: float = 0.1
    """Probability with which a label is dropped in training, so that guidance can be used."""

    @abstractmethod
    def spec(self, network: str) -> CascadeSpec:
        """The networks, made of a preset for U-Nets."""

    def build(self, context: Context) -> Method:
        if not 0 <= self.cond_dropout < 1:
            raise ValueError(f"--cond-dropout must lie in [0, 1), got {self.cond_dropout}")
        if context.vae is not None:
            raise ValueError(f"the recipe {self.name} estimates images and bounds them as such: leave --vae away")
        denoiser = self._denoiser(context)
        product = Sampled(denoiser, (context.channels, context.size, context.size), self.sampler, None, context.class_names)
        terms = [
            Term("eps", NoiseError()),
            Term("x0", Denoising(), self.x0_weight),
            Term("mu", MixedMean(self.plain_mu), self.mu_weight),
            *self.metric_terms(context),
        ]
        estimate = Cascaded(denoiser, self.cond_dropout if context.num_classes else 0.0)
        return Method(denoiser, estimate, terms, product, watch=mean_ratios)

    def _denoiser(self, context: Context) -> Denoiser:
        formulation = Formulation(PATHS[self.schedule or "cosine"](self.timesteps or 1000), "clean")
        if context.init is not None:
            self._check_init(context.init, formulation)
            return Denoiser(context.chosen_network(""), context.init.formulation)
        network = build_cascade(
            self.spec(context.network or "unet-pocket"), formulation.path, channels=context.channels, size=context.size,
            num_classes=context.num_classes, seed=context.seed,
        )  # fmt: skip
        return Denoiser(network, formulation)

    def _check_init(self, init: Denoiser, asked: Formulation) -> None:
        """What the flags say must be so; what the network is made of is in its configuration."""
        model, spec = getattr(init.network, "model", None), self.spec("unet-pocket")
        if not isinstance(model, Cascade) or (model.phi is None) != (spec.kind == "dual"):
            raise ValueError(f"--init is no model of the recipe {self.name}: start from a run of it, or leave --init away")
        stated = {
            "--schedule": self.schedule is not None and type(init.formulation.path) is not type(asked.path),
            "--timesteps": self.timesteps is not None and getattr(init.formulation.path, "num_steps", None) != self.timesteps,
            "--ratio": model.config["ratio"] != self.ratio,
            "--clamp-x0": model.config["clamp"] != self.clamp_x0,
            "--phi-reads": model.config["concat"] != spec.concat,
            "--phi": spec.kind == "cascade" and (len(model.unets[1].config["block_out_channels"]) == 1) != (spec.phi == "fixres"),
        }
        if wrong := [flag for flag, differs in stated.items() if differs]:
            raise ValueError(
                f"--init was built otherwise ({model.config['ratio']} ratio, clamp {model.config['clamp']}, {init.formulation.path.to_config()}): "
                f"give {', '.join(wrong)} as it is there"
            )


@dataclass(frozen=True, kw_only=True)
class CasDm(Mixing):
    """Train a cascade of two networks, with or without metric functions on the second one's estimate."""

    name = "casdm"
    summary = "Cas-DM: noise and image by two networks, metric functions (LPIPS and others) on the second one"
    example = "percepta train casdm --data ./images --size 32 --metric lpips-alex --steps 5000"

    phi: Literal["same", "fixres"] = "same"
    """The second network: like the first, or without any down- and upsampling."""
    phi_reads: Literal["x0", "x0+eps"] = "x0"
    """What the second network is given: the first one's clean estimate, or also its noise estimate."""

    def spec(self, network: str) -> CascadeSpec:
        return CascadeSpec(
            "cascade", network, phi=self.phi, concat=self.phi_reads == "x0+eps", clamp=self.clamp_x0, ratio=self.ratio
        )


@dataclass(frozen=True)
class Cascaded:
    """x0', which the image losses judge, with the rest as taps."""

    denoiser: Denoiser
    cond_dropout: float = 0.0

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        est = Denoise(self.denoiser, self.cond_dropout)(batch, rng)
        parts = parts_of(est.x0_hat, est.taps)
        return replace(est, x0_hat=parts.x0_prime, taps={"eps": parts.eps, "ratio": parts.ratio, "star": parts.star})


def mean_ratios(est: Estimate) -> dict[str, Tensor]:
    """The mean of r in each third of the times, little noise first.

    Summed over parts and ranks a mean must be one over all rows: each third has its share of them on average, and r is told by its distance
    from 1/2, so that an uneven draw moves it little.
    """
    r, t = est.taps["ratio"].detach().flatten(1).mean(1), est.t.to(est.x0_hat.device)
    thirds = {name: (t > k / 3) & (t <= (k + 1) / 3) for k, name in enumerate(("low", "mid", "high"))}
    return {f"ratio/{name}": 0.5 + 3 * ((r - 0.5) * inside).mean() for name, inside in thirds.items()}

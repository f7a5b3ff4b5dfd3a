"""LPL (Berrada et al. 2025): latent diffusion, judged also in the features of the decoder that will turn its latents into images.

    L = |output - target|^2 + w 1(sigma/alpha <= tau) sum_l w_l mean (phi'_l(z0) - phi'_l(z0_hat))^2

phi_l are the decoder's own features, standardised by the prediction's statistics; samples with more noise than tau are never decoded. From
scratch, or to go on with a trained model (--init). `--loss` puts what the paper compares it with in its place.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from percepta.formulation import Denoiser, Formulation, LogitNormalTimes, LogNormalTimes, UniformTimes
from percepta.networks import Network
from percepta.objectives import Calibrated, Denoising, LatentPerceptual, Metric, Term, weight_named
from percepta.objectives.self_perceptual import SelfPerceptual, frozen_copy
from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.spaces.latent_lpips import LatentLpips
from percepta.training.knobs import UpTo
from percepta.training.method import Method
from percepta.training.recipe import Context, Recipe, denoising_method

OUTPUT = {"eps": "noise", "x0": "clean", "v": "velocity", "flow": "flow", "edm": "edm"}
PAPER: Mapping[str, Any] = {"network": "mmdit-xl-2", "size": 256, "batch": 256, "lr": 1e-4}  # batch and rate are not printed
PRESETS = {
    "paper-flow": {**PAPER, "predict": "flow", "steps": 200_000},
    "paper-eps": {**PAPER, "predict": "eps", "schedule": "linear", "steps": 200_000},
    "paper-flow-512": {**PAPER, "predict": "flow", "size": 512, "steps": 120_000},
}


@dataclass(frozen=True, kw_only=True)
class TrainLpl(Recipe):
    """Train or finetune a latent diffusion or flow model with a perceptual loss in the features of its autoencoder's decoder."""

    name = "lpl"
    summary = "latent diffusion with a perceptual loss in the features of the autoencoder's own decoder"
    example = "percepta train lpl --init ./checkpoint --vae ./vae --data ./images"
    sampler = "euler"
    presets = MappingProxyType(PRESETS)

    predict: Literal["eps", "x0", "v", "flow", "edm"] | None = None
    """What the network predicts. Default: flow (rectified flow), or what --init was trained for."""
    schedule: Literal["linear", "cosine"] | None = None
    """Noise schedule of eps, v and x0. Default: linear, or that of --init."""
    timesteps: int | None = None
    """Steps of that schedule. Default: 1000, or those of --init."""
    times: Literal["logit-normal", "uniform"] | None = None
    """How a flow's training times are drawn. Default: logit-normal, or as --init has it."""
    weight: Literal["clean", "noise", "velocity", "flow", "edm", "min-snr", "soft-min-snr", "max-snr", "p2"] | None = None
    """Weight of each noise level in the squared error. Default: the plain squared error of what is predicted."""
    gamma: float | None = None
    """gamma of min-snr, soft-min-snr (default 5) and p2 (default 1)."""
    cond_dropout: float = 0.1
    """Probability with which a label or caption is dropped in training, so that guidance can be used."""

    loss: Literal["lpl", "latent-lpips", "self-perceptual", "reweight", "none"] = "lpl"
    """What joins the squared error. The others are what LPL is compared with: LPIPS that reads latents, features of the model itself, LPL's weight of
    noise levels without its eyes (equation 15), nothing."""
    alone: bool = False
    """The loss takes the place of the squared error, as Self-Perceptual does in its paper."""
    loss_weight: str = "auto"
    """Its weight: a number, or auto, by --weight-rule on the first batches. Losses of other decoders differ by orders of magnitude."""
    weight_rule: Literal["share", "variance"] = "share"
    """auto: the loss is to be --weight-part of the whole, or its variance --weight-part of the squared error's."""
    weight_part: float | None = None
    """Default: 0.2 of the loss; 0.1 of the variance."""
    max_level: float | None = 3.0
    """tau: the highest noise level, as sigma/alpha, where the loss counts (a flow's t/(1-t): 3 is t = 0.75). None: everywhere."""

    layers: str | None = None
    """Layers of the decoder, between commas: 0 is the mid block, 1 the first up block, ... Nothing behind the last is computed. Default: all."""
    layer_weights: Literal["upscale", "halving", "equal"] = "upscale"
    """upscale: 1/r for a layer r times finer than the latent. halving: 2^(-r/r_1). equal: 1."""
    norm: Literal["predicted", "separate", "target", "pixel", "pixel-target"] = "predicted"
    """Each channel by the prediction's statistics, each side by its own, or the target's; or each place by its length, its own or the target's."""
    outliers: Literal["none", "target", "prediction", "union"] = "target"
    """Leave out places of fine layers that are outliers of the target, of the prediction or of either."""
    decode_crop: int | None = None
    """Decode a window of this side of each latent, in latents: less memory."""
    decode_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the decoder; --mixed-precision bf16 has it in bf16 in any case."""
    decode_checkpointing: bool = False
    """Compute the decoder's blocks again in the backward pass: less memory, more time."""

    latent_vgg: Path | None = None
    """latent-lpips: its weights, a file of your own or a folder of a trained one. Default: a small one is trained on the latents of --data."""
    depth: int | None = None
    """self-perceptual: the block of a transformer whose features are compared, from 1. U-Nets have their mid block."""

    def stated(self) -> Formulation | None:
        return self.formulation() if self.predict in ("flow", "edm") or (self.predict and self.schedule) else None

    def formulation(self) -> Formulation:
        output = OUTPUT[self.predict or "flow"]
        if self.times is not None and output != "flow":
            raise ValueError(f"--times says how a flow's times are drawn, and --predict is {self.predict}: leave it away")
        if output == "flow":
            return Formulation(Rectified(), output, UniformTimes() if self.times == "uniform" else LogitNormalTimes())
        if output == "edm":
            return Formulation(VarianceExploding(), output, LogNormalTimes())
        return Formulation((Cosine if self.schedule == "cosine" else LinearBeta)(self.timesteps or 1000), output)

    def build(self, context: Context) -> Method:
        if context.vae is None:
            raise ValueError(
                "the recipe lpl trains in latents and judges by their decoder: say whose with --vae (a diffusers folder or a run of the recipe "
                "autoencoder), or start from a latent pipeline with --init"
            )
        formulation = self.formulation() if context.init is None else self._of_init(context.init)
        weight = weight_named(self.weight or formulation.output, self.gamma)
        sampler = "euler" if formulation.output in ("flow", "edm") else "ddim"
        method = denoising_method(context, formulation, weight, self.cond_dropout, "unet-pocket", sampler)
        if context.trains:
            added = list(self._terms(context, method.terms[0]))
            method.terms = added if self.alone and added else [*method.terms, *added]
        return method

    def _of_init(self, init: Denoiser) -> Formulation:
        """What the flags say must be so; what they leave open is as --init has it, but for how times are drawn."""
        was, path = init.formulation, init.formulation.path
        wrong = {
            "--predict": self.predict is not None and OUTPUT[self.predict] != was.output,
            "--schedule": self.schedule is not None and not isinstance(path, Cosine if self.schedule == "cosine" else LinearBeta),
            "--timesteps": self.timesteps is not None and getattr(path, "num_steps", None) != self.timesteps,
        }
        if any(wrong.values()):
            raise ValueError(
                f"--init predicts {was.output!r} on {path.to_config()}: leave {', '.join(k for k, v in wrong.items() if v)} away"
            )
        if self.times is None:
            return was
        if was.output != "flow":
            raise ValueError(f"--times says how a flow's times are drawn, and --init predicts {was.output!r}: leave it away")
        return replace(was, times=UniformTimes() if self.times == "uniform" else LogitNormalTimes())

    def _terms(self, context: Context, plain: Term) -> Iterator[Term]:
        """What joins the squared error."""
        if self.alone and self.loss == "none":
            raise ValueError("--loss none leaves the squared error, and --alone leaves it out: leave one of the two away")
        if self.loss == "none":
            return
        if self.alone and self.loss == "reweight":
            raise ValueError("--loss reweight weighs the squared error, which --alone leaves out: leave one of the two away")
        keep = None if self.max_level is None else UpTo(self.max_level)
        scale, calibrated = self._weight
        if self.loss == "reweight":
            if keep is None:
                raise ValueError("--loss reweight weighs the levels below --max-level, which None leaves out: give a level")
            how = Calibrated("levels", by=Term("lpl", self._lpl(context), scale, keep=keep, calibrated=calibrated))
            yield Term("reweight", Denoising(), weight=plain.weight, keep=keep, calibrated=how)
            return
        objective = {"lpl": self._lpl, "latent-lpips": self._latent_lpips, "self-perceptual": self._self_perceptual}[self.loss](
            context
        )
        yield Term(self.loss, objective, scale, keep=keep, calibrated=None if self.alone else calibrated)

    @property
    def _weight(self) -> tuple[float, Calibrated | None]:
        if self.loss_weight == "auto":
            part = {"share": 0.2, "variance": 0.1}[self.weight_rule] if self.weight_part is None else self.weight_part
            return 1.0, Calibrated(self.weight_rule, part)
        try:
            number = float(self.loss_weight)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            raise ValueError(f"--loss-weight is a number above 0, or auto, got {self.loss_weight!r}")
        return number, None

    def _lpl(self, context: Context) -> LatentPerceptual:
        return LatentPerceptual(
            context.vae, layers=self._layers(), weights=self.layer_weights, norm=self.norm, outliers=self.outliers, max_level=self.max_level,
            crop=self.decode_crop, precision=self.decode_precision, checkpointing=self.decode_checkpointing,
        )  # fmt: skip

    def _layers(self) -> tuple[int, ...] | None:
        if self.layers is None:
            return None
        parts = [part.strip() for part in self.layers.split(",")]
        if not all(part.isdigit() for part in parts):
            raise ValueError(
                f"--layers names layers of the decoder by numbers with commas between, as in 0,1,2; got {self.layers!r}"
            )
        return tuple(map(int, parts))

    def _latent_lpips(self, context: Context) -> Metric:
        weights = self.latent_vgg or (None if context.latent_vgg is None else context.latent_vgg())
        if weights is None:
            raise ValueError("--loss latent-lpips needs a network that reads latents: give --latent-vgg")
        return Metric(LatentLpips(weights, context.channels))

    def _self_perceptual(self, context: Context) -> SelfPerceptual:
        if context.init is None:
            raise ValueError(
                "--loss self-perceptual is judged by the model itself as it was after its training: say which with --init"
            )
        network = context.init.network
        assert isinstance(network, Network)
        return SelfPerceptual(frozen_copy(context.init), self.depth)

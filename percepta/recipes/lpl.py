"""LPL (Berrada et al. 2025): latent diffusion, judged also in the features of the decoder that will turn its latents into images.

    L = |output - target|^2 + w 1(sigma/alpha <= tau) sum_l w_l mean (phi'_l(z0) - phi'_l(z0_hat))^2

phi_l are the decoder's own features, standardised by the prediction's statistics; samples with more noise than tau are never decoded. From
scratch, or to go on with a trained model (--init). `--loss` puts what the paper compares it with in its place.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from percepta.absent import absent
from percepta.networks import Autoencoder, Network, outline_autoencoder
from percepta.objectives import Calibrated, Denoising, LatentPerceptual, Metric, Term
from percepta.objectives.self_perceptual import SelfPerceptual, frozen_copy
from percepta.spaces.decoder import Decoder
from percepta.spaces.latent_lpips import LatentLpips
from percepta.training.data import vae_folder
from percepta.training.knobs import AnyFormulation, UpTo
from percepta.training.method import Method
from percepta.training.recipe import Context, denoising_method
from percepta.training.settings import Settings

PAPER: Mapping[str, Any] = {"network": "mmdit-xl-2", "size": 256, "batch": 256, "lr": 1e-4}  # batch and rate are not printed
PRESETS = {
    "paper-flow": {**PAPER, "predict": "flow", "steps": 200_000},
    "paper-eps": {**PAPER, "predict": "eps", "schedule": "linear", "steps": 200_000},
    "paper-flow-512": {**PAPER, "predict": "flow", "size": 512, "steps": 120_000},
}


NEEDS_INIT = "--loss self-perceptual is judged by the model itself as it was after its training: say which with --init"
PART = {"share": 0.2, "variance": 0.1}
DECODED, JUDGED = ("lpl", "reweight"), ("lpl", "latent-lpips", "self-perceptual", "reweight")
OF_LOSS: Mapping[str, tuple[str, ...]] = {  # flag -> the losses that read it
    **dict.fromkeys(("layers", "layer_weights", "norm", "outliers", "decode_crop", "decode_precision", "decode_checkpointing"), DECODED),
    **dict.fromkeys(("loss_weight", "weight_rule", "weight_part", "max_level"), JUDGED),
    "latent_vgg": ("latent-lpips",),
    "depth": ("self-perceptual",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainLpl(AnyFormulation):
    """Train or finetune a latent diffusion or flow model with a perceptual loss in the features of its autoencoder's decoder."""

    name = "lpl"
    summary = "latent diffusion with a perceptual loss in the features of the autoencoder's own decoder"
    example = "percepta train lpl --init ./checkpoint --vae ./vae --data ./images"
    sampler = "euler"
    presets = MappingProxyType(PRESETS)

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

    def __post_init__(self) -> None:
        given = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        if self.alone and self.loss in ("none", "reweight"):
            why = (
                "leaves the squared error, and --alone leaves it out"
                if self.loss == "none"
                else "weighs the squared error, which --alone leaves out"
            )
            raise ValueError(f"--loss {self.loss} {why}: leave one of the two away")
        for flag, losses in OF_LOSS.items():
            if flag in given and self.loss not in losses:
                raise ValueError(
                    f"{_flag(flag)} belongs to --loss {', '.join(losses)}; --loss {self.loss} does not read it: leave it away"
                )
        if self.alone and given & {"weight", "gamma"}:
            raise ValueError("--weight and --gamma weigh the squared error, which --alone leaves out: leave them away")
        super().__post_init__()
        self._check_weight(given)
        _ = self._layers
        if self.decode_crop is not None and self.decode_crop < 1:
            raise ValueError(f"--decode-crop is the side of a window of latents, 1 or more, got {self.decode_crop}")

    def _check_weight(self, given: Set[str]) -> None:
        """The weight of the loss, and where it counts."""
        found = {"weight_rule", "weight_part"} & given
        if found and (self.loss_weight != "auto" or self.alone):
            why = "--alone leaves nothing to weigh against" if self.alone else f"--loss-weight is {self.loss_weight}"
            raise ValueError(f"{_flag(min(found))} says how --loss-weight auto is found, and {why}: leave it away")
        _ = self._weight
        if self.max_level is not None and not self.max_level > 0:
            raise ValueError(f"--max-level is a noise level sigma/alpha above 0, or None for all, got {self.max_level}")
        if self.loss == "reweight" and self.max_level is None:
            raise ValueError("--loss reweight weighs the levels below --max-level, which None leaves out: give a level")

    def check(self, settings: Settings) -> None:
        if settings.init is None:
            self.formulation()
            if self.loss == "self-perceptual":
                raise ValueError(NEEDS_INIT)
        if self.latent_vgg is not None and not self.latent_vgg.exists():
            raise ValueError(f"--latent-vgg {absent(self.latent_vgg)}")
        if settings.vae is not None and (self.layers or self.decode_crop):
            vae = outline_autoencoder(vae_folder(settings.vae))
            self._check_decoder(vae, settings.size // vae.factor)

    def _check_decoder(self, vae: Autoencoder, side: int) -> None:
        """That there are such layers, and that a window is one; `side`: of the latents."""
        last = len(Decoder(vae).layers) - 1
        if self._layers and max(self._layers) > last:
            raise ValueError(f"--layers {self.layers}: this decoder has the layers 0 (mid block) to {last}")
        if self.decode_crop is not None and self.decode_crop > side:
            raise ValueError(
                f"--decode-crop {self.decode_crop} is larger than the latents, which are {side} wide: nothing would be cut. Give less, or leave it "
                "away"
            )

    def build(self, context: Context) -> Method:
        if context.vae is None:
            raise ValueError(
                "the recipe lpl trains in latents and judges by their decoder: say whose with --vae (a diffusers folder or a run of the recipe "
                "autoencoder), or start from a latent pipeline with --init"
            )
        formulation = self.formulation(context.init)
        weight = self.squared_error(formulation)
        sampler = "euler" if formulation.output in ("flow", "edm") else "ddim"
        method = denoising_method(context, formulation, weight, self.cond_dropout, "unet-pocket", sampler)
        if context.trains:
            added = list(self._terms(context, method.terms[0]))
            method.terms = added if self.alone and added else [*method.terms, *added]
        return method

    def _terms(self, context: Context, plain: Term) -> Iterator[Term]:
        """What joins the squared error."""
        if self.loss == "none":
            return
        keep = None if self.max_level is None else UpTo(self.max_level)
        scale, calibrated = self._weight
        if self.loss == "reweight":
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
            try:
                return 1.0, Calibrated(self.weight_rule, PART[self.weight_rule] if self.weight_part is None else self.weight_part)
            except ValueError as error:
                raise ValueError(f"--weight-part {self.weight_part}: {error}") from None
        try:
            number = float(self.loss_weight)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            raise ValueError(f"--loss-weight is a number above 0, or auto, got {self.loss_weight!r}")
        return number, None

    def _lpl(self, context: Context) -> LatentPerceptual:
        self._check_decoder(context.vae, context.size)
        return LatentPerceptual(
            context.vae, layers=self._layers, weights=self.layer_weights, norm=self.norm, outliers=self.outliers, max_level=self.max_level,
            crop=self.decode_crop, precision=self.decode_precision, checkpointing=self.decode_checkpointing,
        )  # fmt: skip

    @property
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
            raise ValueError(NEEDS_INIT)
        network = context.init.network
        assert isinstance(network, Network)
        return SelfPerceptual(frozen_copy(context.init), self.depth)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"

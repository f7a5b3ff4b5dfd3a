"""Knobs that several recipes share."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from percepta.estimate import Estimate
from percepta.formulation import AbstractTimes, Denoiser, Formulation, LogitNormalTimes, LogNormalTimes, UniformTimes
from percepta.objectives import Metric, Term, Weight, weight_named
from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.spaces.metrics import DOMAIN, open_metric
from percepta.spaces.opening import weighted
from percepta.training.recipe import Context, Recipe
from percepta.training.settings import Settings

OUTPUT = {"eps": "noise", "x0": "clean", "v": "velocity", "flow": "flow", "edm": "edm"}
PATHS = {"linear": LinearBeta, "cosine": Cosine}
TIMES: dict[str, AbstractTimes] = {"uniform": UniformTimes(), "logit-normal": LogitNormalTimes()}


@dataclass(frozen=True, kw_only=True)
class AnyFormulation(Recipe):
    """A recipe that trains whatever the network predicts; with --init, as that one was trained."""

    usual: ClassVar[str] = "flow"  # what is predicted where neither a flag nor --init says so

    predict: Literal["eps", "x0", "v", "flow", "edm"] | None = None
    """What the network predicts. Default: what --init was trained for; without it flow (lpl) or edm (sadm)."""
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

    def __post_init__(self) -> None:
        if self.times is not None and self.predict not in (None, "flow"):
            raise ValueError(f"--times says how a flow's times are drawn, and --predict is {self.predict}: leave it away")
        for flag, value in (("schedule", self.schedule), ("timesteps", self.timesteps)):
            if value is not None and self.predict in ("flow", "edm"):
                raise ValueError(f"--{flag} belongs to --predict eps, v, x0; --predict {self.predict} has none: leave it away")
        if self.weight is not None or self.gamma is not None:
            weight_named(self.weight or OUTPUT[self.predict or self.usual], self.gamma)

    def stated(self) -> Formulation | None:
        return self.formulation() if self.predict in ("flow", "edm") or (self.predict and self.schedule) else None

    def formulation(self, init: Denoiser | None = None) -> Formulation:
        """What the flags say, or that of --init, which they must not contradict."""
        if init is not None:
            return self._of_init(init)
        predict = self.predict or self.usual
        if self.predict is None and (self.schedule or self.timesteps):
            raise ValueError(
                f"--schedule and --timesteps belong to --predict eps, v, x0, and without --init {predict} is trained: say --predict"
            )
        if self.times is not None and predict != "flow":
            raise ValueError(
                f"--times says how a flow's times are drawn, and without --init {predict} is trained: say --predict flow"
            )
        output = OUTPUT[predict]
        if output == "flow":
            return Formulation(Rectified(), output, TIMES[self.times or "logit-normal"])
        if output == "edm":
            return Formulation(VarianceExploding(), output, LogNormalTimes())
        return Formulation(PATHS[self.schedule or "linear"](self.timesteps or 1000), output)

    def squared_error(self, formulation: Formulation) -> Weight:
        """The weight of each noise level."""
        return weight_named(self.weight or formulation.output, self.gamma)

    def _of_init(self, init: Denoiser) -> Formulation:
        """What the flags say must be so; what they leave open is as --init has it, but for how times are drawn."""
        was, path = init.formulation, init.formulation.path
        wrong = {
            "--predict": self.predict is not None and OUTPUT[self.predict] != was.output,
            "--schedule": self.schedule is not None and not isinstance(path, PATHS[self.schedule]),
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
        return replace(was, times=TIMES[self.times])


@dataclass(frozen=True, kw_only=True)
class WithMetric(Recipe):
    """A recipe whose estimate of the clean image may be compared with the image by metric functions."""

    metric: str | None = None
    """Metric functions on the clean estimate: lpips (VGG16), lpips-alex, lpips-squeeze, resnet, inception, swin, convnext, dinov2, clip,
    dists, domain (trained on --data); several as NAME or NAME:WEIGHT between commas. Default: none."""
    metric_weight: float = 0.1
    """Weight of the metrics beside the other losses."""
    metric_size: int | None = 224
    """Side to which images are resized for the metrics, in pixels; None leaves them as they are."""
    metric_share: float | None = None
    """The part of the gradient's norm that the metrics together are to have, between 0 and 1: their weight follows it, beginning at
    --metric-weight. Default: the weight stays."""
    metric_every: int = 1
    """Judge by the metrics in every so many steps, with so many times the weight: cheaper, and the same on average."""
    metric_max_level: float | None = None
    """Judge by the metrics only where the noise level sigma/alpha is at most this. Default: everywhere."""

    def metric_terms(self, context: Context) -> Iterator[Term]:
        """One term per metric; none where a model is only built again, to be exported."""
        if self.metric is None or not context.trains:
            return
        if context.vae is not None:
            raise ValueError("--metric compares images, and with --vae latents are trained: leave one of the two away")
        for flag, value, low in (
            ("weight", self.metric_weight, 0.0),
            ("every", self.metric_every, 1),
            ("size", self.metric_size, 1),
        ):
            if value is not None and value < low:
                raise ValueError(f"--metric-{flag} must be at least {low}, got {value}")
        wanted = weighted(self.metric, "--metric")
        for name, weight in wanted.items():
            domain = context.domain() if name == DOMAIN and context.domain is not None else None
            objective = Metric(open_metric(name, domain), self.metric_size)
            yield Term(
                "metric" if len(wanted) == 1 else f"metric/{name}", objective, self.metric_weight * weight,
                keep=None if self.metric_max_level is None else UpTo(self.metric_max_level), every=self.metric_every,
                share=None if self.metric_share is None else self.metric_share * weight / sum(wanted.values()),
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WithAugment(Recipe):
    """A recipe whose images may be altered before they are noised, and whose network is told how (denoising_method takes it)."""

    augment: float = 0.0
    """Probability of each of EDM's augmentations (mirror, scale, turn, stretch, move); the network is told which, so that samples show
    none. Default: none; the paper has 0.12 for CIFAR-10 and 0.15 for FFHQ. Images only, with a DDPM++ network."""

    def check(self, settings: Settings) -> None:
        super().check(settings)
        if self.augment and settings.vae is not None:
            raise ValueError("--augment alters images, and with --vae latents are trained: leave one of the two away")


@dataclass(frozen=True)
class UpTo:
    """The samples whose noise level sigma/alpha is at most this."""

    level: float

    def __call__(self, est: Estimate):
        return est.level <= self.level

"""Knobs that several recipes share."""

from collections.abc import Iterator
from dataclasses import dataclass

from percepta.estimate import Estimate
from percepta.objectives import Metric, Term
from percepta.spaces.metrics import DOMAIN, open_metric
from percepta.spaces.opening import weighted
from percepta.training.recipe import Context, Recipe


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


@dataclass(frozen=True)
class UpTo:
    """The samples whose noise level sigma/alpha is at most this."""

    level: float

    def __call__(self, est: Estimate):
        return est.level <= self.level

"""The metric functions of `--metric`: spaces in which an image is compared with the one that it should be, by their names.

The first five are the paper's (Cas-DM, Table 3); others are beyond it. No weights are downloaded: `percepta doctor` says what is missing and
where it comes from.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from percepta.spaces.backbones import BACKBONES, INCEPTION_BLOCKS, InceptionBlocks, Stages
from percepta.spaces.clip import KINDS as CLIPS
from percepta.spaces.dino import KINDS as DINOS
from percepta.spaces.dists import WEIGHTS as DISTS_WEIGHTS
from percepta.spaces.dists import Dists
from percepta.spaces.domain import Domain
from percepta.spaces.inception import FULL, PARTIAL
from percepta.spaces.lpips import HEADS, Lpips
from percepta.spaces.space import Space
from percepta.spaces.tokens import Tokens
from percepta.spaces.trunks import TRUNKS


@dataclass(frozen=True)
class MetricSpace:
    """What a name of `--metric` means. `weights`: of each group one file is needed, the preferred first."""

    about: str
    open: Callable[[str], Space]  # "pretrained" or "random"
    weights: tuple[tuple[str, ...], ...]


def _lpips(trunk: str, pooling: str, about: str) -> MetricSpace:
    heads = HEADS[trunk]
    files = ((heads,),) if heads in TRUNKS[trunk].weights else (TRUNKS[trunk].weights, (heads,))  # one file may hold both
    return MetricSpace(about, lambda weights: Lpips(trunk, weights, pooling=pooling), files)


def _stages(name: str, about: str) -> MetricSpace:
    return MetricSpace(about, lambda weights: Stages(name, weights), ((BACKBONES[name].weights,),))


def _blocks(blocks: tuple[str, ...], files: tuple[str, ...]) -> MetricSpace:
    about = f"the FID network of 2015, {', '.join(blocks)}"
    return MetricSpace(about, lambda weights: InceptionBlocks(blocks, weights), (files,))


def _tokens(kind: str, file: str) -> MetricSpace:
    about = f"tokens of {file} at four depths, each of mean 0 and variance 1"
    return MetricSpace(about, lambda weights: Tokens(kind, weights), ((file,),))


METRICS: dict[str, MetricSpace] = {
    "lpips": _lpips("vgg16", "average", "LPIPS on VGG16 with average pooling, as the paper"),
    "resnet": _stages("resnet", "ResNet-50, layer1 to layer4"),
    "inception": _blocks(INCEPTION_BLOCKS, FULL),
    "inception-768": _blocks(INCEPTION_BLOCKS[:2], (*FULL, PARTIAL)),
    "swin": _stages("swin", "Swin-T, its four stages"),
    "lpips-vgg16": _lpips("vgg16", "average", "another name of lpips"),
    "lpips-alex": _lpips("alex", "max", "LPIPS on AlexNet, as published"),
    "lpips-squeeze": _lpips("squeeze", "max", "LPIPS on SqueezeNet, as published"),
    "convnext": _stages("convnext", "ConvNeXt-T, its four stages"),
    "dists": MetricSpace("DISTS: texture and structure in VGG16", Dists, (TRUNKS["vgg16"].weights, (DISTS_WEIGHTS,))),
    **{kind: _tokens(kind, row[1]) for kind, row in DINOS.items()},
    **{kind: _tokens(kind, row.weights) for kind, row in CLIPS.items()},
}
DOMAIN = "domain"


def known_metrics() -> dict[str, str]:
    """Every name and what it is."""
    return {name: row.about for name, row in METRICS.items()} | {
        DOMAIN: "an encoder trained on the images themselves, 352 features"
    }


def open_metric(name: str, domain: Path | None = None, weights: str = "pretrained") -> Space:
    """The space of a metric function: `between` compares pairs of its features. `domain` is the folder that `train_domain` gave.

    ValueError in one line where its weights are missing; `weights="random"` is for tests.
    """
    if name == DOMAIN:
        if domain is None:
            raise ValueError("the metric 'domain' is an encoder trained on images: say which folder train_domain gave")
        return Domain(domain)
    if name not in METRICS:
        near = difflib.get_close_matches(name, known_metrics(), 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown metric {name!r}{hint}; known: {', '.join(known_metrics())}")
    return METRICS[name].open(weights)

"""The metrics by name: what each reads, in which space it lives when nothing else is asked, and how its value comes from rows.

Frechet, KID, precision/recall and density/coverage are defined in any space; the others belong to one. A metric is a pure function of the
rows (or, for Frechet, of the statistics) of both sides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from percepta.discrepancies.frechet import Gaussian, frechet
from percepta.evaluation.cmmd import cmmd
from percepta.evaluation.inception_score import inception_score
from percepta.evaluation.kid import kid
from percepta.evaluation.manifold import density_coverage, precision_recall
from percepta.evaluation.passes import Rows
from percepta.evaluation.sets import StatsFile


@dataclass(frozen=True)
class Value:
    """One number and where it comes from."""

    value: float
    space: str
    std: float | None = None
    contaminated: bool = False
    note: str = ""


@dataclass(frozen=True)
class Dialect:
    """What differs between the tools that people compare with."""

    name: str
    about: str
    kid_subsets: int = 100
    kid_size: int = 1000
    kid_seed: int = 2020
    is_splits: int = 10
    is_chunk: int | None = None
    neighbours: int = 3
    close: int = 5
    stored: bool = False  # FID and sFID use the statistics that lie beside the images in an npz


DIALECTS: dict[str, Dialect] = {
    d.name: d
    for d in (
        Dialect("torch-fidelity", "TF1 bilinear resize; KID 100 x 1000 subsets, seed 2020; IS in 10 shuffled parts; the default"),
        Dialect("pytorch-fid", "bilinear resize of torch, pixels in [0, 1]; otherwise as torch-fidelity"),
        Dialect(
            "adm",
            "the ADM/OpenAI evaluator: TF1 bilinear resize, IS in parts of 5,000 in order, a reference file's own statistics",
            is_chunk=5000,
            stored=True,
        ),
        Dialect("clean", "clean-fid: Pillow's antialiased bicubic without rounding; KID 100 x 1000"),
    )
}

Side = Rows | StatsFile
Computed = Mapping[str, tuple[float, float | None]]


@dataclass(frozen=True)
class Metric:
    """`home` is FAMILY-LAYER; `movable` metrics follow --space. `reads`: moments, rows, generated (rows of one side) or images."""

    name: str
    label: str
    home: str
    reads: str
    keys: tuple[str, ...]
    compute: Callable[[Any, Any, Dialect], Computed]
    movable: bool = False
    lower: bool = True


def gaussian(side: Side) -> Gaussian:
    """Streamed in chunks; fewer rows than features are taken whole, which is exact for their singular covariance, and faster."""
    if isinstance(side, StatsFile):
        return side.gaussian
    first = next(side.parts())
    if len(side) <= first.shape[1]:
        return Gaussian.of(torch.from_numpy(side.array.astype(np.float64)))
    return side.moments().gaussian()


def _frechet(key: str) -> Callable[[Side, Side, Dialect], Computed]:
    def compute(fake: Side, real: Side, _: Dialect) -> Computed:
        return {key: (frechet(gaussian(fake), gaussian(real)), None)}

    return compute


def _kid(fake: Rows, real: Rows, how: Dialect) -> Computed:
    size = min(how.kid_size, len(fake), len(real))
    return {"kid": kid(real.array, fake.array, how.kid_subsets, size, how.kid_seed)}


def _precision_recall(fake: Rows, real: Rows, how: Dialect) -> Computed:
    precision, recall = precision_recall(real.array, fake.array, how.neighbours)
    return {"precision": (precision, None), "recall": (recall, None)}


def _density_coverage(fake: Rows, real: Rows, how: Dialect) -> Computed:
    density, coverage = density_coverage(real.array, fake.array, how.close)
    return {"density": (density, None), "coverage": (coverage, None)}


def _inception_score(fake: Rows, _: Any, how: Dialect) -> Computed:
    if how.is_chunk is not None:  # in order, in runs; a smaller set is one run
        return {"is": inception_score(fake.array, None, min(how.is_chunk, len(fake)), None)}
    return {"is": inception_score(fake.array, min(how.is_splits, len(fake)))}


def _cmmd(fake: Rows, real: Rows, _: Dialect) -> Computed:
    return {"cmmd": (cmmd(real.array, fake.array), None)}


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("fid", "Frechet distance", "inception-2048", "moments", ("fid",), _frechet("fid"), movable=True),
        Metric("sfid", "spatial FID", "inception-spatial", "moments", ("sfid",), _frechet("sfid")),
        Metric("is", "Inception Score", "inception-logits", "generated", ("is",), _inception_score, lower=False),
        Metric("kid", "kernel distance", "inception-2048", "rows", ("kid",), _kid, movable=True),
        Metric("pr", "precision and recall", "inception-2048", "rows", ("precision", "recall"), _precision_recall, True, False),
        Metric("dc", "density and coverage", "inception-2048", "rows", ("density", "coverage"), _density_coverage, True, False),
        Metric("clip-fd", "Frechet distance in CLIP", "clip-embedding", "moments", ("clip-fd",), _frechet("clip-fd")),
        Metric("fd-dinov2", "Frechet distance in DINOv2", "dinov2-embedding", "moments", ("fd-dinov2",), _frechet("fd-dinov2")),
        Metric("cmmd", "CLIP maximum mean discrepancy", "clip-l-embedding", "rows", ("cmmd",), _cmmd),
    )
}
DIVERSITY = "lpips-diversity"
NAMES = (*METRICS, DIVERSITY)
DEFAULT = ("fid", "sfid", "is", "kid", "pr", "dc")
HIGHER = (*(key for metric in METRICS.values() if not metric.lower for key in metric.keys), DIVERSITY)  # more is better
MOVABLE = tuple(name for name, metric in METRICS.items() if metric.movable)

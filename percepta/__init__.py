"""Percepta: train, finetune, translate with and judge image generators in the spaces where people see.

The names below are the public surface. They are loaded when first used, so that `import percepta` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from percepta._version import __version__

if TYPE_CHECKING:
    from percepta.data import Stream, open_source
    from percepta.estimate import Batch, Denoise, Estimate
    from percepta.evaluation.evaluate import Evaluation
    from percepta.formulation import EDM, FLOW, Denoiser, Formulation
    from percepta.interop import export_pipeline, load_pipeline
    from percepta.judging import evaluate
    from percepta.networks import Network, adapt, build
    from percepta.objectives import AdversarialStructure, Denoising, LatentPerceptual, Metric, Mmd, Structure, Term, weight_named
    from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
    from percepta.rng import Rng, rng_for
    from percepta.rollout import Rollout
    from percepta.samplers import grid, guided, integrate, sample
    from percepta.spaces import Pixels, Space, open_metric, open_space
    from percepta.training.job import train
    from percepta.training.method import Method, Turn
    from percepta.training.recipe import Recipe
    from percepta.training.settings import Settings
    from percepta.translating import TranslationPipeline

_ROOMS = {
    "percepta.data": ("Stream", "open_source"),
    "percepta.estimate": ("Batch", "Denoise", "Estimate"),
    "percepta.formulation": ("EDM", "FLOW", "Denoiser", "Formulation"),
    "percepta.evaluation.evaluate": ("Evaluation",),
    "percepta.interop": ("export_pipeline", "load_pipeline"),
    "percepta.judging": ("evaluate",),
    "percepta.networks": ("Network", "adapt", "build"),
    "percepta.objectives": (
        "AdversarialStructure",
        "Denoising",
        "LatentPerceptual",
        "Metric",
        "Mmd",
        "Structure",
        "Term",
        "weight_named",
    ),
    "percepta.path": ("Cosine", "LinearBeta", "Rectified", "VarianceExploding"),
    "percepta.rng": ("Rng", "rng_for"),
    "percepta.rollout": ("Rollout",),
    "percepta.samplers": ("grid", "guided", "integrate", "sample"),
    "percepta.spaces": ("Pixels", "Space", "open_metric", "open_space"),
    "percepta.training.job": ("train",),
    "percepta.training.method": ("Method", "Turn"),
    "percepta.training.recipe": ("Recipe",),
    "percepta.training.settings": ("Settings",),
    "percepta.translating": ("TranslationPipeline",),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "EDM",
    "FLOW",
    "AdversarialStructure",
    "Batch",
    "Cosine",
    "Denoise",
    "Denoiser",
    "Denoising",
    "Estimate",
    "Evaluation",
    "Formulation",
    "LatentPerceptual",
    "LinearBeta",
    "Method",
    "Metric",
    "Mmd",
    "Network",
    "Pixels",
    "Recipe",
    "Rectified",
    "Rng",
    "Rollout",
    "Settings",
    "Space",
    "Stream",
    "Structure",
    "Term",
    "TranslationPipeline",
    "Turn",
    "VarianceExploding",
    "__version__",
    "adapt",
    "build",
    "evaluate",
    "export_pipeline",
    "grid",
    "guided",
    "integrate",
    "load_pipeline",
    "open_metric",
    "open_source",
    "open_space",
    "rng_for",
    "sample",
    "train",
    "weight_named",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'percepta' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Frozen maps from samples to features: the spaces where an estimate is judged.

The networks are loaded when first named: torchvision alone takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

from percepta.spaces.space import Features, Pixels, Space

if TYPE_CHECKING:
    from percepta.spaces.clip import Clip
    from percepta.spaces.dino import Dino
    from percepta.spaces.domain import Domain, train_domain
    from percepta.spaces.extractor import Extractor, known_extractors, open_extractor, split_name
    from percepta.spaces.inception import Inception
    from percepta.spaces.latent_lpips import LatentLpips
    from percepta.spaces.latent_lpips_fit import train_latent_lpips
    from percepta.spaces.lpips import Lpips, Pooled
    from percepta.spaces.metrics import known_metrics, open_metric
    from percepta.spaces.opening import open_space
    from percepta.spaces.trunks import Trunk

_HOME = {
    "Clip": "clip",
    "Dino": "dino",
    "Domain": "domain",
    "Extractor": "extractor",
    "Inception": "inception",
    "LatentLpips": "latent_lpips",
    "Lpips": "lpips",
    "Pooled": "lpips",
    "Trunk": "trunks",
    "known_extractors": "extractor",
    "known_metrics": "metrics",
    "open_extractor": "extractor",
    "open_metric": "metrics",
    "open_space": "opening",
    "split_name": "extractor",
    "train_domain": "domain",
    "train_latent_lpips": "latent_lpips_fit",
}

__all__ = [
    "Clip",
    "Dino",
    "Domain",
    "Extractor",
    "Features",
    "Inception",
    "LatentLpips",
    "Lpips",
    "Pixels",
    "Pooled",
    "Space",
    "Trunk",
    "known_extractors",
    "known_metrics",
    "open_extractor",
    "open_metric",
    "open_space",
    "split_name",
    "train_domain",
    "train_latent_lpips",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'percepta.spaces' has no attribute {name!r}")
    return getattr(importlib.import_module(f"percepta.spaces.{_HOME[name]}"), name)

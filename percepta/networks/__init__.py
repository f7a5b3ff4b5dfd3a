"""Networks behind one call: (x, time, cond) -> raw output; autoencoders behind encode and decode; presets of both; loading."""

from percepta.networks.adapter import Network, adapt
from percepta.networks.autoencoders import (
    AUTOENCODERS,
    Autoencoder,
    build_autoencoder,
    image_size,
    load_autoencoder,
    outline_autoencoder,
)
from percepta.networks.cascade import Cascade
from percepta.networks.cascade_build import CascadeSpec, Parts, build_cascade, cascade_formulation, parts_of
from percepta.networks.cost import Cost, cost_of
from percepta.networks.facts import Facts, facts_of
from percepta.networks.loading import load_model
from percepta.networks.presets import PRESETS, build, preset_table

__all__ = [
    "AUTOENCODERS",
    "PRESETS",
    "Autoencoder",
    "Cascade",
    "CascadeSpec",
    "Cost",
    "Facts",
    "Network",
    "Parts",
    "adapt",
    "build",
    "build_autoencoder",
    "build_cascade",
    "cascade_formulation",
    "cost_of",
    "facts_of",
    "image_size",
    "load_autoencoder",
    "load_model",
    "outline_autoencoder",
    "parts_of",
    "preset_table",
]

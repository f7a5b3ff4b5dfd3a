"""A space by its name, differentiable, one row per image: what an objective is trained in, under the names that evaluation knows."""

import math
from pathlib import Path

from percepta.spaces.clip import KINDS as CLIPS
from percepta.spaces.clip import Clip
from percepta.spaces.dino import KINDS as DINOS
from percepta.spaces.dino import Dino
from percepta.spaces.domain import Domain
from percepta.spaces.extractor import split_name
from percepta.spaces.inception import Inception
from percepta.spaces.lpips import Pooled
from percepta.spaces.space import Pixels, Space


def open_space(name: str, domain: Path | None = None, on: Space | None = None, weights: str = "pretrained") -> Space:
    """ "inception-768", "clip", "dinov2", "alex", "pixels", or "domain" with the folder that `train_domain` gave.

    ValueError in one line where its weights are missing; `weights="random"` is for tests.
    """
    family, layer = split_name(name)
    if family == "inception":
        return Inception((layer or "2048",), weights, on=on)
    if family == "domain":
        if domain is None:
            raise ValueError("the space 'domain' is an encoder trained on images: say which folder train_domain gave")
        return Domain(domain, on)
    if family == "pixels":
        return Pixels(on)
    if family in CLIPS:
        return Clip(family, weights, on)
    if family in DINOS:
        return Dino(family, weights, on)
    return Pooled(family, weights, on)


def weighted(text: str, flag: str = "--space") -> dict[str, float]:
    """ "clip:0.5, domain" is clip with weight 0.5 and domain with 1. `flag` is where the text was given, for messages."""
    out: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, weight = part.partition(":")
        if name in out:
            raise ValueError(f"{flag} names {name} twice: give it once, with the weight that is meant")
        try:
            out[name] = float(weight or 1)
        except ValueError:
            out[name] = math.nan
        if not 0 < out[name] < math.inf:
            raise ValueError(f"{flag} {part}: after the colon stands a weight above 0, as in {name}:0.5")
    if not out:
        raise ValueError(f"{flag} names no {flag.removeprefix('--')}, got {text!r}")
    return out

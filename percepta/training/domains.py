"""The data of a translation: in each step images of both domains, drawn independently.

Each domain has an order, flips and crops of its own, all functions of (seed, place): neither waits for the other's epochs, pairs never follow
from names, and a run may stop, go on, and change processes and micro-batches as with one domain.
"""

from functools import partial

import torch

from percepta.data import Pairs, open_source
from percepta.distributed import World
from percepta.training.data import Data, examples, training_stream
from percepta.training.settings import Settings


def open_domains(settings: Settings, source: str, world: World, device: torch.device) -> Data:
    """What open_data gives for --data, with the images of `source` as Batch.source beside it. Labels and captions are not used."""
    if settings.vae is not None:
        raise ValueError(f"--vae {settings.vae}: a translation trains on images: leave it away")
    if settings.conditional == "yes":
        raise ValueError("--conditional yes: a translation has no condition, its domains are unpaired: leave it away")
    target = open_source(settings.data, settings.size)
    pairs = Pairs(open_source(source, settings.size), target)
    stream = training_stream(settings, pairs, world, device)
    return Data(
        stream.batches, 3, settings.size, None, None, pairs.fingerprint, len(pairs.a) + len(pairs.b), partial(examples, settings, target),
        source_examples=partial(examples, settings, pairs.a),
    )  # fmt: skip

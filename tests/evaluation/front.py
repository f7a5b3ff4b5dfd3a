"""What tests of the front share: folders of small pictures, and an Inception of a test that is as small."""

import hashlib

import numpy as np
import torch
from PIL import Image
from torch import nn

from percepta.spaces.extractor import Extractor, open_extractor

LAYERS = {"64": 5, "768": 6, "2048": 7, "logits": 4, "spatial": 8}


def picture(seed, height=12, width=12):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def folder(root, count=20, first=0, size=(12, 12), suffix="png"):
    root.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(picture(first + k, *size)).save(root / f"{k:03d}.{suffix}")
    return root


class Opening:
    """In the place of open_extractor: a small network under the name of Inception, other families as they are. Counts images."""

    def __init__(self, weights="a" * 64, without=()):
        make = torch.Generator().manual_seed(0)
        self.weights, self.without = weights, without
        self.batches: list[int] = []
        self.first, self.taps = nn.Conv2d(3, 9, 3, padding=1), {k: nn.Linear(9, d) for k, d in LAYERS.items()}
        for part in (self.first, *self.taps.values()):
            for p in part.parameters():
                p.data = torch.empty_like(p).normal_(0, 0.5, generator=make)

    def __call__(self, family, dialect="torch-fidelity", precision="fp32", device="cpu", domain=None, layers=()):
        if family != "inception":
            return open_extractor(family, dialect, precision, device, domain, layers)
        gone = [layer for layer in layers if layer in self.without]
        if gone:
            raise ValueError(f"weights of {gone[0]} are missing")
        there = {k: d for k, d in LAYERS.items() if k not in self.without}
        resize = "bilinear" if dialect == "pytorch-fid" else "tf1"
        weights = self.weights if self.weights == "random" else hashlib.sha256(self.weights.encode()).hexdigest()
        return Extractor("inception", there, next(iter(there)), resize, weights, self.read, precision)

    def read(self, images, layers):
        self.batches.append(len(images))
        hidden = self.first(images.float() / 127.5 - 1).relu().mean((2, 3))
        return {layer: self.taps[layer](hidden).tanh() for layer in layers}

    @property
    def images(self):
        return sum(self.batches)

"""Folders of small random images, opened as a side of an evaluation, whose features are kept eight at a time."""

import numpy as np
import pytest
import torch
from PIL import Image

from percepta.evaluation import passes
from percepta.evaluation.imageset import ImageSet
from percepta.evaluation.sets import open_side


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(passes, "CHUNK", 8)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def folder(root, count=20, sizes=((12, 14),), first=0):
    root.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        pixels = np.random.default_rng(first + k).integers(0, 256, (*sizes[k % len(sizes)], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k:03d}.png")
    return root


def opened(spec, **options):
    side = open_side(spec, **options)
    assert isinstance(side, ImageSet)
    return side

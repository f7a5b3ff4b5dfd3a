"""Tiny pairs with real weights, and folders of real image files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from percepta.networks.cyclegan import CycleganPair


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a run of ladiffgan leaves it; the pair's own default size is 256."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    CycleganPair(channels=4, blocks=1).save_pretrained(folder / "model")
    (folder / "config.json").write_text(json.dumps({"recipe": "ladiffgan", "settings": {"size": 32, "ema": "none"}}))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Every kind of file: grey, RGBA, 16 bits, palette, turned by EXIF, one pixel, a line."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    Image.fromarray(picture(40, 52)).save(root / "wide.jpg")
    Image.fromarray(picture(30, 30)[..., 0]).save(root / "grey.png")
    alpha = np.repeat(np.linspace(0, 255, 20, dtype=np.uint8)[:, None], 28, 1)
    Image.fromarray(np.concatenate([picture(20, 28), alpha[..., None]], -1)).save(root / "sub" / "rgba.png")
    Image.fromarray(picture(24, 20)[..., 0].astype(np.uint16) * 257).save(root / "sub" / "deep.png")
    Image.fromarray(picture(18, 22)).quantize(8).save(root / "few.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(20, 44)).save(root / "turned.jpg", exif=exif)
    Image.fromarray(picture(1, 1)).save(root / "pixel.png")
    Image.fromarray(picture(1, 300)).save(root / "line.png")
    (root / ".hidden.png").write_bytes(b"no image")
    (root / "notes.txt").write_text("no image")
    return root

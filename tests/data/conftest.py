"""Folders of real image files, tiny."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    """Smooth enough for JPEG, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


class Maker:
    """What the tests build their files with."""

    picture = staticmethod(picture)
    encoded = staticmethod(encoded)

    @staticmethod
    def folder(root: Path, count: int = 10, classes: tuple[str, ...] = (), first: int = 0) -> Path:
        for k in range(count):
            kind = "JPEG" if k % 3 == 0 else "PNG"
            sub = root / classes[k % len(classes)] if classes else root
            sub.mkdir(parents=True, exist_ok=True)
            (sub / f"{k:03d}.{kind.lower()}").write_bytes(encoded(picture(first + k, 20 + k % 4, 24 - k % 3), kind))
        return root


@pytest.fixture
def make() -> Maker:
    return Maker()

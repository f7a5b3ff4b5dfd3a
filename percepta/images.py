"""Images at the border to files: uint8, grids, PNG. Everywhere else they are float [-1, 1] NCHW."""

import math
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def to_uint8(images: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b h w c"]:
    """[-1, 1] to 0 .. 255, rounded; grey becomes RGB."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are [b, 1 or 3, h, w], got {tuple(images.shape)}")
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)


def grid(
    images: Float[Tensor, "b c h w"], columns: int | None = None, pad: int = 2, together: int = 1
) -> UInt8[np.ndarray, "H W 3"]:
    """One picture of all, as square as may be; small images are enlarged by whole pixels so that a person sees them. `together` neighbours stay in one row."""
    pixels = to_uint8(images)
    zoom = max(1, 64 // max(pixels.shape[1:3]))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    n, h, w, _ = pixels.shape
    columns = columns or together * math.ceil(math.sqrt(n) / together)
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, 3), 255, np.uint8)
    for k, image in enumerate(pixels):
        y, x = pad + (k // columns) * (h + pad), pad + (k % columns) * (w + pad)
        canvas[y : y + h, x : x + w] = image
    return canvas


def save_png(path: Path, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(pixels).save(temporary, format="PNG")
    os.replace(temporary, path)

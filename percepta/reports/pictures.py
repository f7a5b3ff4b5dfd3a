"""Pictures as data: URIs, small enough that a page of many stays a few MB: WebP, lossless where that is not much larger."""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from percepta.reports.run import Grid

GRIDS = 60  # sample grids in a page, over all runs
PER_RUN = 24
SIDE = 1024  # longer pictures are made smaller
SMALL = 80_000  # bytes under which a picture is kept without loss
PAGE = 6_000_000  # bytes of pictures in a page, about


@dataclass(frozen=True)
class Picture:
    """A picture ready for the page; width and height are its own, so that the page does not jump while it opens."""

    uri: str
    width: int
    height: int


def picture(path: Path, budget: int = 400_000) -> Picture:
    """A picture file, re-encoded to about `budget` bytes at most; ValueError where it is none."""
    if path.suffix.lower() == ".svg":
        return Picture(f"data:image/svg+xml;base64,{_base64(path.read_bytes())}", 0, 0)
    return encoded(opened(path), budget)


def opened(path: Path) -> Image.Image:
    """The pixels of a file, RGB; ValueError where it is no picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}") from None


def encoded(image: Image.Image, budget: int) -> Picture:
    """Pixels for the page, in about `budget` bytes at most."""
    width, height = image.size
    if max(image.size) > SIDE:
        image = image.copy()
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    data = _webp(image, lossless=True)
    if len(data) > min(SMALL, budget):
        lossy = _webp(image, quality=86)
        data = lossy if len(lossy) < 0.8 * len(data) or len(data) > budget else data  # few colours are smaller without loss
    while len(data) > budget and min(image.size) > 64:
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)
        data = _webp(image, quality=80)
    return Picture(f"data:image/webp;base64,{_base64(data)}", width, height)


def chosen(grids: Sequence[Grid], runs: int) -> list[Grid]:
    """So many grids as a page has room for: the first, the last, and evenly between."""
    most = max(2, min(PER_RUN, GRIDS // runs))
    if len(grids) <= most:
        return list(grids)
    places = {round(k * (len(grids) - 1) / (most - 1)) for k in range(most)}
    return [grids[k] for k in sorted(places)]


def _webp(image: Image.Image, lossless: bool = False, quality: int = 80) -> bytes:
    out = io.BytesIO()
    image.save(out, format="WEBP", lossless=lossless, quality=quality, method=4)
    return out.getvalue()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

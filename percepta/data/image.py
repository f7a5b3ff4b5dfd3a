"""One image file to one uint8 RGB array, or BadImage with the file's name and the reason.

Pillow decodes everything: torchvision's PNG decoder dies with the process on one corrupt byte and both it and OpenCV accept
bombs. The size is read from the header before a pixel is decoded, PNG checksums are verified (Pillow skips those of the pixel
data), and every conversion is named, so that callers can count it: nothing changes silently. ICC profiles are not applied.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_MARKS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")  # how files of these formats begin
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}

CONVERSIONS = {  # what a reader may do to reach 8-bit RGB; every report uses these names
    "grey": "one channel repeated three times",
    "palette": "colours looked up",
    "alpha": "composited on the background",
    "cmyk": "inks to RGB without a profile",
    "colour-space": "YCbCr, Lab or HSV to RGB",
    "16-bit": "the high byte of each value kept",
    "first-frame": "an animation or a stack of images: the first one kept",
    "exif-rotated": "turned as its EXIF orientation says",
    "upsampled": "enlarged beyond the file's size",
}


class BadImage(ValueError):
    """A file that gives no image. `kind`: missing, empty, not-an-image, oversized, corrupt, unsupported or wrong-size."""

    def __init__(self, name: str, kind: str, reason: str) -> None:
        super().__init__(name, kind, reason)  # all three as args: exceptions travel between processes by their args
        self.name, self.kind, self.reason = name, kind, reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Reading:
    """How files are read. `max_pixels` bounds memory before decoding (2^26 pixels are 192 MiB as RGB)."""

    max_pixels: int = 2**26
    max_bytes: int = 2**29
    background: str = "white"

    def __post_init__(self) -> None:
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background {self.background!r}; known: {', '.join(BACKGROUNDS)}")


class Decoded(NamedTuple):
    image: UInt8[np.ndarray, "h w 3"]
    format: str
    changes: tuple[str, ...]


def read_bytes(path: Path, name: str, max_bytes: int) -> bytes:
    """The file's bytes; folders, devices and absurd sizes are refused before they are opened."""
    try:
        if not path.is_file():
            raise BadImage(name, "missing", "is not a file" if path.exists() else "does not exist")
        size = path.stat().st_size
        if size > max_bytes:
            raise BadImage(name, "oversized", f"has {size:,} bytes, more than the limit of {max_bytes:,}")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(name, "missing", f"cannot be read: {error.strerror or error}") from error


def read_image(data: Path | str | bytes, name: str | None = None, reading: Reading | None = None) -> Decoded:
    """Decode a file or its bytes. Raises BadImage, and nothing else, for whatever the bytes are."""
    reading = reading or Reading()
    if isinstance(data, (str, Path)):
        name = str(data) if name is None else name
        data = read_bytes(Path(data), name, reading.max_bytes)
    name = "<bytes>" if name is None else name
    if not data:
        raise BadImage(name, "empty", "is empty (0 bytes)")
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(name, "oversized", f"claims more pixels than Pillow allows: {error}") from error
    except Exception as error:  # Pillow's plugins raise anything on bad bytes: OSError, SyntaxError, struct.error, ...
        if data.startswith(_MARKS):
            raise BadImage(name, "corrupt", f"is truncated or corrupt: {_brief(error)}") from error
        raise BadImage(name, "not-an-image", f"is not an image that can be read ({', '.join(FORMATS)}): {_brief(error)}") from error
    width, height = file.size
    if width * height > reading.max_pixels:
        raise BadImage(
            name, "oversized", f"is {width} x {height}: {width * height:,} pixels, more than the limit of {reading.max_pixels:,}"
        )
    try:
        if file.format == "PNG":
            _verify_png(data)
        changes: list[str] = []
        image = _to_rgb(file, data, changes, BACKGROUNDS[reading.background])
    except BadImage as error:
        raise BadImage(name, error.kind, error.reason) from error
    except Exception as error:
        raise BadImage(name, "corrupt", f"is truncated or corrupt: {_brief(error)}") from error
    return Decoded(image, file.format or "", tuple(changes))


def rgb_of(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """A picture that is open already, as a file of it is read: upright, 8 bits, transparent parts white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return _high_byte(image)
    if image.mode in ("I", "F"):
        raise BadImage("<picture>", "unsupported", f"has 32-bit values (mode {image.mode}): convert it to 8 or 16 bits first")
    return np.array(_flattened(image, [], BACKGROUNDS["white"]))


def alpha_of(image: Image.Image) -> UInt8[np.ndarray, "h w"] | None:
    """How opaque each pixel of the upright picture is, 0 to 255; None where it cannot be transparent."""
    if not _has_alpha(image):
        return None
    return np.array(ImageOps.exif_transpose(image).convert("RGBA").getchannel("A"))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    )


def _high_byte(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    return np.repeat((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8)[..., None], 3, axis=2)


def _brief(error: Exception) -> str:
    text = " ".join(re.sub(r"<_io\.BytesIO object at \w+>", "", str(error)).split())[
        :120
    ]  # an address says nothing, and differs each time
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _verify_png(data: bytes) -> None:
    """Checksums of the chunks that make pixels. A flipped bit anywhere in them is found."""
    place = 8
    while True:
        if place + 12 > len(data):
            raise BadImage("", "corrupt", "is truncated or corrupt: the PNG ends before its end mark")
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + length
        if end + 4 > len(data):
            raise BadImage("", "corrupt", f"is truncated or corrupt: PNG chunk {kind!r} is cut short")
        critical = not kind[0] & 0x20 or kind == b"tRNS"
        if critical and zlib.crc32(memoryview(data)[place + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise BadImage("", "corrupt", f"is truncated or corrupt: wrong checksum in PNG chunk {kind!r}")
        if kind == b"IEND":
            return
        place = end + 4


def _to_rgb(file: Image.Image, data: bytes, changes: list[str], background: tuple[int, int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Decode, and convert whatever the mode is; notes each conversion in `changes`."""
    if getattr(file, "is_animated", False):  # only formats that hold several frames have the attribute
        changes.append("first-frame")
        file.seek(0)
    file.load()
    image: Image.Image = file
    if file.getexif().get(0x0112, 1) in range(2, 9):
        changes.append("exif-rotated")
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16") or (image.mode == "I" and file.format == "PPM"):
        changes += ["16-bit", "grey"]
        return _high_byte(image)
    if image.mode in ("I", "F"):
        raise BadImage(
            "", "unsupported", f"has 32-bit values (mode {image.mode}) without a stated range: convert it to 8 or 16 bits first"
        )
    if file.format == "PNG" and data[24] == 16:
        changes.append("16-bit")  # Pillow has kept the high byte already
    return np.array(_flattened(image, changes, background))  # a copy that owns its memory and can be written


def _flattened(image: Image.Image, changes: list[str], background: tuple[int, int, int]) -> Image.Image:
    """Any 8-bit mode to RGB."""
    mode = image.mode
    if mode in ("1", "L", "LA", "La"):
        changes.append("grey")
    elif mode in ("P", "PA"):
        changes.append("palette")
    elif mode == "CMYK":
        changes.append("cmyk")
    elif mode not in ("RGB", "RGBA", "RGBa", "RGBX"):
        changes.append("colour-space")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        changes.append("alpha")
        image = image.convert("RGBA")
        flat = Image.new("RGBA", image.size, (*background, 255))
        return Image.alpha_composite(flat, image).convert("RGB")
    return image if mode == "RGB" else image.convert("RGB")

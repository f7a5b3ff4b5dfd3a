"""The reader: conversions are right and named; whatever the bytes are, the answer is an image or BadImage with the file's name."""

import io
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from percepta.data.image import CONVERSIONS, BadImage, Reading, read_image


def rejected(data, kind, *words, **options):
    with pytest.raises(BadImage) as caught:
        read_image(data, "some/file.png", **options)
    assert caught.value.kind == kind, caught.value
    assert str(caught.value).startswith("some/file.png: ")
    assert all(word in str(caught.value) for word in words), caught.value


def test_plain_files_come_back_as_they_are(make):
    image = make.picture(0)
    for kind, exact in (("PNG", True), ("BMP", True), ("TIFF", True), ("PPM", True), ("JPEG", False)):
        found = read_image(make.encoded(image, kind, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {})))
        assert found.format == kind
        assert found.changes == ()
        assert found.image.dtype == np.uint8
        assert np.array_equal(found.image, image) if exact else np.abs(found.image.astype(int) - image).mean() < 6
    assert np.array_equal(read_image(make.encoded(image, "WEBP", lossless=True)).image, image)


def test_conversions_are_right_and_named(make):
    image = make.picture(1)
    grey = image[..., 0]
    found = read_image(make.encoded(grey))
    assert found.changes == ("grey",)
    assert np.array_equal(found.image, np.repeat(grey[..., None], 3, axis=2))
    found = read_image(make.encoded(Image.fromarray(image).quantize(256)))
    assert found.changes == ("palette",)
    found = read_image(make.encoded(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95))
    assert found.changes == ("cmyk",)
    assert np.abs(found.image.astype(int) - image).mean() < 6
    for mode in ("1", "L", "LA"):
        assert read_image(make.encoded(Image.fromarray(grey).convert(mode))).changes[0] == "grey"
    lab = make.encoded(Image.fromarray(image).convert("YCbCr"), "TIFF")
    assert read_image(lab).changes == ("colour-space",)


def test_transparency_is_composited_on_the_named_background(make):
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[:, 4:] = (200, 100, 50, 255)
    for data in (make.encoded(rgba), make.encoded(Image.fromarray(rgba).quantize(16))):
        for background, value in (("white", 255), ("black", 0)):
            found = read_image(data, reading=Reading(background=background))
            assert "alpha" in found.changes
            assert found.image[0, 0].tolist() == [value] * 3
            assert found.image[0, 7].tolist() == [200, 100, 50]
    with pytest.raises(ValueError, match="unknown background 'pink'; known: white, black"):
        Reading(background="pink")


def test_sixteen_bits_are_scaled_and_never_wrapped(make):
    k = np.arange(256)
    ramp = (k * 256 + (37 * k + 11) % 256).astype(np.uint16).reshape(16, 16)  # the low byte must not show through
    found = read_image(make.encoded(ramp))
    assert found.changes == ("16-bit", "grey")
    assert np.array_equal(found.image[..., 0].ravel(), np.arange(256))
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, axis=1).astype(">u2").tobytes() for row in ramp)
    found = read_image(png(16, 16, rows, depth=16, colour=2))
    assert found.changes == ("16-bit",)
    assert np.array_equal(found.image[..., 1].ravel(), np.arange(256))
    rejected(make.encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF"), "unsupported", "32-bit")


def test_animations_give_their_first_frame_and_exif_turns(make):
    frames = [Image.fromarray(make.picture(k)).quantize(64) for k in range(3)]
    found = read_image(make.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert "first-frame" in found.changes
    assert np.array_equal(found.image, np.asarray(frames[0].convert("RGB")))
    image = make.picture(4, 10, 30)
    for kind in ("PNG", "JPEG"):
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by 90 degrees clockwise for display
        found = read_image(make.encoded(image, kind, exif=exif, quality=98, subsampling=0))
        assert found.changes == ("exif-rotated",)
        assert found.image.shape == (30, 10, 3)
        assert np.abs(found.image.astype(int) - np.rot90(image, -1)).mean() < 6


def png(width, height, raw, depth=8, colour=2):
    """A PNG by hand: what no library would write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def test_bombs_are_refused_on_their_header(make):
    started = time.perf_counter()
    for side in (9000, 16384, 2**20):  # above our limit, above Pillow's warning, far above its error
        rejected(png(side, side, b"\0" * 100), "oversized", "pixels")
    assert time.perf_counter() - started < 1
    rejected(make.encoded(make.picture(0)), "oversized", "24 x 20", "479", reading=Reading(max_pixels=479))
    assert read_image(make.encoded(make.picture(0)), reading=Reading(max_pixels=480)).image.shape == (20, 24, 3)


def test_broken_files_are_named_with_their_reason(make, tmp_path):
    whole = make.encoded(make.picture(0))
    rejected(b"", "empty", "0 bytes")
    rejected(b"hello, this is text", "not-an-image")
    rejected(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not-an-image")  # Pillow would start ghostscript
    rejected(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not-an-image")
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        data = make.encoded(make.picture(0, 64, 64), kind)
        rejected(data[: len(data) // 2], "corrupt")
    for k in range(len(whole) - 12, len(whole)):
        with pytest.raises(BadImage):
            read_image(whole[:k])
    (tmp_path / "a.png").write_bytes(whole)
    assert read_image(tmp_path / "a.png").image.shape == (20, 24, 3)
    for path, kind in ((tmp_path / "no.png", "missing"), (tmp_path, "missing")):
        with pytest.raises(BadImage) as caught:
            read_image(path)
        assert caught.value.kind == kind
        assert str(path) in str(caught.value)
    with pytest.raises(BadImage, match="limit of 10"):
        read_image(tmp_path / "a.png", reading=Reading(max_bytes=10))


def test_every_flipped_byte_of_a_png_s_pixels_is_found(make):
    whole = make.encoded(make.picture(0))
    start = whole.index(b"IDAT") + 4
    for place in range(start, len(whole) - 12):  # IDAT's data and checksum
        with pytest.raises(BadImage):
            read_image(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])


def test_bad_images_travel_between_processes():
    error = pickle.loads(pickle.dumps(BadImage("a/b.png", "empty", "is empty")))
    assert (error.name, error.kind, str(error)) == ("a/b.png", "empty", "a/b.png: is empty")


def fuzz(make, cases, seed):
    """Seeds of every format and mode, damaged in four ways. Returns how many were refused."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(make.picture(0, 24, 24))
    exif = Image.Exif()
    exif[0x0112] = 3
    seeds = [make.encoded(image.convert(mode), kind) for kind, mode in (
        ("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("GIF", "P"),
        ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "CMYK"), ("WEBP", "RGB"), ("PPM", "RGB"))]  # fmt: skip
    seeds += [make.encoded(image, "TIFF", compression="tiff_lzw"), make.encoded(image, "JPEG", exif=exif, progressive=True)]
    refused = read = 0
    for _ in range(cases):
        data = bytearray(seeds[rng.integers(len(seeds))])
        way = rng.integers(4)
        if way == 0:
            del data[rng.integers(len(data)) :]
        elif way == 1:
            for place in rng.integers(0, len(data), rng.integers(1, 20)):
                data[place] ^= 1 << rng.integers(8)
        elif way == 2:
            place = rng.integers(len(data))
            data[place : place + rng.integers(1, 64)] = rng.bytes(rng.integers(0, 64))
        else:
            for place in rng.integers(0, min(64, len(data)), 3):  # headers
                data[place] = rng.integers(256)
        try:
            found = read_image(bytes(data), "fuzzed", Reading(max_pixels=2**20))
        except BadImage as error:
            refused += error.name == "fuzzed"
        else:
            read += 1
            assert found.image.dtype == np.uint8
            assert found.image.ndim == 3
            assert set(found.changes) <= set(CONVERSIONS)
    assert refused + read == cases  # every refusal named its file
    return refused


def test_fuzzed_files_give_an_image_or_bad_image(make):
    assert 100 < fuzz(make, 300, 0) < 300


@pytest.mark.filterwarnings("ignore")  # as users run it: Pillow's warnings about damaged metadata are not errors
def test_ten_thousand_fuzzed_files(make):
    assert 3000 < fuzz(make, 10_000, 1) < 10_000


def test_images_own_their_memory(make):
    image = read_image(io.BytesIO(make.encoded(make.picture(0))).getvalue()).image
    image[0, 0] = 0  # not a read-only view of Pillow's buffer

"""A side: every layout gives its images in the canonical order; bad input is a clear error or a stated conversion, never a wrong number."""

import io
import json
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_extractor import Small

from percepta.data import BadImage, Shapes
from percepta.evaluation import sets
from percepta.evaluation.passes import extract
from percepta.evaluation.sets import ImageSet, StatsFile, open_side


def picture(seed, height=12, width=14):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def folder(root, count=6, first=0):
    root.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        (root / f"{k:03d}.png").write_bytes(encoded(picture(first + k)))
    return root


def passed(spec, tmp_path, **options):
    """The side after a pass, which only reads."""
    side = open_side(spec, **options)
    assert isinstance(side, ImageSet)
    extract(side, {}, tmp_path / "cache")
    return side


def png_bomb(side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


# ---- what can be named


def test_a_folder_counts_in_the_order_of_its_names(tmp_path):
    for name, seed in (("b.png", 1), ("a.png", 0), ("B.PNG", 2), ("10.png", 3), ("9.png", 4), ("notes.txt", None)):
        (tmp_path / name).write_bytes(b"text" if seed is None else encoded(picture(seed)))
    side = open_side(tmp_path)
    assert [side.name_of(k).rpartition("/")[2] for k in range(5)] == ["10.png", "9.png", "B.PNG", "a.png", "b.png"]
    assert np.array_equal(side.read([3])[0], picture(0))
    assert side.read([]) == []


def test_class_folders_count_by_whole_paths(tmp_path):
    for k, name in enumerate(("a/2", "a-b/1", "a/1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(encoded(picture(k)))
    side = open_side(tmp_path)
    names = [str(Path(side.name_of(k)).relative_to(tmp_path)) for k in range(3)]
    assert names == sorted(names) == ["a-b/1.png", "a/1.png", "a/2.png"]


def test_all_layouts_of_the_same_pixels_are_the_same_set(tmp_path):
    images = np.stack([picture(k) for k in range(6)])
    files = folder(tmp_path / "files")
    np.savez(tmp_path / "pack.npz", arr_0=images)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for file in sorted(files.iterdir()):
            tar.add(file, file.name)
    sides = [
        passed(spec, tmp_path) for spec in (files, str(tmp_path / "pack.npz"), tmp_path / "shard.tar", images, sets.Arrays(images))
    ]
    for side in sides:
        assert len(side) == 6
        assert np.array_equal(np.stack(side.read(range(6))), images)
        assert side.overlap(sides[0]) == 6
        assert side.sizes == {(12, 14)}
    prints = [side.fingerprint for side in sides]
    assert prints[0] == prints[2]  # the same files
    assert prints[1] == prints[3] == prints[4]  # the same arrays
    assert prints[0] != prints[1]


def test_shapes_are_known_by_their_numbers_and_not_by_labels_or_length(monkeypatch):
    side = open_side("shapes:length=20", size=16)
    assert np.array_equal(side.read([3])[0], Shapes(16).read(3).image)
    monkeypatch.setattr(Shapes, "read", lambda *_: pytest.fail("a fingerprint draws nothing"))
    same = open_side(Shapes(16, 30, labels="none"), num=20)
    assert side.fingerprint == same.fingerprint
    assert open_side("shapes:length=20,seed=1", size=16).fingerprint != side.fingerprint
    assert open_side("shapes:length=20", size=24).fingerprint != side.fingerprint


def test_equal_content_elsewhere_is_the_same_set_and_one_byte_is_another(tmp_path):
    a = folder(tmp_path / "a")
    shutil.copytree(a, tmp_path / "b" / "images")
    (tmp_path / "b" / "images" / "000.png").rename(tmp_path / "b" / "images" / "0.png")
    first, second = open_side(a), open_side(tmp_path / "b" / "images")
    assert first.fingerprint == second.fingerprint
    (a / "005.png").write_bytes(encoded(picture(5), compress_level=0))
    assert open_side(a).fingerprint != first.fingerprint
    (a / "005.png").rename(a / "-.png")
    assert open_side(a, num=5).fingerprint != second.fingerprint


def test_a_large_file_is_hashed_as_a_whole(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    prints = []
    for value in (0, 1):
        noise[150, 150] = value
        for name in ("a.bmp", "b.bmp"):
            (tmp_path / name).write_bytes(encoded(noise, "BMP"))
        prints.append(open_side(tmp_path).fingerprint)
    assert prints[0] != prints[1]


def test_num_takes_the_first_or_where_classes_lie_in_pieces_an_even_share(tmp_path):
    flat = open_side(folder(tmp_path / "flat"), num=4)
    assert flat.indices == (0, 1, 2, 3)
    assert flat.selection == "the first 4 of 6"
    for name in ("cat", "dog"):
        folder(tmp_path / "classes" / name, 5, 100 * len(name))
    classes = open_side(tmp_path / "classes", num=4)
    assert classes.indices == (0, 2, 5, 7)
    assert "sorted by class" in classes.selection
    mixed = Shapes(8, 50)
    assert open_side(mixed, num=4).indices == (0, 1, 2, 3)
    np.savez(tmp_path / "sorted.npz", arr_0=np.zeros((6, 8, 8, 3), np.uint8), arr_1=np.array([0, 0, 0, 1, 1, 1]))
    assert open_side(tmp_path / "sorted.npz", num=2).indices == (0, 3)
    np.savez(tmp_path / "mixed.npz", arr_0=np.zeros((6, 8, 8, 3), np.uint8), arr_1=np.array([0, 1, 0, 1, 1, 1]))
    assert open_side(tmp_path / "mixed.npz", num=2).indices == (0, 1)
    assert open_side(flat, num=2).indices == (0, 1)
    assert open_side(flat) is flat


def test_size_and_crop_are_those_of_training(tmp_path):
    side = open_side(folder(tmp_path / "a"), size=8)
    assert {image.shape for image in side.read(range(6))} == {(8, 8, 3)}
    from percepta.data import Transform

    stage, _ = Transform(8).stage(picture(2), "")
    assert np.array_equal(side.read([2])[0], stage.transpose(1, 2, 0))
    assert side.transform_text == "center-crop to 8 x 8, filter adm"
    assert open_side(tmp_path / "a").transform_text == "none: every image at its own size"
    with pytest.raises(ValueError, match="no random-crop; use center-crop"):
        open_side(tmp_path / "a", size=8, crop="random-crop")
    with pytest.raises(ValueError, match="is open already"):
        open_side(side, size=16)
    with pytest.raises(BadImage, match="asked for 16 x 16 without resizing"):
        open_side(tmp_path / "a", size=16, crop="none").read([0])


# ---- what is wrong with it


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "nowhere", "does not exist"),
        (lambda p: p, "no images found.*nothing at all"),
        (lambda p: folder(p, 1), "holds 1 image; sets of at least 2"),
        (lambda p: (p / "readme.txt").write_text("hello") and p, "no images found.*holds 1 x .txt"),
        (lambda p: (p / "a.png").write_bytes(encoded(picture(0))) and p / "a.png", "is a file; data is a folder"),
        (lambda p: "", "got an empty name"),
        (lambda p: folder(p) and (folder(p / "sub") and p), "6 images lie beside 1 sub-folders"),
        (lambda p: "shapes:length=1", "holds 1 image;"),
        (lambda p: "shapes:sise=1", "did you mean size"),
        (lambda p: np.zeros((4, 8, 8, 3), np.float32), "uint8.*got float32.*range cannot be guessed"),
        (lambda p: np.zeros((4, 3, 8, 8), np.uint8), r"got uint8 \[4, 3, 8, 8\]"),
        (lambda p: np.zeros((0, 8, 8, 3), np.uint8), r"got uint8 \[0, 8, 8, 3\]"),
        (lambda p: np.zeros((1, 8, 8, 3), np.uint8), "holds 1 image;"),
    ],
)  # fmt: skip
def test_a_side_that_is_none_says_why(make, words, tmp_path):
    with pytest.raises(ValueError, match=f"(?s){words}"):
        open_side(make(tmp_path))


def test_a_number_of_images_that_cannot_be(tmp_path):
    folder(tmp_path)
    with pytest.raises(ValueError, match="7 images were asked for, it holds 6"):
        open_side(tmp_path, num=7)
    with pytest.raises(ValueError, match="at least 2 images are needed, got num=1"):
        open_side(tmp_path, num=1)
    with pytest.raises(ValueError, match="on_bad must be error or skip"):
        open_side(tmp_path, on_bad="ignore")


BAD = {
    "truncated.jpg": (lambda: encoded(picture(0, 64, 64), "JPEG")[:400], "corrupt"),
    "truncated.png": (lambda: encoded(picture(0))[:-20], "corrupt"),
    "text.png": (lambda: b"this is no image", "not-an-image"),
    "empty.png": (lambda: b"", "empty"),
    "bomb.png": (lambda: png_bomb(30_000), "oversized"),
    "floats.tiff": (lambda: encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "unsupported"),
    "link.png": (None, "missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_stops_by_name_or_is_skipped_counted_and_named(name, tmp_path):
    root = folder(tmp_path / "set")
    data, kind = BAD[name]
    if data is None:
        (root / name).symlink_to(root / "gone")
    else:
        (root / name).write_bytes(data())
    with pytest.raises(BadImage) as caught:
        passed(root, tmp_path)
    assert caught.value.kind == kind
    assert str(root / name) in str(caught.value)
    side = passed(root, tmp_path, on_bad="skip")
    assert len(side) == 6
    assert side.facts()["bad"] == 1
    assert list(side.facts()["bad_files"]) == [str(root / name)]
    assert all(
        np.array_equal(a, b) for a, b in zip(side.read(range(6)), open_side(folder(tmp_path / "clean")).read(range(6)), strict=True)
    )
    with pytest.raises(BadImage, match=name.replace(".", r"\.")):  # what was skipped into the cache is an error again
        passed(root, tmp_path)


def test_when_nothing_or_one_image_is_left_there_is_no_number(tmp_path):
    root = folder(tmp_path / "set", 3)
    for name in ("000.png", "001.png"):
        (root / name).write_bytes(b"no image")
    with pytest.raises(ValueError, match="1 of 3 images can be read; at least 2"):
        passed(root, tmp_path, on_bad="skip")


def test_conversions_are_made_and_stated(tmp_path):
    root, image = tmp_path / "set", picture(0)
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = (np.arange(168, dtype=np.uint16) * 257).reshape(12, 14)
    frames = [Image.fromarray(picture(k)).quantize(16) for k in range(3)]
    files = {
        "16.png": encoded(deep), "grey.png": encoded(image[..., 0]), "rgba.png": encoded(np.dstack([image, image[..., :1]])),
        "palette.png": encoded(Image.fromarray(image).quantize(16)), "cmyk.jpg": encoded(Image.fromarray(image).convert("CMYK"), "JPEG"),
        "frames.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "turned.png": encoded(image, exif=exif),
    }  # fmt: skip
    for name, data in files.items():
        (root / name).write_bytes(data)
    side = passed(root, tmp_path)
    facts = side.facts()
    assert facts["conversions"] == {
        "16-bit": 1, "alpha": 1, "cmyk": 1, "exif-rotated": 1, "first-frame": 1, "grey": 2, "palette": 2,
    }  # fmt: skip
    assert facts["formats"] == {"PNG": 5, "JPEG": 1, "GIF": 1}
    assert side.jpeg_share == pytest.approx(1 / 7)
    assert facts["sizes"] == {"14 x 12": 6, "12 x 14": 1}
    assert side.sizes == {(12, 14), (14, 12)}
    assert "bad" not in facts
    assert np.array_equal(side.read([0])[0], np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2))
    json.dumps(facts)


def test_copies_are_counted_by_pixels_whatever_the_file(tmp_path):
    a, b = folder(tmp_path / "a", 6), folder(tmp_path / "b", 6, first=4)
    (b / "000.png").write_bytes(encoded(picture(4), "BMP"))
    (b / "zz.png").write_bytes(encoded(picture(5)))  # a duplicate of 001
    first, second = passed(a, tmp_path), passed(b, tmp_path)
    assert first.overlap(second) == 2
    assert second.overlap(first) == 3
    assert (first.facts()["duplicates"], second.facts()["duplicates"]) == (0, 1)
    turned = np.stack([picture(k, 14, 12).reshape(12, 14, 3) for k in (0, 1)])  # the same bytes in another shape
    assert passed(np.stack([picture(k, 14, 12) for k in (0, 1)]), tmp_path).overlap(passed(turned, tmp_path)) == 0


def test_a_set_that_changes_under_our_hands_is_an_error(tmp_path):
    root = folder(tmp_path / "set")
    side = open_side(root, on_bad="skip")
    assert side.fingerprint
    (root / "003.png").write_bytes(encoded(picture(99)))
    with pytest.raises(ValueError, match=r"003.png: has changed since it was hashed"):
        extract(side, {Small(): ["7"]}, tmp_path / "cache")
    (root / "003.png").unlink()
    with pytest.raises(ValueError, match=r"003.png: .*it could be read a moment ago"):
        extract(side, {Small(): ["7"]}, tmp_path / "cache")


# ---- statistics


def covariance(d=5, seed=0):
    rows = np.random.default_rng(seed).normal(size=(40, d))
    return rows.mean(0), np.cov(rows, rowvar=False)


def test_statistics_are_read_as_they_are(tmp_path):
    mu, sigma = covariance()
    np.savez(tmp_path / "stats.npz", mu=mu, sigma=sigma)
    side = open_side(tmp_path / "stats.npz")
    assert isinstance(side, StatsFile)
    assert (side.dims, side.count) == (5, None)
    assert torch.equal(side.gaussian.mean, torch.from_numpy(mu))
    assert torch.allclose(side.gaussian.cov, torch.from_numpy(sigma), rtol=1e-15, atol=0)
    assert open_side(side) is side
    np.savez(tmp_path / "counted.npz", mu=mu.astype(np.float32), sigma=sigma.astype(np.float32), n=40)
    assert open_side(tmp_path / "counted.npz").count == 40
    assert open_side(tmp_path / "counted.npz").fingerprint != side.fingerprint
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, arr_0=np.zeros((3, 8, 8, 3), np.uint8))
    images = open_side(tmp_path / "adm.npz")
    assert isinstance(images, ImageSet)
    assert images.selection == "all; the statistics in the file (mu, sigma) are not used, its images are"
    with pytest.raises(ValueError, match="holds statistics, no images"):
        open_side(tmp_path / "stats.npz", num=3)


MU, SIGMA = covariance()


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": MU}, "statistics are mu and sigma, it holds mu"),
        ({"mu": MU, "sigma": SIGMA[:4]}, r"needs floats mu \[d\] and sigma \[d, d\]"),
        ({"mu": MU.astype(int), "sigma": SIGMA}, "needs floats"),
        ({"mu": MU, "sigma": SIGMA.astype(complex)}, "needs floats"),
        ({"mu": MU, "sigma": np.where(SIGMA > 0.5, np.nan, SIGMA)}, "not finite"),
        ({"mu": MU, "sigma": -SIGMA}, "not a covariance"),
        ({"mu": MU, "sigma": SIGMA + np.triu(np.ones((5, 5)), 1)}, "not a covariance"),
        ({"mu": MU, "sigma": SIGMA, "n": 1}, "n is the number of images"),
        ({"mu": np.array([object()] * 5), "sigma": SIGMA}, "pickled objects, which are never executed"),
        ({"arr_0": np.array([object()] * 5)}, "pickled objects, which are never executed"),
        ({"arr_0": np.zeros((4, 8, 8, 3))}, "must be uint8"),
        ({"arr_0": np.zeros((4, 8, 8, 4), np.uint8)}, "must be uint8"),
        ({"arr_0": np.zeros((1, 8, 8, 3), np.uint8)}, "holds 1 image;"),
        ({"features": np.zeros((4, 8))}, "has no images"),
    ],
)  # fmt: skip
def test_an_npz_of_something_else_says_what_it_holds(arrays, words, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        open_side(tmp_path / "a.npz")


@pytest.mark.parametrize("keys", [("arr_0",), ("mu", "sigma")])
def test_a_damaged_npz_is_a_clear_error_wherever_it_is_damaged(keys, tmp_path):
    """Every cut and many flips: an error, or (a flip that nothing covers) the very same content. Never a traceback of another kind."""
    rng = np.random.default_rng(0)
    values = {"arr_0": rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), "mu": MU, "sigma": SIGMA}
    whole, file = tmp_path / "whole.npz", tmp_path / "a.npz"
    np.savez_compressed(whole, **{key: values[key] for key in keys})
    data = whole.read_bytes()
    refused = 0
    for trial in range(150):
        damaged = bytearray(data)
        if trial % 3:
            damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[int(rng.integers(len(data))) :]
        file.write_bytes(damaged)
        try:
            side = open_side(file)
        except ValueError as error:
            refused += 1
            assert str(file) in str(error)
            continue
        if isinstance(side, StatsFile):
            assert torch.equal(side.gaussian.mean, torch.from_numpy(MU))
        else:
            assert np.array_equal(np.stack(side.read(range(3))), values["arr_0"])
    assert refused > 100


def test_other_scenes_are_other_content_however_they_are_asked_for():
    """Options that a source's name leaves out where they are usual are in what features are kept by."""
    usual = "shapes:length=3"
    others = ("part=test", "only=star+ring", "backgrounds=paper", "textures=plain", "domain=outline", "seed=1")
    sets = [open_side(usual, size=16), *(open_side(f"{usual},{option}", size=16) for option in others)]
    assert len({one.fingerprint for one in sets}) == len({one.chunks(3)[0].key for one in sets}) == len(sets)
    assert len({one.read([0])[0].tobytes() for one in sets}) == len(sets)

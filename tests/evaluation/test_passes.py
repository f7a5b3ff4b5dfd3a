"""The pass: rows belong to their images, every image is decoded once, what is cached is not done again, ranks and batches change nothing."""

import os
import threading
import time

import numpy as np
import pytest
import torch
from image_sets import folder, opened, small_chunks  # noqa: F401  (small_chunks is for all tests here)
from PIL import Image
from small_extractor import Small

from percepta.data import BadImage
from percepta.evaluation import imageset, passes
from percepta.evaluation.cache import Store, unsealed, write_sealed
from percepta.evaluation.imageset import ImageSet
from percepta.evaluation.passes import extract


def direct(extractor, side, layer):
    """Every image by itself through the network."""
    rows = [
        extractor(torch.from_numpy(image.transpose(2, 0, 1).copy())[None], [layer])[layer] for image in side.read(range(len(side)))
    ]
    return torch.cat(rows).numpy()


@pytest.fixture
def decodes(monkeypatch):
    """The names of all files that were decoded."""
    names, real, lock = [], imageset.read_image, threading.Lock()

    def counted(data, name, reading):
        with lock:
            names.append(name)
        return real(data, name, reading)

    monkeypatch.setattr(imageset, "read_image", counted)
    return names


# ---- rows and images


@pytest.mark.parametrize("sizes", [((12, 14),), ((12, 14), (9, 9), (20, 8)), tuple((8 + k, 9) for k in range(20))])
def test_row_i_is_image_i_whatever_the_sizes(sizes, tmp_path):
    side, net = opened(folder(tmp_path / "set", sizes=sizes)), Small()
    found = extract(side, {net: ["7", "logits"]}, tmp_path / "cache", batch=3)
    assert list(found) == [("small", "7"), ("small", "logits")]
    assert net.images == 20
    assert max(net.batches) <= 3
    for layer in ("7", "logits"):
        rows = found["small", layer]
        assert rows.array.dtype == np.float32
        assert len(rows) == 20
        assert np.allclose(rows.array, direct(Small(), side, layer), rtol=1e-5, atol=1e-6)
    assert len(np.unique(found["small", "7"].array.round(4), axis=0)) == 20


def test_the_batch_size_changes_no_more_than_rounding_and_the_threads_nothing(tmp_path, monkeypatch):
    side = opened(folder(tmp_path / "set", 20, ((12, 14), (9, 9))))
    rows = [extract(side, {Small(): ["7"]}, tmp_path / f"{b}", batch=b)["small", "7"].array for b in (1, 3, 8, 100)]
    for other in rows[1:]:
        assert np.allclose(rows[0], other, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(passes, "threads", lambda: 5)
    assert np.array_equal(rows[1], extract(side, {Small(): ["7"]}, tmp_path / "threads", batch=3)["small", "7"].array)
    monkeypatch.setattr(passes, "AHEAD_BYTES", 1)  # no room to wait in: every batch is one image
    net = Small()
    assert np.allclose(rows[0], extract(side, {net: ["7"]}, tmp_path / "narrow", batch=8)["small", "7"].array, rtol=1e-5, atol=1e-6)
    assert max(net.batches) == 1


def test_moments_are_those_of_all_rows_with_the_same_bits_from_the_same_rows(tmp_path):
    side = opened(folder(tmp_path / "set"))
    rows = extract(side, {Small(): ["7"]}, tmp_path / "a", batch=4)["small", "7"]
    moments = rows.moments()
    wide = rows.array.astype(np.float64)
    assert moments.count == 20
    assert np.allclose(moments.mean, wide.mean(0), rtol=1e-12)
    assert np.allclose(moments.covariance, np.cov(wide, rowvar=False), rtol=1e-10, atol=1e-13)
    again = extract(side, {Small(): ["7"]}, tmp_path / "b", batch=4)["small", "7"].moments()
    assert torch.equal(again.scatter, moments.scatter)


def test_many_rows_are_a_memory_map_of_a_nameless_file(tmp_path, monkeypatch):
    side = opened(folder(tmp_path / "set"))
    rows = extract(side, {Small(): ["7"]}, tmp_path / "cache")["small", "7"]
    few = rows.array
    monkeypatch.setattr(passes, "MEMORY_BYTES", 0)
    files = set((tmp_path / "cache").rglob("*"))
    many = extract(side, {Small(): ["7"]}, tmp_path / "cache")["small", "7"].array
    assert isinstance(many, np.memmap)
    assert np.array_equal(few, many)
    assert set((tmp_path / "cache").rglob("*")) == files


# ---- once, and never again


def test_one_decode_per_image_for_all_extractors_and_layers(tmp_path, decodes):
    side, a, b = opened(folder(tmp_path / "set")), Small("a"), Small("b", seed=1)
    extract(side, {a: ["5", "7"], b: ["logits", "logits"]}, tmp_path / "cache", batch=4)
    assert len(decodes) == len(set(decodes)) == 20
    assert a.images == b.images == 20
    assert set(a.asked) == {("5", "7")}
    assert set(b.asked) == {("logits",)}


def test_what_is_cached_is_neither_decoded_nor_computed_and_it_is_said(tmp_path, decodes):
    lines, progress = [], []
    side = opened(folder(tmp_path / "set"))
    first = extract(side, {Small(): ["7"]}, tmp_path / "cache", progress=lambda *p: progress.append(p), note=lines.append)
    assert lines == [f"cache miss: {side.name} in small (7): 0 of 20 images, 20 to compute"]
    assert progress[-1] == (20, 20)
    assert [done for done, _ in progress] == sorted({done for done, _ in progress})
    decodes.clear()
    again, net = opened(tmp_path / "set"), Small()
    second = extract(again, {net: ["7"]}, tmp_path / "cache", note=lines.append)
    assert lines[1] == f"cache hit: {side.name} in small (7): 20 of 20 images"
    assert (decodes, net.batches) == ([], [])
    assert np.array_equal(first["small", "7"].array, second["small", "7"].array)
    assert again.facts() == side.facts()
    third = extract(
        again, {net: ["7", "logits"]}, tmp_path / "cache", note=lines.append
    )  # a layer more: only that one is asked for
    assert lines[2] == f"cache miss: {side.name} in small (7, logits): 0 of 20 images, 20 to compute"
    assert set(net.asked) == {("logits",)}
    assert len(decodes) == 20
    assert np.array_equal(third["small", "7"].array, first["small", "7"].array)


def test_sets_that_share_chunks_share_their_rows(tmp_path):
    root = folder(tmp_path / "set")
    extract(opened(root, num=16), {Small(): ["7"]}, tmp_path / "cache")
    lines, net = [], Small()
    extract(opened(root), {net: ["7"]}, tmp_path / "cache", note=lines.append)
    assert net.images == 4
    assert "cache partial hit" in lines[0]
    assert "16 of 20 images, 4 to compute" in lines[0]
    net = Small()
    (root / "009.png").unlink()  # the second chunk on is another
    extract(opened(root), {net: ["7"]}, tmp_path / "cache")
    assert net.images == 11


@pytest.mark.parametrize(
    "changed",
    [{"name": "other"}, {"seed": 1}, {"resize": "bilinear"}, {"precision": "bf16"}, {"size": 8}, {"size": 8, "crop": "stretch"}, {"content": 1}],
)  # fmt: skip
def test_the_key_is_content_extractor_resize_precision_and_transform(changed, tmp_path):
    root, cache = folder(tmp_path / "set"), tmp_path / "cache"
    extract(opened(root), {Small(): ["7"]}, cache)
    extract(opened(root, size=8, crop="pad"), {Small(): ["7"]}, cache)
    same = Small()
    extract(opened(root), {same: ["7"]}, cache)
    assert same.images == 0
    if "content" in changed:
        Image.fromarray(np.zeros((12, 14, 3), np.uint8)).save(root / "000.png")
    net = Small(**{k: v for k, v in changed.items() if k in ("name", "seed", "resize", "precision")})
    found = extract(opened(root, **{k: v for k, v in changed.items() if k in ("size", "crop")}), {net: ["7"]}, cache)
    assert net.images == (8 if "content" in changed else 20)  # a chunk, or all
    assert len(found[net.name, "7"]) == 20


def test_a_cached_file_that_is_damaged_is_computed_again(tmp_path):
    side, cache = opened(folder(tmp_path / "set")), tmp_path / "cache"
    right = extract(side, {Small(): ["7"]}, cache)["small", "7"].array
    files = sorted(cache.rglob("*.rows")) + sorted(cache.rglob("*.json"))
    assert len(files) == 6
    rng = np.random.default_rng(0)
    for file in files:
        for cut in (False, True):
            data = bytearray(file.read_bytes())
            if cut:
                del data[len(data) // 2 :]
            else:
                data[rng.integers(len(data))] ^= 16
            file.write_bytes(data)
            net = Small()
            assert np.array_equal(extract(side, {net: ["7"]}, cache)["small", "7"].array, right)
            assert 4 <= net.images <= 8
    rows = extract(side, {Small(): ["7"]}, cache)["small", "7"]
    files[0].unlink()
    with pytest.raises(ValueError, match="was removed or changed while it was in use"):
        rows.moments()


def test_leftovers_of_killed_writers_are_swept_when_they_are_old(tmp_path):
    side, cache = opened(folder(tmp_path / "set")), tmp_path / "cache"
    extract(side, {Small(): ["7"]}, cache)
    old, new = cache / "told" / ".a.json.1.tmp", cache / "told" / ".b.json.2.tmp"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    extract(side, {Small(): ["7"]}, cache)
    assert not old.exists()
    assert new.exists()


# ---- bad images and bad extractors


def test_skipped_images_have_no_rows_and_the_others_keep_theirs(tmp_path):
    root = folder(tmp_path / "set")
    for k in (*range(8), 13):  # all of the first chunk, one of the second
        (root / f"{k:03d}.png").write_bytes(b"no image")
    side, net = opened(root, on_bad="skip"), Small()
    rows = extract(side, {net: ["7"]}, tmp_path / "cache", batch=3)["small", "7"]
    assert net.images == len(rows) == len(side) == 11
    assert rows.array.shape == (11, 7)
    assert rows.moments().count == 11
    assert np.allclose(rows.array, direct(Small(), side, "7"), rtol=1e-5, atol=1e-6)
    again = opened(root, on_bad="skip")
    assert np.array_equal(extract(again, {Small(): ["7"]}, tmp_path / "cache")["small", "7"].array, rows.array)
    assert again.facts()["bad"] == 9


def test_a_bad_image_that_the_cache_knows_stops_before_anything_is_computed(tmp_path):
    root, net = folder(tmp_path / "set"), Small(seed=1)
    (root / "013.png").write_bytes(b"no image")
    extract(opened(root, on_bad="skip"), {Small(): ["7"]}, tmp_path / "cache")
    with pytest.raises(BadImage, match=r"013\.png"):
        extract(opened(root), {net: ["7"]}, tmp_path / "cache")
    assert net.images == 0


def test_what_is_asked_wrongly_is_refused(tmp_path):
    side, cache = opened(folder(tmp_path / "set", 4)), tmp_path / "cache"
    random = Small()
    random.weights = "random"
    for wanted, words in (
        ({Small(): ["8"]}, "no layer '8'; it has 5, 7, logits"),
        ({random: ["7"]}, "random weights: nothing is measured"),
        ({Small(): ["7"], Small(seed=1): ["7"]}, "two extractors are called small"),
    ):
        with pytest.raises(ValueError, match=words):
            extract(side, wanted, cache)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        extract(side, {Small(): ["7"]}, cache, batch=0)
    assert not list(cache.rglob("*.rows"))


def test_features_that_are_not_finite_stop_the_pass_by_name(tmp_path):
    class Broken(Small):
        def __call__(self, images, layers):
            out = super().__call__(images, layers)
            out["7"][images[:, 0, 0, 0] == images[0, 0, 0, 0]] = float("nan")
            return out

    side = opened(folder(tmp_path / "set", 4))
    with pytest.raises(ValueError, match=r"small-7 of .*000\.png is not finite"):
        extract(side, {Broken(): ["7"]}, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.rows"))


def test_a_space_whose_rows_follow_the_size_wants_one_size(tmp_path):
    class Pixels(Small):
        layers = {"embedding": None}

        def __call__(self, images, layers):
            self.batches.append(len(images))
            return {"embedding": images.float().flatten(1)}

    alike = extract(opened(folder(tmp_path / "alike")), {Pixels(): ["embedding"]}, tmp_path / "cache")["small", "embedding"]
    assert alike.array.shape == (20, 12 * 14 * 3)
    words = "rows of 504 and of 243 features in this space; bring them to one size"
    with pytest.raises(ValueError, match=words):
        extract(opened(folder(tmp_path / "mixed", 20, ((12, 14), (9, 9)))), {Pixels(): ["embedding"]}, tmp_path / "cache")
    root = folder(tmp_path / "halves", 8)
    for k in range(8, 16):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / f"{k:03d}.png")
    rows = extract(opened(root), {Pixels(): ["embedding"]}, tmp_path / "cache")["small", "embedding"]
    for read in (rows.moments, lambda: rows.array):
        with pytest.raises(ValueError, match=words):
            read()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    side = opened(folder(tmp_path / "set", 4))
    (tmp_path / "file").write_text("here is no folder")
    with pytest.raises(ValueError, match="feature cache cannot be (written|read).*"):
        extract(side, {Small(): ["7"]}, tmp_path / "file")


def test_decoding_runs_ahead_by_a_bounded_number_of_images(tmp_path, monkeypatch):
    side, loaded, lock, most = opened(folder(tmp_path / "set", 160)), [], threading.Lock(), []
    real = ImageSet.load

    def load(self, places):
        with lock:
            loaded.extend(places)
        return real(self, places)

    class Watching(Small):
        def __call__(self, images, layers):
            time.sleep(0.01)
            most.append(len(loaded) - self.images)
            return super().__call__(images, layers)

    monkeypatch.setattr(ImageSet, "load", load)
    monkeypatch.setattr(passes, "threads", lambda: 2)
    extract(side, {Watching(): ["7"]}, tmp_path / "cache", batch=4)
    assert sorted(loaded) == list(range(160))
    assert 8 < max(most) <= 8 * (2 * 1 + 2 + 1) + 4  # so many groups wait, and one is being worked off


def test_a_seal_tells_every_change(tmp_path):
    file = tmp_path / "a" / "b.rows"
    write_sealed(file, b"content")
    assert unsealed(file) == b"content"
    assert unsealed(tmp_path / "none") is None
    data = file.read_bytes()
    for k in range(len(data)):
        file.write_bytes(data[:k] + bytes([data[k] ^ 1]) + data[k + 1 :])
        assert unsealed(file) is None
        file.write_bytes(data[:k])
        assert unsealed(file) is None
    assert Store.unit("../../x", "a/b", "id").partition("-")[0] == "..", "no folder above or below"
    assert "/" not in Store.unit("../../x", "a/b", "id")

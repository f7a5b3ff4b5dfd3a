"""Captions in every layout, and how they follow their images."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from percepta.data import Stream, open_source
from percepta.data.captioned import Captioned

TEXTS = ("a red disc", "a blue star", "a blue star")


def pixels(k):
    return Image.fromarray(np.full((8, 8, 3), 60 * k, np.uint8))


def beside(folder):
    for k, text in enumerate(TEXTS):
        pixels(k).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(f"{text}\n")
    return folder


def metadata(folder, key="text"):
    for k in range(3):
        pixels(k).save(folder / f"{k}.png")
    lines = [json.dumps({"file_name": f"{k}.png", key: text}) for k, text in enumerate(TEXTS)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def shard(folder):
    with tarfile.open(folder / "0.tar", "w") as tar:
        for k, text in enumerate(TEXTS):
            png = io.BytesIO()
            pixels(k).save(png, "PNG")
            for suffix, data in (("txt", text.encode()), ("png", png.getvalue())):
                info = tarfile.TarInfo(f"{k}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def saved(folder):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [pixels(k) for k in range(3)], "text": list(TEXTS)}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "set")
    return folder / "set"


LAYOUTS = {
    "beside": beside,
    "text": metadata,
    "caption": lambda folder: metadata(folder, "caption"),
    "shard": shard,
    "saved": saved,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_captions(tmp_path, layout):
    source = open_source(LAYOUTS[layout](tmp_path), 8)
    assert source.texts == TEXTS
    told = Captioned(source, "data")
    assert told.class_names == ("a blue star", "a red disc") and told.labels == (1, 0, 0)
    assert [(item.label, item.text) for item in map(told.read, range(3))] == [(1, TEXTS[0]), (0, TEXTS[1]), (0, TEXTS[2])]
    assert told.fingerprint != source.fingerprint
    stream = Stream(told, 8, seed=0, batch=6)
    _, batch = next(stream.batches())
    shown = (((batch.x0[:, 0, 0, 0] + 1) * 127.5).round() / 60).int().tolist()
    assert [told.labels[k] for k in shown] == batch.cond.tolist(), "each caption with its image"


def test_other_captions_are_another_set(tmp_path):
    first = Captioned(open_source(beside(tmp_path), 8), "data").fingerprint
    assert Captioned(open_source(tmp_path, 8), "data").fingerprint == first
    (tmp_path / "1.txt").write_text("a green star")
    assert Captioned(open_source(tmp_path, 8), "data").fingerprint != first


def test_a_caption_follows_a_stand_in(tmp_path):
    beside(tmp_path)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="stands in"):
        _, batch = next(Stream(Captioned(open_source(tmp_path, 8), "data"), 8, 0, 3, on_bad="skip").batches())
    assert batch.cond.tolist() == [0, 0, 0], "image 1 stands in for image 0 with its own caption"


def test_missing_captions_are_named(tmp_path):
    beside(tmp_path)
    (tmp_path / "1.txt").unlink()
    with pytest.raises(ValueError, match="1 of the 3 images of data have no caption, image 1"):
        Captioned(open_source(tmp_path, 8), "data")
    for k in (0, 2):
        (tmp_path / f"{k}.txt").unlink()
    with pytest.raises(ValueError, match="data has none"):
        Captioned(open_source(tmp_path, 8), "data")
    assert Captioned(open_source(tmp_path, 8), "data", empty=True).class_names == ("",)


def test_what_is_no_caption_is_refused(tmp_path):
    beside(tmp_path)
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"1\.txt: is no text"):
        _ = open_source(tmp_path, 8).texts
    (tmp_path / "1.txt").write_text("long " * 20_000)
    with pytest.raises(ValueError, match=r"1\.txt: is longer"):
        _ = open_source(tmp_path, 8).texts


def test_shapes_say_what_they_show():
    source = open_source("shapes:length=40", 16)
    names = [source.class_names[source.read(k).label] for k in range(40)]
    assert all(text.endswith(name) and text.split()[0] in ("a", "an") for text, name in zip(source.texts, names, strict=True))

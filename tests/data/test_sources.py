"""Sources: every layout gives the same images, labels and fingerprint wherever it lies; wrong ones say what is wrong."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from percepta.data import BadImage, Shapes, open_pairs, open_source
from percepta.data.layouts import Npz
from percepta.data.shards import expand

CLASSES = ("apple", "pear")


def same(a, b):
    assert len(a) == len(b)
    for k in range(len(a)):
        x, y = a.read(k), b.read(k)
        assert np.array_equal(x.image, y.image)
        assert x.label == y.label
        assert x.name == y.name


def test_flat_folders_have_no_labels_and_sort_by_name(make, tmp_path):
    make.folder(tmp_path, 7)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not one either")
    source = open_source(tmp_path)
    assert (len(source), source.num_classes, source.class_names) == (7, 0, ())
    names = [source.read(k).name for k in range(7)]
    assert names == sorted(names)
    assert source.read(1).label is None
    assert np.array_equal(source.read(1).image, make.picture(1, 21, 23))


def test_class_folders_label_by_sorted_name_and_may_be_deep(make, tmp_path):
    make.folder(tmp_path, 6, ("pear", "apple"))
    make.folder(tmp_path / "pear" / "more", 1, first=50)
    source = open_source(str(tmp_path))
    assert source.class_names == CLASSES
    assert [source.read(k).label for k in range(7)] == [0, 0, 0, 1, 1, 1, 1]
    assert all(CLASSES[source.read(k).label] in source.read(k).name for k in range(7))


def test_metadata_names_files_labels_and_texts(make, tmp_path):
    make.folder(tmp_path, 4)
    lines = [
        {"file_name": f"{k:03d}.{'jpeg' if k % 3 == 0 else 'png'}", "label": CLASSES[k % 2], "text": f"number {k}"}
        for k in (3, 0, 2)
    ]
    meta = tmp_path / "metadata.jsonl"
    meta.write_text("\n".join(map(json.dumps, lines)) + "\n")
    source = open_source(tmp_path)
    assert source.class_names == CLASSES
    assert [(source.read(k).label, source.read(k).text) for k in range(3)] == [(1, "number 3"), (0, "number 0"), (0, "number 2")]
    for line, words in (
        ('{"file_name": "../a.png"}', "points out of the folder"),
        ('{"file_name": "no.png"}', "line 1: no.png does not exist"),
        ("{", "line 1: is not JSON"),
        ('["a"]', "file_name"),
        ("", "names no images"),
        ('{"file_name": "001.png", "label": 1.5}', "whole numbers"),
        ('{"file_name": "001.png", "label": -1}', "whole numbers"),
        ('{"file_name": "001.png", "label": 1}\n{"file_name": "002.png"}', "1 of 2 lines have no label"),
    ):
        meta.write_text(line)
        with pytest.raises(ValueError, match=words):
            open_source(tmp_path)
    meta.write_text('{"file_name": "001.png", "label": 2}')
    assert open_source(tmp_path).class_names == ("0", "1", "2")


def test_wrong_folders_say_what_they_hold(make, tmp_path):
    with pytest.raises(ValueError, match=r"no images found .*nothing at all"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds 1 x \.txt"):
        open_source(tmp_path)
    make.folder(tmp_path / "dogs", 2)
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match="class sub-folders without images: cats"):
        open_source(tmp_path)
    (tmp_path / "cats").rmdir()
    make.folder(tmp_path, 1)
    with pytest.raises(ValueError, match="1 images lie beside 1 sub-folders"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"dog: does not exist; did you mean .*dogs\?"):
        open_source(tmp_path / "dog")
    with pytest.raises(ValueError, match=r"no.deeper: does not exist; .* holds 000\.jpeg, a\.txt, dogs"):
        open_source(tmp_path / "no" / "deeper")
    with pytest.raises(ValueError, match="is a file"):
        open_source(tmp_path / "a.txt")


def test_npz_as_adm_writes_it(make, tmp_path):
    images = np.stack([make.picture(k, 8, 8) for k in range(5)])
    path = tmp_path / "samples.npz"
    np.savez(path, images, np.array([0, 2, 1, 1, 0]))
    source = open_source(path)
    assert (len(source), source.num_classes) == (5, 3)
    assert np.array_equal(source.read(3).image, images[3])
    assert source.read(1).label == 2
    assert len(pickle.dumps(source)) < 2000
    same(source, pickle.loads(pickle.dumps(source)))
    np.savez_compressed(path, images=images[..., 0])
    assert open_source(path).read(0).changes == ("grey",)


def test_npz_that_must_not_be_trusted(tmp_path):
    path = tmp_path / "bad.npz"

    def refused(words):
        with pytest.raises(ValueError, match=words):
            Npz(path)

    class Evil:
        def __reduce__(self):
            return exec, ("raise SystemExit('executed')",)

    np.savez(path, np.array([Evil()], dtype=object))
    refused("pickled objects, which are never executed")
    np.savez(path, np.zeros((2, 8, 8, 3)))
    refused("must be uint8")
    np.savez(path, np.zeros((0, 8, 8, 3), np.uint8))
    refused("must be uint8")
    np.savez(path, other=np.zeros(3))
    refused("needs arr_0 or images, holds other")
    np.savez(path, np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3, int))
    refused("labels must be whole numbers")
    path.write_bytes(b"PK\x03\x04 and nothing more")
    refused("not a readable npz")
    path.write_bytes(b"")
    refused("not a readable npz")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", bytes(2**27))  # 1:1029
    refused("unpacks from .* refused")


def tar_of(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_shards_are_read_in_place_with_labels(make, tmp_path):
    images = [make.picture(k, 9 + k, 10) for k in range(6)]
    for shard in range(2):
        rows = []
        for k in range(3 * shard, 3 * shard + 3):
            row = [(f"x/{k:04d}.png", make.encoded(images[k]))]
            row += (
                [(f"x/{k:04d}.cls", str(k % 3).encode())] if shard else [(f"x/{k:04d}.json", json.dumps({"label": k % 3}).encode())]
            )
            rows += row[:: 1 if k % 2 else -1]  # a label may stand before its image
        tar_of(tmp_path / f"s-{shard:03d}.tar", rows)
    source = open_source(tmp_path / "s-{000..001}.tar")
    assert (len(source), source.num_classes) == (6, 3)
    for k in (5, 0, 3, 2):
        item = source.read(k)
        assert np.array_equal(item.image, images[k])
        assert item.label == k % 3
        assert item.name.endswith(f"s-{k // 3:03d}.tar:x/{k:04d}.png")
    same(source, open_source(tmp_path))
    same(source, pickle.loads(pickle.dumps(source)))
    assert [p.name for p in expand("a-{008..011}.tar")] == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    with pytest.raises(ValueError, match="the range must rise"):
        expand("a-{3..1}.tar")
    with pytest.raises(ValueError, match=r"do not exist: .*s-002\.tar"):
        open_source(tmp_path / "s-{000..002}.tar")


def test_shards_that_must_not_be_trusted(make, tmp_path):
    good, path = make.encoded(make.picture(0)), tmp_path / "s.tar"
    tar_of(path, [("../../etc/x.png", good), ("/absolute/y.png", good)])
    source = open_source(path)
    assert np.array_equal(source.read(1).image, make.picture(0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tar"]  # nothing is written anywhere
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadImage, match=r"s\.tar:\.\./\.\./etc/x\.png: is truncated"):
        source.read(0)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        with tarfile.open(path, "w") as tar:
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        with pytest.raises(ValueError, match=r"a\.png is a link, a device or sparse"):
            open_source(path)
    for data, words in ((b"", "no images found|not a readable"), (b"x" * 2000, "not a readable, uncompressed tar")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=words):
            open_source(path)
    tar_of(path, [("a.png", good), ("a.cls", b"one")])
    with pytest.raises(ValueError, match=r"a\.cls: cannot be read as a whole number: 'one'"):
        open_source(path)
    tar_of(path, [("a.png", good), ("a.cls", b"1"), ("b.png", good)])
    with pytest.raises(ValueError, match="1 of 2 images have no label"):
        open_source(path)


def test_a_shard_of_too_many_members_is_refused(make, tmp_path, monkeypatch):
    monkeypatch.setattr("percepta.data.shards.MAX_SHARD_MEMBERS", 3)
    tar_of(tmp_path / "s.tar", [(f"{k}.png", b"") for k in range(4)])
    with pytest.raises(ValueError, match="more than 3 members"):
        open_source(tmp_path / "s.tar")


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_saved_hugging_face_datasets(make, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"img": [{"bytes": make.encoded(make.picture(k)), "path": None} for k in range(4)], "label": [1, 0, 1, 1]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    source = open_source(tmp_path / "set")
    assert (len(source), source.class_names) == (4, CLASSES)
    assert np.array_equal(source.read(2).image, make.picture(2))
    assert [source.read(k).label for k in range(4)] == [1, 0, 1, 1]
    same(source, pickle.loads(pickle.dumps(source)))
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(tmp_path / "dict")
    assert open_source(tmp_path / "dict").fingerprint == source.fingerprint
    with pytest.raises(ValueError, match="hf:nobody/nothing: is not in the local cache"):
        open_source("hf:nobody/nothing")


def test_the_fingerprint_is_of_content_and_labels_not_of_place_or_time(make, tmp_path):
    a = open_source(make.folder(tmp_path / "one", 6, CLASSES))
    b = open_source(make.folder(tmp_path / "two", 6, CLASSES))
    assert a.fingerprint == b.fingerprint
    kept = pickle.loads(pickle.dumps(a)).fingerprint
    assert kept == a.fingerprint
    file = tmp_path / "two" / "apple" / "000.jpeg"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert open_source(tmp_path / "two").fingerprint != a.fingerprint
    make.folder(tmp_path / "two", 6, CLASSES)
    (tmp_path / "two" / "apple").rename(tmp_path / "two" / "fig")
    assert open_source(tmp_path / "two").fingerprint != a.fingerprint
    assert Shapes(length=10).fingerprint != Shapes(length=11).fingerprint != Shapes(length=11, labels="shape").fingerprint


def test_pairs_come_from_one_folder_two_paths_or_shapes(make, tmp_path):
    for a, b in (("A", "B"), ("trainA", "trainB")):
        root = tmp_path / a / "set"
        make.folder(root / a, 3)
        make.folder(root / b, 5, first=10)
        pairs = open_pairs(root)
        assert (len(pairs.a), len(pairs.b), len(pairs)) == (3, 5, 5)
        with pytest.raises(ValueError, match="holds two domains"):
            open_source(root)
        assert open_pairs(root / a, root / b).fingerprint == pairs.fingerprint
        assert len(open_source(root / a)) == 3
    with pytest.raises(ValueError, match="translation needs two domains"):
        open_pairs(root / "trainA")
    pairs = open_pairs("shapes:length=20", size=16)
    assert (pairs.a.domain, pairs.b.domain, pairs.a.size, len(pairs)) == ("outline", "filled", 16, 20)
    with pytest.raises(ValueError, match="leave the domain out"):
        open_pairs("shapes:domain=outline")


def test_what_is_typed_after_shapes():
    assert open_source("shapes", size=16) == Shapes(size=16)
    assert open_source("shapes:size=24,labels=shape,length=100", size=16) == Shapes(size=24, labels="shape", length=100)
    for spec, words in (
        ("shapes:sise=16", "did you mean size"),
        ("shapes:size=big", "must be a whole number"),
        ("shapes:size=4", "from 8 pixels"),
        ("shapes:domain=round", "known: filled, outline"),
        ("shapes:length=0", "between 1 and"),
    ):
        with pytest.raises(ValueError, match=words):
            open_source(spec)

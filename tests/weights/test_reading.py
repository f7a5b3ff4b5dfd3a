"""Files are read as tensors, or refused; nothing in them is run."""

import io
import json
import os
import pickle
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from percepta.weights.reading import check_tar, check_zip, read_weights


class Evil:
    """Unpickling this creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_safetensors_and_shards(tmp_path):
    save_file({"a": torch.arange(3.0)}, tmp_path / "x-00001-of-00002.safetensors")
    save_file({"b": torch.ones(2)}, tmp_path / "x-00002-of-00002.safetensors")
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x-00001-of-00002.safetensors", "b": "x-00002-of-00002.safetensors"}}))
    for source in (index, tmp_path):
        got = read_weights(source)
        assert list(got) == ["a", "b"]
        assert torch.equal(got["a"], torch.arange(3.0))


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "x.bin", 7])
def test_shards_stay_in_their_folder(tmp_path, shard):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    (tmp_path / "in").mkdir()
    index = tmp_path / "in" / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match=r"lie beside their index|not an index"):
        read_weights(index)


def test_missing_parts_are_named(tmp_path):
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "y.safetensors"}}))
    with pytest.raises(ValueError, match=r"y\.safetensors that"):
        read_weights(index)
    save_file({"b": torch.ones(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match="promises 1 tensors"):
        read_weights(index)
    (tmp_path / "y.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        read_weights(index)


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_tensors_are_read(tmp_path, zipped):
    shared = torch.randn(4, 4)
    saved = {"model": {"w": shared, "tied": shared, "part": shared[:, 1]}, "step": 5, "args": "text"}
    torch.save(saved, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    got = read_weights(tmp_path / "c.pt")
    assert set(got) == {"model.w", "model.tied", "model.part"}
    assert torch.equal(got["model.part"], shared[:, 1])


@pytest.mark.parametrize("form", ["pickle", "torch", "torch-legacy", "tar"])
def test_code_is_never_run(tmp_path, form):
    target, file = tmp_path / "was-run", tmp_path / "evil.pt"
    evil = {"w": torch.ones(1), "x": Evil(target)}
    if form == "pickle":
        file.write_bytes(pickle.dumps(evil))
    elif form == "tar":
        with tarfile.open(file, "w") as archive:
            data = pickle.dumps(evil)
            info = tarfile.TarInfo("storages")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    else:
        torch.save(evil, file, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(ValueError, match="is refused, nothing in it was run"):
        read_weights(file)
    assert not target.exists()
    if form == "pickle":  # the payload is real
        pickle.loads(file.read_bytes())
        assert target.exists()


def test_the_environment_cannot_switch_safety_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"x": Evil(tmp_path / "was-run")}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="refused"):
        read_weights(tmp_path / "evil.ckpt")
    assert not (tmp_path / "was-run").exists()


def test_a_module_beside_the_file_is_not_imported(tmp_path, monkeypatch):
    """The reader's process does not take modules from the working directory or PYTHONPATH."""
    (tmp_path / "safetensors.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    torch.save({"w": torch.ones(2)}, tmp_path / "c.pt")
    assert torch.equal(read_weights(tmp_path / "c.pt")["w"], torch.ones(2))
    assert not (tmp_path / "was-run").exists()


def test_reading_has_a_time_limit(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "c.pt")
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"took more than 0\.05 s"):
        read_weights(tmp_path / "c.pt", timeout=0.05)
    assert time.monotonic() - start < 20


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3, dtype=np.float32))
    assert torch.equal(read_weights(tmp_path / "a.npz")["x"], torch.arange(3.0))
    np.savez(tmp_path / "b.npz", x=np.array([Evil(tmp_path / "was-run")], dtype=object))
    with pytest.raises(ValueError, match="refused"):
        read_weights(tmp_path / "b.npz")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("name", ["../up", "/absolute", "a/../../b", "C:\\windows", "..\\up"])
def test_archives_stay_inside(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(ValueError, match="outside the folder"):
        check_zip(tmp_path / "a.zip")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="outside the folder"):
        check_tar(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("inside")
    info.type, info.linkname = kind, "target"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    with pytest.raises(ValueError, match="link or a device"):
        check_tar(tmp_path / "a.tar")


def test_zip_links_are_refused(tmp_path):
    info = zipfile.ZipInfo("inside")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link"):
        check_zip(tmp_path / "a.zip")


def test_bombs_are_refused_unopened(tmp_path):
    file = tmp_path / "bomb.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("bomb/data/0", bytes(100 * 2**20))
    with pytest.raises(ValueError, match="unpack to"):
        read_weights(file)
    with tarfile.open(tmp_path / "bomb.tar", "w:gz") as archive:
        info = tarfile.TarInfo("zeros")
        info.size = 100 * 2**20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(ValueError, match="unpack to"):
        check_tar(tmp_path / "bomb.tar")


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["percepta.weights.reading"], "MAX_MEMBERS", 10)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(11):
            archive.addfile(tarfile.TarInfo(str(i)), io.BytesIO())
    with pytest.raises(ValueError, match="more than 10 members"):
        check_tar(tmp_path / "a.tar")


@pytest.mark.parametrize(("name", "message"), [("a.txt", "weights are"), ("gone.safetensors", "no file"), ("empty.pt", "refused")])
def test_what_is_no_weight_file(tmp_path, name, message):
    if name != "gone.safetensors":
        Path(tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        read_weights(tmp_path / name)

"""The table of pretrained weights: found in order, checked, and missing ones explained in one line."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

import percepta.weights
from percepta.weights.table import BY_NAME, TABLE, find_weights, has_weights, known_weights


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """One row whose file is ours to write, and empty places to look in."""
    content = b"weights"
    row = replace(TABLE[0], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(BY_NAME, row.name, row)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("PERCEPTA_WEIGHTS", raising=False)
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    return row, tmp_path, content


def test_the_table_is_whole():
    assert len(TABLE) == len(BY_NAME) == len({row.file for row in TABLE}) == 21
    for row in TABLE:
        assert row.url.startswith("https://")
        assert len(row.sha256) in (0, 8, 64)  # 0: not published
        assert set(row.sha256) <= set("0123456789abcdef")
        assert row.licence
        assert row.purpose


def test_torchvision_agrees():
    """Names and hash prefixes are those of the installed torchvision."""
    from torchvision import models

    for name, weights in {"vgg16": models.VGG16_Weights, "vgg19": models.VGG19_Weights, "alexnet": models.AlexNet_Weights,
                          "resnet50": models.ResNet50_Weights, "swin_t": models.Swin_T_Weights,
                          "convnext_tiny": models.ConvNeXt_Tiny_Weights}.items():  # fmt: skip
        assert known_weights(name).url == weights.IMAGENET1K_V1.url


def test_order_of_places(fake, monkeypatch):
    row, root, content = fake
    hub, mine = root / "torch" / "hub" / "checkpoints" / row.file, root / "mine" / row.file
    assert not has_weights(row.name)
    hub.write_bytes(content)
    assert find_weights(row.name) == hub
    monkeypatch.setenv("PERCEPTA_WEIGHTS", os.pathsep.join([str(root / "none"), str(root / "mine")]))
    mine.write_bytes(content)
    assert find_weights(row.name) == mine


def test_wrong_content_is_refused(fake):
    row, root, content = fake
    file = root / "torch" / "hub" / "checkpoints" / row.file
    file.write_bytes(content)
    find_weights(row.name)
    file.write_bytes(content + b"!")
    with pytest.raises(ValueError, match="fetch it again"):
        find_weights(row.name)


def test_missing_ones_are_explained_in_one_line(fake):
    row, root, _ = fake
    with pytest.raises(ValueError) as error:
        find_weights(row.name)
    text = str(error.value)
    assert "\n" not in text
    for part in (row.file, row.url, row.sha256, str(root / "torch" / "hub" / "checkpoints"), "PERCEPTA_WEIGHTS"):
        assert part in text
    with pytest.raises(ValueError, match="known: lpips_alex_fp32"):
        find_weights("lpips")


@pytest.mark.skipif(not os.environ.get("PERCEPTA_WEIGHTS"), reason="PERCEPTA_WEIGHTS names no folder of real weights")
def test_real_files_have_the_hashes_of_the_table():
    folder = Path(os.environ["PERCEPTA_WEIGHTS"])
    here = [row.name for row in TABLE if (folder / row.file).is_file()]
    assert here
    assert [find_weights(name).parent for name in here] == [folder] * len(here)
    assert percepta.weights.has_weights(here[0])


def test_hugging_faces_cache_is_looked_in_under_the_names_it_has_there(fake, monkeypatch):
    """The preferred name first; a file without a published hash is taken, and its hash can be recorded."""
    row, root, content = fake
    cache = root / "hf"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setitem(BY_NAME, row.name, replace(row, sha256="", repo="a/b", repo_files=("new.safetensors", "old.bin")))
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repo, name: str(cache / name) if (cache / name).is_file() else None
    )
    with pytest.raises(ValueError, match="sha256 not published"):
        find_weights(row.name)
    cache.mkdir()
    for name in ("old.bin", "new.safetensors"):
        (cache / name).write_bytes(content)
        assert find_weights(row.name) == cache / name
    assert percepta.weights.hash_of_file(cache / "old.bin") == hashlib.sha256(content).hexdigest()

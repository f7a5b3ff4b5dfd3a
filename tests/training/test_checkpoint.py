"""A checkpoint is whole or absent, whatever is killed, full or flipped; and what is read is what was written."""

import errno
import json
import os
import random
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes

from percepta.training import checkpoint
from percepta.training.checkpoint import CheckpointError, latest_good, load, save, tidy

CALLS = ("mkdir", "open", "write", "fsync", "rename")  # what a save asks of the disk


def content(step):
    """Tensors and state that know their step."""
    return {"model": {"w": torch.full((3, 5), float(step)), "b": torch.arange(4)}, "ema": {"w": torch.tensor(step / 3)}}, {
        "step": step
    }


def put(folder, *steps, **keep):
    for step in steps:
        save(folder, step, *content(step), **keep)


def is_whole(found, step):
    tensors, state = content(step)
    same = all(torch.equal(found.tensors[s][k], x) for s, named in tensors.items() for k, x in named.items())
    return found.step == step and found.state == state and same and found.tensors.keys() == tensors.keys()


def steps(folder):
    return sorted(int(p.name.removeprefix("checkpoint-")) for p in folder.glob("checkpoint-*"))


def leftovers(folder):
    return [p.name for p in folder.iterdir() if not p.name.startswith("checkpoint-")]


# ---- what is written is read


DTYPES = list(checkpoint.DTYPES)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_dtype_come_back_to_the_bit(tmp_path, dtype):
    x = (torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) * 50).to(dtype)
    found = load(save(tmp_path, 0, {"a": {"x": x, "zero-dim": x[0, 0], "none": x[:0]}}, {})).tensors["a"]
    for name, expected in {"x": x, "zero-dim": x[0, 0], "none": x[:0]}.items():
        assert found[name].dtype == dtype
        assert found[name].shape == expected.shape
        assert bytes(found[name].reshape(-1).view(torch.uint8)) == bytes(expected.reshape(-1).view(torch.uint8))


def test_files_are_what_safetensors_writes(tmp_path):
    conv = torch.randn(2, 3, 4, 4)
    named = {
        "b": torch.randn(3, 4).bfloat16(),
        "a": torch.randn(5),
        "odd": torch.tensor([True]),
        "i": torch.arange(3),
        "conv": conv,
    }
    assert b"".join(checkpoint._safetensors(named)) == safetensors_bytes(named)
    path = save(tmp_path, 1, {"m": named | {"conv": conv.to(memory_format=torch.channels_last), "t": torch.randn(3, 5).t()}}, {})
    assert torch.equal(load_file(path / "m.safetensors")["conv"], conv)


def test_numbers_of_the_state_come_back_exactly(tmp_path):
    draw = random.Random(0)
    floats = [draw.uniform(-1, 1) * 10.0 ** draw.randint(-300, 300) for _ in range(500)] + [0.1, -0.0, 5e-324, 1e308]
    state = {"floats": floats, "ints": [2**70, -(2**63), 0], "other": {"none": None, "yes": True, "text": "ü\n\ud800"}}
    found = load(save(tmp_path, 0, {}, state)).state
    assert found == state
    assert [x.hex() for x in found["floats"]] == [x.hex() for x in floats]


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [1, float("nan")]}}, r"state\['a'\]\['b'\]\[1\] is nan"),
        ({"a": float("inf")}, "finite"),
        ({"a": {1: 2}}, "text keys"),
        ({"a": torch.zeros(1)}, "Tensor"),
        ({"a": {1, 2}}, "set"),
    ],
)
def test_a_state_that_json_would_change_is_refused(tmp_path, state, where):
    with pytest.raises(ValueError, match=where):
        save(tmp_path, 0, {}, state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad",
    [
        {"tensors": {"../up": {"x": torch.zeros(1)}}},
        {"tensors": {"m": {"x": torch.zeros(1, device="meta")}}},
        {"tensors": {"m": {"x": torch.eye(2).to_sparse()}}},
        {"tensors": {"m": {"__metadata__": torch.zeros(1)}}},
        {"step": -1},
        {"keep_last": 0},
        {"keep_every": 0},
        {"score": float("nan")},
    ],
    ids=str,
)
def test_wrong_use_is_refused_before_anything_is_written(tmp_path, bad):
    with pytest.raises(ValueError):
        save(**{"folder": tmp_path, "step": 0, "tensors": {}, "state": {}} | bad)
    assert not list(tmp_path.iterdir())


# ---- integrity


def damaged_is_seen(folder, bad, name):
    found, skipped = latest_good(folder)
    assert found is not None, name
    assert is_whole(found, 1), name
    assert [path for path, _ in skipped] == [bad], name
    assert "\n" not in skipped[0][1], name
    with pytest.raises(CheckpointError):
        load(bad)


def test_every_one_of_1000_flipped_bits_and_100_truncations_is_seen(tmp_path):
    put(tmp_path, 1, 2)
    bad, draw = tmp_path / "checkpoint-2", random.Random(0)
    files = sorted(bad.iterdir())
    assert {f.name for f in files} == {"model.safetensors", "ema.safetensors", "state.json", "MANIFEST.json"}
    whole = {f: f.read_bytes() for f in files}
    for k in range(1100):
        file = files[k % len(files)]
        data = bytearray(whole[file])
        if k < 1000:
            bit = draw.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
        else:
            del data[draw.randrange(len(data)) :]
        file.write_bytes(data)
        damaged_is_seen(tmp_path, bad, f"{file.name} #{k}")
        file.write_bytes(whole[file])
    assert is_whole(load(bad), 2)


def test_lost_renamed_swapped_and_unreadable_files_are_seen(tmp_path):
    put(tmp_path, 1, 2)
    bad = tmp_path / "checkpoint-2"
    for file in sorted(bad.iterdir()):
        aside = tmp_path / "aside"
        os.rename(file, aside)
        damaged_is_seen(tmp_path, bad, f"without {file.name}")
        os.rename(aside, bad / f"renamed-{file.name}")
        damaged_is_seen(tmp_path, bad, f"renamed {file.name}")
        file.mkdir()
        damaged_is_seen(tmp_path, bad, f"{file.name} is a folder")
        file.rmdir()
        os.rename(bad / f"renamed-{file.name}", file)
    model, ema, other = bad / "model.safetensors", bad / "ema.safetensors", tmp_path / "aside"
    for a, b in ((model, other), (ema, model), (other, ema)):
        os.rename(a, b)
    damaged_is_seen(tmp_path, bad, "swapped")
    for a, b in ((ema, other), (model, ema), (other, model)):
        os.rename(a, b)
    assert is_whole(load(bad), 2)


def test_a_manifest_from_another_checkpoint_a_renamed_folder_and_a_newer_format_are_seen(tmp_path):
    put(tmp_path, 1, 2)
    bad = tmp_path / "checkpoint-2"
    manifest = (bad / "MANIFEST.json").read_bytes()
    (bad / "MANIFEST.json").write_bytes((tmp_path / "checkpoint-1" / "MANIFEST.json").read_bytes())
    damaged_is_seen(tmp_path, bad, "manifest of step 1")
    content = json.loads(manifest)
    for change in (
        {"format": 2},
        {"files": content["files"] | {"../../secret": {"sha256": "0", "size": 0}}},
        {"files": 3},
        {"files": {}},
    ):
        (bad / "MANIFEST.json").write_bytes(checkpoint._render(content | change))
        damaged_is_seen(tmp_path, bad, str(change))
    (bad / "MANIFEST.json").write_bytes(manifest)
    os.rename(bad, tmp_path / "checkpoint-3")
    damaged_is_seen(tmp_path, tmp_path / "checkpoint-3", "renamed folder")


def test_unknown_files_are_reported_and_do_not_harm(tmp_path):
    put(tmp_path, 1)
    (tmp_path / "checkpoint-1" / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-final").mkdir()
    found = load(tmp_path)
    assert is_whole(found, 1)
    assert found.extra == ("notes.txt",)


def test_load_of_a_run_folder_warns_of_what_it_skips_and_names_everything_when_nothing_is_left(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint-<step> folder"):
        load(tmp_path)
    assert latest_good(tmp_path / "nowhere") == (None, [])
    put(tmp_path, 1, 2)
    (tmp_path / "checkpoint-2" / "state.json").unlink()
    with pytest.warns(UserWarning, match=r"checkpoint-2: state.json is missing"):
        assert is_whole(load(tmp_path), 1)
    (tmp_path / "checkpoint-1" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(CheckpointError, match=r"checkpoint-2: (.|\n)*checkpoint-1: "):
        load(tmp_path)


# ---- rotation


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ({}, [5, 6]),
        ({"keep_last": 1}, [6]),
        ({"keep_last": None}, [1, 2, 3, 4, 5, 6]),
        ({"keep_last": 1, "keep_every": 2}, [2, 4, 6]),
        ({"keep_last": 1, "keep_best": 2}, [2, 3, 6]),
        ({"keep_last": 2, "keep_every": 4, "keep_best": 1}, [3, 4, 5, 6]),
    ],
    ids=str,
)
def test_rotation(tmp_path, keep, left):
    for step, score in enumerate((9.0, 0.5, 0.1, 3.0, None, 7.0), start=1):
        put(tmp_path, step, score=score, **keep)
    assert steps(tmp_path) == left
    assert not leftovers(tmp_path)


def test_rotation_counts_numbers_not_letters_and_leaves_what_it_cannot_read(tmp_path):
    put(tmp_path, 9, 10)
    (tmp_path / "checkpoint-10" / "MANIFEST.json").unlink()
    put(tmp_path, 11)
    assert steps(tmp_path) == [9, 10, 11]  # the damaged one does not count as one of the two
    put(tmp_path, 100)
    assert steps(tmp_path) == [10, 11, 100]


def test_a_save_of_an_earlier_step_stays_and_a_damaged_one_of_the_same_step_is_replaced(tmp_path):
    put(tmp_path, 10, 20)
    put(tmp_path, 15, keep_last=1)
    assert steps(tmp_path) == [15, 20]
    (tmp_path / "checkpoint-20" / "state.json").unlink()
    put(tmp_path, 20)
    assert is_whole(load(tmp_path), 20)
    assert not leftovers(tmp_path)


def test_an_interrupted_deletion_is_ended_and_an_interrupted_save_removed_or_completed(tmp_path):
    put(tmp_path, 1, 2, 3, keep_last=None)
    os.rename(tmp_path / "checkpoint-1", tmp_path / ".deleted-checkpoint-1-x")
    (tmp_path / ".deleted-checkpoint-1-x" / "MANIFEST.json").unlink()
    os.rename(tmp_path / "checkpoint-2", tmp_path / ".tmp-checkpoint-2-x")
    (tmp_path / ".tmp-checkpoint-2-x" / "MANIFEST.json").unlink()
    os.rename(tmp_path / "checkpoint-3", tmp_path / ".tmp-checkpoint-3-x")
    found, skipped = latest_good(tmp_path)  # a reader changes nothing, and finds what was all but committed
    assert is_whole(found, 3)
    assert not skipped
    assert len(leftovers(tmp_path)) == 3
    tidy(tmp_path)
    assert not leftovers(tmp_path)
    assert is_whole(load(tmp_path / "checkpoint-3"), 3)
    assert steps(tmp_path) == [3]


# ---- a disk that fails


class Faults:
    """Counts what a save asks of the disk, and lets one of these calls fail."""

    def __init__(self, monkeypatch, fail_at=None, code=errno.ENOSPC):
        self.count, self.fail_at, self.code = 0, fail_at, code
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrapped(name, getattr(os, name)))

    def wrapped(self, name, real):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.fail_at:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])  # half of it is on the disk
                raise OSError(self.code, os.strerror(self.code))
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=lambda c: errno.errorcode[c])
@pytest.mark.parametrize("step", [2, 1], ids=["new step", "same step again"])
def test_a_failure_of_any_call_leaves_a_good_checkpoint_and_no_rubbish(tmp_path, code, step):
    keep = {"keep_last": 1}
    put(tmp_path / "count", 1)
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch)
        put(tmp_path / "count", step, **keep)
    assert faults.count > 20
    messages = []
    for k in range(1, faults.count + 1):
        folder = tmp_path / str(k)
        put(folder, 1)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            Faults(patch, k, code)
            try:
                put(folder, step, **keep)
            except CheckpointError as error:
                messages.append(str(error))
            else:
                # only the rotation may fail with no more than a warning; the first call makes a folder that is there
                assert k == 1 or any("could not be deleted" in str(w.message) for w in warned), k
        found, skipped = latest_good(folder)
        assert not skipped
        assert any(is_whole(found, s) for s in {1, step}), k
        assert not [name for name in leftovers(folder) if name.startswith(".tmp-")], k
        put(folder, 3, **keep)
        assert steps(folder) == [3], k
        assert not leftovers(folder), k
    advice = "free space or raise the limit" if code == errno.ENOSPC else "check the disk"
    assert len(messages) >= faults.count - 4
    assert all("was not saved" in m and "MiB free" in m and advice in m and os.strerror(code) in m for m in messages)
    assert {"model.safetensors", "state.json", "MANIFEST.json"} <= {
        m.split("writing ")[1].split(":")[0] for m in messages if "writing " in m
    }


def test_the_order_of_writing_flushing_and_renaming(tmp_path, monkeypatch):
    put(tmp_path, 1)
    done, names = [], {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "unlink")}

    def opened(path, *args, **kwargs):
        file = real["open"](path, *args, **kwargs)
        names[file] = Path(path).name
        done.append(f"open {Path(path).name}")
        return file

    def short(path):
        return Path(path).name.rsplit("-", 1)[0] if Path(path).name.startswith(".") else Path(path).name

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", lambda file: (real["fsync"](file), done.append(f"flush {short(names[file])}")))
    monkeypatch.setattr(os, "rename", lambda a, b: (real["rename"](a, b), done.append(f"rename {short(a)} {short(b)}")))
    monkeypatch.setattr(os, "unlink", lambda *a, **k: (real["unlink"](*a, **k), done.append("unlink")))
    put(tmp_path, 2, keep_last=1)
    monkeypatch.undo()
    temporary, commit = ".tmp-checkpoint-2", "rename .tmp-checkpoint-2 checkpoint-2"
    vouch, away = done.index("open MANIFEST.json"), done.index("rename checkpoint-1 .deleted-checkpoint-1")
    for name in ("model.safetensors", "ema.safetensors", "state.json", temporary):
        assert f"flush {name}" in done[:vouch], name
    assert done[vouch + 1] == "flush MANIFEST.json"
    assert f"flush {temporary}" in done[vouch : done.index(commit)]
    assert f"flush {tmp_path.name}" in done[done.index(commit) : away]
    assert "unlink" in done[away:]
    assert "unlink" not in done[:away]


def test_an_interruption_from_the_keyboard_leaves_no_rubbish(tmp_path, monkeypatch):
    put(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_json", lambda value: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, 2)
    assert steps(tmp_path) == [1]
    assert not leftovers(tmp_path)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="was not saved, making the folder"):
        put(tmp_path / "file" / "run", 1)


def test_the_temporary_folder_is_beside_the_target_on_another_file_system(tmp_path, monkeypatch):
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not a second file system here")
    renames, real = [], os.rename
    monkeypatch.setattr(os, "rename", lambda a, b: (renames.append((Path(a).parent, Path(b).parent)), real(a, b)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with tempfile.TemporaryDirectory(dir=shm) as folder:
        put(Path(folder), 1, 2, 3)
        assert is_whole(load(folder), 3)
        assert renames
        assert {place for pair in renames for place in pair} == {Path(folder)}
    assert not list(tmp_path.iterdir())

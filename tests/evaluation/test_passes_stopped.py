"""Passes that end early, and passes of several ranks: what is done stays done, and nothing is done twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from image_sets import folder, opened, small_chunks  # noqa: F401  (small_chunks is for all tests here)
from small_extractor import Small

from percepta.evaluation import passes
from percepta.evaluation.passes import extract

HERE = Path(__file__).parent


# ---- interrupted


class Stop(Exception):
    pass


def test_a_signal_leaves_whole_chunks_and_the_next_call_goes_on(tmp_path):
    side, cache, calls, running = opened(folder(tmp_path / "set", 40)), tmp_path / "cache", [], threading.active_count()
    right = extract(side, {Small(): ["7"]}, tmp_path / "right", batch=8)["small", "7"].array

    def check():
        calls.append(1)
        if len(list(cache.glob("small*/*.rows"))) == 2:
            raise Stop

    with pytest.raises(Stop):
        extract(side, {Small(): ["7"]}, cache, batch=8, check=check)
    assert threading.active_count() == running  # the decoders are gone
    assert len(list(cache.glob("small*/*.rows"))) == 2
    assert not list(cache.rglob("*.tmp"))
    net = Small()
    assert np.array_equal(extract(side, {net: ["7"]}, cache, batch=8)["small", "7"].array, right)
    assert net.images == 24


def start(*args, **env):
    return subprocess.Popen(
        [sys.executable, str(HERE / "judging_process.py"), *map(str, args)], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), **env},
    )  # fmt: skip


def ended(process):
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_kill_9_in_the_middle_and_only_the_missing_chunks_are_computed(tmp_path):
    root, cache = folder(tmp_path / "set", 40), tmp_path / "cache"
    process = start(root, cache, tmp_path / "out", 0.15, "error")
    until = time.monotonic() + 60
    while len(list(cache.glob("small-7*/*.rows"))) < 2 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    whole = len(list(cache.glob("small-7*/*.rows")))
    assert 2 <= whole < 5
    both = len(list(cache.glob("small-logits*/*.rows")))
    net = Small()
    found = extract(opened(root), {net: ["7", "logits"]}, cache, batch=3)
    assert net.images == 40 - 8 * both
    right = extract(opened(root), {Small(): ["7"]}, tmp_path / "right", batch=3)["small", "7"].array
    assert np.array_equal(found["small", "7"].array, right)


# ---- ranks


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two ranks left: with a cache they share, with caches of their own of which one has a chunk already, and after a bad image."""
    home = tmp_path_factory.mktemp("ranks")
    before, passes.CHUNK = passes.CHUNK, 8
    root = folder(home / "set", 39, ((12, 14), (9, 9)))
    (root / "020.png").write_bytes(b"no image")
    extract(opened(root, num=8), {Small(): ["7", "logits"]}, home / "own-1", batch=3)
    passes.CHUNK = before
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    caches = f"{home / 'shared'},{home / 'own'}-{{rank}}"
    for process in [start(root, caches, home / "out", 0, "skip", RANK=str(k), LOCAL_RANK=str(k), **where) for k in range(2)]:
        ended(process)
    return home


@pytest.mark.parametrize("cache", ["shared", "own"])
def test_two_ranks_are_one_to_the_bit_with_a_shared_cache_or_their_own(cache, ranks, tmp_path):
    side, number = opened(ranks / "set", on_bad="skip"), ("shared", "own").index(cache)
    one = extract(side, {Small(): ["7", "logits"]}, tmp_path / "one", batch=3)
    reports = [json.loads((ranks / f"out-{number}-{k}.json").read_text()) for k in range(2)]
    assert sum(r["images"] for r in reports) == 38 - 8 * number
    assert min(r["images"] for r in reports) >= 14
    assert [len(r["notes"]) for r in reports] == [1, 0]
    for k, report in enumerate(reports):
        assert report["len"] == len(side) == 38
        assert report["facts"] == json.loads(json.dumps(side.facts()))
        with np.load(ranks / f"out-{number}-{k}.npz") as found:
            for layer in ("7", "logits"):
                assert np.array_equal(found[layer], one["small", layer].array)
            assert np.array_equal(found["scatter"], one["small", "7"].moments().scatter.numpy())


def test_a_bad_image_on_one_rank_stops_both(ranks):
    errors = sorted((ranks / f"out-error-{k}.txt").read_text() for k in range(2))
    assert errors[0].startswith("BadImage: ")
    assert "020.png: is not an image" in errors[0]
    assert "of 2 failed in a collective: another rank stopped" in errors[1]

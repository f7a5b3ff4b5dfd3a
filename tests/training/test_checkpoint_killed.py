"""A process that saves in a loop is killed, at random and at every call to the disk; and its disk is full.

One real process imports torch and forks the ones that die; all of it on the disk and again on a second file system, in memory.
"""

import errno
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

TORTURE = """
import json, os, random, resource, signal, sys, time
from pathlib import Path
import torch
from percepta.training import checkpoint
from percepta.training.checkpoint import CheckpointError, latest_good, save

torch.set_num_threads(1)
CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")

def content(step):
    return {"model": {"w": torch.full((64, 256), float(step))}}, {"step": step}

def die(): os.kill(os.getpid(), signal.SIGKILL)

def worker(folder, first, pipe, kill_at):
    count = 0
    def wrapped(name, real):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == kill_at:
                if name == "write": real(args[0], args[1][: len(args[1]) // 2])
                die()
            return real(*args, **kwargs)
        return call
    write = os.write
    for name in CALLS if kill_at else (): setattr(os, name, wrapped(name, getattr(os, name)))
    for step in range(first, first + 10**6):
        save(folder, step, *content(step), keep_last=1)
        write(pipe, step.to_bytes(8, "little"))

def round_of(folder, first, delay, kill_at):
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        try: worker(folder, first, into, kill_at)
        finally: os._exit(1)
    os.close(into)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    told = b"".join(iter(lambda: os.read(out, 1 << 16), b""))
    os.close(out)
    return int.from_bytes(told[-8:], "little") if told else None, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

def check(folder, told, killed):
    for path in folder.glob("checkpoint-*"): checkpoint.load(path)  # nothing that looks like a checkpoint is half of one
    found, skipped = latest_good(folder)
    whole = found is not None and torch.equal(found.tensors["model"]["w"], content(found.step)[0]["model"]["w"])
    good = killed and whole and not skipped and found.state == {"step": found.step} and (told is None or found.step >= told)
    return bool(good), (found.step if found else 0)

def torture(folder, draw):
    results, points, step, inside = [], [], 0, 0
    save(folder, 0, *content(0))
    for k in range(20):
        told, killed = round_of(folder, step + 1, draw.uniform(0.001, 0.03), None)
        inside += any(p.name.startswith((".tmp-", ".deleted-")) for p in folder.iterdir())
        good, step = check(folder, told, killed)
        results.append(good)
    for k in range(1, 60):  # three saves and their deletions; every other round writes the step that is there already
        good, step = check(folder, *round_of(folder, step + k % 2, None, k))
        points.append(good)
    save(folder, step + 1, *content(step + 1))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try: save(folder, step + 2, *content(step + 2)); message = ""
    except CheckpointError as error: message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    found, skipped = latest_good(folder)
    return {"random": results, "inside": inside, "points": points, "message": message, "after": found.step - step,
            "names": sorted(p.name for p in folder.iterdir()), "skipped": len(skipped)}

print(json.dumps([torture(Path(folder), random.Random(7)) for folder in sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def torture(tmp_path_factory):
    places = [tmp_path_factory.mktemp("torture")] + [Path("/dev/shm")] * Path("/dev/shm").is_dir()
    with ExitStack() as stack:
        folders = [stack.enter_context(tempfile.TemporaryDirectory(dir=place)) for place in places]
        ran = subprocess.run([sys.executable, "-c", TORTURE, *folders], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_after_every_sigkill_there_is_a_good_checkpoint_not_older_than_the_last_that_was_told(torture):
    for place in torture:
        assert place["random"] == [True] * 20
        assert place["points"] == [True] * 59
    assert torture[0]["inside"] >= 5  # the torture does interrupt saves


def test_a_full_disk_in_a_real_process(torture):
    for place in torture:
        assert "model.safetensors" in place["message"]
        assert os.strerror(errno.EFBIG) in place["message"]
        assert place["after"] == 1
        assert place["skipped"] == 0
        assert all(name.startswith("checkpoint-") for name in place["names"])

"""Jobs from a fork are processes like those from a shell: same results, signals, exit codes, files."""

import json
import os
import signal
import sys
import time

import pytest

from percepta.studies.engine.forks import Forks, spawned

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux only")


@pytest.fixture(scope="module")
def forks():
    with Forks() as made:
        yield made


@pytest.fixture
def start(tmp_path):
    """start(how, words) -> (process, out, log)"""
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_WRONLY)
    os.set_inheritable(lock, True)

    def begin(how, words):
        out, log = tmp_path / f"{how is spawned}.out", tmp_path / f"{how is spawned}.log"
        return how(words.split(), {"OMP_NUM_THREADS": "1"}, out, log, lock), out, log

    yield begin
    os.close(lock)


def code(process, seconds=60.0):
    end = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return process.returncode


def test_same_output_as_a_process_from_a_shell(forks, start):
    for words, expected in (("recipes", 0), ("train ddpn", 2)):
        (ours, out, log), (theirs, out2, log2) = start(forks, words), start(spawned, words)
        assert code(ours) == code(theirs) == expected
        assert out.read_text() == out2.read_text() and log.read_text() == log2.read_text()
        assert bool(out.read_text()) == (expected == 0)


def test_the_log_goes_on_and_the_output_begins_anew(forks, start):
    for count in (1, 2):
        process, out, log = start(forks, "evaluate nowhere nowhere --json")
        assert code(process) == 2 and log.read_text().count("percepta evaluate: ") == count and out.read_text() == ""


def test_a_signal_reaches_the_job_alone(forks, start, tmp_path):
    run = tmp_path / "run"
    words = f"train ddpm --data shapes:length=64 --size 16 --network unet-pocket --batch 8 --steps 100000 --log-every 1 --sample-every 0 --out {run}"
    process, _, log = start(forks, words)
    end = time.monotonic() + 60
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").stat().st_size):
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    process.terminate()
    assert code(process) == 3 and list(run.glob("checkpoint-*")), log.read_text()
    process.terminate()  # of one that has left: nothing
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert code(start(forks, "recipes")[0]) == 0  # the server is as it was


def test_ctrl_c_in_a_terminal_leaves_the_server_alone(forks, start):
    assert code(start(forks, "recipes")[0]) == 0
    forks._server.send_signal(signal.SIGINT)
    forks._server.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert code(start(forks, "recipes")[0]) == 0


def test_a_dead_server_is_told(start):
    with Forks() as forks:
        process, _, _ = start(forks, "recipes")
        assert code(process) == 0
        forks._server.kill()
        with pytest.raises(RuntimeError, match=r"has ended \(-9\); the same command goes on"):
            start(forks, "recipes")

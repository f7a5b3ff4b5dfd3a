"""R1 and R2 through the whole loop: killed with SIGKILL, half of the times inside a save, and resumed: the same bits as undisturbed.

bench/torture.py does it; here it runs a few kills of each kind of run, and every comparison has to be equal.
"""

import json

import pytest
from processes import HERE, ROOT

KILLS = {
    "plain": ("ddpm", [], 4),
    "two players": (f"{HERE}/duel.py:Duel", [], 4),
    "micro-batches": (
        "ddpm",
        ["--micro-batch", "3", "--flip", "--gradient-checkpointing", "--warmup", "3", "--lr-schedule", "cosine"],
        4,
    ),
    "ema edm": ("edm", ["--ema", "edm", "--mixed-precision", "bf16"], 2),
    "ema power": ("flow", ["--ema", "power", "--ema-snapshot-every", "2"], 4),
    "ema none": ("autoencoder", ["--ema", "none"], 2),
    "rolled back": (f"{HERE}/duel.py:Failing", ["--on-nonfinite", "skip", "--max-bad-steps", "2"], 2),
}


def torture(zygote, scenarios, folder):
    file = folder / "scenarios.json"
    file.write_text(json.dumps(scenarios))
    code = f"""
    import runpy, sys
    sys.path.insert(0, {str(ROOT / "bench")!r})
    sys.argv = ["torture.py", "--json", "--scenarios", {str(file)!r}]
    runpy.run_path({str(ROOT / "bench" / "torture.py")!r}, run_name="__main__")
    """
    process = zygote.start(code)
    assert process.wait(500) in (0, 1), process.err.read_text()
    return json.loads(process.out.read_text())["scenarios"]


@pytest.fixture(scope="module")
def killed(zygote, tmp_path_factory):
    scenarios = [{"label": k, "recipe": r, "flags": f, "kills": n} for k, (r, f, n) in KILLS.items()]
    return torture(zygote, scenarios, tmp_path_factory.mktemp("torture"))


@pytest.mark.parametrize("label", KILLS)
def test_a_killed_run_that_is_resumed_ends_as_the_straight_run_to_the_bit(killed, label):
    result = killed[label]
    assert result["failed"] == []
    assert result["different"] == []
    assert result["kills"] >= KILLS[label][2]
    assert result["runs"] >= 1


def test_there_were_twenty_kills_and_half_of_them_inside_a_save(killed):
    assert sum(result["kills"] for result in killed.values()) >= 20
    assert sum(result["inside"] for result in killed.values()) >= 10


@pytest.mark.slow
def test_worker_processes_may_change_at_every_restart(zygote, tmp_path):
    flags = ["--data-memory", "0", "--flip", "--crop", "random-crop"]
    turns = [["--workers", "0"], ["--workers", "2"], ["--workers", "1"]]
    found = torture(zygote, [{"label": "workers", "recipe": "ddpm", "flags": flags, "kills": 4, "turns": turns}], tmp_path)
    assert found["workers"]["good"], found["workers"]

"""R6: a signal anywhere in a run: the step is finished, a checkpoint written, exit code 3, and the resumed run has the bits of a straight one."""

import os
import signal
import textwrap
import time

import pytest
from processes import digest, lines, names

HOLD = """
import importlib, time
from pathlib import Path

owner = importlib.import_module({module!r})
for part in {owner!r}:
    owner = getattr(owner, part)
real, calls = getattr(owner, {name!r}), 0

def held(*args, **options):
    global calls
    calls += 1
    if calls == {call}:
        Path({here!r}).touch()
        while not Path({go!r}).exists():
            time.sleep(0.005)
    return real(*args, **options)

setattr(owner, {name!r}, held)
"""
# where -> (module, class, function, which call of it, step of the checkpoint that is then written)
PLACES = {
    "step": ("percepta.training.loop", (), "take_step", 2, 2),
    "data": ("percepta.data.reader", ("Store",), "rows", 2, 2),
    "save": ("percepta.training.checkpoint", (), "_write", 3, 4),  # the save of step 3 comes first, then a step
    "sampling": ("percepta.networks.adapter", ("Network",), "forward", 5, 4),  # 4 steps, and in the first of two sampler steps
    "export": ("percepta.training.loop", ("State",), "numbers", 2, 6),  # of the last checkpoint: nothing is left to do
}
CHANGED = {"checkpoint_every": 3, "sample_every": 4, "sampler": "ddpm"}


@pytest.fixture(scope="module")
def straight(zygote, tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight") / "run"
    process = zygote.command(["train", "ddpm", *tiny.flags(run, **CHANGED)])
    assert process.wait() == 0, process.err.read_text()
    return end(run)


def end(run):
    """What is left at the end but for older checkpoints, which depend on when it stopped."""
    return {k: v for k, v in digest(run).items() if not k.startswith("checkpoint-") or k.startswith("checkpoint-6/")}


def held(zygote, args, place, folder):
    """A process that waits at a place, and what lets it go on."""
    module, owner, name, call, step = PLACES[place]
    here, go = folder / "here", folder / "go"
    before = HOLD.format(module=module, owner=owner, name=name, call=call, here=str(here), go=str(go))
    process = zygote.command(args, before)
    process.until(here.exists)
    return process, go.touch, step


@pytest.mark.parametrize(
    ("place", "number"),
    [(place, signal.SIGTERM) for place in ("step", "data", "save", "sampling")]
    + [(place, signal.SIGINT) for place in ("step", "data", "save", "sampling")]
    + [("step", signal.SIGUSR1)],
)
def test_a_signal_stops_with_a_checkpoint_and_resume_continues(zygote, tiny, straight, tmp_path, place, number):
    run = tmp_path / "run"
    args = ["train", "ddpm", *tiny.flags(run, **CHANGED)]
    process, go_on, step = held(zygote, args, place, tmp_path)
    process.kill(number)
    go_on()
    assert process.wait() == 3, process.err.read_text()
    assert f"stopped at step {step}" in process.err.read_text()
    assert (run / f"checkpoint-{step}" / "MANIFEST.json").is_file()
    assert not (run / "model").exists()
    assert not list(run.glob("samples/*.png"))  # a grid that was interrupted is not half there
    again = zygote.command(["train", "ddpm", "--config", run / "config.json", "--resume"])
    assert again.wait() == 0, again.err.read_text()
    assert f"(step {step})" in again.err.read_text()
    assert end(run) == straight


def test_a_signal_after_the_last_step_does_not_make_a_finished_run_unfinished(zygote, tiny, straight, tmp_path):
    run = tmp_path / "run"
    process, go_on, _ = held(zygote, ["train", "ddpm", *tiny.flags(run, **{**CHANGED, "sample_every": 0})], "export", tmp_path)
    process.kill(signal.SIGTERM)
    go_on()
    assert process.wait() == 0, process.err.read_text()
    assert (run / "model" / "model_index.json").is_file()


@pytest.mark.parametrize("place", ["step", "save"])
def test_a_second_interrupt_leaves_at_once_and_harms_nothing(zygote, tiny, straight, tmp_path, place):
    run = tmp_path / "run"
    process, go_on, _ = held(zygote, ["train", "ddpm", *tiny.flags(run, **CHANGED)], place, tmp_path)
    process.kill(signal.SIGINT)
    time.sleep(0.3)  # two signals at once count as one
    process.kill(signal.SIGINT)
    assert process.wait(20) == 130, process.err.read_text()  # without `go_on`: it did not finish the step
    assert "second interrupt" in process.err.read_text()
    again = zygote.command(["train", "ddpm", *tiny.flags(run, **CHANGED), "--resume"])
    assert again.wait() == 0, again.err.read_text()
    assert end(run) == straight
    assert not [name for name in names(run) if ".tmp" in name]


def test_a_second_process_in_the_same_folder_is_refused(zygote, tiny, tmp_path):
    run = tmp_path / "run"
    args = ["train", "ddpm", *tiny.flags(run)]
    process, go_on, _ = held(zygote, args, "step", tmp_path)
    second = zygote.command([*args, "--resume"])
    assert second.wait() == 2
    assert "another process is training" in second.err.read_text()
    go_on()
    assert process.wait() == 0, process.err.read_text()
    assert [line["step"] for line in lines(run)] == list(range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_does_not_take_the_workers_away(zygote, tiny, tmp_path, number):
    """Ctrl-C in a terminal, and a batch system: every process of the run gets the signal, those that read images too."""
    run, here = tmp_path / "run", tmp_path / "here"
    module, owner, name, call, _ = PLACES["step"]
    before = HOLD.format(module=module, owner=owner, name=name, call=call, here=str(here), go=str(tmp_path / "go"))
    args = ["train", "ddpm", *tiny.flags(run, **CHANGED, workers=2, data_memory=0, steps=50)]
    process = zygote.command(args, "import os\nos.setpgid(0, 0)\n" + textwrap.dedent(before))
    process.until(here.exists)
    os.killpg(process.pid, number)
    time.sleep(1)
    (tmp_path / "go").touch()
    assert process.wait() == 3, process.err.read_text()
    assert "stopped at step 2" in process.err.read_text()

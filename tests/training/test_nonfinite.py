"""R7 through the whole loop: a loss that is not a number stops the run and says where, or is skipped and counted, or rolls back."""

import json

import pytest
import torch
from duel import Failing
from processes import FLAGS, lines

from percepta.training import checkpoint
from percepta.training.job import train
from percepta.training.log import console
from percepta.training.loop import Loop, NonFinite
from percepta.training.settings import Settings


def settings(tiny, out, **changed):
    return Settings(**{**FLAGS, "network": tiny.network, "out": out, "steps": 10, **changed})


@pytest.fixture
def loops(monkeypatch):
    """The loops that ran, to look at what they hold after an error."""
    seen, run = [], Loop.run
    monkeypatch.setattr(Loop, "run", lambda self: (seen.append(self), run(self))[1])
    return seen


def test_it_stops_and_names_step_term_and_the_last_good_checkpoint(tiny, tmp_path, loops):
    run = tmp_path / "run"
    with pytest.raises(NonFinite) as error:
        train(Failing(at=(5,)), settings(tiny, run), quiet=True)
    message = str(error.value)
    assert "step 6" in message
    assert "'denoising'" in message
    assert str(run / "checkpoint-4") in message
    assert [line["step"] for line in lines(run)] == [1, 2, 3, 4, 5]
    short = train(Failing(at=()), settings(tiny, tmp_path / "short", steps=5), quiet=True)
    good = checkpoint.load(short.folder / "checkpoint-5")
    held = loops[0].state.tensors()  # in memory, still what step 5 left
    assert held.keys() == good.tensors.keys()
    for stem, named in held.items():
        assert all(torch.equal(x, good.tensors[stem][k]) for k, x in named.items()), stem
    on_disk = checkpoint.load(run / "checkpoint-4")
    assert on_disk.step == 4
    assert all(bool(x.isfinite().all()) for named in on_disk.tensors.values() for x in named.values())


def test_without_a_checkpoint_it_says_so_and_the_exit_code_is_1(zygote, tiny, tmp_path):
    flags = tiny.flags(tmp_path / "run", lr=1e30, clip="None", checkpoint_every=50, steps=20)
    process = zygote.command(["train", "ddpm", *flags])
    assert process.wait() == 1, process.err.read_text()
    said = process.err.read_text()
    assert "There is no checkpoint yet" in said
    assert "Traceback" not in said
    assert "this turn moved nothing" in said


def test_skipped_steps_are_counted_and_pollute_nothing(tiny, tmp_path, loops, monkeypatch):
    notes = []
    monkeypatch.setattr(console, "print", lambda *text, **_: notes.append(" ".join(map(str, text))))
    at = (2, 5)
    before = {}
    real = Loop._count

    def watched(self, report):
        if report.bad is not None:
            kept = {k: x.clone() for named in self.state.tensors().values() for k, x in named.items()}
            before[self.state.step] = kept
            real(self, report)
            after = {k: x for named in self.state.tensors().values() for k, x in named.items()}
            assert all(torch.equal(x, after[k]) for k, x in kept.items())
            return False
        return real(self, report)

    monkeypatch.setattr(Loop, "_count", watched)
    outcome = train(Failing(at=at), settings(tiny, tmp_path / "run", on_nonfinite="skip"))
    assert outcome.finished
    assert sorted(before) == list(at)
    found = lines(outcome.folder)
    assert [line.get("bad_steps", 0) for line in found] == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert "denoising" not in found[2]  # no number is made up for a step that had none
    assert [line["images"] for line in found] == [4 * k for k in range(1, 11)]
    state = loops[0].state
    assert (state.bad_total, state.bad_in_a_row) == (2, 0)
    assert state.ema is not None
    assert state.ema.updates == 8
    steps = {float(s["step"]) for s in state.players["model"].optimizer.state.values()}
    assert steps == {8.0}
    assert any("step 3: term 'denoising' is nan; skipped (1 in a row, 1 in all)" in note for note in notes)


def test_many_in_a_row_go_back_to_the_last_good_checkpoint_with_new_noise(tiny, tmp_path, loops):
    recipe = Failing(at=(5, 6))  # steps 6 and 7; checkpoints at 2, 4 and, amid the failures, 6
    given = settings(tiny, tmp_path / "run", on_nonfinite="skip", max_bad_steps=2, sample_every=5)
    outcome = train(recipe, given, quiet=True)
    state = loops[0].state
    assert outcome.finished
    assert (state.retries, state.stream) == (1, "train-1")
    found = lines(outcome.folder)
    assert [line["step"] for line in found] == list(range(1, 11))  # one line each: those of the failed branch are gone
    assert "denoising" in found[6]  # step 7 went well the second time
    clean = train(Failing(at=()), settings(tiny, tmp_path / "clean"), quiet=True)
    assert lines(clean.folder)[:5] == found[:5]
    assert lines(clean.folder)[6]["denoising"] != found[6]["denoising"]  # other noise


def test_grids_of_a_branch_that_was_given_up_are_drawn_again(tiny, tmp_path):
    given = {"on_nonfinite": "skip", "max_bad_steps": 2, "sample_every": 1, "checkpoint_every": 3}
    outcome = train(Failing(at=(4, 5)), settings(tiny, tmp_path / "run", steps=6, **given), quiet=True)
    # going back to step 3, step 4 was good and is trained again with new noise: its grid shows the new weights
    stale = train(Failing(at=()), settings(tiny, tmp_path / "clean", steps=4, sample_every=4), quiet=True)
    again = (outcome.folder / "samples" / "step-0000004.png").read_bytes()
    assert again != (stale.folder / "samples" / "step-0000004.png").read_bytes()


def test_after_the_retries_it_stops(tiny, tmp_path):
    recipe = Failing(at=(5, 6, 7, 8), streams=("train", "train-1", "train-2"))
    with pytest.raises(NonFinite, match=r"2 steps in a row failed, after going back 2 times.*checkpoint-"):
        train(recipe, settings(tiny, tmp_path / "run", on_nonfinite="skip", max_bad_steps=2), quiet=True)
    assert checkpoint.load(tmp_path / "run").step >= 4  # and what is there can be gone on from


def test_with_nothing_to_go_back_to_it_stops(tiny, tmp_path):
    given = settings(tiny, tmp_path / "run", on_nonfinite="skip", max_bad_steps=2, checkpoint_every=10)
    with pytest.raises(NonFinite, match="there is no checkpoint to go back to"):
        train(Failing(at=(5, 6)), given, quiet=True)


def test_a_step_whose_loss_scale_overflows_leaves_valid_json_and_a_checkpoint(tiny, tmp_path, monkeypatch):
    """fp16 starts with a scale that is too large: infinite norms belong into no mean and no checkpoint."""
    from percepta.training import job

    real = job.make_state

    def with_scaler(*args):
        state = real(*args)
        state.players["model"].scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        weight = next(p for k, p in state.players["model"].module.named_parameters() if k.endswith("conv_out.weight"))
        weight.register_hook(lambda grad: grad * 100)
        return state

    monkeypatch.setattr(job, "make_state", with_scaler)
    outcome = train(Failing(at=()), settings(tiny, tmp_path / "run", log_every=7, checkpoint_every=1), quiet=True)
    assert outcome.finished
    text = (outcome.folder / "metrics.jsonl").read_text()
    first = json.loads(text.splitlines()[0], parse_constant=lambda name: pytest.fail(f"{name} in metrics.jsonl"))
    assert first["step"] == 7
    assert first["grad_norm/model"] > 0
    assert checkpoint.load(outcome.folder).state["scalers"]["model"]["scale"] < 2.0**127


def test_fp16_is_refused_on_the_cpu(tiny, tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a CUDA device"):
        train(Failing(at=()), settings(tiny, tmp_path / "run", mixed_precision="fp16"), quiet=True)

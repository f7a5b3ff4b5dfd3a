"""Evaluations in real processes: killed in the middle, stopped while they are made ready, and failing beside a rank that waits."""

import os
import signal
import time

import pytest
from processes import digest, free_port, names

from percepta.recipes import recipes
from percepta.training import checkpoint
from percepta.training.job import train
from percepta.training.settings import Settings

EVAL = {"eval_every": 2, "eval_num": 8, "eval_metrics": "fid", "eval_space": "pixels", "checkpoint_every": 3}
BEFORE = """
import os, signal
from percepta.training import evaluating
real = evaluating.Evaluator.__call__

def call(self, step, images, check):
    if step == int(os.environ["AT"]):
        {act}
    return real(self, step, images, check)

evaluating.Evaluator.__call__ = call
"""
KILL = "self.product.judged(self.settings, self.device, check, self.real); os.kill(os.getpid(), signal.SIGKILL)"
FAIL = "raise ValueError('the judge is ill')"


def flags(tiny, tmp_path, out="run", **changed):
    return tiny.flags(tmp_path / out, **{**EVAL, "cache": tmp_path / "cache", **changed})


@pytest.mark.parametrize("at", [2, 6])
def test_a_run_that_was_killed_in_an_evaluation_ends_with_the_bits_of_one_without(zygote, dropping, tmp_path, at):
    process = zygote.command(["train", "ddpm", *flags(dropping, tmp_path)], BEFORE.format(act=KILL), AT=str(at))
    assert process.wait(60) == -signal.SIGKILL, process.err.read_text()
    assert not (tmp_path / "run" / "evaluation" / f"step-{at:07d}.json").exists()
    again = zygote.command(["train", "ddpm", *flags(dropping, tmp_path, resume=True)])
    assert again.wait(60) == 0, again.err.read_text()
    given = dict(zip(*[iter(dropping.flags(tmp_path / "plain", checkpoint_every=3))] * 2, strict=True))
    plain = zygote.command(["train", "ddpm", *(word for pair in given.items() for word in pair)])
    assert plain.wait(60) == 0, plain.err.read_text()
    weights = {k: v for k, v in digest(tmp_path / "plain").items() if not k.startswith("eval")}
    found = digest(tmp_path / "run")
    assert {k: found[k] for k in weights} == weights
    assert len([k for k in weights if k.endswith(".safetensors")]) >= 6
    assert {f"evaluation/step-{k:07d}.json" for k in (2, 4, 6)} <= names(tmp_path / "run")


def test_a_rank_that_waits_for_an_evaluation_that_fails_ends_too(zygote, tiny, tmp_path):
    words = ["train", "ddpm", *flags(tiny, tmp_path, batch=5)]
    code = f"{BEFORE.format(act=FAIL)}\nfrom percepta.cli import main\nraise SystemExit(main({words!r}))"
    started = time.monotonic()
    first, second = zygote.ranks(2, code, free_port(), AT="2")
    assert first.wait(40) not in (0, 3, None)
    assert second.wait(40) not in (0, 3, None), "it waits for a rank that is gone"
    assert time.monotonic() - started < 40
    assert "the judge is ill" in first.err.read_text()
    assert "another rank stopped" in second.err.read_text()


def test_a_rank_that_waits_for_what_is_refused_at_the_start_ends_too(zygote, tiny, tmp_path):
    words = ["train", "ddpm", *flags(tiny, tmp_path, batch=5, eval_metrics="nothing")]
    code = f"from percepta.cli import main\nraise SystemExit(main({words!r}))"
    first, second = zygote.ranks(2, code, free_port())
    assert first.wait(40) not in (0, 3, None)
    assert second.wait(40) not in (0, 3, None)
    assert "there is no metric 'nothing'" in first.err.read_text()


SLOW = """
import os, signal, time
from percepta.spaces import domain_fit
from percepta.spaces import domain
real = domain.fit

def fit(*args):
    *given, check = args

    def slow():
        if os.environ["STOP"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
            check()
            raise AssertionError("it went on")

    return real(*given, slow)

domain.fit = fit
domain.Recipe.__init__.__defaults__ = tuple(2 if v == 300 else v for v in domain.Recipe.__init__.__defaults__)
"""


def test_a_signal_while_the_domain_encoder_is_trained_sends_all_ranks_home(zygote, tiny, tmp_path):
    words = ["train", "ddpm", *flags(tiny, tmp_path, batch=5, eval_space="domain", steps=2)]
    for stop, expected in (("1", 3), ("0", 0)):
        code = f"{SLOW}\nfrom percepta.cli import main\nraise SystemExit(main({words!r}))"
        for process in zygote.ranks(2, code, free_port(), STOP=stop):
            assert process.wait(60) == expected, process.err.read_text()
    assert checkpoint.load(tmp_path / "run").step == 2


def test_a_signal_while_the_reference_is_read_says_where_the_run_stands(tiny, tmp_path, monkeypatch):
    """At a resume too: the run is at the step of its checkpoint, not at its beginning."""
    from percepta.evaluation.evaluate import Reading

    def config(**changed):
        return Settings(**{"data": "shapes:length=20", "conditional": "no", "size": 8, "batch": 4, "steps": 2, "sample_every": 0,
                           "sample_steps": 2, "device": "cpu", "network": tiny.network, "out": tmp_path / "run", **changed})  # fmt: skip

    assert train(recipes()["ddpm"](), config(), quiet=True).finished
    real = Reading.side

    def side(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        self.check()
        return real(self, *args)

    monkeypatch.setattr(Reading, "side", side)
    judged = {**EVAL, "steps": 6, "resume": True, "cache": tmp_path / "cache"}
    outcome = train(recipes()["ddpm"](), config(**judged), quiet=True)
    assert (outcome.finished, outcome.step) == (False, 2)

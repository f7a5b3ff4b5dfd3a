"""Each term's share of the gradient: what it is by hand, when it is measured, and that measuring it changes no bit."""

from dataclasses import dataclass, replace

import pytest
import torch
from duel import Duel
from processes import FLAGS, HERE, digest, free_port, lines
from torch import nn

from percepta.estimate import Batch, Estimate
from percepta.objectives import AbstractPerSample, Term
from percepta.objectives.reconstruction import L1
from percepta.objectives.term import per_sample
from percepta.recipes import recipes
from percepta.rng import Rng
from percepta.training.job import train
from percepta.training.method import Method
from percepta.training.settings import Settings
from percepta.training.shares import Shares, due, shares_every
from percepta.training.state import make_state
from percepta.training.step import take_step

CPU = torch.device("cpu")


def settings(tiny, out, **changed):
    return Settings(**{**FLAGS, "network": tiny.network, "out": out, **changed})


class Squared(AbstractPerSample):
    def __call__(self, est: Estimate):
        return per_sample((est.x0 - est.x0_hat) ** 2)


class Constant(AbstractPerSample):
    """A term that no parameter moves."""

    def __call__(self, est: Estimate):
        return per_sample(est.x0)


@dataclass(frozen=True)
class Through:
    model: nn.Module

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        return Estimate(self.model(batch.x0), batch.x0)


class Nothing:
    """A product that is never asked for anything."""

    judged_by = "samples"

    def check(self, settings): ...
    def preview(self, settings, device, check): ...
    def judged(self, settings, device, check, real): ...
    def export(self, out, card): ...
    def next_command(self, run): ...


def small(*extra):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 3, padding=1).double()
    terms = [Term("squared", Squared(), 3.0), Term("absolute", L1(), 0.2, keep=lambda est: est.x0.flatten(1).mean(1) > 0), *extra]
    return Method(model, Through(model), terms, Nothing())


IMAGES = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def step_of(method, micro, shares):
    config = Settings(batch=5, micro_batch=micro, steps=9)
    state = make_state(method, config, CPU)
    return take_step(method, state, config, Batch(IMAGES), Rng(0, tuple(range(5))), shares=shares)


def by_hand(method):
    """|g_k| / sum |g_j| of the whole batch at once."""
    norms = {}
    for term in method.terms:
        loss = term(Estimate(method.model(IMAGES), IMAGES))
        grads = torch.autograd.grad(loss, list(method.model.parameters())) if loss.requires_grad else [torch.zeros(1)]
        norms[term.name] = float(torch.cat([g.flatten() for g in grads]).norm())
    return {k: v / sum(norms.values()) for k, v in norms.items()}


@pytest.mark.parametrize("micro", [None, 2, 1])
def test_shares_are_those_of_the_whole_batch_by_hand(micro):
    expected = by_hand(small(Term("constant", Constant())))
    found = step_of(small(Term("constant", Constant())), micro, Shares()).shares
    assert found == pytest.approx(expected, rel=1e-6)
    assert found["constant"] == 0
    assert 0.02 < found["absolute"] < 0.98
    assert sum(found.values()) == pytest.approx(1)


def test_a_step_that_does_not_measure_has_none_and_moves_the_same():
    a, b = small(), small()
    with_, without = step_of(a, 2, Shares()), step_of(b, 2, None)
    assert without.shares == {}
    assert (with_.losses, with_.norms) == (without.losses, without.norms)
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("every", "log_every", "steps", "expected"),
    [(3, 1, 10, [3, 6, 9]), (50, 20, 130, [60, 100]), (50, 20, 150, [60, 100, 150]), (5, 20, 50, [20, 40, 50]), (0, 1, 10, [])],
)
def test_they_are_measured_at_the_first_line_after_each_multiple(every, log_every, steps, expected):
    config = Settings(steps=steps, log_every=log_every)
    assert [step for step in range(1, steps + 1) if due(step, every, config)] == expected


def test_the_default_is_ten_lines_of_the_log_where_there_are_two_terms():
    two, one = small(), replace(small(), terms=small().terms[:1])
    config = Settings(log_every=7)
    assert shares_every(config, two, CPU) == 70
    assert shares_every(config, one, CPU) == 0
    assert shares_every(replace(config, shares_every=3), two, CPU) == 3
    assert shares_every(replace(config, shares_every=3), one, CPU) == 0
    assert shares_every(replace(config, shares_every=0), two, CPU) == 0
    graphs = replace(config, compile="reduce-overhead")
    assert shares_every(graphs, two, torch.device("cuda")) == 0
    with pytest.raises(ValueError, match="use --compile default, or --shares-every 0"):
        shares_every(replace(graphs, shares_every=3), two, torch.device("cuda"))


@pytest.mark.parametrize("changed", [{}, {"micro_batch": 3, "gradient_checkpointing": True, "mixed_precision": "bf16"}])
def test_a_run_has_the_same_bits_with_them_and_without(dropping, tmp_path, changed):
    def run(every):
        given = settings(dropping, tmp_path / f"{every}", steps=3, batch=6, shares_every=every, **changed)
        return train(Duel(), given, quiet=True).folder

    without, with_ = run(0), run(2)
    kept = {k: v for k, v in digest(with_).items() if k != "metrics.jsonl" and not k.startswith("model/README")}
    assert kept == {k: digest(without)[k] for k in kept}
    assert len([k for k in kept if k.endswith(".safetensors")]) >= 5
    shares = [{k: v for k, v in line.items() if k.startswith("share/")} for line in lines(with_)]
    assert [set(found) for found in shares] == [set(), {"share/denoising", "share/fooled"}, set()]
    assert sum(shares[1].values()) == pytest.approx(1)
    assert lines(without) == [{k: v for k, v in line.items() if not k.startswith("share/")} for line in lines(with_)]


def test_a_single_term_is_not_measured(tiny, tmp_path):
    run = train(recipes()["ddpm"](), settings(tiny, tmp_path / "run", steps=2, shares_every=1), quiet=True).folder
    assert not any(k.startswith("share/") for line in lines(run) for k in line)


def test_two_ranks_measure_what_one_process_does(zygote, tiny, tmp_path):
    code = f"""
    import os, sys
    sys.path.insert(0, {str(HERE)!r})
    from duel import Duel
    from percepta.training.job import train
    from percepta.training.settings import Settings
    from pathlib import Path
    given = {dict(FLAGS, network=tiny.network, steps=2, batch=5, shares_every=1, clip=None)!r}
    train(Duel(dropout=0.0), Settings(**given, out=Path(os.environ["RUN"])), quiet=True)
    """
    runs = []
    for size in (1, 2):
        runs.append(tmp_path / str(size))
        env = {"RUN": str(runs[-1])}
        for process in [zygote.start(code, **env)] if size == 1 else zygote.ranks(2, code, free_port(), **env):
            assert process.wait(100) == 0, process.err.read_text()
    one, two = ([line["share/fooled"] for line in lines(run)] for run in runs)
    assert one == pytest.approx(two, rel=1e-3)
    assert len(one) == 2

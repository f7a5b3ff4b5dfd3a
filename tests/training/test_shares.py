"""Each term's share of the gradient: what it is by hand, when it is measured, and that measuring it changes no bit."""

from dataclasses import dataclass, replace

import pytest
import torch
from duel import Duel
from processes import FLAGS, HERE, digest, free_port, lines
from torch import nn

from percepta.discrepancies.mmd import Linear
from percepta.estimate import Batch, Estimate
from percepta.interop import load_pipeline
from percepta.objectives import AbstractPerSample, Mmd, Term
from percepta.objectives.reconstruction import L1
from percepta.objectives.term import per_sample
from percepta.recipes import recipes
from percepta.recipes.mmd import TrainMmd
from percepta.rng import Rng
from percepta.spaces import Pixels
from percepta.training.job import train
from percepta.training.method import Method, Turn
from percepta.training.recipe import Context
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


def mmd_of(tiny, way):
    """A rollout with two terms of its own and one beside it."""
    recipe = TrainMmd(space="pixels", sampler_steps=2, denoising_weight=0.5, backprop=way)
    method = recipe.build(Context(3, 8, init=load_pipeline(tiny.pipeline).denoiser, micro_batch=2))
    return replace(method, terms=[*method.terms, Term("linear", Mmd(Pixels(), Linear(), chunk=2), 0.3)], players={})


def test_a_replay_measures_what_the_whole_graph_does_and_changes_no_bit(dropping):
    batch, found = Batch(torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1), {}
    for name, way, shares in (("full", "full", Shares()), ("replay", "replay", Shares()), ("none", "replay", None)):
        method, config = mmd_of(dropping, way), Settings(batch=5, steps=9)
        method.model.train()
        state = make_state(method, config, CPU)
        report = take_step(method, state, config, batch, Rng(0, tuple(range(5))), shares=shares)
        found[name] = report, [p.detach().clone() for p in method.model.parameters()]
    assert found["replay"][0].shares == pytest.approx(found["full"][0].shares, rel=1e-4)
    assert set(found["replay"][0].shares) == {"mmd", "linear", "denoising"}
    assert min(found["replay"][0].shares.values()) > 0.001
    assert sum(found["replay"][0].shares.values()) == pytest.approx(1)
    assert (found["none"][0].shares, found["none"][0].norms) == ({}, found["replay"][0].norms)
    assert all(torch.equal(a, b) for a, b in zip(found["none"][1], found["replay"][1], strict=True))


def test_a_term_alone_leaves_the_gradients_that_are_there(tiny):
    """Those of the micro-batches before it."""
    method = mmd_of(tiny, "replay")
    params = list(method.model.parameters())
    (turn,) = method.step(Batch(torch.zeros(4, 3, 8, 8)), Rng(0, tuple(range(4))))
    assert turn.alone is not None
    found = []
    for before in (None, 1.0):
        for p in params:
            p.grad = None if before is None else torch.full_like(p, before)
        found.append([turn.alone(name, 1.0, params) for name in ("mmd", "denoising")])
        assert all(p.grad is None if before is None else bool((p.grad == before).all()) for p in params)
    for a, b in zip(*found, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if x is not None)


def test_a_replay_measures_where_it_is_asked_to(tiny, tmp_path):
    recipe = TrainMmd(space="pixels", sampler_steps=2, denoising_weight=0.5)
    for every in (2, None):
        given = settings(tiny, tmp_path / f"{every}", network=None, init=tiny.pipeline, steps=2, shares_every=every, log_every=1)
        shares = [{k for k in line if k.startswith("share/")} for line in lines(train(recipe, given, quiet=True).folder)]
        assert shares == [set(), {"share/mmd", "share/denoising"} if every else set()]
    config = Settings(log_every=7)
    assert [shares_every(config, mmd_of(tiny, way), CPU) for way in ("replay", "auto", "checkpoint", "full")] == [0, 0, 70, 70]
    assert shares_every(replace(config, shares_every=3), mmd_of(tiny, "replay"), CPU) == 3


class Nameless(Method):
    """Its turn does not say which terms it sums."""

    def step(self, batch, rng):
        loss = sum(term(self.estimate(batch, rng)) for term in self.terms)
        yield Turn("model", loss, {"loss": loss.detach()})


def test_terms_that_nobody_names_are_told_to_who_asked():
    plain = small()
    method = Nameless(plain.model, plain.estimate, plain.terms, plain.product)
    assert step_of(method, None, Shares()).shares == {}
    with pytest.raises(ValueError, match="--shares-every was asked for, but this method's turns do not name their terms"):
        step_of(method, None, Shares(asked=True))


@pytest.mark.parametrize("name", ["duel", "mmd"])
def test_two_ranks_measure_what_one_process_does(zygote, tiny, tmp_path, name):
    start = {"network": tiny.network} if name == "duel" else {"network": None, "init": tiny.pipeline}
    code = f"""
    import os, sys
    sys.path.insert(0, {str(HERE)!r})
    from duel import Duel
    from percepta.recipes.mmd import TrainMmd
    from percepta.training.job import train
    from percepta.training.settings import Settings
    from pathlib import Path
    given = {dict(FLAGS, **start, steps=2, batch=5, shares_every=1, clip=None)!r}
    made = Duel(dropout=0.0) if {name!r} == "duel" else TrainMmd(space="pixels", sampler_steps=2, denoising_weight=0.5)
    train(made, Settings(**given, out=Path(os.environ["RUN"])), quiet=True)
    """
    runs = []
    for size in (1, 2):
        runs.append(tmp_path / str(size))
        env = {"RUN": str(runs[-1])}
        for process in [zygote.start(code, **env)] if size == 1 else zygote.ranks(2, code, free_port(), **env):
            assert process.wait(100) == 0, process.err.read_text()
    key = "share/fooled" if name == "duel" else "share/mmd"
    one, two = ([line[key] for line in lines(run)] for run in runs)
    assert one == pytest.approx(two, rel=1e-3)
    assert len(one) == 2

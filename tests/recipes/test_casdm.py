"""casdm and dual: who learns by what, what r learns by, and that the rows of the paper's table differ in flags alone."""

from dataclasses import replace

import pytest
import torch
from processes import FLAGS, digest, lines

from percepta.estimate import Batch
from percepta.objectives import Metric, Term
from percepta.objectives.cascade import MixedMean, step_coefficient
from percepta.path import Cosine, LinearBeta
from percepta.recipes.casdm import PRESETS, CasDm, mean_ratios
from percepta.recipes.ddpm import Ddpm
from percepta.recipes.dual import Dual
from percepta.rng import rng_for
from percepta.spaces.lpips import Lpips
from percepta.training.job import train
from percepta.training.knobs import WithMetric
from percepta.training.method import Method
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

CONTEXT = Context(3, 8, network="unet-pocket")


def batch(rows=4, dtype=torch.float32):
    return Batch(torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype) * 2 - 1)


def stirred(method: Method) -> Method:
    """Weights as after some training: the last layers begin at zero, and would hide what passes through them."""
    generator = torch.Generator().manual_seed(3)
    for p in method.model.parameters():
        with torch.no_grad():
            p.add_(0.05 * torch.randn(p.shape, generator=generator).to(p.dtype))
    return method


def gradients(method: Method, rows=4) -> dict[str, torch.Tensor]:
    (turn,) = method.step(batch(rows), rng_for(0, 0, rows))
    named = dict(method.model.named_parameters())
    found = torch.autograd.grad(turn.loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def with_metric(recipe: WithMetric) -> Method:
    method = stirred(recipe.build(CONTEXT))
    method.terms = [*method.terms, Term("metric", Metric(Lpips("squeeze", weights="random"), 32), 10.0)]
    return method


@pytest.mark.parametrize("knobs", [{}, {"phi": "fixres"}, {"phi_reads": "x0+eps"}, {"ratio": "raw", "clamp_x0": None}])
def test_no_metric_reaches_theta(knobs):
    """The paper's claim, to the bit, on real networks."""
    without, judged = gradients(stirred(CasDm(**knobs).build(CONTEXT))), gradients(with_metric(CasDm(**knobs)))
    theta = [name for name in without if ".theta." in name]
    assert len(theta) > 50
    assert all(torch.equal(without[name], judged[name]) for name in theta)
    phi = [name for name in without if ".phi." in name]
    assert len(phi) > 30 and not any(
        torch.equal(without[name], judged[name]) for name in phi if "conv" in name and "weight" in name
    )


def test_the_trunk_of_dual_diffusion_does_receive_it():
    without, judged = gradients(stirred(Dual().build(CONTEXT))), gradients(with_metric(Dual()))
    assert not torch.equal(without["network.model.theta.conv_in.weight"], judged["network.model.theta.conv_in.weight"])


@pytest.mark.parametrize("path", [Cosine(4000), LinearBeta(1000)])
def test_the_mixed_mean_is_that_of_the_printed_equations(path):
    """Equations 9 to 11 and the posterior mean, in float64, against the error in x0."""
    method = stirred(CasDm(schedule="cosine" if isinstance(path, Cosine) else "linear", timesteps=path.num_steps).build(CONTEXT))
    method.model.double()
    est = method.estimate(batch(dtype=torch.float64), rng_for(0, 0, 4))
    k = (est.t * path.num_steps).round().long()
    abar, before = (path.abar[i].reshape(-1, 1, 1, 1) for i in (k, k - 1))
    alpha, beta = abar / before, 1 - abar / before
    x_t, r, x0, star = est.noised.x_t, est.taps["ratio"], est.x0_hat, est.taps["star"]
    eps = (x_t - abar.sqrt() * star) / (1 - abar).sqrt()  # of the clamped x0*, as samplers use it

    def mean(clean):
        return before.sqrt() * beta / (1 - abar) * clean + alpha.sqrt() * (1 - before) / (1 - abar) * x_t

    by_noise = x_t / alpha.sqrt() - beta / ((1 - abar).sqrt() * alpha.sqrt()) * eps
    torch.testing.assert_close(by_noise, mean(star), rtol=1e-9, atol=1e-12)
    expected = (mean(est.x0) - r * mean(x0) - (1 - r) * by_noise).square().flatten(1).mean(1)
    torch.testing.assert_close(MixedMean()(est), expected, rtol=1e-6, atol=1e-15)
    torch.testing.assert_close(MixedMean(plain=True)(est) * step_coefficient(path, est.t) ** 2, expected, rtol=1e-6, atol=1e-15)


def test_by_the_mixed_mean_only_r_learns():
    est = stirred(CasDm().build(CONTEXT)).estimate(batch(), rng_for(0, 0, 4))
    r = est.taps["ratio"]
    (found,) = torch.autograd.grad(MixedMean()(est).sum(), r, retain_graph=True)
    assert found.abs().min() > 0
    assert torch.autograd.grad(MixedMean()(est).sum(), est.x0_hat, allow_unused=True, retain_graph=True)[0] is None


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_r_learns_where_x0_is_the_better_guess(precision):
    """By the mixed mean alone, as printed, with gradients of 1e-6, under autocast too."""
    recipe = CasDm(clamp_x0=None)
    method = recipe.build(CONTEXT)
    method.terms = [term for term in method.terms if term.name == "mu"]
    settings = Settings(batch=8, lr=3e-3, steps=12, clip=None, mixed_precision=precision)
    state = make_state(method, settings, torch.device("cpu"))
    with torch.no_grad():
        before = mean_ratios(method.estimate(batch(32), rng_for(1, 0, 32)))
    for step in range(12):
        assert take_step(method, state, settings, batch(8), rng_for(0, 8 * step, 8, step)).bad is None
        state.step += 1
    with torch.no_grad():
        after = mean_ratios(method.estimate(batch(32), rng_for(1, 0, 32)))
    assert before["ratio/high"] == pytest.approx(0.5, abs=1e-3) and after["ratio/high"] > 0.58, (before, after)


def test_mean_ratios_are_means_over_all_rows():
    method = CasDm(ratio="raw").build(CONTEXT)
    est = method.estimate(batch(64), rng_for(0, 0, 64))
    level = 0.5 + 0.3 * est.t.float().reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    found = mean_ratios(replace(est, taps={**est.taps, "ratio": level}))
    assert found["ratio/low"] == pytest.approx(0.55, abs=0.03) and found["ratio/high"] == pytest.approx(0.75, abs=0.05)
    parts = [
        mean_ratios(replace(est.select(keep), taps={"ratio": level[keep]}))
        for keep in (torch.arange(64) < 32, torch.arange(64) >= 32)
    ]
    assert sum(part["ratio/mid"] for part in parts) / 2 == pytest.approx(float(found["ratio/mid"]), abs=1e-6)


@pytest.mark.parametrize("recipe", [CasDm, Dual, Ddpm])
def test_metrics_are_flags_of_all_rows(recipe, monkeypatch):
    monkeypatch.setattr(
        "percepta.training.knobs.open_metric", lambda name, domain: Lpips(name.removeprefix("lpips-"), weights="random")
    )
    made = recipe(metric="lpips-alex:2,lpips-squeeze", metric_size=32, metric_every=2, metric_max_level=1.5).build(CONTEXT)
    terms = {term.name: term for term in made.terms if term.name.startswith("metric")}
    assert {name: term.scale for name, term in terms.items()} == {"metric/lpips-alex": 0.2, "metric/lpips-squeeze": 0.1}
    with torch.no_grad():
        est = made.estimate(batch(), rng_for(0, 0, 4))
    assert (terms["metric/lpips-alex"].keep(est) == (est.level <= 1.5)).all()
    assert [float(terms["metric/lpips-squeeze"].at(est, step)) > 0 for step in range(4)] == [False, True, False, True]
    assert terms["metric/lpips-squeeze"].at(est, 1) == 2 * terms["metric/lpips-squeeze"](est)
    alone = recipe(metric="lpips-alex").build(CONTEXT)
    assert alone.terms[-1].name == "metric" and alone.terms[-1].scale == 0.1
    assert not any("metric" in term.name for term in recipe(metric="lpips-alex").build(replace(CONTEXT, trains=False)).terms)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"metric": "lpisp"}, r"unknown metric 'lpisp' \(did you mean lpips"),
        ({"metric": "lpips-alex", "metric_every": 0}, "--metric-every must be at least 1, got 0"),
        ({"metric": "lpips-alex", "metric_weight": -1.0}, "--metric-weight must be at least 0"),
        (
            {"metric": "domain", "metric_share": 1.0},
            "a share of the gradient lies between 0 and 1, got 1|metric 'domain' is an encoder",
        ),
        ({"cond_dropout": 1.0}, r"--cond-dropout must lie in \[0, 1\)"),
        ({"clamp_x0": 0.0}, "clamp bounds x0\\* and is positive"),
    ],
)
def test_wrong_knobs_are_told(knobs, message):
    with pytest.raises(ValueError, match=message):
        CasDm(**knobs).build(CONTEXT)


def test_latents_and_other_networks_are_refused():
    with pytest.raises(ValueError, match="leave --vae away"):
        CasDm().build(replace(CONTEXT, vae=object()))
    with pytest.raises(ValueError, match="made of U-Nets, unet-pocket"):
        CasDm().build(replace(CONTEXT, network="dit-pocket"))


def settings(out, **changed):
    return replace(CasDm.default_settings(), **{**FLAGS, "network": "unet-pocket", "out": out, **changed})


def test_a_run_goes_on_exactly_and_its_end_begins_another(tmp_path):
    straight = train(CasDm(), settings(tmp_path / "a", steps=4, checkpoint_every=2), quiet=True)
    train(CasDm(), settings(tmp_path / "b", steps=4, checkpoint_every=2), quiet=True)
    for folder in (tmp_path / "b").glob("checkpoint-4"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    again = train(CasDm(), settings(tmp_path / "b", steps=4, checkpoint_every=2, resume=True), quiet=True)
    assert digest(straight.folder) == digest(again.folder)
    assert {"eps", "x0", "mu", "ratio/low", "ratio/high"} <= lines(straight.folder)[-1].keys()
    begun = settings(tmp_path / "c", network=None, init=str(straight.folder), steps=1)
    assert train(CasDm(), begun, quiet=True).finished
    for recipe, message in ((CasDm(ratio="raw"), "give --ratio as it is there"), (Dual(), "no model of the recipe dual"),
                            (CasDm(timesteps=10), "give --timesteps as it is there"), (CasDm(phi="fixres"), "give --phi as it is"),
                            (CasDm(phi_reads="x0+eps"), "give --phi-reads as"), (Ddpm(), "a model of casdm or dual")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            train(recipe, replace(begun, out=tmp_path / "d"), quiet=True)


def test_a_weight_follows_the_share_that_is_wanted_and_goes_on_exactly(tmp_path, monkeypatch):
    """From a weight a thousand times too small; resumed, the same."""
    monkeypatch.setattr("percepta.training.knobs.open_metric", lambda name, domain: Lpips("squeeze", weights="random"))
    recipe = CasDm(metric="lpips-squeeze", metric_size=32, metric_weight=1e-4, metric_share=0.2)
    chosen = {"steps": 12, "checkpoint_every": 6, "log_every": 1, "batch": 4, "lr": 1e-3}
    straight = train(recipe, settings(tmp_path / "a", **chosen), quiet=True)
    found = lines(straight.folder)
    assert found[0]["share/metric"] < 0.01 and found[-1]["share/metric"] == pytest.approx(0.2, abs=0.1), found[-1]
    assert found[-1]["weight/metric"] > 20 * found[0]["weight/metric"] > 1e-4
    train(recipe, settings(tmp_path / "b", **chosen), quiet=True)
    for file in (tmp_path / "b" / "checkpoint-12").iterdir():
        file.unlink()
    (tmp_path / "b" / "checkpoint-12").rmdir()
    again = train(recipe, settings(tmp_path / "b", **chosen, resume=True), quiet=True)
    assert digest(straight.folder) == digest(again.folder)
    with pytest.raises(ValueError, match="has to be measured: leave --shares-every 0"):
        train(recipe, settings(tmp_path / "c", shares_every=0), quiet=True)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_papers(name):
    recipe, chosen = CasDm.preset(name)
    assert (recipe.timesteps, chosen.batch, chosen.steps, chosen.lr, chosen.sample_steps) == (4000, 128, 400_000, 1e-4, 100)
    method = recipe.build(Context(3, chosen.size, network=chosen.network))
    assert method.model.formulation.path == Cosine(4000)

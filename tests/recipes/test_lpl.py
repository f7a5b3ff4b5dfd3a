"""lpl: the weight that is found and kept, what each loss is, and that a model goes on from a checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import FLAGS, digest, lines, small_autoencoder

from percepta.estimate import Batch
from percepta.formulation import LogitNormalTimes, UniformTimes
from percepta.networks import Autoencoder
from percepta.objectives import Calibrated, Denoising, LatentPerceptual, Metric, Term
from percepta.objectives.self_perceptual import SelfPerceptual
from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.recipes.lpl import PRESETS, TrainLpl
from percepta.rng import rng_for
from percepta.training.calibration import calibrate
from percepta.training.job import train
from percepta.training.method import Method
from percepta.training.recipe import Context
from percepta.training.settings import Settings


def context(tiny, **more) -> Context:
    return Context(3, 8, network=tiny.network, vae=Autoencoder(small_autoencoder()), **more)


def settings(tiny, out, **changed):
    return replace(
        TrainLpl.default_settings(), **{**FLAGS, "network": tiny.network, "vae": tiny.vae, "size": 16, "out": out, **changed}
    )


@pytest.mark.parametrize(
    ("knobs", "path", "output"),
    [
        ({}, Rectified(), "flow"),
        ({"predict": "eps"}, LinearBeta(1000), "noise"),
        ({"predict": "v", "schedule": "cosine", "timesteps": 100}, Cosine(100), "velocity"),
        ({"predict": "x0"}, LinearBeta(1000), "clean"),
        ({"predict": "edm"}, VarianceExploding(), "edm"),
    ],
)
def test_every_formulation_has_its_loss(tiny, knobs, path, output):
    method = TrainLpl(**knobs).build(context(tiny))
    assert (method.model.formulation.path, method.model.formulation.output) == (path, output)
    assert [term.name for term in method.terms] == ["denoising", "lpl"]
    lpl = method.terms[1].objective
    assert isinstance(lpl, LatentPerceptual) and lpl.space.upscale == (1, 2, 2) and lpl.pixels == [2, 1, 1]
    (turn,) = method.step(Batch(torch.randn(4, 3, 8, 8)), rng_for(0, 0, 4))
    turn.loss.backward()
    assert any(p.grad is not None for p in method.model.parameters())
    assert all(p.grad is None for p in lpl.space.parameters())


def test_times_of_a_flow(tiny):
    assert TrainLpl().build(context(tiny)).model.formulation.times == LogitNormalTimes()
    assert TrainLpl(times="uniform").build(context(tiny)).model.formulation.times == UniformTimes()


def test_times_of_a_flow_that_is_gone_on_with(tiny):
    given = replace(context(tiny), network=None, init=TrainLpl().build(context(tiny)).model)
    assert TrainLpl().build(given).model.formulation.times == LogitNormalTimes()
    assert TrainLpl(times="uniform").build(given).model.formulation.times == UniformTimes()
    eps = replace(context(tiny), network=None, init=TrainLpl(predict="eps").build(context(tiny)).model)
    with pytest.raises(ValueError, match="leave it away"):
        TrainLpl(times="uniform").build(eps)


def test_what_a_weight_is_found_by_moves_with_the_method(tiny):
    """The autoencoder of equation 15 judges no term, and is needed all the same."""
    method = TrainLpl(loss="reweight").build(context(tiny))
    method.to(torch.device("meta"))
    assert next(method.terms[1].calibrated.by.objective.space.parameters()).device.type == "meta"


def flat(count: int):
    """Batches as a run has them, on one rank."""

    def batches(first: int, last: int):
        for step in range(first, last):
            rows = range(step * count, (step + 1) * count)
            yield tuple(rows), Batch(torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(step)))

    return batches


def measured(method: Method, rule: str, micro: int | None = None) -> float:
    given = Settings(batch=16, steps=100, micro_batch=micro)
    return calibrate(method, flat(16), given, torch.device("cpu"))[method.terms[1].name if rule != "levels" else "reweight"]


@pytest.mark.parametrize("predict", ["flow", "eps"])
def test_the_weight_is_what_the_rule_says(tiny, predict):
    """Against the same numbers by hand: means over all samples, variances over those with little noise."""
    plain, own, near = [], [], []
    method = TrainLpl(predict=predict).build(context(tiny))
    first, second = method.terms
    for step, (ordinals, batch) in enumerate(flat(16)(0, 8)):
        with torch.no_grad():
            est = method.estimate(batch, rng_for(0, ordinals[0], 16, step))
            l2, level = first.losses(est).double(), est.level
            lpl = second.objective(est).double()
        plain.append(l2)
        own.append(torch.where(level <= 3, lpl, 0))
        near.append(level <= 3)
    l2, lpl, kept = torch.cat(plain), torch.cat(own), torch.cat(near)
    assert 0 < int(kept.sum()) < 128
    assert measured(method, "share") == pytest.approx(float(0.25 * l2.mean() / lpl.mean()), rel=1e-4)
    variances = l2[kept].var(correction=0), lpl[kept].var(correction=0)
    found = measured(TrainLpl(predict=predict, weight_rule="variance").build(context(tiny)), "variance")
    assert found == pytest.approx(float((0.1 * variances[0] / variances[1]).sqrt()), rel=1e-4)
    found = measured(TrainLpl(predict=predict, loss="reweight", loss_weight="2").build(context(tiny)), "levels")
    assert found == pytest.approx(float(2 * variances[1] / variances[0]), rel=1e-4)
    by_share = measured(TrainLpl(predict=predict, loss="reweight").build(context(tiny)), "levels")
    assert by_share == pytest.approx(float(0.25 * l2.mean() / lpl.mean() * variances[1] / variances[0]), rel=1e-4)


def test_micro_batches_find_the_same_weight(tiny):
    whole, parts = (measured(TrainLpl().build(context(tiny)), "share", micro) for micro in (None, 5))
    assert whole == pytest.approx(parts, rel=1e-5)


def test_the_weight_is_kept_logged_and_resumed_exactly(tiny, tmp_path):
    chosen = {"steps": 4, "checkpoint_every": 2, "log_every": 1}
    straight = train(TrainLpl(), settings(tiny, tmp_path / "a", **chosen), quiet=True)
    found = lines(straight.folder)
    weight = json.loads((straight.folder / "config.json").read_text())["resolved"]["weights"]["lpl"]
    assert {line["weight/lpl"] for line in found} == {weight} and weight != 1
    part = [line["lpl"] / (line["lpl"] + line["denoising"]) for line in found]
    assert 0.1 < sum(part) / len(part) < 0.3
    train(TrainLpl(), settings(tiny, tmp_path / "b", **chosen), quiet=True)
    for file in (tmp_path / "b" / "checkpoint-4").iterdir():
        file.unlink()
    (tmp_path / "b" / "checkpoint-4").rmdir()
    again = train(TrainLpl(), settings(tiny, tmp_path / "b", **chosen, resume=True), quiet=True)
    assert digest(straight.folder) == digest(again.folder)
    assert json.loads((again.folder / "config.json").read_text())["resolved"]["weights"]["lpl"] == weight


def test_post_training_and_what_it_is_compared_with(tiny, tmp_path):
    base = train(TrainLpl(loss="none"), settings(tiny, tmp_path / "base", steps=2), quiet=True)
    assert "lpl" not in lines(base.folder)[-1]
    go = settings(tiny, tmp_path / "x", network=None, init=str(base.folder), steps=1, cache=tmp_path / "cache")
    for knobs, name in (
        ({}, "lpl"),
        ({"loss": "self-perceptual", "max_level": None}, "self-perceptual"),
        ({"loss": "self-perceptual", "max_level": None, "alone": True}, "self-perceptual"),
        ({"loss": "reweight"}, "reweight"),
        ({"weight": "min-snr", "loss": "none"}, "denoising"),
        ({"outliers": "union", "norm": "pixel-target", "decode_crop": 4, "layers": "0,1", "layer_weights": "halving"}, "lpl"),
    ):
        out = tmp_path / f"{name}-{len(knobs)}"
        line = lines(train(TrainLpl(**knobs), replace(go, out=out), quiet=True).folder)[-1]
        assert line[name] > 0 and ("denoising" in line) != knobs.get("alone", False), (knobs, line)


def test_the_terms_are_what_they_are_called(tiny):
    assert TrainLpl(loss="none").build(context(tiny)).terms[0].weight.__name__ == "flow"
    reweight = TrainLpl(loss="reweight").build(context(tiny)).terms[1]
    assert isinstance(reweight.objective, Denoising) and isinstance(reweight.calibrated.by.objective, LatentPerceptual)
    method = TrainLpl().build(context(tiny))
    alone = TrainLpl(loss="self-perceptual", alone=True).build(context(tiny, init=method.model).__class__(
        **{**context(tiny).__dict__, "network": None, "init": method.model}))  # fmt: skip
    assert [type(term.objective) for term in alone.terms] == [SelfPerceptual]
    assert not any(p.requires_grad for p in alone.terms[0].objective.frozen.parameters())


def test_latent_lpips_reads_the_latents(tiny, monkeypatch):
    from percepta.spaces.latent_lpips import LatentLpips

    made = LatentLpips("random", 3, widths=(4, 4, 4, 4, 4))
    monkeypatch.setattr("percepta.recipes.lpl.LatentLpips", lambda weights, channels: made)
    terms = TrainLpl(loss="latent-lpips", latent_vgg=Path("mine")).build(context(tiny)).terms
    assert isinstance(terms[1].objective, Metric) and terms[1].objective.space is made
    with pytest.raises(ValueError, match="give --latent-vgg"):
        TrainLpl(loss="latent-lpips").build(context(tiny))


def test_a_checkpoint_is_exported_without_what_judged_it(tiny):
    assert [term.name for term in TrainLpl().build(context(tiny, trains=False)).terms] == ["denoising"]


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"loss_weight": "much"}, "--loss-weight is a number above 0, or auto"),
        ({"loss_weight": "0"}, "--loss-weight is a number above 0, or auto"),
        ({"weight_part": 1.5}, "--weight-part 1.5: a share of 1.5 cannot be"),
        ({"layers": "0,mid"}, "--layers names layers"),
        ({"layers": "0,7"}, "--layers 0,7: this decoder has the layers 0 .mid block. to 2"),
        ({"decode_crop": 9}, "--decode-crop 9 is larger than the latents, which are 8 wide"),
        ({"loss": "self-perceptual"}, "say which with --init"),
        ({"loss": "reweight", "alone": True}, "--alone leaves out"),
        ({"loss": "none", "alone": True}, "--alone leaves it out"),
        ({"loss": "reweight", "max_level": None}, "give a level"),
        ({"max_level": -1.0}, "--max-level is .* above 0"),
        ({"predict": "eps", "times": "uniform"}, "leave it away"),
        ({"predict": "eps", "gamma": 2.0}, "has no gamma"),
    ],
)
def test_wrong_knobs_are_told(tiny, knobs, said):
    with pytest.raises(ValueError, match=said):
        TrainLpl(**knobs).build(context(tiny))


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        *(({"loss": loss, **flag}, f"--{name} belongs to --loss lpl, reweight; --loss {loss} does not read it")
          for loss in ("none", "latent-lpips", "self-perceptual")
          for name, flag in {
              "layers": {"layers": "0"}, "layer-weights": {"layer_weights": "equal"}, "norm": {"norm": "target"},
              "outliers": {"outliers": "none"}, "decode-crop": {"decode_crop": 4}, "decode-precision": {"decode_precision": "bf16"},
              "decode-checkpointing": {"decode_checkpointing": True},
          }.items()),
        *(({"loss": "none", flag.replace("-", "_"): value}, f"--{flag} belongs to .*--loss none does not read it")
          for flag, value in {"loss-weight": "1", "weight-rule": "variance", "weight-part": 0.3, "max-level": None}.items()),
        ({"depth": 2}, "--depth belongs to --loss self-perceptual; --loss lpl does"),
        ({"loss": "reweight", "latent_vgg": Path("x")}, "--latent-vgg belongs to --loss latent-lpips; --loss reweight does"),
        ({"loss_weight": "2", "weight_part": 0.3}, "--weight-part says how .* and --loss-weight is 2"),
        ({"alone": True, "weight_rule": "variance"}, "--weight-rule says how .* and --alone"),
        ({"alone": True, "weight": "min-snr"}, "--weight and --gamma weigh .* --alone"),
        ({"loss": "none", "alone": True}, "--loss none leaves"),
        ({"loss": "reweight", "alone": True}, "--loss reweight weighs"),
        ({"loss": "reweight", "max_level": None}, "give a level"),
        ({"weight_part": 2.0}, "--weight-part 2.0: a share of 2 cannot be"),
        ({"loss_weight": "-1"}, "--loss-weight is a number above 0"),
        ({"layers": "mid"}, "--layers names layers"),
        ({"decode_crop": 0}, "--decode-crop is .* 1 or more"),
        ({"max_level": 0.0}, "--max-level is"),
        ({"predict": "edm", "times": "uniform"}, "--times says how .*--predict is edm"),
        ({"predict": "flow", "schedule": "cosine"}, "--schedule belongs to --predict eps"),
        ({"gamma": 2.0}, "has no gamma"),
    ],
)  # fmt: skip
def test_flags_alone_are_refused_where_they_are_given(knobs, said):
    with pytest.raises(ValueError, match=said):
        TrainLpl(**knobs)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"layers": "0,9"}, "--layers 0,9: this decoder has the layers 0 .mid block. to 2"),
        ({"decode_crop": 9}, "--decode-crop 9 is larger than the latents, which are 8 wide"),
        ({"loss": "self-perceptual"}, "say which with --init"),
        ({"loss": "latent-lpips", "latent_vgg": Path("nowhere")}, "--latent-vgg nowhere: does not exist"),
        ({"timesteps": 10}, "--schedule and --timesteps belong to"),
    ],
)
def test_what_needs_the_autoencoder_is_refused_before_latents_are_encoded(tiny, tmp_path, knobs, said):
    with pytest.raises(ValueError, match=said):
        train(TrainLpl(**knobs), settings(tiny, tmp_path / "run", cache=tmp_path / "cache"), quiet=True)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


def test_images_are_refused_and_an_init_of_another_meaning(tiny):
    with pytest.raises(ValueError, match="say whose with --vae"):
        TrainLpl().build(replace(context(tiny), vae=None))
    init = TrainLpl().build(context(tiny)).model
    with pytest.raises(ValueError, match="leave --predict, --schedule away"):
        TrainLpl(predict="eps", schedule="linear").build(replace(context(tiny), network=None, init=init))


def test_no_sample_in_the_gate_is_told(tiny):
    method = TrainLpl(max_level=1e-6).build(context(tiny))
    with pytest.raises(ValueError, match="0 samples are judged"):
        measured(method, "share")
    assert Term("x", Denoising(), calibrated=Calibrated("share", 0.5)).calibrated is not None


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_papers(name):
    recipe, chosen = TrainLpl.preset(name)
    assert (recipe.loss, recipe.max_level, chosen.network) == ("lpl", 3.0, "mmdit-xl-2")
    assert chosen.steps == (120_000 if chosen.size == 512 else 200_000)

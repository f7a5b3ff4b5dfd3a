"""LaDiffGAN as a whole: every generator, every option, what each turn moves, what stays frozen, and what is refused."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from latent_parts import bits, same
from processes import lines
from translators import ALONE, CPU, KINDS, built, judges, made, settings, stub

import percepta.training.step as step_module
from percepta.networks import Autoencoder, load_model
from percepta.recipes import recipes
from percepta.recipes.ladiffgan import LOSSES, PRESETS, TrainLadiffgan
from percepta.rng import rng_for
from percepta.training.job import train
from percepta.training.recipe import Context
from percepta.training.reopen import export_run
from percepta.training.signals import Interrupted
from percepta.training.step import take_step


@pytest.mark.parametrize("generator", KINDS)
@pytest.mark.parametrize("noised", [False, True], ids=["plain", "diffusion-gan"])
def test_every_generator_trains_saves_and_loads_back(generator, noised, tmp_path):
    if noised and generator not in ("ugatit", "unit"):
        pytest.skip("two are enough")
    run = train(
        made(generator=generator, diffusion_gan=noised, **ALONE), settings(tmp_path / "run", checkpoint_every=1), quiet=True
    )
    found = lines(run.folder)
    adversarial = {f"{critic}adversarial/{d}" for d in "ab" for critic in ("", "critic/")}
    assert adversarial | {name for name, _, weight in LOSSES[generator] if weight} <= set(found[-1])
    assert ("adversarial/a/T" in found[-1]) == noised
    assert (run.folder / "samples" / "step-0000002.png").is_file()
    pair = load_model(run.model)
    assert type(pair) is KINDS[generator]
    with torch.no_grad():
        assert pair.translate(torch.zeros(1, 3, 16, 16), "a2b").shape == (1, 3, 16, 16)
    rhos = [p for name, p in pair.named_parameters() if name.endswith("rho")]
    assert bool(rhos) == (generator == "ugatit") and all(p.min() >= 0 and p.max() <= 1 for p in rhos)
    assert export_run(recipes(), run.folder, tmp_path / "one", step=1) == 1  # without the critics
    assert not same(bits(load_model(tmp_path / "one")), bits(pair))
    assert export_run(recipes(), run.folder, tmp_path / "two") == 2
    assert same(bits(load_model(tmp_path / "two")), bits(pair))


def test_rho_comes_back_into_its_bounds_in_a_run(phases):
    method, state, given, batch, _ = built(phases, **ALONE)
    rhos = [p for name, p in method.model.named_parameters() if name.endswith("rho")]
    with torch.no_grad():
        for p in rhos:
            p.copy_(torch.linspace(-1, 2, p.numel()).view_as(p))
    take_step(method, state, given, batch, rng_for(0, 0, 2))
    assert all(p.min() == 0 and p.max() == 1 for p in rhos)


OPTIONS = [("A", "A"), ("B", "C"), ("none", "B")]


@pytest.mark.parametrize(("latent_gan", "denoising"), OPTIONS)
def test_each_turn_moves_its_player_only_and_no_judge(phases, monkeypatch, latent_gan, denoising):
    method, state, given, batch, found = built(phases, generator="cyclegan", latent_gan=latent_gan, denoising=denoising)
    frozen, real, moved = judges(method), step_module._move, []
    before, flags = bits(*frozen), [p.requires_grad for part in frozen for p in part.parameters()]
    assert frozen and not any(flags)

    def spy(player):
        was = {name: bits(p.module) for name, p in state.players.items()}
        assert all(p.grad is None for name, other in state.players.items() if name != player.name for p in other.params)
        real(player)
        moved.append((player.name, {name for name, p in state.players.items() if not same(was[name], bits(p.module))}))

    monkeypatch.setattr(step_module, "_move", spy)
    report = take_step(method, state, given, batch, rng_for(0, 0, 2))
    critics = ["adversarial/a", "adversarial/b"] + (["latent-gan/a", "latent-gan/b"] if latent_gan == "A" else [])
    assert moved == [(name, {name}) for name in [*critics, "model"]]
    supervised = {
        f"{name}/{d}" for name, option in (("latent-gan", latent_gan), ("denoising", denoising)) if option != "none" for d in "ab"
    }
    assert {f"critic/{name}" for name in critics} | supervised | {"cycle", "identity"} <= set(report.losses)
    assert same(before, bits(*frozen)) and all(p.grad is None for part in frozen for p in part.parameters())
    features = ["features of A", "features of B"] if latent_gan == "B" else []
    assert sorted(found) == sorted([f"{what} of {d}" for what in ("autoencoder", "prior") for d in "AB"] + features)


def reached(method, batch, name):
    """The greatest gradient of a term at the generators that it is to teach."""
    est = method.estimate(batch, rng_for(0, 0, 2))
    (term,) = (term for term in method.terms if term.name == name)
    loss = term(est)
    if not loss.requires_grad:
        return 0.0
    found = torch.autograd.grad(loss, list(method.model.parameters()), allow_unused=True)
    return max((float(g.abs().max()) for g in found if g is not None), default=0.0)


@pytest.mark.parametrize(
    ("option", "name"),
    [({"latent_gan": "A"}, "latent-gan"), ({"latent_gan": "B"}, "latent-gan")] + [({"denoising": o}, "denoising") for o in "ABC"],
    ids=str,
)
def test_frozen_encoders_pass_the_gradient_on_and_a_planted_no_grad_is_seen(phases, monkeypatch, option, name):
    method, _, _, batch, _ = built(phases, generator="cyclegan", **{**ALONE, **option})
    assert all(reached(method, batch, f"{name}/{d}") > 0 for d in "ab")
    real = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda *args: torch.no_grad()(real)(*args))
    assert [reached(method, batch, f"{name}/{d}") for d in "ab"] == [0, 0]


def test_nothing_is_left_switched_after_an_exception(phases, monkeypatch):
    method, state, given, batch, _ = built(phases, generator="cyclegan")
    modules = [*method.players.values(), *judges(method)]
    before = [(p.requires_grad, part.training) for part in modules for p in part.parameters()]
    monkeypatch.setattr(Autoencoder, "encode", lambda *_: (_ for _ in ()).throw(RuntimeError("planted")))
    with pytest.raises(RuntimeError, match="planted"):
        take_step(method, state, given, batch, rng_for(0, 0, 2))
    assert [(p.requires_grad, part.training) for part in modules for p in part.parameters()] == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("stopped", [False, True], ids=["whole", "stopped"])
def test_what_is_drawn_meanwhile_leaves_the_pair_in_training(phases, monkeypatch, stopped):
    method, _, given, batch, _ = built(phases, generator="cyclegan", **ALONE)
    translate, modes, product = method.model.translate, [], method.product

    def watched(*args):
        modes.append(any(part.training for part in method.model.modules()) or torch.is_grad_enabled())
        if stopped:
            raise Interrupted
        return translate(*args)

    monkeypatch.setattr(method.model, "translate", watched)
    judged, _ = product.judged(given, CPU, lambda *_: None, None)
    for draw in (lambda: product.preview(replace(given, sample_num=6), CPU, lambda *_: None), lambda: judged(batch.source, "a2b")):
        with pytest.raises(Interrupted) if stopped else nullcontext():
            draw()
        assert modes and not any(modes) and all(part.training for part in method.model.modules())
        assert torch.is_grad_enabled() and all(p.requires_grad for p in method.model.parameters())
        modes.clear()


def test_previews_are_rows_of_image_translation_and_back(phases):
    method, _, given, batch, _ = built(phases, generator="cyclegan", **ALONE)
    shown, told = method.product.preview(replace(given, sample_num=12), CPU, lambda *_: None)
    assert len(shown) == told["num"] == 12 and told["columns"] == ["image", "translation", "back"]
    assert told["rows"] == {"a2b": 2, "b2a": 2}
    assert torch.equal(shown[0:6:3], batch.source) and torch.equal(shown[6::3], batch.x0)
    with torch.no_grad():
        method.model.eval()
        assert torch.allclose(shown[1], method.model.translate(batch.source[:1], "a2b")[0], atol=1e-5)
        assert torch.allclose(shown[8], method.model.translate(shown[7:8], "a2b")[0], atol=1e-5)


def test_an_evaluation_translates_the_test_sets_of_both_domains(phases):
    method, _, given, _, _ = built(phases, generator="cyclegan", **ALONE)
    sets = method.product.tests(replace(given, eval_num=3, eval_data="shapes:length=4,domain=filled,part=test"))
    assert "part=test" in sets.a.name and (sets.pairing, sets.num, len(sets.b)) == ("scenes", 3, 4)
    translate, told = method.product.judged(given, CPU, lambda *_: None, sets)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert told["by"] == "translations" and method.model.training
    for way in ("a2b", "b2a"):
        found = translate(x, way)
        assert method.model.training and not found.requires_grad
        with torch.no_grad():
            assert torch.allclose(found, method.model.eval().translate(x, way))
        method.model.train()
    own = method.product.tests(given)  # without test images of B: its training images, which are no pairs
    assert own.b.name == given.data and own.pairing == "none"


def test_the_target_is_the_data_and_its_test_set_what_an_evaluation_compares_with(tmp_path):
    recipe, given = made().settled(settings(tmp_path, eval_every=5))
    assert recipe.source != given.data and recipe.target == given.data and recipe.translates == recipe.source
    assert "part=test" in given.eval_data
    assert recipe.settled(given) == (recipe, given)  # as a run that goes on reads it back
    assert replace(recipe, source=made().source).settled(given) == (recipe, given)  # beside the flags of the same command
    assert made().settled(settings(tmp_path, eval_every=5, eval_data="shapes:length=3"))[1].eval_data == "shapes:length=3"
    assert made().settled(settings(tmp_path))[1].eval_data is None


def test_what_is_given_or_has_no_weight_is_not_trained(tmp_path):
    def asked(**knobs):
        names = []
        recipe, given = made(**knobs).settled(settings(tmp_path))
        return names, recipe.prepared(given, lambda name, phase, its: (names.append((name, its)), tmp_path / name)[1])

    assert asked(**ALONE)[0] == asked(latent_gan_weight=0.0, denoising_weight=0.0)[0] == []
    mine, own = stub(tmp_path / "mine", "AutoencoderKL"), stub(tmp_path / "own", "LatentPrior")
    names, recipe = asked(autoencoder_a=mine, prior_b=own)
    assert [name for name, _ in names] == ["autoencoder of B", "prior of A"]
    assert (recipe.autoencoder_a, recipe.prior_b, recipe.prior_a) == (tmp_path / "mine", tmp_path / "own", tmp_path / "prior of A")
    assert {its.crop for _, its in names} == {"stretch"}  # what stands for jitter, of which training draws the place
    assert [name for name, _ in asked(denoising="none")[0]] == ["autoencoder of A", "autoencoder of B"]
    (_, recipe) = asked(denoising_weight=0.0)
    assert recipe.prior_a is None


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"cycle_weight": -1.0}, "--cycle-weight must be 0 or more"),
        ({"latent_gan_weight": float("inf")}, "--latent-gan-weight must be 0 or more"),
        ({"generator": "unit", "identity_weight": 1.0}, "--identity-weight is not among the losses of --generator unit"),
        ({"generator": "cyclegan", "cam_weight": 1.0}, "--cam-weight is not among the losses"),
        ({"generator": "munit", "light": False}, "--no-light belongs to --generator ugatit"),
        ({"latent_gan_share": 1.0}, "--latent-gan-share is a part of the gradient"),
        ({"denoising_share": 0.0}, "--denoising-share is a part of the gradient"),
        ({"latent_gan_share": 0.6, "denoising_share": 0.4}, "leave the critics nothing"),
        ({"latent_times": "0.5"}, "--latent-times: times are two fractions of the path"),
        ({"denoising_times": "0.9999:1"}, "--denoising-times: of 1000 steps none lies between"),
        ({"denoising_times": "0.8:0.2"}, "low < high"),
        ({"prior_steps": 0}, "--prior-steps must be 1 or more"),
        ({"channels": 0}, "--channels is even"),
        ({"channels": 9}, "--channels is even"),
    ],
    ids=lambda c: next(iter(c)) if isinstance(c, dict) else "",
)
def test_flags_that_cannot_be(knobs, message):
    with pytest.raises(ValueError, match=message):
        made(**knobs)


@pytest.mark.parametrize(
    ("knobs", "changed", "message"),
    [
        ({}, {"vae": "x"}, "leave --vae away"),
        ({}, {"init": "x"}, "leave --init away"),
        ({}, {"network": "unet-pocket"}, "leave --network away"),
        ({}, {"conditional": "yes"}, "a translation has no condition"),
        ({}, {"data": "elsewhere"}, "say --source and --target"),
        ({"target": "shapes:length=4,domain=outline", "source": "shapes:length=4,domain=outline"}, {}, "needs two"),
        ({}, {"size": 18}, "multiples of 4"),
        ({"blocks": -1}, {}, "blocks"),
        ({"source": "shapes", "target": "elsewhere"}, {}, "give the --source too"),
        ({"source": "nowhere", "target": "shapes:length=4"}, {}, "--source: nowhere: does not exist"),
        ({"source": "shapes:length=4", "target": "nowhere"}, {}, "--target: nowhere: does not exist"),
        ({}, {"compile": "default"}, "leave --compile and --gradient-checkpointing away"),
        ({}, {"gradient_checkpointing": True}, "leave --compile and --gradient-checkpointing away"),
    ],
    ids=str,
)
def test_runs_that_cannot_be_are_refused_before_anything_is_trained(knobs, changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        made(**knobs).settled(settings(tmp_path, **changed))


def test_a_run_that_cannot_go_on_so_is_refused_before_phases_are_trained(tmp_path):
    given = settings(tmp_path / "run", steps=1, sample_every=0, cache=tmp_path / "cache")
    train(made(generator="cyclegan", **ALONE), given, quiet=True)
    with pytest.raises(ValueError, match="was started with --denoising none"):
        train(made(generator="cyclegan", latent_gan="none"), replace(given, resume=True), quiet=True)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"autoencoder_a": "nowhere"}, "--autoencoder-a nowhere: does not exist"),
        ({"prior_b": "nowhere"}, "--prior-b nowhere: does not exist"),
        ({"prior_b": "other"}, "--prior-b .*other holds no prior"),
    ],
    ids=str,
)
def test_what_is_given_is_looked_at_before_anything_is_trained(knobs, message, tmp_path):
    stub(tmp_path / "other", "AutoencoderKL")
    knobs = {flag: tmp_path / name if name == "other" else Path(name) for flag, name in knobs.items()}
    recipe, given = made(**knobs).settled(settings(tmp_path))
    with pytest.raises(ValueError, match=message):
        recipe.prepared(given, lambda *_: pytest.fail("trained"))


def test_what_a_phase_would_have_left_is_missed_by_its_flag(tmp_path):
    with pytest.raises(ValueError, match="--autoencoder-a is needed here"):
        made(generator="cyclegan").build(Context(3, 16))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole(name):
    recipe, given = TrainLadiffgan.preset(name)
    assert given.size == (32 if name == "pocket" else 256) and recipe.generator == "ugatit"
    with torch.device("meta"):
        assert recipe._pair(given.size).multiple == 4


def test_weights_and_widths_are_the_published(phases):
    method, *_ = built(phases, **ALONE)
    assert {term.name: term.scale for term in method.terms} == {
        "adversarial/a": 1, "adversarial/b": 1, "cycle": 10, "identity": 10, "cam": 1000,
    }  # fmt: skip
    changed, *_ = built(phases, cam_weight=0.0, cycle_weight=3.0, **ALONE)
    assert {term.name: term.scale for term in changed.terms}.items() >= {"cycle": 3.0}.items()
    assert "cam" not in {term.name for term in changed.terms}
    shared, *_ = built(phases, latent_gan_share=0.2, denoising_share=0.1)
    shares = {term.name: term.share for term in shared.terms if term.share}
    assert shares == {"latent-gan/a": 0.1, "latent-gan/b": 0.1, "denoising/b": 0.05, "denoising/a": 0.05}
    assert [TrainLadiffgan()._width(size) for size in (16, 32, 64, 128, 256)] == [8, 16, 32, 64, 64]


def test_priors_that_are_given_need_no_autoencoders_but_for_latents_that_are_compared(tmp_path):
    asked = []

    def trained(name, recipe, settings):
        asked.append(name)
        return tmp_path / name

    given = {f"prior_{domain}": stub(tmp_path / domain, "LatentPrior") for domain in "ab"}
    kind = recipes()["ladiffgan"]
    for knobs, names in (({"latent_gan": "none"}, []), ({}, ["autoencoder of A", "autoencoder of B"])):
        recipe, settings = kind(source="shapes:length=8", **given, **knobs).settled(replace(kind.default_settings(), size=16))
        after = recipe.prepared(settings, trained)
        assert asked == names and after.prior_a == given["prior_a"]

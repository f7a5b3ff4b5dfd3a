"""UNIT's loss in VGG16: on by default where its weights are, off and said where they are not, refused where it is asked for in vain."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from processes import lines

import percepta.recipes.ladiffgan as module
from percepta.objectives.translation import AlikeInside
from percepta.recipes.ladiffgan import TrainLadiffgan
from percepta.spaces.trunks import Trunk
from percepta.training.job import train
from percepta.training.recipe import Context

ALONE = {"latent_gan": "none", "denoising": "none", "channels": 4, "blocks": 1}


def settings(size=32, **changed):
    return replace(TrainLadiffgan.default_settings(), size=size, batch=1, steps=1, sample_every=0, device="cpu", **changed)


def weights(monkeypatch, here):
    """As on a machine with the weights of VGG16, or without. They are random here."""
    monkeypatch.setattr(module, "has_trunk", lambda name: here)
    if here:
        monkeypatch.setattr(module, "first_weights", lambda names: None)
        monkeypatch.setattr(module, "Trunk", partial(Trunk, weights="random"))
    else:
        monkeypatch.setenv("PERCEPTA_WEIGHTS", "/nowhere")


def terms(recipe, size):
    context = Context(
        3, size, examples=lambda: torch.zeros(1, 3, size, size), source_examples=lambda: torch.zeros(1, 3, size, size)
    )
    return {term.name: term for term in recipe._terms(context)}


@pytest.mark.parametrize(
    ("generator", "size", "here", "weight"),
    [
        ("unit", 32, True, 1.0), ("unit", 28, True, 0.0), ("unit", 32, False, 0.0),
        ("munit", 512, True, 1.0), ("munit", 256, True, 0.0), ("munit", 512, False, 0.0),
        ("ugatit", 512, True, None), ("cyclegan", 512, True, None),
    ],
)  # fmt: skip
def test_the_default_is_published_and_recorded(generator, size, here, weight, monkeypatch):
    weights(monkeypatch, here)
    recipe, given = TrainLadiffgan(generator=generator, source="shapes:length=2", **ALONE).settled(settings(size))
    assert recipe.vgg_weight == weight
    found = terms(recipe, size).get("vgg")
    assert (found is not None) == bool(weight)
    if found is not None:
        assert isinstance(found.objective, AlikeInside) and found.scale == 1
        assert found.objective.space.taps == (29,) and found.objective.space.name == "vgg16"
    told = list(recipe.notes(given))
    assert bool(told) == (not here) and all("VGG16" in line and "doctor" in line for line in told)
    again, _ = recipe.settled(settings(size))
    assert again == recipe


def test_a_weight_of_ones_own_is_kept_and_zero_is_none(monkeypatch):
    weights(monkeypatch, True)
    made = partial(TrainLadiffgan, source="shapes:length=2", **ALONE)
    recipe, given = made(generator="munit", vgg_weight=0.5).settled(settings(64))
    assert terms(recipe, 64)["vgg"].scale == 0.5
    recipe, given = made(generator="unit", vgg_weight=0.0).settled(settings(64))
    assert "vgg" not in terms(recipe, 64) and not list(recipe.notes(given))


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="--vgg-weight is not among the losses of --generator ugatit"):
        TrainLadiffgan(vgg_weight=1.0)
    with pytest.raises(ValueError, match="--vgg-weight must be 0 or more"):
        TrainLadiffgan(generator="unit", vgg_weight=-1.0)
    recipe = TrainLadiffgan(generator="unit", vgg_weight=1.0, source="shapes:length=2", **ALONE)
    weights(monkeypatch, False)
    with pytest.raises(ValueError, match="vgg16"):
        recipe.settled(settings(32))
    weights(monkeypatch, True)
    with pytest.raises(ValueError, match="from 32 px up"):
        recipe.settled(settings(16))


def test_a_run_trains_in_it_logs_it_and_says_so_in_its_config(monkeypatch, tmp_path):
    import json

    weights(monkeypatch, True)
    recipe = TrainLadiffgan(generator="unit", source="shapes:length=2", **ALONE)
    run = train(recipe, settings(32, out=tmp_path / "run", log_every=1), quiet=True)
    assert lines(run.folder)[-1]["vgg"] > 0
    config = json.loads((run.folder / "config.json").read_text())
    assert config["knobs"]["vgg_weight"] == 1 and {"space": "vgg16", "term": "vgg"} in config["resolved"]["trained_against"]


def test_a_run_without_the_weights_says_so(monkeypatch, tmp_path, capsys):
    weights(monkeypatch, False)
    recipe = TrainLadiffgan(generator="unit", source="shapes:length=2", **ALONE)
    run = train(recipe, settings(32, out=tmp_path / "run", log_every=1))
    told = " ".join(capsys.readouterr().err.split())
    assert "without unit's loss in VGG16" in told and "percepta doctor" in told
    assert "vgg" not in lines(run.folder)[-1]

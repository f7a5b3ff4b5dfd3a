"""Every recipe that the folder holds: it trains, exports something that loads, and its knobs mean what they say."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from processes import FLAGS, lines

import percepta.recipes as folder
from percepta.formulation import LogitNormalTimes, LogNormalTimes, UniformTimes
from percepta.networks import load_model
from percepta.networks.latent_prior import load_prior
from percepta.path import Cosine, LinearBeta, Rectified, VarianceExploding
from percepta.recipes import recipes
from percepta.training.job import train
from percepta.training.recipe import Context, Recipe
from percepta.training.settings import Settings

RECIPES = recipes()
QUIET = {  # their losses need weights
    "autoencoder": {"perceptual": "none"},
    "ladiffgan": {"source": "shapes:length=6", "latent_gan": "none", "denoising": "none", "channels": 8, "blocks": 1},
    "mmd": {"space": "pixels", "sampler_steps": 2},
    "sadm": {"space": "pixels", "sat_steps": 0},
}


POCKET = "unet-pocket"  # cascades are made of presets


def made(name, **knobs):
    return RECIPES[name](**{**QUIET.get(name, {}), **knobs})


def knobs(name, tiny):
    """What a recipe cannot do without."""
    return {"own": tiny.vae, "other": tiny.vae} if name == "prior" else {}


def settings(name, tiny, out, **changed):
    own = {
        "autoencoder": {"network": None},
        "casdm": {"network": POCKET},
        "dual": {"network": POCKET},
        "ladiffgan": {"network": None, "data": Settings().data, "size": 16},
        "lpl": {"network": tiny.network, "vae": tiny.vae, "size": 16},
        "mmd": {"init": tiny.pipeline},
        "prior": {"network": None},
    }
    start = own.get(name, {"network": tiny.network})
    return replace(RECIPES[name].default_settings(), **{**FLAGS, **start, "out": out, **changed})


def test_the_folder_is_listed():
    files = {p.stem for p in Path(folder.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(RECIPES) == files
    assert len(RECIPES) == 11
    assert list(RECIPES) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_describes_itself(name):
    kind = RECIPES[name]
    assert issubclass(kind, Recipe)
    assert kind.name == name
    assert kind.summary
    assert kind.example.startswith(f"percepta train {name} ")
    assert kind.default_settings() == replace(Settings(), **kind.settings)
    assert not {f.name for f in fields(kind)} & {f.name for f in fields(Settings)}, "a knob is no setting"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_previews_and_exports(name, tiny, tmp_path):
    outcome = train(made(name, **knobs(name, tiny)), settings(name, tiny, tmp_path / "run", steps=3, sample_every=3), quiet=True)
    assert outcome.finished
    found = lines(outcome.folder)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert (outcome.folder / "samples" / "step-0000003.png").is_file()
    assert outcome.model is not None
    if name == "autoencoder":
        model = AutoencoderKL.from_pretrained(outcome.model)
        with torch.no_grad():
            assert model.decode(model.encode(torch.zeros(1, 3, 8, 8)).latent_dist.mean).sample.shape == (1, 3, 8, 8)
    elif name == "ladiffgan":
        assert load_model(outcome.model).multiple == 4
    elif name == "prior":
        assert load_prior(outcome.model).own.latent_channels == 3
    else:
        pipeline = DiffusionPipeline.from_pretrained(outcome.model, trust_remote_code=name in ("casdm", "dual", "lpl"))
        assert type(pipeline.scheduler).__name__ in str(pipeline.config)


@pytest.mark.parametrize(("name", "most"), [("ddpm", 0.8), ("flow", 0.9), ("autoencoder", 0.8)])
def test_the_loss_falls(name, most, tiny, tmp_path):
    given = settings(name, tiny, tmp_path / "run", steps=30, batch=16, log_every=5, checkpoint_every=30, lr=3e-3)
    found = lines(train(made(name), given, quiet=True).folder)
    term = "l1" if name == "autoencoder" else "denoising"
    assert found[-1][term] < most * found[0][term]


def context(tiny, **more):
    return Context(3, 8, network=tiny.network, **more)


@pytest.mark.parametrize(
    ("knobs", "path", "output"),
    [
        ({}, Cosine(1000), "noise"),
        ({"predict": "x0"}, Cosine(1000), "clean"),
        ({"predict": "v", "schedule": "cosine", "timesteps": 100}, Cosine(100), "velocity"),
        ({"schedule": "linear"}, LinearBeta(1000), "noise"),
        ({"schedule": "linear", "timesteps": 4000, "predict": "eps"}, LinearBeta(4000), "noise"),
    ],
)
def test_what_ddpm_predicts_and_on_which_schedule(tiny, knobs, path, output):
    formulation = made("ddpm", **knobs).build(context(tiny)).model.formulation
    assert (formulation.path, formulation.output, formulation.times) == (path, output, UniformTimes())


def test_edm_and_flow_take_their_knobs(tiny):
    edm = made("edm", sigma_min=0.01, sigma_max=50.0, p_mean=-1.0, p_std=1.4).build(context(tiny)).model.formulation
    assert (edm.path, edm.output, edm.times) == (VarianceExploding(0.01, 50.0), "edm", LogNormalTimes(-1.0, 1.4))
    flow = made("flow", t_mean=0.5).build(context(tiny)).model.formulation
    assert (flow.path, flow.output, flow.times) == (Rectified(), "flow", LogitNormalTimes(0.5, 1.0))
    assert made("flow", times="uniform").build(context(tiny)).model.formulation.times == UniformTimes()


@pytest.mark.parametrize("name", ["ddpm", "edm", "flow"])
def test_labels_are_dropped_only_where_there_are_classes(name, tiny):
    assert made(name).build(context(tiny)).estimate.cond_dropout == 0.0
    with_classes = Context(3, 8, num_classes=3, network="unet-pocket")
    assert made(name, cond_dropout=0.25).build(replace(with_classes, size=16)).estimate.cond_dropout == 0.25
    with pytest.raises(ValueError, match=r"--cond-dropout must lie in \[0, 1\)"):
        made(name, cond_dropout=1.0).build(context(tiny))


def test_a_weight_of_ddpm_changes_its_loss_and_gamma_only_where_there_is_one(tiny):
    def weight(**knobs):
        return made("ddpm", **knobs).build(context(tiny)).terms[0].weight

    assert weight().__name__ == "noise"
    assert weight(predict="v").__name__ == "velocity"
    assert weight(weight="min-snr", gamma=3.0).keywords == {"gamma": 3.0}
    with pytest.raises(ValueError, match="has no gamma"):
        weight(gamma=3.0)


def test_the_autoencoder_trains_from_images_only(tiny):
    with pytest.raises(ValueError, match="leave --vae and --init away"):
        made("autoencoder").build(Context(3, 8, vae=object(), examples=lambda: torch.zeros(1, 3, 8, 8)))


def test_a_latent_run_on_a_trained_autoencoder(tiny, tmp_path):
    """The three phases: encode, free, train; the cache is found again, and the export holds the autoencoder."""
    coder = train(made("autoencoder"), settings("autoencoder", tiny, tmp_path / "coder", size=16, steps=2), quiet=True)
    given = settings(
        "ddpm", tiny, tmp_path / "latent", size=32, network=None, steps=2, vae=str(coder.folder), cache=tmp_path / "cache"
    )
    given = replace(given, data="shapes:length=8")
    first = train(made("ddpm"), given, quiet=True)
    assert first.model is not None
    assert (first.model / "vae" / "config.json").is_file()
    again = train(made("ddpm"), replace(given, out=tmp_path / "again"), quiet=True)
    assert (first.folder / "metrics.jsonl").read_bytes() == (again.folder / "metrics.jsonl").read_bytes()

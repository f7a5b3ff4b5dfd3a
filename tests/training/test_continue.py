"""A run that goes on is the same run; a run that starts from something is what it says; a run that cannot end well does not begin."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

from percepta.data import open_source
from percepta.interop import load_pipeline
from percepta.recipes import recipes
from percepta.recipes.ddpm import Ddpm
from percepta.recipes.flow import Flow
from percepta.training.config import read_config
from percepta.training.data import cache_latents
from percepta.training.job import train
from percepta.training.reopen import export_run
from percepta.training.settings import Settings
from percepta.training.signals import Interrupted

FLAGS = {"data": "shapes:length=20", "size": 8, "steps": 2, "batch": 4, "conditional": "no", "sample_every": 0, "log_every": 1}


def settings(out, **changed):
    return Settings(**{**FLAGS, "out": out, **changed})


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    return train(Ddpm(), settings(tmp_path_factory.mktemp("run") / "run", network=tiny.network), quiet=True).folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A DDIMPipeline on the linear schedule, 8 px."""
    unet = UNet2DModel(8, 3, 3, block_out_channels=(16, 16), norm_num_groups=8, down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2, layers_per_block=1, add_attention=False)  # fmt: skip
    folder = tmp_path_factory.mktemp("pipeline")
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changed", [{"lr": 3e-4}, {"seed": 1}, {"data": "shapes:length=21"}, {"batch": 8}, {"mixed_precision": "bf16"}]
)
def test_other_flags_do_not_continue_a_run(tiny, done, changed):
    before = (done / "config.json").read_text()
    (key, value), *_ = changed.items()
    with pytest.raises(ValueError, match=rf"was started with --{key.replace('_', '-')} .*now {value}"):
        train(Ddpm(), settings(done, network=tiny.network, resume=True, **changed), quiet=True)
    assert (done / "config.json").read_text() == before


def test_another_knob_does_not_continue_a_run(tiny, done):
    with pytest.raises(ValueError, match="--predict None .now v."):
        train(Ddpm(predict="v"), settings(done, network=tiny.network, resume=True), quiet=True)


def test_what_may_differ_may_and_fewer_steps_than_taken_are_refused(tiny, done, tmp_path):
    run = shutil.copytree(done, tmp_path / "run")
    with pytest.raises(ValueError, match="is at step 2, beyond --steps 1"):
        train(Ddpm(), settings(run, network=tiny.network, steps=1, resume=True), quiet=True)
    assert train(Ddpm(), settings(run, network=tiny.network, steps=3, log_every=2, resume=True), quiet=True).step == 3


def test_resume_alone_goes_on_with_the_flags_of_the_run(tiny, tmp_path, capsys):
    from percepta.cli import main

    run = train(Ddpm(predict="v"), settings(tmp_path / "run", network=tiny.network, lr=3e-4), quiet=True).folder
    assert main(["train", "ddpm", "--out", str(run), "--resume", "--steps", "3"]) == 0
    recipe, now = read_config(run, recipes())
    assert (recipe.predict, now.lr, now.steps) == ("v", 3e-4, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sampler": "foo"}, "foo"),
        ({"guidance": 3.0}, "class-conditional"),
        ({"sample_steps": 2000}, "1000"),
    ],
)
def test_what_a_grid_could_not_do_is_refused_before_the_first_step(tiny, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        train(Ddpm(), settings(tmp_path / "run", network=tiny.network, sample_every=2, **changed), quiet=True)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("changed", [{"clip": 0.0}, {"betas": (1.0, 2.0)}, {"keep": 1}, {"lr": 0.0}])
def test_impossible_settings_are_refused_where_they_are_made(tmp_path, changed):
    with pytest.raises(ValueError, match="--"):
        settings(tmp_path, **changed)


@pytest.mark.parametrize(("key", "value"), [("batch", "8"), ("lr", "fast"), ("ema", "exact"), ("betas", [0.9]), ("resume", 1)])
def test_a_config_with_a_value_of_another_kind_is_refused(done, tmp_path, key, value):
    config = json.loads((done / "config.json").read_text())
    config["settings"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{key} must be"):
        read_config(tmp_path, recipes())


def test_init_takes_its_meaning_from_the_pipeline_and_checks_what_is_said(pipeline, tmp_path):
    run = train(Ddpm(predict="eps", timesteps=1000), settings(tmp_path / "a", init=str(pipeline)), quiet=True).folder
    made = load_pipeline(run).denoiser.formulation
    assert (made.output, type(made.path).__name__) == ("noise", "LinearBeta")
    with pytest.raises(ValueError, match="leave --schedule away"):
        train(Ddpm(predict="eps", schedule="cosine"), settings(tmp_path / "b", init=str(pipeline)), quiet=True)
    with pytest.raises(ValueError, match="--init predicts 'noise'"):
        train(Flow(), settings(tmp_path / "c", init=str(pipeline)), quiet=True)


def test_a_bare_network_needs_its_meaning_from_the_flags(pipeline, tmp_path):
    bare = shutil.copytree(pipeline / "unet", tmp_path / "unet")
    with pytest.raises(ValueError, match="--predict"):
        train(Ddpm(), settings(tmp_path / "a", init=str(bare)), quiet=True)
    run = train(Ddpm(predict="v", schedule="cosine"), settings(tmp_path / "b", init=str(bare)), quiet=True).folder
    assert load_pipeline(run).denoiser.formulation.output == "velocity"


def test_init_at_another_size_makes_models_of_that_size(pipeline, tmp_path):
    run = train(Ddpm(), settings(tmp_path / "a", init=str(pipeline), size=16), quiet=True).folder
    assert load_pipeline(run).denoiser.network.sample_size == 16


def test_a_run_is_exported_without_its_data(tiny, tmp_path):
    data = tmp_path / "images"
    data.mkdir()
    from PIL import Image

    for k, item in enumerate(open_source("shapes", 8).read_many(range(4))):
        Image.fromarray(item.image).save(data / f"{k}.png")
    run = train(Ddpm(), settings(tmp_path / "run", network=tiny.network, data=str(data)), quiet=True).folder
    shutil.rmtree(data)
    assert export_run(recipes(), run, tmp_path / "out") == 2
    a, b = (load_pipeline(folder).denoiser.state_dict() for folder in (run, tmp_path / "out"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_any_length_of_average_can_be_had_where_a_run_was_stopped(tiny, tmp_path):
    run = train(
        Ddpm(), settings(tmp_path / "run", network=tiny.network, steps=20, lr=3e-2, ema="power", ema_snapshot_every=100), quiet=True
    ).folder
    export_run(recipes(), run, tmp_path / "tracked")
    export_run(recipes(), run, tmp_path / "made", ema_length=0.05)
    export_run(recipes(), run, tmp_path / "raw", raw=True)
    tracked, made, raw = (load_pipeline(tmp_path / k).denoiser.state_dict() for k in ("tracked", "made", "raw"))
    gap = lambda a, b: sum(float((a[k] - b[k]).norm() ** 2) for k in a) ** 0.5  # noqa: E731
    assert gap(made, tracked) < 0.1 * gap(raw, tracked)


def test_a_signal_leaves_the_encoding_of_latents_and_keeps_what_is_done(tmp_path, monkeypatch):
    from percepta.data import latents
    from percepta.networks import build_autoencoder

    monkeypatch.setattr(latents, "ROWS", 16)
    calls = iter(range(100))

    def check():
        if next(calls) == 1:
            raise Interrupted("SIGTERM")

    vae = build_autoencoder("ae-pocket", size=8).eval()
    source, flags = open_source("shapes:length=40", 8), settings(tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(Interrupted):
        cache_latents(flags, source, vae, torch.device("cpu"), lambda text: None, check)
    assert cache_latents(flags, source, vae, torch.device("cpu"), lambda text: None).encoded == 24

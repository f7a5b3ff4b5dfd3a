"""A cascade's folder says itself how it was trained, and refuses another schedule; its pipeline runs in bf16 and on the command line."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler

from percepta.cli import main
from percepta.formulation import Denoiser, Formulation
from percepta.interop import SamplerDefaults, export_pipeline, load_pipeline
from percepta.interop.percepta_pipeline import PerceptaPipeline
from percepta.networks import CascadeSpec, build_cascade, cascade_formulation
from percepta.path import Cosine, LinearBeta

SMALL = {"block_out_channels": (8, 8, 16), "norm_num_groups": 4, "time_embedding_dim": 16}
PATH = Cosine(4000)


@pytest.fixture
def exported(tmp_path):
    network = build_cascade(CascadeSpec(overrides=SMALL), PATH, size=8).eval()
    denoiser = Denoiser(network, Formulation(PATH, "clean"))
    return denoiser, export_pipeline(tmp_path / "out", denoiser, sampler=SamplerDefaults("ddim", 4, clip=1.0))


def same(one, two):
    x, t = torch.randn(2, 3, 8, 8), PATH.time_of([30, 3000])
    with torch.no_grad():
        return all(torch.equal(a, b) for a, b in zip(one(x, t), two(x, t), strict=True))


def test_a_bare_folder_says_what_it_means(exported, tmp_path):
    denoiser, out = exported
    bare = shutil.copytree(out / "unet", tmp_path / "bare")
    loaded = load_pipeline(bare)
    assert loaded.denoiser.formulation == Formulation(PATH, "clean")
    assert same(loaded.denoiser, denoiser)
    assert same(load_pipeline(out).denoiser, denoiser)


def test_by_the_scheduler_alone(exported):
    denoiser, out = exported
    (out / "percepta.json").unlink()
    loaded = load_pipeline(out)
    assert loaded.denoiser.formulation.output == "clean"
    assert same(loaded.denoiser, denoiser)


@pytest.mark.parametrize(
    "wrong", [Formulation(PATH, "noise"), Formulation(LinearBeta(4000), "clean"), Formulation(Cosine(1000), "clean")], ids=str
)
def test_another_schedule_is_refused(exported, tmp_path, wrong):
    _, out = exported
    for folder in (out, shutil.copytree(out / "unet", tmp_path / "bare")):
        with pytest.raises(ValueError, match=r"holds its own schedule, Cosine of 4000 steps, and puts out x0; asked was"):
            load_pipeline(folder, wrong)
    assert cascade_formulation(object()) is None


def test_a_scheduler_that_does_not_fit_is_refused(exported):
    _, out = exported
    (out / "percepta.json").unlink()
    file = out / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "epsilon"}))
    with pytest.raises(ValueError, match="holds its own schedule"):
        load_pipeline(out)


def test_the_pipeline_runs_in_bf16(exported):
    """The cascade answers in float32, which the next step's input must not stay in."""
    denoiser, _ = exported
    scheduler = DDIMScheduler(4000, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    pipe = PerceptaPipeline(scheduler, denoiser.network.model.to(torch.bfloat16))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=3, output_type="pt").images
    assert images.shape == (2, 3, 8, 8)
    assert bool(images.isfinite().all())


def test_the_command_samples_it(exported, tmp_path):
    _, out = exported
    assert main(["sample", str(out), "--num", "2", "--steps", "2", "--out", str(tmp_path / "images.npz")]) == 0
    assert (tmp_path / "images.npz").is_file()

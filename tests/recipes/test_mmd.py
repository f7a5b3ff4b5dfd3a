"""mmd: what it trains and against what, the chain that it leaves behind, and that diffusers draws the same images by it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny_text
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel, VQModel
from processes import FLAGS, lines
from safetensors.torch import load_file

from percepta.cli import main
from percepta.cli.train import read
from percepta.discrepancies.mmd import CUBIC, Linear, MedianRbf, Rbf
from percepta.estimate import Batch
from percepta.formulation import FLOW, Denoiser, Formulation
from percepta.interop import export_pipeline, load_pipeline
from percepta.networks import adapt, build
from percepta.path import LinearBeta
from percepta.recipes.mmd import PRESETS, TrainMmd
from percepta.rng import rng_for
from percepta.samplers.interpolation import images_of_noise
from percepta.spaces.opening import open_space
from percepta.spaces.space import enlarging
from percepta.training.job import train
from percepta.training.recipe import Context
from percepta.training.reopen import export_run

CHILD = Path(__file__).parents[1] / "interop" / "child.py"
SEED, COUNT = 7, 2


def made(**knobs):
    return TrainMmd(**{"space": "pixels", "sampler_steps": 2, **knobs})


def settings(tiny, out, **changed):
    return replace(TrainMmd.default_settings(), **{**FLAGS, "init": tiny.pipeline, "out": out, **changed})


def test_mmd_brings_samples_of_few_steps_to_the_data(tiny, tmp_path):
    given = settings(tiny, tmp_path / "run", steps=30, batch=16, micro_batch=8, log_every=5, checkpoint_every=30, lr=1e-2)
    found = lines(train(made(), given, quiet=True).folder)
    assert found[-1]["mmd"] < 0.75 * found[0]["mmd"], [line["mmd"] for line in found]


def test_images_too_small_for_a_space_are_enlarged(tiny, tmp_path, monkeypatch):
    """AlexNet needs 31 pixels; images of 8 are read at 32, and records name the space as ever."""
    opened = partial(open_space, weights="random")
    monkeypatch.setattr("percepta.recipes.mmd.open_space", opened)
    outcome = train(made(space="alex,pixels"), settings(tiny, tmp_path / "run", steps=1), quiet=True)
    assert lines(outcome.folder)[-1]["mmd/alex"] != 0
    assert (
        enlarging(opened("alex"), 8).size == 32
        and enlarging(opened("alex"), 31).name == enlarging(opened("alex"), 8).name == "alex"
    )


def test_the_chain_of_mmd_is_that_of_its_previews_and_its_export(tiny, tmp_path):
    """Previews are drawn by the trained chain, and the exported scheduler visits its timesteps."""
    outcome = train(made(), settings(tiny, tmp_path / "run", steps=1, sample_every=1), quiet=True)
    shown = json.loads((outcome.folder / "samples" / "step-0000001.json").read_text())
    assert (shown["sampler"], shown["steps"], shown["clip"]) == ("ddim", 2, None)
    assert outcome.model is not None
    pipeline = DiffusionPipeline.from_pretrained(outcome.model)
    assert not pipeline.scheduler.config.clip_sample
    pipeline.scheduler.set_timesteps(2)
    assert pipeline.scheduler.timesteps.tolist() == [500, 0]


def test_another_sampler_for_the_previews_of_mmd_is_heeded(tiny, tmp_path):
    given = settings(tiny, tmp_path / "run", steps=1, sample_every=1, sampler="euler", sample_steps=3)
    outcome = train(made(), given, quiet=True)
    shown = json.loads((outcome.folder / "samples" / "step-0000001.json").read_text())
    assert (shown["sampler"], shown["steps"]) == ("euler", 3)


def test_the_domain_that_mmd_trains_against_is_the_one_an_evaluation_would_find(tiny, tmp_path, monkeypatch):
    """Else there would be two encoders of one set, and a metric in the other would pass for clean."""
    seen = []

    def train_domain(images, folder, seed, **more):
        seen.append((images.fingerprint, folder, seed, more["seen_as"]))
        raise ValueError("enough")

    monkeypatch.setattr("percepta.spaces.domain.train_domain", train_domain)
    own = {"data": "shapes:length=40", "cache": tmp_path / "cache"}
    with pytest.raises(ValueError, match="enough"):
        train(made(space="domain"), settings(tiny, tmp_path / "a", **own), quiet=True)
    with pytest.raises(ValueError, match="enough"):
        train(made(), settings(tiny, tmp_path / "b", eval_every=1, eval_space="domain", eval_num=8, **own), quiet=True)
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_mmd_starts_from_a_trained_pixel_model_and_reads_weights_of_spaces(tiny):
    init = load_pipeline(tiny.pipeline).denoiser
    for space, said in (("pixels:x", "a weight above 0"), ("pixels:-1", "a weight above 0"), (",", "names no space")):
        with pytest.raises(ValueError, match=said):
            made(space=space).build(Context(3, 8, init=init))
    (term,) = made(space="pixels:2").build(Context(3, 8, init=init)).terms
    assert (term.name, term.scale) == ("mmd", 2.0)
    with pytest.raises(ValueError, match="say which with --init"):
        made().build(Context(3, 8, network=tiny.network))
    with pytest.raises(ValueError, match="leave --vae away"):
        made().build(Context(3, 8, init=init, vae=object()))
    with pytest.raises(ValueError, match="--bandwidth belongs to --kernel rbf"):
        made(bandwidth="median").build(Context(3, 8, init=init))
    with pytest.raises(ValueError, match="--chain-guidance 2 needs a class-conditional model"):
        made(chain_guidance=2.0).build(Context(3, 8, init=init))
    with pytest.raises(ValueError, match="--denoising-weight must be 0 or more"):
        made(denoising_weight=-1.0).build(Context(3, 8, init=init))


@pytest.mark.parametrize(
    ("knobs", "kernel"),
    [
        ({}, CUBIC),
        ({"kernel": "linear"}, Linear()),
        ({"kernel": "rbf"}, Rbf()),
        ({"kernel": "rbf", "bandwidth": "2,8"}, Rbf((2.0, 8.0))),
    ],
)
def test_its_kernels(tiny, knobs, kernel):
    init = load_pipeline(tiny.pipeline).denoiser
    assert made(**knobs).build(Context(3, 8, init=init)).terms[0].objective.kernel == kernel


def test_a_median_bandwidth_is_read_off_the_first_real_images_once(tiny):
    asked = []

    def examples():
        asked.append(1)
        return torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    method = made(kernel="rbf", bandwidth="0.5*median,median").build(
        Context(3, 8, init=load_pipeline(tiny.pipeline).denoiser, examples=examples)
    )
    kernel = method.terms[0].objective.kernel
    assert isinstance(kernel, MedianRbf)
    assert not asked  # a model that is built again for its export has no images at hand
    for _ in range(2):
        rows = examples().flatten(1)
        bandwidths = kernel.rbf.bandwidths
    assert bandwidths == pytest.approx((torch.pdist(rows).median().item() / 2, torch.pdist(rows).median().item()), rel=1e-3)
    assert len(asked) == 3


def test_the_denoising_loss_beside_it_is_the_plain_one(tiny, tmp_path):
    found = lines(train(made(denoising_weight=0.5), settings(tiny, tmp_path / "run", steps=2), quiet=True).folder)
    assert set(found[0]) >= {"mmd", "denoising"}
    init = load_pipeline(tiny.pipeline).denoiser
    batch, rng = Batch(torch.rand(4, 3, 8, 8) * 2 - 1), rng_for(0, 0, 4)
    terms, gradients = [], []
    for weight in (0.0, 0.5, 1.0):
        method = made(denoising_weight=weight).build(Context(3, 8, init=init, micro_batch=2))
        method.model.zero_grad()
        (turn,) = method.step(batch, rng)
        assert turn.backward is not None
        turn.backward(1.0)
        terms.append({k: float(v) for k, v in turn.logs.items()})
        gradients.append(torch.cat([p.grad.flatten() for p in method.model.parameters()]))
    assert terms[0].keys() == {"mmd"}
    assert terms[2]["denoising"] == pytest.approx(2 * terms[1]["denoising"])
    assert terms[0]["mmd"] == terms[2]["mmd"]
    assert torch.allclose(gradients[2] - gradients[0], 2 * (gradients[1] - gradients[0]), rtol=1e-3, atol=1e-6)
    method.model.zero_grad()
    from percepta.estimate import Denoise
    from percepta.objectives.weights import noise

    est = Denoise(method.model)(batch, rng)
    plain = (noise(est)[:, None, None, None] * (est.x0_hat - est.x0) ** 2).mean()
    assert terms[2]["denoising"] == pytest.approx(float(plain.detach()), rel=1e-4)
    plain.backward()
    alone = torch.cat([p.grad.flatten() for p in method.model.parameters()])
    assert (gradients[2] - gradients[0] - alone).norm() < 1e-4 * alone.norm()


def latent_pipeline(folder, formulation, classes=None, codebook=False):
    """An untrained latent pipeline: 8 px latents of 16 px images."""
    torch.manual_seed(0)
    kind = VQModel if codebook else AutoencoderKL
    vae = kind(block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
               layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16)  # fmt: skip
    network = build("unet-pocket", channels=4, size=8, num_classes=classes, seed=0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape) * 0.02)
    export_pipeline(folder, Denoiser(network, formulation), vae=vae)
    return str(folder)


@pytest.mark.parametrize("codebook", [False, True])
def test_a_latent_pipeline_is_compared_as_images(tiny, tmp_path, codebook):
    init = latent_pipeline(tmp_path / "ldm", FLOW, codebook=codebook)
    given = settings(tiny, tmp_path / "run", init=init, size=16, steps=2, micro_batch=2)
    outcome = train(made(denoising_weight=0.1), given, quiet=True)
    assert outcome.model is not None
    assert [line["step"] for line in lines(outcome.folder)] == [1, 2]
    before, after = (load_pipeline(p) for p in (tmp_path / "ldm", outcome.model))
    moved = [not torch.equal(a, b) for a, b in zip(before.denoiser.parameters(), after.denoiser.parameters(), strict=True)]
    assert all(moved)
    assert all(torch.equal(a, b) for a, b in zip(before.vae.parameters(), after.vae.parameters(), strict=True))
    for size, said in ((15, "--size 15 is no multiple of 2"), (32, "--init makes images of 16 px, and --size is 32")):
        with pytest.raises(ValueError, match=said):
            train(made(), replace(given, size=size, out=tmp_path / "odd"), quiet=True)


LINEAR = Formulation(LinearBeta(1000), "noise")
CHAINS = {  # knobs, formulation, classes, latent, timesteps
    "ddim": ({"sampler_steps": 5}, LINEAR, None, False),
    "fifteen": ({"sampler_steps": 15}, LINEAR, None, False),
    "sixteen, as the authors' code": ({"sampler_steps": 15, "spacing": "leading-code"}, LINEAR, None, False),
    "quadratic": ({"sampler_steps": 5, "spacing": "quadratic"}, LINEAR, None, False),
    "dpmpp": ({"sampler_steps": 5, "solver": "dpmpp"}, LINEAR, None, False),
    "classes": ({"sampler_steps": 3}, LINEAR, 3, False),
    "classes, guided": ({"sampler_steps": 3, "chain_guidance": 2.0}, LINEAR, 3, False),
    "flow": ({"sampler_steps": 4}, FLOW, None, False),
    "latents": ({"sampler_steps": 3}, LINEAR, None, "kl"),
    "latents of a codebook": ({"sampler_steps": 3}, LINEAR, None, "vq"),
}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """By name: what Percepta draws with a finetuned model's own chain, and what diffusers does where there is no percepta."""
    root = tmp_path_factory.mktemp("chains")
    ours, jobs = {}, []
    for number, (knobs, formulation, classes, latent) in enumerate(CHAINS.values()):
        if latent:
            loaded = load_pipeline(latent_pipeline(root / latent, formulation, codebook=latent == "vq"))
        else:
            network = build("unet-pocket", channels=3, size=8, num_classes=classes, seed=number)
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.03)
            loaded = None
        init = Denoiser(network, formulation) if loaded is None else loaded.denoiser
        context = Context(3, 16 if latent else 8, num_classes=classes, init=init, init_vae=loaded and loaded.vae)
        method = made(**knobs).build(context)
        product = method.product
        product.export(root / str(number), {})
        noise = torch.randn(COUNT, *product.shape, generator=torch.Generator().manual_seed(SEED))
        cond = None if classes is None else torch.arange(COUNT)
        ours[str(number)] = images_of_noise(method.model, product.fixed, noise, cond, product.vae)
        own = "PerceptaPipeline" in (root / str(number) / "model_index.json").read_text()
        call = {"batch_size": COUNT} if classes is None else {"class_labels": cond.tolist(), "batch_size": COUNT}
        load = {"custom_pipeline": str(root / str(number)), "trust_remote_code": True} if own else {}
        jobs.append({"name": str(number), "folder": str(root / str(number)), "load": load, "call": call, "seed": SEED,
                     "steps": knobs["sampler_steps"], "pt": own})  # fmt: skip
    (root / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "HF_HOME": str(root / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(CHILD), "jobs.json", "out.safetensors"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ours, load_file(root / "out.safetensors")


@pytest.mark.parametrize("number", range(len(CHAINS)), ids=list(CHAINS))
def test_diffusers_draws_the_images_that_were_trained(drawn, number):
    """The whole point of the export: K steps in plain diffusers are the K steps of the training."""
    ours, theirs = drawn[0][str(number)], drawn[1][str(number)]
    assert ours.std() > 0.05
    torch.testing.assert_close(theirs, ours / 2 + 0.5, atol=3e-5, rtol=0)


def test_a_chain_with_noise_takes_its_noise_along(tmp_path):
    """DDIMPipeline has eta = 0 unless it is told: a chain that was trained with noise must not depend on being told."""
    for name, knobs, formulation, eta in (("noisy", {"eta": 1.0}, LINEAR, 1.0), ("quiet", {}, LINEAR, None)):
        network = build("unet-pocket", channels=3, size=8, seed=0)
        made(**knobs).build(Context(3, 8, init=Denoiser(network, formulation))).product.export(tmp_path / name, {})
        index = json.loads((tmp_path / name / "model_index.json").read_text())
        assert ("PerceptaPipeline" in index["_class_name"]) == (eta is not None)
        assert index.get("eta") == eta


def test_a_checkpoint_is_exported_where_its_spaces_are_not(tiny, tmp_path, monkeypatch):
    outcome = train(made(), settings(tiny, tmp_path / "run", steps=2), quiet=True)

    def closed(*_):
        raise ValueError("its weights are not here")

    monkeypatch.setattr("percepta.recipes.mmd.open_space", closed)
    assert export_run({"mmd": TrainMmd}, outcome.folder, tmp_path / "out") == 2
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").scheduler.config.num_train_timesteps == 1000


def test_another_size_than_the_pipeline_makes_is_refused(tiny):
    init = load_pipeline(tiny.pipeline).denoiser
    with pytest.raises(ValueError, match="--init makes images of 8 px, and --size is 16: say --size 8"):
        made().build(Context(3, 16, init=init))


def test_the_size_is_that_of_the_pipeline_unless_it_is_said(tiny, tmp_path):
    latent = latent_pipeline(tmp_path / "ldm", FLOW)
    for init, size in ((str(tiny.pipeline), 8), (latent, 16)):
        assert read(TrainMmd, ["--init", init])[1].size == size
        assert read(TrainMmd, ["--init", init, "--size", "24"])[1].size == 24
    assert read(TrainMmd, ["--init", latent, "--preset", "paper-celeba"])[1].size == 64


def test_a_model_that_reads_text_is_refused(tiny):
    model = UNet2DConditionModel(sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8, in_channels=3,
                                 out_channels=3, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
                                 attention_head_dim=4)  # fmt: skip
    with pytest.raises(ValueError, match="is told encoder_hidden_states beside the image"):
        made().build(Context(3, 8, init=Denoiser(adapt(model), LINEAR)))


def test_a_text_pipeline_without_captions_is_refused_in_one_line(tmp_path, capsys):
    """As a user of Stable Diffusion meets it: before the first step, and with what to do."""
    images = tiny_text.captioned_images(tmp_path / "images")
    (images / "metadata.jsonl").unlink()
    flags = ["--data", str(images), "--space", "pixels", "--out", str(tmp_path / "run"), "--device", "cpu"]
    sd = tiny_text.sd(tmp_path / "sd" / "pipeline")
    capsys.readouterr()
    assert main(["train", "mmd", "--init", str(sd), *flags]) == 2
    lines_of = capsys.readouterr().err.splitlines()
    (told,) = (line for line in lines_of if line.strip() and "Loading weights" not in line)  # a bar of transformers
    assert not list(tmp_path.glob("run/checkpoint-*"))
    assert f"a network that reads text needs captions, and {images} has none" in told and "--conditional no" in told


def test_a_chain_that_diffusers_cannot_draw_is_refused_before_the_first_step(tiny, tmp_path):
    for knobs, said in (
        ({"solver": "euler"}, "diffusers has no scheduler for the solver 'euler'"),
        ({"spacing": "quadratic", "eta": 1.0}, "without eta and clipping"),
        ({"spacing": "shifted"}, "export with one of: leading"),
    ):
        with pytest.raises(ValueError, match=said):
            train(made(**knobs), settings(tiny, tmp_path / "run"), quiet=True)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_other_defaults(name):
    recipe, given = read(TrainMmd, ["--preset", name, "--seed", "3"])
    for key, value in PRESETS[name].items():
        assert getattr(recipe if hasattr(recipe, key) else given, key) == value, key
    assert given.seed == 3
    assert read(TrainMmd, ["--preset", name, "--batch", "7"])[1].batch == 7


def test_a_preset_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="has no preset 'paper-mnist'; it has: paper-cifar10"):
        read(TrainMmd, ["--preset", "paper-mnist"])
    with pytest.raises(ValueError, match="exclude each other"):
        read(TrainMmd, ["--preset", "paper-cifar10", "--config", "x.json"])

"""Going on at another size: what is trained, what is saved and what is drawn stand at the same positions."""

import pytest
import tiny_text
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel
from safetensors.torch import load_file

from percepta.cli import main
from percepta.interop import load_pipeline
from percepta.networks import facts_of
from percepta.recipes import recipes
from percepta.rng import rng_for
from percepta.sampling import Drawing, Job
from percepta.training.job import train
from percepta.training.settings import Settings

DATA = [
    "--data",
    "shapes:length=20",
    "--conditional",
    "no",
    "--batch",
    "4",
    "--sample-every",
    "0",
    "--device",
    "cpu",
    "--ema",
    "none",
]


def ddpm(out, size, *flags, steps=2):
    assert main(["train", "ddpm", *DATA, "--size", str(size), "--steps", str(steps), "--out", str(out), *map(str, flags)]) == 0
    return out


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of a DiT at 8 x 8."""
    root = tmp_path_factory.mktemp("small")
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=1, sample_size=8, num_embeds_ada_norm=1
    )
    model.save_pretrained(root / "dit")
    return ddpm(root / "run", 8, "--network", root / "dit")


def test_a_run_goes_on_at_twice_its_size(small, tmp_path):
    whole = ddpm(tmp_path / "whole", 16, "--init", small)
    ddpm(tmp_path / "parts", 16, "--init", small, steps=1)
    ddpm(tmp_path / "parts", 16, "--init", small, "--resume")
    network = load_pipeline(whole).denoiser.network
    assert (network.sample_size, network.model.config.sample_size, facts_of(network.model).sample_size) == (16, 8, 16)
    first, second = (
        load_file(run / "model/transformer/diffusion_pytorch_model.safetensors") for run in (whole, tmp_path / "parts")
    )
    assert all(torch.equal(first[key], second[key]) for key in first), "2 steps are 1 and 1"
    drawing = Drawing(Job(source=whole, num=2, steps=2, device="cpu"))
    assert drawing.shape == (3, 16, 16)
    pipe = DiffusionPipeline.from_pretrained(whole / "model", trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    noise = rng_for(0, 0, 2, stream="sample").normal("x_T", drawing.shape)
    theirs = pipe(batch_size=2, latents=noise, num_inference_steps=2, output_type="pt").images
    torch.testing.assert_close(drawing.images(0, 2).clamp(-1, 1), theirs * 2 - 1, atol=1e-4, rtol=0)


def test_and_back_it_is_a_plain_model_again(small, tmp_path):
    large = ddpm(tmp_path / "large", 16, "--init", small, steps=1)
    back = load_pipeline(ddpm(tmp_path / "back", 8, "--init", large, steps=1)).denoiser.network
    assert (back.sample_size, facts_of(back.model).sample_size) == (8, None)


@pytest.mark.parametrize("peft", ["full", "lora"])
def test_a_text_pipeline_goes_on_at_four_times_its_size(tmp_path, peft):
    base, run = tiny_text.sd3(tmp_path / "sd3", with_t5=True), tmp_path / "run"
    settings = Settings(data=str(tiny_text.captioned_images(tmp_path / "data")), init=str(base), out=run, size=4 * tiny_text.SIDE, steps=1,
                        batch=2, sample_every=0, device="cpu", lr=1e-2, ema="none", peft=peft)  # fmt: skip
    train(recipes()["flow"](), settings, quiet=True)
    sides = {"num_inference_steps": 2, "output_type": "pt", "height": 64, "width": 64}

    def drawn(pipe):
        pipe.set_progress_bar_config(disable=True)
        return pipe("a star", **sides, generator=torch.Generator().manual_seed(0)).images

    merged = DiffusionPipeline.from_pretrained(run / "model", local_files_only=True)
    assert (merged.transformer.config.sample_size, merged.transformer.config.pos_embed_max_size) == (32, 16)
    drawing = Drawing(Job(source=run, num=2, steps=4, prompts=("a star", "blue"), device="cpu"))
    noise, grid = rng_for(0, 0, 2, stream="sample").normal("x_T", drawing.shape), [1 - i / 4 for i in range(4)]
    merged.set_progress_bar_config(disable=True)  # below, height and width are the pipeline's own
    theirs = merged(
        ["a star", "blue"], latents=noise, sigmas=grid, guidance_scale=1.0, output_type="pt"
    ).images  # the size is the pipeline's
    torch.testing.assert_close(drawing.images(0, 2), theirs * 2 - 1, atol=1e-4, rtol=0)
    if peft == "full":
        return
    adapted = DiffusionPipeline.from_pretrained(base, local_files_only=True)
    adapted.load_lora_weights(str(run / "adapter"))
    wanted = drawn(DiffusionPipeline.from_pretrained(run / "model", local_files_only=True))
    assert "take them from the merged\npipeline" in (run / "adapter/README.md").read_text()
    assert (drawn(adapted) - wanted).abs().max() > 1e-4
    adapted.transformer.pos_embed = merged.transformer.pos_embed  # as the README says
    torch.testing.assert_close(drawn(adapted), wanted, atol=1e-5, rtol=0)

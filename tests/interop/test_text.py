"""Prompts become what diffusers' own pipelines make of them, and what is exported draws what was trained."""

import itertools
import json

import pytest
import tiny_text
import torch
from diffusers import DiffusionPipeline

from percepta.interop import SamplerDefaults, export_pipeline, find_text, load_pipeline
from percepta.samplers import grid, guided

PROMPTS = ["a red disc", "", "blue star over a very very long hill"]
STEPS, SEED = 4, 5
KINDS = {
    "sd": tiny_text.sd,
    "sd3": tiny_text.sd3,
    "sd3-t5": lambda folder: tiny_text.sd3(folder, with_t5=True),
    "sdxl": tiny_text.sdxl,
}


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {name: make(root / name / "pipeline") for name, make in KINDS.items()}


def absent(folder):
    """diffusers wants to be told that an SD3 has no T5."""
    three = json.loads((folder / "model_index.json").read_text()).get("text_encoder_3")
    return {"text_encoder_3": None, "tokenizer_3": None} if three == [None, None] else {}


def said_by_diffusers(folder, prompts):
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent(folder))
    kind = type(pipe).__name__
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    if kind == "StableDiffusionPipeline":
        cond, null = pipe.encode_prompt(prompts, **options)
        return {"encoder_hidden_states": cond}, {"encoder_hidden_states": null}
    more = {} if kind == "StableDiffusionXLPipeline" else {"prompt_3": None}
    cond, null, pooled, null_pooled = pipe.encode_prompt(prompts, prompt_2=None, **more, **options)
    name = "text_embeds" if kind == "StableDiffusionXLPipeline" else "pooled_projections"
    return {"encoder_hidden_states": cond, name: pooled}, {"encoder_hidden_states": null, name: null_pooled}


@pytest.mark.parametrize("name", KINDS)
def test_embeddings_are_those_of_the_pipeline(pipelines, name):
    prompts = [prompt or "x" for prompt in PROMPTS]
    text = find_text(pipelines[name])
    wanted, null = said_by_diffusers(pipelines[name], prompts)
    encode = text.open()
    found, empty = encode(prompts), encode([""])
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=0)
        torch.testing.assert_close(empty[key], null[key][:1], atol=1e-5, rtol=0)
        assert value.std() > 0.01
    assert encode.cut(PROMPTS) == PROMPTS[2:], "only the long one loses its end"


def test_what_a_folder_says_of_its_text(pipelines, tmp_path):
    kinds = {name: find_text(folder).kind for name, folder in pipelines.items()}
    assert kinds == {"sd": "sd", "sd3": "sd3", "sd3-t5": "sd3", "sdxl": "sdxl"}
    keys = {find_text(folder).key for folder in pipelines.values()}
    assert len(keys) == 4
    again = tiny_text.sd(tmp_path / "again" / "pipeline")
    assert find_text(again).key == find_text(pipelines["sd"]).key
    assert find_text(again / "unet") is None
    index = json.loads((again / "model_index.json").read_text())
    (again / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "PixArtTransformer2DModel"]}))
    with pytest.raises(ValueError, match="PixArtTransformer2DModel, which is not known"):
        find_text(again)
    (again / "model_index.json").write_text(json.dumps(index | {"tokenizer": [None, None]}))
    with pytest.raises(ValueError, match="without its tokenizer"):
        find_text(again)


def drawn(denoiser, text, prompts, vae, scale):
    """Euler or DDIM without noise, from the textbook: x' = alpha' x0 + sigma' eps."""
    network, encode = denoiser.network, text.open()
    spare = {"time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]])} if text.kind == "sdxl" else {}
    network.set_null(encode([""]) | spare)
    cond = encode(prompts) | {key: value.expand(len(prompts), -1) for key, value in spare.items()}
    x = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(SEED))
    judge, path = guided(denoiser, scale), denoiser.path
    times = grid(path, STEPS, text.sampler.spacing)
    with torch.no_grad():
        for now, then in itertools.pairwise(times):
            x0 = judge(x, now.expand(len(x)), cond)
            eps = (x - path.alpha(now).float() * x0) / path.sigma(now).float()
            x = path.alpha(then).float() * x0 + path.sigma(then).float() * eps
        config = vae.config
        images = vae.decode(x / config.scaling_factor + (config.shift_factor or 0.0)).sample
    return (images / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", KINDS)
def test_an_export_draws_the_same_images_in_plain_diffusers(pipelines, name, tmp_path):
    loaded, text = load_pipeline(pipelines[name]), find_text(pipelines[name])
    tiny_text.shake(loaded.denoiser.network.model, seed=9)  # as if it had been trained
    export_pipeline(tmp_path / "out", loaded.denoiser, vae=loaded.vae, sampler=text.sampler, text=text)
    prompts, scale = ["a red disc", "blue"], 3.0
    wanted = drawn(loaded.denoiser, text, prompts, loaded.vae, scale)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True, **absent(tmp_path / "out"))
    assert (name == "sd3") == ("text_encoder_3=None" in (tmp_path / "out" / "README.md").read_text())
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__name__ == text.pipeline
    steps = {"sigmas": [1 - i / STEPS for i in range(STEPS)]} if text.kind == "sd3" else {"num_inference_steps": STEPS}
    noise = torch.Generator().manual_seed(SEED)
    found = pipe(prompts, generator=noise, guidance_scale=scale, output_type="pt", height=16, width=16, **steps).images
    assert wanted.std() > 0.02
    torch.testing.assert_close(found, wanted, atol=5e-5, rtol=0)
    again = load_pipeline(tmp_path / "out")
    assert again.denoiser.formulation == loaded.denoiser.formulation
    assert find_text(tmp_path / "out").key == text.key, "the text encoders are copied as they are"


def test_what_these_pipelines_cannot_be_told_is_refused(pipelines, tmp_path):
    loaded, text = load_pipeline(pipelines["sd"]), find_text(pipelines["sd"])
    with pytest.raises(ValueError, match="give its autoencoder"):
        export_pipeline(tmp_path / "out", loaded.denoiser, text=text)
    with pytest.raises(ValueError, match="export with trailing"):
        export_pipeline(
            tmp_path / "out", loaded.denoiser, vae=loaded.vae, sampler=SamplerDefaults("ddim", spacing="leading"), text=text
        )
    assert not (tmp_path / "out").exists()

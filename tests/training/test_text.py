"""Text pipelines from captions to an exported pipeline: Stable Diffusion 1 and 3, all weights and LoRA."""

import json
from dataclasses import replace

import pytest
import tiny_text
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from percepta.cli import main
from percepta.data import open_source
from percepta.data.order import indices_of
from percepta.distributed import world
from percepta.interop import find_text, load_pipeline
from percepta.judging import evaluate, told
from percepta.recipes import recipes
from percepta.rng import rng_for
from percepta.sampling import Drawing, Job, prompts_of
from percepta.training.data import open_data
from percepta.training.job import build_method, train
from percepta.training.settings import Settings
from percepta.training.texts import embed

SHORT = {"size": tiny_text.SIDE, "steps": 2, "batch": 4, "sample_every": 0, "device": "cpu", "lr": 1e-2, "ema": "none"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    return {
        "sd": tiny_text.sd(root / "sd" / "pipeline"),
        "sd3": tiny_text.sd3(root / "sd3" / "pipeline", with_t5=True),
        "sdxl": tiny_text.sdxl(root / "sdxl" / "pipeline"),
        "data": tiny_text.captioned_images(root / "data"),
    }


def run(made, name, pipeline, out, knobs=None, **changed):
    settings = Settings(**{**SHORT, "data": str(made["data"]), "init": str(made[pipeline]), "out": out, **changed})
    return train(recipes()[name](**(knobs or {})), settings, quiet=True)


def weights(out):
    (file,) = [*out.glob("model/unet/*.safetensors"), *out.glob("model/transformer/*.safetensors")]
    return load_file(file)


LORA = {"peft": "lora"}
WAYS = [
    ("ddpm", "sd", {}),
    ("ddpm", "sdxl", {}),
    ("flow", "sd3", {}),
    ("lpl", "sd", {}),
    ("lpl", "sd3", LORA),
    ("ddpm", "sd", LORA),
]


@pytest.mark.parametrize(("name", "pipeline", "changed"), WAYS)
def test_a_run_trains_resumes_and_exports(made, tmp_path, name, pipeline, changed):
    knobs = {"loss_weight": "1.0"} if name == "lpl" else {}
    whole = run(
        made, name, pipeline, tmp_path / "whole", knobs, **changed, sample_every=2, sample_num=2, sample_steps=2, guidance=2.0
    )
    assert whole.finished
    shown = json.loads((tmp_path / "whole/samples/step-0000002.json").read_text())
    assert shown["prompts"] == ["a red disc", "blue"], "previews follow the captions of the data"
    run(made, name, pipeline, tmp_path / "parts", knobs, **changed, steps=1)
    run(made, name, pipeline, tmp_path / "parts", knobs, **changed, resume=True)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(first[key], second[key]) for key in first), "2 steps are 1 and 1"
    before = load_pipeline(made[pipeline]).denoiser.network.model.state_dict()
    moved = {key for key, value in first.items() if not torch.equal(value, before[key])}
    assert moved and (any("attn2" in key for key in moved) or pipeline == "sd3")
    resolved = json.loads((tmp_path / "whole/config.json").read_text())
    assert resolved["resolved"]["captions"] == 3 and resolved["settings"]["vae"] == str(made[pipeline])
    diffusers_draws_what_we_draw(tmp_path / "whole", pipeline)
    assert main(["export", str(tmp_path / "whole"), str(tmp_path / "again")]) == 0
    assert find_text(tmp_path / "again").key == find_text(made[pipeline]).key
    if changed:
        same_with_the_adapter(made[pipeline], tmp_path / "whole")


def diffusers_draws_what_we_draw(run, pipeline, steps=4):
    """`percepta sample` and plain diffusers, from the same noise and prompts, with guidance."""
    prompts = ["a red disc", "blue"]
    drawing = Drawing(Job(source=run, num=2, steps=steps, prompts=tuple(prompts), guidance=3.0, device="cpu"))
    noise = rng_for(0, 0, 2, stream="sample").normal("x_T", drawing.shape)
    pipe = DiffusionPipeline.from_pretrained(run / "model", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    grid = {"sigmas": [1 - i / steps for i in range(steps)]} if pipeline == "sd3" else {"num_inference_steps": steps}
    theirs = pipe(prompts, latents=noise, guidance_scale=3.0, height=16, width=16, output_type="pt", **grid).images
    torch.testing.assert_close(drawing.images(0, 2), theirs * 2 - 1, atol=1e-4, rtol=0)


def same_with_the_adapter(base, run):
    """The adapter alone, put on the base by diffusers, draws what the merged pipeline draws."""
    merged, adapted = (DiffusionPipeline.from_pretrained(folder, local_files_only=True) for folder in (run / "model", base))
    adapted.load_lora_weights(str(run / "adapter"))
    images = []
    for pipe in (merged, adapted):
        pipe.scheduler = type(merged.scheduler).from_config(merged.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(0)
        images.append(pipe("a star", num_inference_steps=2, generator=noise, output_type="pt", height=16, width=16).images)
    torch.testing.assert_close(*images, atol=1e-5, rtol=0)
    plain = DiffusionPipeline.from_pretrained(base, local_files_only=True, scheduler=merged.scheduler)
    plain.set_progress_bar_config(disable=True)
    other = plain(
        "a star", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt", height=16, width=16
    )
    assert (other.images - images[0]).abs().max() > 1e-4, "the adapter says something"


def test_the_captions_decide(made, tmp_path):
    """The gradient of a step depends on what the images are said to show."""
    run(made, "ddpm", "sd", tmp_path / "told", {"cond_dropout": 0.0})
    run(made, "ddpm", "sd", tmp_path / "untold", {"cond_dropout": 0.0}, conditional="no")
    told_weights, untold = weights(tmp_path / "told"), weights(tmp_path / "untold")
    assert any(not torch.equal(told_weights[key], untold[key]) for key in untold)


def test_every_image_is_told_its_own_caption(made, tmp_path):
    """Through order and batches, in pixels and in latents: the embedding in a row is that of the image in the row."""
    settings = Settings(
        **{**SHORT, "data": str(made["data"]), "init": str(made["sd"]), "out": tmp_path, "batch": 6, "cache": tmp_path}
    )
    for vae in (None, str(made["sd"])):
        data = open_data(replace(settings, vae=vae), world(), torch.device("cpu"), lambda text: None)
        source, encode = open_source(made["data"], tiny_text.SIDE), find_text(made["sd"]).open()
        _, batch = next(iter(data.batches(0, 1)))
        indices = indices_of(range(6), 6, settings.seed)
        wanted = encode([source.texts[index] for index in indices])["encoder_hidden_states"]
        torch.testing.assert_close(batch.cond["encoder_hidden_states"], wanted, atol=1e-6, rtol=0)
        assert data.prompts.order == tuple(data.prompts.distinct.index(text) for text in source.texts)
        assert (data.num_classes, data.class_names, data.channels) == (None, None, 3 if vae is None else 4)
    network = build_method(recipes()["ddpm"](), settings, data).model.network
    torch.testing.assert_close(network.null_condition(1)["encoder_hidden_states"], encode([""])["encoder_hidden_states"])


def test_a_run_is_evaluated_on_its_captions(made, tmp_path):
    judged = {"eval_every": 2, "eval_metrics": "fid", "eval_space": "pixels", "eval_num": 4, "sample_steps": 2}
    assert run(made, "ddpm", "sd", tmp_path / "run", **judged, guidance=2.0).finished
    records = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 2], "the pipeline before the first step, and the run's end"
    found = evaluate(tmp_path / "run", str(made["data"]), Job(source=tmp_path / "run", num=4, steps=2, device="cpu"), metrics=("fid",),
                     spaces=("pixels",), cache=tmp_path / "cache")  # fmt: skip
    assert found.protocol["generated"]["drawn"]["prompts"] == ["a red disc", "blue", "a star", "a red disc"]


def test_mmd_through_the_chain_with_guidance(made, tmp_path):
    knobs = {"space": "pixels", "sampler_steps": 2, "chain_guidance": 2.0, "denoising_weight": 0.1}
    assert run(made, "mmd", "sd", tmp_path / "run", knobs, micro_batch=2).finished
    scheduler = json.loads((tmp_path / "run/model/scheduler/scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["timestep_spacing"]) == ("DDIMScheduler", "trailing")
    drawing = Drawing(Job(source=tmp_path / "run", num=2, prompts=("a star",), device="cpu"))
    assert (drawing.how.steps, drawing.how.guidance, drawing.how.spacing) == (2, 2.0, "trailing")


def test_samples_and_evaluations_are_told_prompts(made, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red disc\n\nblue\n")
    assert prompts_of(str(prompts)) == prompts_of("a red disc; blue") == ("a red disc", "blue")
    words = [
        "sample",
        str(made["sd"]),
        "--num",
        "3",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--guidance",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 2
    assert "--prompts" in capsys.readouterr().err
    assert main([*words, "--prompts", str(prompts)]) == 0
    protocol = json.loads((tmp_path / "out/protocol.json").read_text())
    assert protocol["prompts"] == ["a red disc", "blue"] and protocol["text_encoders"] == find_text(made["sd"]).key
    one = Drawing(Job(source=made["sd"], num=3, steps=2, prompts=("blue",), guidance=2.0, device="cpu"))
    both = Drawing(Job(source=made["sd"], num=3, steps=2, prompts=("a red disc", "blue"), guidance=2.0, device="cpu"))
    first, second = one.images(0, 3), both.images(0, 3)
    assert torch.allclose(first[1], second[1], atol=1e-5) and not torch.allclose(first[0], second[0], atol=1e-3), "in turn"
    from percepta.evaluation.sets import open_side

    job = told(Job(source=made["sd"], num=4), open_side(str(made["data"])))
    assert job.prompts == ("a red disc", "blue", "a star", "a red disc"), "as the images of the reference have them"
    plain = open_side(plain_images(tmp_path / "plain"))
    with pytest.raises(ValueError, match="has captions for 0"):
        told(Job(source=made["sd"], num=4), plain)


def plain_images(folder):
    tiny_text.captioned_images(folder)
    (folder / "metadata.jsonl").unlink()
    return str(folder)


def test_data_without_captions_and_networks_without_encoders_are_refused(made, tmp_path):
    with pytest.raises(ValueError, match=r"needs captions, and .*plain has none: give each image one"):
        run(made | {"data": plain_images(tmp_path / "plain")}, "ddpm", "sd", tmp_path / "run")
    alone = {"data": made["data"], "sd": made["sd"] / "unet"}
    with pytest.raises(ValueError, match="takes text encoders: give --init the whole pipeline"):
        run(alone, "ddpm", "sd", tmp_path / "run", vae=str(made["sd"]), conditional="no")
    assert not (tmp_path / "run" / "checkpoint-2").exists()


def test_every_caption_is_embedded_once(made, tmp_path, monkeypatch):
    text, said = find_text(made["sd"]), []
    options = (tiny_text.SIDE, tmp_path, torch.device("cpu"), said.append)
    found = embed(text, ["blue", "a star", "blue"], *options)
    assert found.distinct == ("a star", "blue") and found.order == (1, 0, 1) and "3 captions embedded" in said[-1]
    cond = found.cond(found.of_images([0, 1, 2, 3]))["encoder_hidden_states"]
    torch.testing.assert_close(cond, text.open()(["blue", "a star", "blue", "blue"])["encoder_hidden_states"], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.null()["encoder_hidden_states"], text.open()([""])["encoder_hidden_states"])
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    embed(text, ["blue", "new"], *options)
    assert len(files) == 3 and len(list(tmp_path.rglob("*.safetensors"))) == 4 and "1 captions embedded" in said[-1]
    assert all(file.stat().st_mtime_ns == when for file, when in files.items())

    def opened(*_):
        raise AssertionError("no encoder is loaded where nothing is missing")

    monkeypatch.setattr(type(text), "open", opened)
    embed(text, ["new", "a star"], *options)
    next(iter(files)).write_bytes(b"broken")
    with pytest.raises(ValueError, match="damaged or gone"):
        for prompt in ("", "blue", "a star"):
            embed(text, [prompt], *options).cond([prompt])

"""Prompts at the command line: what an evaluation draws, what guidance leads away from, and what a report's strips are told."""

import json
import shutil

import pytest
import tiny_text
import torch
from diffusers import DiffusionPipeline

from percepta.cli import main
from percepta.recipes.ddpm import Ddpm
from percepta.reports.run import read_run
from percepta.rng import rng_for
from percepta.sampling import Drawing, Job
from percepta.training.job import train
from percepta.training.settings import Settings

AWAY = "a grey"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("prompts")
    data = tiny_text.captioned_images(root / "data")
    pipelines = {"sd": tiny_text.sd(root / "sd/pipeline"), "sd3": tiny_text.sd3(root / "sd3/pipeline", with_t5=True),
                 "sdxl": tiny_text.sdxl(root / "sdxl/pipeline")}  # fmt: skip
    run = train(
        Ddpm(),
        Settings(data=str(data), init=str(pipelines["sd"]), size=tiny_text.SIDE, steps=1, batch=2, sample_every=1, sample_num=3, sample_steps=2,
                 device="cpu", ema="none", out=root / "run", cache=root / "cache"),
        quiet=True,
    ).folder  # fmt: skip
    plain = tiny_text.captioned_images(root / "plain")
    (plain / "metadata.jsonl").unlink()
    return {**pipelines, "data": data, "plain": plain, "run": run, "cache": root / "cache"}


@pytest.fixture(autouse=True)
def _cache(made, monkeypatch):
    monkeypatch.setenv("PERCEPTA_CACHE", str(made["cache"]))


def judge(*words):
    return main(["evaluate", *map(str, words), "--device", "cpu", "--metrics", "fid", "--space", "pixels", "--num", "4"])


def drawn(folder):
    return json.loads((folder / "evaluation.json").read_text())["protocol"]["generated"]


# --- evaluate --prompts ----------------------------------------------------------------------------------------------------------------


def test_an_evaluation_draws_what_it_is_told(made, tmp_path, capsys):
    """From data without a caption too; the images are those of `percepta sample` with these prompts."""
    file = tmp_path / "prompts.txt"
    file.write_text("a red disc\n\nblue\n")
    words = (made["sd"], made["plain"], "--steps", 2, "--guidance", 2, "--out", tmp_path / "out")
    assert judge(*words) == 2
    assert "captions for 0 of its images" in (said := capsys.readouterr().err) and "--prompts FILE" in said
    assert judge(*words, "--prompts", file) == 0
    told = drawn(tmp_path / "out")
    assert told["drawn"]["prompts"] == ["a red disc", "blue"]
    images = tmp_path / "images"
    sample = f"sample {made['sd']} --num 4 --steps 2 --guidance 2 --device cpu --out {images}"
    assert main([*sample.split(), "--prompts", "a red disc;blue"]) == 0
    assert [f.read_bytes() for f in sorted(images.glob("*.png"))] == [
        (made["sd"] / "evaluation" / "drawn" / told["name"].rpartition("/")[2] / f"{k:06d}.png").read_bytes() for k in range(4)
    ]
    assert judge(*words, "--prompts", "a star") == 0, "said otherwise, drawn otherwise"
    assert drawn(tmp_path / "out")["name"] != told["name"] and drawn(tmp_path / "out")["drawn"]["prompts"] == ["a star"]


def test_a_sweep_tells_every_weight_the_same(made, tmp_path):
    assert judge(made["sd"], made["plain"], "--steps", 2, "--guidance", "1:2:1", "--prompts", "a star;blue", "--out", tmp_path) == 0
    folders = [tmp_path / f"guidance-{weight}" for weight in (1, 2)]
    assert [drawn(f)["drawn"]["prompts"] for f in folders] == [["a star", "blue"]] * 2
    assert drawn(folders[0])["name"] != drawn(folders[1])["name"]
    before = [(f / "evaluation.json").stat().st_mtime_ns for f in folders]
    assert judge(made["sd"], made["plain"], "--steps", 2, "--guidance", "1:2:1", "--prompts", "a star", "--out", tmp_path) == 0
    after = [(f / "evaluation.json").stat().st_mtime_ns for f in folders]
    assert all(a > b for a, b in zip(after, before, strict=True)), "nothing of other prompts is taken"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("shapes:length=8,size=16 {plain} --steps 10", "--steps says how a model draws; shapes:length=8,size=16 is no run"),
        ("shapes {plain} --sampler ddim", "--sampler says how a model draws; shapes is no run"),
        ("hf:name {plain} --guidance 2", "--guidance says how a model draws; hf:name is no run"),
        ("{plain} {plain} --prompts blue", "--prompts says how a model draws"),
        ("{plain}/no {plain} --prompts blue", "no: does not exist"),
        ("{sd} {plain} --prompts ;", "holds no prompt"),
        ("{sd} {plain} --guidance 1:2:1 --prompts ;", "holds no prompt"),
    ],
)
def test_flags_of_a_model_are_refused_elsewhere(made, capsys, words, said):
    before = sorted(made["sd"].rglob("*.png"))
    assert judge(*words.format(**made).split()) == 2
    assert said in capsys.readouterr().err
    assert sorted(made["sd"].rglob("*.png")) == before


# --- sample --negative-prompt ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd", "sd3", "sdxl"])
def test_a_negative_prompt_is_that_of_diffusers(made, kind):
    """From the same noise, guided away from a text: their images; and it says something."""
    prompts, steps = ("a red disc", "blue"), 3
    job = {"source": made[kind], "num": 2, "steps": steps, "prompts": prompts, "guidance": 3.0, "device": "cpu", "sampler": None}
    ours = Drawing(Job(**job, negative_prompt=AWAY, spacing=None if kind == "sd3" else "trailing"))
    noise = rng_for(0, 0, 2, stream="sample").normal("x_T", ours.shape)
    pipe = DiffusionPipeline.from_pretrained(made[kind], local_files_only=True)
    if kind != "sd3":  # the only grid that no pipeline changes
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing", steps_offset=0)
    pipe.set_progress_bar_config(disable=True)
    grid = {"sigmas": [1 - i / steps for i in range(steps)]} if kind == "sd3" else {"num_inference_steps": steps}
    shape = {"height": tiny_text.SIDE, "width": tiny_text.SIDE, "output_type": "pt"}
    theirs = pipe(list(prompts), negative_prompt=[AWAY] * 2, latents=noise, guidance_scale=3.0, **shape, **grid).images
    got = ours.images(0, 2)
    torch.testing.assert_close(got, theirs * 2 - 1, atol=5e-4, rtol=0)  # their schedule is float32: as near without one
    without = Drawing(Job(**job, spacing=None if kind == "sd3" else "trailing")).images(0, 2)
    assert float((without - got).abs().max()) > 0.02
    assert ours.protocol()["negative_prompt"] == AWAY and ours.protocol()["prompts"] == list(prompts)


def test_the_command_takes_a_negative_prompt(made, tmp_path, capsys):
    words = f"sample {made['sd']} --num 2 --steps 2 --device cpu --prompts blue --out {tmp_path / 'out'}".split()
    assert main([*words, "--guidance", "3", "--negative-prompt", AWAY]) == 0
    assert json.loads((tmp_path / "out/protocol.json").read_text())["negative_prompt"] == AWAY
    capsys.readouterr()
    for more, said in (
        (["--guidance", "3"], "negative_prompt differ"),
        (["--guidance", "3", "--negative-prompt", "other"], "negative_prompt differ"),
        (["--negative-prompt", AWAY], "what guidance leads away from"),
        (["--guidance", "3", "--negative-prompt", " "], "is empty"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err, more


# --- report --strips ---------------------------------------------------------------------------------------------------------------------


def test_strips_are_told_the_runs_own_captions(made, tmp_path):
    """Of the last grid; of the data where there is none; and the walk begins with the sample of that caption."""
    run = tmp_path / "run"
    shutil.copytree(made["run"], run)
    assert main(["report", str(run), "--strips", "2", "--device", "cpu", "--out", str(tmp_path / "r.html")]) == 0
    caption = json.loads((run / "figures/strips.json").read_text())["caption"]
    assert caption.endswith("Each row keeps the text of its first image: a red disc; a star.")
    assert "Interpolation strips" in (tmp_path / "r.html").read_text()
    first = (run / "figures/strips.png").read_bytes()
    shutil.rmtree(run / "samples")
    assert main(["report", str(run), "--strips", "2", "--device", "cpu", "--out", str(tmp_path / "r.html")]) == 0
    told = json.loads((run / "figures/strips.json").read_text())["caption"]
    assert told.endswith("a red disc; a star.") and (run / "figures/strips.png").read_bytes() == first


def test_strips_without_captions_say_what_is_missing(made, tmp_path, capsys):
    from percepta.cli.report import captions

    run = tmp_path / "run"
    shutil.copytree(made["run"], run)
    shutil.rmtree(run / "samples")
    config = json.loads((run / "config.json").read_text())
    for changed, said in (({"data": str(tmp_path / "gone")}, "cannot be read: .*gone"), ({"data": str(made["plain"])}, "has none")):
        (run / "config.json").write_text(json.dumps({**config, "settings": {**config["settings"], **changed}}))
        with pytest.raises(ValueError, match=f"captions of a run's data.* {said}"):
            captions(read_run(run), 2)
        assert main(["report", str(run), "--strips", "1", "--device", "cpu", "--out", str(tmp_path / "r.html")]) == 2
    (run / "config.json").write_text(json.dumps({**config, "settings": {**config["settings"], "conditional": "no"}}))
    assert captions(read_run(run), 2) == ("",)

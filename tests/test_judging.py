"""Judging what the user has: what is drawn from, what is read, what is kept beside the images, and what is refused before anything is drawn."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import FLAGS, small_network

from percepta import judging
from percepta.recipes import recipes
from percepta.sampling import Job, draw
from percepta.training.job import train
from percepta.training.settings import Settings

torch.set_num_threads(1)

REAL = "shapes:length=20,size=8"
JUDGE = {"metrics": ("fid",), "spaces": ("pixels",), "kid_size": 5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("judging")
    network = small_network(root / "network")
    return train(recipes()["ddpm"](), Settings(**{**FLAGS, "steps": 1, "network": network, "out": root / "run"}), quiet=True).folder


@pytest.fixture
def run(trained, tmp_path):
    """A run of this test's own."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def job(run, num=6, **changed):
    return Job(**{"source": run, "num": num, "steps": 2, "batch": 4, "device": "cpu", **changed})


def judged(given, tmp_path, **options):
    return judging.evaluate(given, REAL, cache=tmp_path / "cache", **{**JUDGE, **options})


def plain(record):
    """As JSON gives it back: tuples are lists."""
    return json.loads(json.dumps(record))


def files(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.rglob("*.png"))}


# ---- what is a generator


def test_runs_and_pipelines_are_drawn_from_and_images_are_not(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "protocol.json").write_text('{"source": "runs/a"}')
    assert [judging.is_generator(one) for one in (run, str(run), run / "model", run / "model" / "unet")] == [True] * 4
    for other in (tmp_path / "empty", tmp_path / "images", tmp_path / "nowhere", "shapes", np.zeros((2, 4, 4, 3), np.uint8)):
        assert not judging.is_generator(other)


def test_a_run_with_an_evaluation_in_its_folder_is_still_a_run(run, tmp_path):
    judging.save(judged(run, tmp_path, job=job(run)), run)
    assert (run / "protocol.json").is_file()
    assert judging.is_generator(run)
    assert judged(run, tmp_path, job=job(run)).protocol["generated"]["count"] == 6


# ---- drawing


def test_a_run_is_drawn_from_and_the_protocol_says_how(run, tmp_path):
    result = judged(run, tmp_path, job=job(run, seed=3))
    drawn = result.protocol["generated"]["drawn"]
    expected = {"source": str(run), "sampler": "ddim", "steps": 2, "guidance": 1.0, "seed": 3, "num": 6, "ema": "classic", "trained_against": []}  # fmt: skip
    assert {key: drawn[key] for key in expected} == expected
    assert len(drawn["weights"]) == 64
    assert result.protocol["generated"]["count"] == 6
    folder = Path(result.protocol["generated"]["name"])
    assert folder.parent == run / "evaluation" / "drawn"
    assert len(files(folder)) == 6
    assert json.loads((folder / "protocol.json").read_text()) == plain(drawn)


def test_the_same_images_as_percepta_sample(run, tmp_path):
    result = judged(run, tmp_path, job=job(run))
    draw(job(run), tmp_path / "sampled")
    assert files(tmp_path / "sampled") == files(Path(result.protocol["generated"]["name"]))
    again = judged(tmp_path / "sampled", tmp_path)
    assert again["fid"] == result["fid"]
    assert again.protocol["generated"]["drawn"] == plain(result.protocol["generated"]["drawn"])


def test_other_samplers_seeds_and_steps_have_folders_of_their_own(run, tmp_path):
    asked = (job(run), job(run, seed=1), job(run, steps=3), job(run, sampler="heun"))
    results = [judged(run, tmp_path, job=one) for one in asked]
    assert len({result.protocol["generated"]["name"] for result in results}) == 4
    assert len({result["fid"] for result in results}) == 4


def test_a_drawing_that_was_interrupted_goes_on(run, tmp_path):
    whole = judged(run, tmp_path, job=job(run), samples=tmp_path / "whole")
    calls = 0

    def check():
        nonlocal calls
        calls += 1
        if calls > 4:  # before the second batch ends
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(run, tmp_path, job=job(run), check=check)
    folder = next((run / "evaluation" / "drawn").iterdir())
    assert 0 < len(files(folder)) < 6
    first = folder / "000000.png"
    before = first.stat().st_mtime_ns
    result = judged(run, tmp_path, job=job(run))
    assert files(folder) == files(Path(whole.protocol["generated"]["name"]))
    assert first.stat().st_mtime_ns == before
    assert result["fid"] == whole["fid"]


def test_fewer_than_were_drawn_before_are_taken_and_more_are_added(run, tmp_path):
    six = judged(run, tmp_path, job=job(run))
    four = judged(run, tmp_path, job=job(run, 4))
    assert four.protocol["generated"]["selection"] == "the first 4 of 6"
    assert judged(run, tmp_path, job=job(run, 6))["fid"] == six["fid"] != four["fid"]
    assert judged(run, tmp_path, job=job(run, 8)).protocol["generated"]["count"] == 8


def test_an_npz_of_percepta_sample_brings_its_record(run, tmp_path, monkeypatch):
    monkeypatch.setattr("percepta.evaluation.evaluate._add_clean", lambda *_: None)  # it would train a domain space
    config = json.loads((run / "config.json").read_text())
    config["resolved"]["trained_against"] = [{"space": "pixels", "term": "near"}]
    (run / "config.json").write_text(json.dumps(config))
    record = draw(job(run), tmp_path / "images.npz")
    assert record["trained_against"] == ["pixels"]
    result = judged(tmp_path / "images.npz", tmp_path, spaces=("pixels",), metrics=("kid", "fid"))
    assert result.metrics["fid"].contaminated
    assert result.protocol["generated"]["drawn"]["seed"] == 0


# ---- refused before anything is drawn


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ("fdi",)}, "did you mean fid"),
        ({"spaces": ("pixel",)}, "unknown space 'pixel'"),
        ({"dialect": "adn"}, "there is no dialect"),
        ({"kid_size": 1}, "KID subset size"),
        ({"real": "nowhere"}, "nowhere"),
        ({"num": 1}, "at least 2 images"),
    ],
)
def test_nothing_is_drawn_for_what_cannot_be_judged(options, words, run, tmp_path):
    options = {**JUDGE, **options}
    real, num = options.pop("real", REAL), options.pop("num", 6)
    with pytest.raises(ValueError, match=words):
        judging.evaluate(run, real, job(run, num), cache=tmp_path / "cache", **options)
    assert not (run / "evaluation").exists()


def test_a_model_on_the_real_side_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="is a run or a pipeline; only the generated side"):
        judging.evaluate(REAL, run, cache=tmp_path / "cache", **JUDGE)


# ---- what is kept


def test_the_record_of_drawn_images_is_not_written_over(run, tmp_path):
    record = draw(job(run), tmp_path / "images")
    result = judged(tmp_path / "images", tmp_path)
    judging.save(result, tmp_path / "images")
    assert json.loads((tmp_path / "images" / "protocol.json").read_text()) == plain(record)
    assert "reference" in json.loads((tmp_path / "images" / "evaluation.protocol.json").read_text())
    assert draw(job(run, 8), tmp_path / "images")["num"] == 8  # it goes on
    file = judging.save(result, tmp_path / "apart")
    assert json.loads(file.read_text()) == plain(result.to_json())
    assert json.loads((tmp_path / "apart" / "protocol.json").read_text())["reference"]["count"] == 20


def test_copying_looks_at_the_images_that_were_judged(run, tmp_path):
    judged(run, tmp_path, job=job(run))
    result = judged(run, tmp_path, job=job(run, 4))
    options = {"cache": tmp_path / "cache", "device": "cpu"}
    found = judging.copying(result, REAL, "shapes:length=10,size=8,seed=1", 9, tmp_path / "out", **options)
    assert sorted(found["queries"]) == [0, 1, 2, 3]
    assert found["space"] == "pixels-embedding"
    assert 0 <= found["nearer"] <= 1
    assert json.loads((tmp_path / "out" / "copying.json").read_text()) == found
    assert {file.stem for file in (tmp_path / "out" / "figures").iterdir()} >= {"neighbours", "nearest-distances"}


def test_copying_needs_images(run, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(192), sigma=np.eye(192))
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    result = judging.evaluate(folder, tmp_path / "stats.npz", cache=tmp_path / "cache", metrics=("fid",), spaces=("pixels",))
    assert set(result.metrics) == {"fid"}
    with pytest.raises(ValueError, match="--neighbours compares images"):
        judging.copying(result, tmp_path / "stats.npz", None, 2, tmp_path / "out", cache=tmp_path / "cache")

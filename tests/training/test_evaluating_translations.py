"""Evaluations while a translator trains: both directions, --keep-best, and what is asked for before the first step."""

import json
from dataclasses import replace

import numpy as np
import pytest

from percepta.recipes.ladiffgan import TrainLadiffgan
from percepta.training.job import train

WAYS = ("a2b", "b2a")


def recipe(**knobs):
    small = {"source": "shapes:length=8", "generator": "cyclegan", "channels": 4, "blocks": 1}
    return TrainLadiffgan(**{**small, "latent_gan": "none", "denoising": "none", **knobs})


def settings(tmp_path, **changed):
    own = {
        "size": 16, "batch": 2, "steps": 2, "sample_every": 0, "device": "cpu", "out": tmp_path / "run", "cache": tmp_path / "cache",
        "eval_every": 1, "eval_metrics": "fid,kid", "eval_space": "pixels", "eval_num": 6,
    }  # fmt: skip
    return replace(TrainLadiffgan.default_settings(), **{**own, **changed})


def records(run):
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def test_both_directions_are_judged_and_the_best_is_kept(tmp_path):
    run = train(recipe(), settings(tmp_path, keep_best="fid/b2a", checkpoint_every=1, keep=2, steps=4), quiet=True).folder
    found = records(run)
    keys = ("fid", "kid", "cycle-error", "psnr", "shape-accuracy", "colour-accuracy")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert set(found[0]["metrics"]) == {f"{key}/{way}" for key in keys for way in WAYS}
    protocol = found[0]["protocol"]
    assert protocol["generated"]["count"] == 6 and protocol["reference"]["count"] == 8 and protocol["dialect"]["kid_size"] == 3
    assert (protocol["pairing"], protocol["pairs"], protocol["generated"]["drawn"]["step"]) == ("scenes", 6, 1)
    assert protocol["b2a"]["reference"]["name"] == protocol["generated"]["name"].removesuffix(", translated")
    values = {line["step"]: line["metrics"]["fid/b2a"]["value"] for line in found}
    best = min(values, key=lambda step: values[step])
    kept = sorted(int(folder.name.partition("-")[2]) for folder in run.glob("checkpoint-*"))
    assert kept == sorted({3, 4, best})
    assert len(list((tmp_path / "cache").rglob("*.rows"))) == 2  # the features of each domain, once; of translations none


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"keep_best": "fid"}, "--keep-best fid is not among what is evaluated: fid/a2b"),
        ({"keep_best": "lpips-to-source/a2b"}, "--keep-best lpips-to-source/a2b is not among"),  # images too small for it
        ({"eval_metrics": "pr", "eval_num": 3}, "pr needs at least 4 generated images, got 3"),
        ({"eval_space": "clip"}, "--eval-metrics fid,kid cannot all be computed"),
    ],
)
def test_what_could_not_be_computed_later(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(recipe(), settings(tmp_path, **changed), quiet=True)
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()


def test_statistics_cannot_be_translated_back(tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(768), sigma=np.eye(768))
    with pytest.raises(ValueError, match="holds statistics: translations are judged in both directions"):
        train(recipe(), settings(tmp_path, eval_data=str(tmp_path / "stats.npz")), quiet=True)

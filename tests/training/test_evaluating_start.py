"""What an evaluation needs is asked for before the first step: no run may end at step N for what was known at step 0."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from processes import FLAGS

from percepta.recipes import recipes
from percepta.spaces.extractor import open_extractor
from percepta.training import evaluating
from percepta.training.data import Data
from percepta.training.job import build_method, train
from percepta.training.settings import Settings

DDPM = recipes()["ddpm"]()
EVAL = {"eval_every": 2, "eval_num": 12, "eval_metrics": "fid", "eval_space": "pixels", "steps": 2}


@pytest.fixture
def given(tiny, tmp_path, monkeypatch):
    """The flags of a run without any weights on the machine."""
    for name in ("PERCEPTA_WEIGHTS", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))

    def flags(**changed):
        return Settings(
            **{**FLAGS, **EVAL, "network": tiny.network, "out": tmp_path / "run", "cache": tmp_path / "cache", **changed}
        )

    return flags


def refused(config, message):
    with pytest.raises(ValueError, match=message):
        train(DDPM, config, quiet=True)
    assert not list(config.out.glob("*.json*"))
    assert not list(config.out.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eval_num": 1}, "--eval-num must be at least 2, got 1"),
        ({"eval_steps": 0}, "--eval-steps must be at least 1, got 0"),
        ({"eval_every": -1}, "--eval-every must not be negative"),
        ({"shares_every": -1}, "--shares-every must not be negative"),
        ({"keep_best": "fid"}, "--keep-best fid needs evaluations"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        Settings(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eval_num": 3, "eval_metrics": "pr"}, "pr needs at least 4 generated images, got 3"),
        ({"data": "shapes:length=5", "eval_metrics": "fid,dc"}, "dc needs at least 6 reference images, got 5"),
        ({"eval_metrics": "fid,lpips-diversity"}, "lpips-diversity: .* put .* into"),
        ({"eval_metrics": "lpips-diversity"}, "lpips-diversity: .* put .* into"),
        ({"eval_metrics": "fidd"}, "there is no metric 'fidd', did you mean fid"),
        ({"eval_space": "inception-2048"}, "--eval-metrics fid cannot all be computed: fid: .* are missing: put .* into"),
        ({"keep_best": "kid"}, "--keep-best kid is not among what is evaluated: fid"),
        ({"eval_data": "nowhere"}, "nowhere"),
        ({"eval_steps": 1001}, "1001"),
    ],
)
def test_what_could_not_be_computed_later(given, changed, message):
    refused(given(**changed), message)


def test_images_that_are_too_small_for_the_space(given, monkeypatch):
    def opened(family, *args, **options):
        return replace(open_extractor(family, weights="random"), weights="0" * 64)

    monkeypatch.setattr("percepta.evaluation.evaluate.open_extractor", opened)
    refused(given(eval_space="alex"), "the space alex needs at least 31 x 31, got 8 x 8")


def test_statistics_of_another_dimension(given, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(5), sigma=np.eye(5))
    refused(given(eval_data=str(tmp_path / "stats.npz")), "stats.npz holds statistics of 5 features, pixels has 192")


def test_a_reference_that_cannot_be_read(given, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(6):
        Image.fromarray(np.full((8, 8, 3), 20 * k, np.uint8)).save(folder / f"{k}.png")
    (folder / "5.png").write_bytes((folder / "4.png").read_bytes()[:60])
    refused(given(eval_data=str(folder)), "5.png")
    assert train(DDPM, given(eval_data=str(folder), on_bad_image="skip"), quiet=True).finished


def test_the_reference_is_read_once_and_samples_are_not_kept(given, tmp_path):
    """A run of a thousand evaluations must not fill the disk with the features of samples that nobody sees again."""
    train(DDPM, given(eval_every=1, steps=3), quiet=True)
    rows = list((tmp_path / "cache").rglob("*.rows"))
    assert len(rows) == 1, "the reference's rows, and no others"


def test_torchs_generator_is_as_it_was(given):
    """The reading at the start draws nothing that the run would have drawn."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    config = given()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    method = build_method(DDPM, config, Data(lambda a, b: iter(()), 3, 8, None, None, "", 4, lambda: images))
    torch.manual_seed(3)
    evaluating.prepared(method.product, config, torch.device("cpu"), (), lambda text: None, lambda: None)
    assert torch.equal(torch.rand(2), expected)


def test_statistics_may_be_the_other_side(given, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(192), sigma=np.eye(192))
    stats = str(tmp_path / "stats.npz")
    run = train(DDPM, given(eval_data=stats), quiet=True).folder
    assert set(json.loads((run / "evaluations.jsonl").read_text())["metrics"]) == {"fid"}
    refused(given(eval_data=stats, eval_metrics="kid", out=tmp_path / "kid"), "kid: needs images on both sides")


def test_an_autoencoder_cannot_be_judged_by_statistics(given, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(192), sigma=np.eye(192))
    with pytest.raises(ValueError, match="reconstructions, which need images"):
        train(
            recipes()["autoencoder"](perceptual="none"),
            given(eval_data=str(tmp_path / "stats.npz"), size=16, network=None),
            quiet=True,
        )

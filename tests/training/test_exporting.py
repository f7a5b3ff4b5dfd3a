"""Models that are no diffusers pipelines: exported whole or not at all, over nothing but an earlier export, with what they were trained against."""

import json

import pytest
import torch
from latent_parts import autoencoder, prior

from percepta.evaluation.contamination import trained_against
from percepta.networks import load_autoencoder, load_model
from percepta.networks.cyclegan import CycleganPair
from percepta.networks.latent_prior import load_prior
from percepta.recipes.autoencoder import Coder
from percepta.recipes.prior import Given
from percepta.training.product import exporting
from percepta.training.translated import Translated

CARD = {"title": "one", "protocol": {"trained_against": "alex, vgg16"}}
IMAGES = torch.rand(2, 3, 8, 8) * 2 - 1


def coder():
    return Coder(autoencoder(), IMAGES), load_autoencoder


def given():
    made = prior()
    return Given(made.denoiser, made.own, made.other, IMAGES), load_prior


def translated():
    return Translated(CycleganPair(16, 4, 1), IMAGES, IMAGES), load_model


@pytest.mark.parametrize("kind", [coder, given, translated])
def test_an_export_is_loaded_and_says_what_it_was_trained_against(kind, tmp_path):
    product, load = kind()
    for _ in range(2):  # over an earlier one, too
        product.export(tmp_path / "deep" / "model", CARD)
    assert load(tmp_path / "deep" / "model") is not None
    assert trained_against(tmp_path / "deep" / "model") == ("alex", "vgg16")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_half_an_export_is_none(tmp_path):
    out = tmp_path / "model"
    with exporting(out, CARD) as work:
        (work / "a").write_text("earlier")
    with pytest.raises(RuntimeError, match="planted"), exporting(out, CARD) as work:
        (work / "a").write_text("half")
        assert (out / "a").read_text() == "earlier"
        raise RuntimeError("planted")
    assert (out / "a").read_text() == "earlier" and [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("config", [None, {"recipe": "ladiffgan"}])
def test_what_is_no_export_is_not_replaced(config, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(config)) if config else (tmp_path / "mine" / "x").write_text("")
    with pytest.raises(ValueError, match="is no earlier export"), exporting(tmp_path / "mine", CARD):
        pass
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_a_folder_with_more_in_it_than_a_model_is_not_replaced(tmp_path):
    mine = tmp_path / "mine"
    translated()[0].export(mine, CARD)
    (mine / "percepta.json").unlink()  # as before there were records
    translated()[0].export(mine, CARD)
    (mine / "percepta.json").unlink()
    (mine / "README.md").write_text("of another's model")
    with pytest.raises(ValueError, match="is no earlier export"):
        translated()[0].export(mine, CARD)
    assert (mine / "README.md").is_file()

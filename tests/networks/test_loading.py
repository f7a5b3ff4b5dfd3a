import json

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from percepta.networks import build, load_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    build("unet-pocket", size=16, overrides={"block_out_channels": (8, 8, 8)}).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def test_own_and_foreign_classes_load_by_the_name_in_the_config(folder, tmp_path):
    model = load_model(folder)
    assert type(model) is UNet2DModel
    assert not model.training
    build("ddpmpp-32", overrides={"model_channels": 8, "num_blocks": 1}).save_pretrained(tmp_path / "own")
    assert type(load_model(tmp_path / "own")).__name__ == "DDPMPP"


def test_only_safetensors_are_read(folder):
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="its weights are missing"):
        load_model(folder)
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"diffusion_pytorch_model.bin may hold code and is not loaded; convert it where you trust it"
    ):
        load_model(folder)


def test_missing_extra_and_misshapen_weights_are_errors(folder):
    weights = load_file(folder / WEIGHTS)
    taken = dict(weights)
    taken.pop("conv_in.weight")
    save_file(taken, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing_keys, first conv_in\.weight"):
        load_model(folder)
    save_file(weights | {"more": torch.zeros(1)}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 unexpected_keys, first more"):
        load_model(folder)
    save_file(weights | {"conv_in.weight": torch.zeros(1)}, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"conv_in\.weight"):
        load_model(folder)


def test_a_cut_file_is_an_error(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_model(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "names the class 'DDIMScheduler', no model of diffusers"),
        ({"_class_name": "system"}, "names the class 'system'"),
        ({}, "names the class None"),
        ([], "is not a model's configuration"),
    ],
)
def test_configs_that_name_no_model(folder, config, message):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("recipe", "model", "said"),
    [
        ("autoencoder", True, "run of the recipe autoencoder, which trains an autoencoder and no denoiser: give it as --vae"),
        ("ddpm", True, "run of the recipe ddpm, and its model is a pipeline: give it as --init"),
        ("ddpm", False, "run of the recipe ddpm, and has no model yet: go on with percepta train ddpm --out"),
    ],
)
def test_a_run_says_what_it_is_good_for(tmp_path, recipe, model, said):
    (tmp_path / "config.json").write_text(json.dumps({"recipe": recipe, "knobs": {}, "settings": {}}))
    if model:
        (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=said):
        load_model(tmp_path)


def test_a_pipeline_folder_says_which_parts_it_has(folder):
    with pytest.raises(ValueError, match="it holds unet: give one of these"):
        load_model(folder.parent)
    with pytest.raises(ValueError, match="does not exist"):
        load_model(folder / "nowhere")


def test_sharded_weights_load(folder, tmp_path):
    model = load_model(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for a, b in zip(model.parameters(), load_model(tmp_path / "shards").parameters(), strict=True):
        assert torch.equal(a, b)

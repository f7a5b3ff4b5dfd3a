"""A denoiser that is told another latent, and its folder."""

import json

import pytest
import torch
from latent_parts import MEANING, autoencoder, prior, unet

from percepta.formulation import Denoiser
from percepta.networks import adapt, build, load_model
from percepta.networks.latent_prior import GIVEN, Conditioned, LatentPrior, load_prior, save_prior


def test_the_condition_lies_beside_the_latent():
    network = adapt(unet(3, 2))
    x, given, time = torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4), torch.tensor([5.0, 9.0])
    told = Conditioned(network, 3)(x, time, {GIVEN: given})
    assert torch.equal(told, network.model(torch.cat([x, given], 1), time).sample)
    assert told.shape == x.shape


def test_what_does_not_fit_is_said():
    network = adapt(unet(3, 2))
    for channels in (0, 5):
        with pytest.raises(ValueError, match="that does not fit"):
            Conditioned(network, channels)
    told, x, time = Conditioned(network, 3), torch.zeros(1, 3, 4, 4), torch.zeros(1)
    for cond in (None, {"else": x}):
        with pytest.raises(ValueError, match="latents of another autoencoder"):
            told(x, time, cond)
    for given in (torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 4, 4)):
        with pytest.raises(ValueError, match="2 channels of the same size"):
            told(x, time, {GIVEN: given})
    with pytest.raises(ValueError, match="as a Conditioned network is"):
        LatentPrior(Denoiser(adapt(unet()), MEANING), autoencoder(), autoencoder())


def test_a_folder_of_it_is_read_back(tmp_path):
    made = prior()
    save_prior(tmp_path / "model", made.denoiser, made.own, made.other)
    again = load_prior(tmp_path)
    assert again.denoiser.formulation == MEANING
    images, t = torch.rand(2, 3, 8, 8) * 2 - 1, torch.tensor([0.3, 0.9], dtype=torch.float64)
    for one in (made, again):
        assert not any(p.requires_grad for p in one.parameters()) and not any(m.training for m in one.modules())
    z, given = again.own.encode(images)[0], again.other.encode(images)[0]
    assert torch.equal(z, made.own.encode(images)[0]) and torch.equal(given, made.other.encode(images)[0])
    assert not torch.equal(z, given)
    assert torch.equal(again.denoiser(z, t, {GIVEN: given}), made.denoiser(z, t, {GIVEN: given}))
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors"}
    with pytest.raises(ValueError, match="LatentPrior"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"_class_name": "UNet2DModel"}), json.dumps({"recipe": "prior"})])
def test_another_folder_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"holds no prior|is not valid JSON"):
        load_prior(tmp_path)


def test_a_preset_reads_further_channels():
    network = build("unet-pocket", channels=4, size=8, beside=3)
    assert (network.in_channels, network.out_channels) == (7, 4)
    plain = build("unet-pocket", channels=4, size=8)
    assert (plain.in_channels, plain.out_channels) == (4, 4)
    for name in ("ddpmpp-pocket", "dit-pocket", "mmdit-pocket"):
        network = build(name, channels=4, size=8, beside=4)
        assert (network.in_channels, network.out_channels) == (8, 4)


def test_autoencoders_that_are_known_are_shared_and_others_are_not(tmp_path):
    made = prior()
    save_prior(tmp_path / "model", made.denoiser, made.own, made.other)
    again = load_prior(tmp_path, [made.other, made.own])
    assert again.own is made.own and again.other is made.other
    for change in ("weight", "scale"):
        odd = autoencoder()
        if change == "scale":
            odd.set_scale(2.0)
        else:
            next(odd.parameters()).data.flatten()[0] += 1e-3
        assert load_prior(tmp_path, [odd]).own is not odd, change

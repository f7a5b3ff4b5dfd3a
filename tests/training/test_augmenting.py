"""A run whose images are augmented: what is compared with what, what the network is told, who may be told, and that the rest goes on working."""

import json
from dataclasses import replace

import pytest
import torch
from processes import FLAGS, digest, lines

from percepta.data.augment import LABEL, Augment
from percepta.estimate import Batch, Denoise
from percepta.formulation import EDM, Denoiser
from percepta.interop import load_pipeline
from percepta.networks import adapt
from percepta.networks.ddpmpp import DDPMPP
from percepta.recipes import recipes
from percepta.recipes.edm import Edm
from percepta.rng import rng_for
from percepta.samplers import Drawn, sample_images
from percepta.training.augmenting import augmentation
from percepta.training.job import train

SMALL = {"sample_size": 8, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_sizes": (), "dropout": 0.0}


def small(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DDPMPP(**SMALL, **options)
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder with a network that can be told how images were augmented."""
    folder = tmp_path_factory.mktemp("told")
    small(augment_dim=LABEL).save_pretrained(folder)
    return str(folder)


def settings(out, network, **changed):
    return replace(Edm.default_settings(), **{**FLAGS, "network": network, "out": out, **changed})


@pytest.mark.parametrize("classes", [None, 4])
def test_the_estimate_is_of_the_augmented_image_and_the_network_is_told(classes):
    denoiser = Denoiser(adapt(small(augment_dim=LABEL, num_classes=classes)), EDM)
    labels = None if classes is None else torch.arange(12) % classes
    batch, rng = Batch(torch.rand(12, 3, 8, 8) * 2 - 1, labels), rng_for(0, 40, 12)
    est = Denoise(denoiser, 0.0 if classes is None else 0.5, augment=Augment(0.5))(batch, rng)
    images, label = Augment(0.5)(batch.x0, rng)
    assert torch.equal(est.x0, images)
    assert torch.equal(est.cond["augment_labels"], label)
    assert set(est.cond) == {"augment_labels"} | ({"class_labels"} if classes else set())
    if classes:
        kept = est.cond["class_labels"] == labels
        assert 0 < int(kept.sum()) < 12
        assert (est.cond["class_labels"][~kept] == classes).all()
        assert label[~kept].any(), "of an image without a class it is still said how it was augmented"
    assert torch.equal(est.x0_hat, denoiser(est.noised.x_t, est.t, est.cond))
    blind = denoiser(est.noised.x_t, est.t, {**est.cond, "augment_labels": torch.zeros(12, LABEL)})
    differs = (est.x0_hat != blind).flatten(1).any(1)
    assert torch.equal(differs, label.any(1))
    plain = Denoise(denoiser)(batch, rng)
    assert torch.equal(est.noised.eps, plain.noised.eps)
    assert torch.equal(est.t, plain.t)


def test_a_network_at_work_hears_no_label_as_an_image_left_alone():
    """Sampling gives none, with guidance too."""
    network = adapt(small(augment_dim=LABEL, num_classes=4))
    denoiser, how, labels = Denoiser(network, EDM).eval(), Drawn("heun", 2, guidance=2.0), torch.arange(3)
    images = sample_images(denoiser, how, (3, 8, 8), rng_for(0, 0, 3, 0, "sample"), labels)
    said = {"class_labels": labels, "augment_labels": torch.zeros(3, LABEL)}
    torch.testing.assert_close(sample_images(denoiser, how, (3, 8, 8), rng_for(0, 0, 3, 0, "sample"), said), images)
    said["augment_labels"] = torch.ones(3, LABEL)
    assert not torch.allclose(sample_images(denoiser, how, (3, 8, 8), rng_for(0, 0, 3, 0, "sample"), said), images)


def test_a_run_is_the_same_in_micro_batches_and_another_one_without(told, tmp_path):
    def losses(name, augment=0.5, **changed):
        return [
            line["denoising"]
            for line in lines(train(Edm(augment=augment), settings(tmp_path / name, told, **changed), quiet=True).folder)
        ]

    whole = losses("whole")
    assert whole == pytest.approx(losses("parts", micro_batch=3), rel=1e-5)
    assert losses("none", augment=0.0)[0] != pytest.approx(whole[0], rel=1e-3)


def test_a_run_goes_on_to_the_bit_and_its_model_loads_samples_and_says_what_it_reads(told, tmp_path):
    more = {"batch": 6, "steps": 4}
    whole = train(Edm(augment=0.5), settings(tmp_path / "whole", told, **more), quiet=True)
    train(Edm(augment=0.5), settings(tmp_path / "again", told, **{**more, "steps": 2}), quiet=True)
    again = train(Edm(augment=0.5), settings(tmp_path / "again", told, **more, resume=True), quiet=True)
    assert digest(whole.folder) == digest(again.folder)
    with pytest.raises(ValueError, match="--augment 0.5 .now 0.25"):
        train(Edm(augment=0.25), settings(tmp_path / "again", told, **more, resume=True), quiet=True)

    assert whole.model is not None
    assert json.loads((whole.model / "unet" / "config.json").read_text())["augment_dim"] == LABEL
    denoiser = load_pipeline(whole.model).denoiser
    assert denoiser.network.reads.optional == {"augment_labels": LABEL}
    images = sample_images(denoiser, Drawn("heun", 2), (3, 8, 8), rng_for(0, 0, 2, 0, "sample"))
    assert images.shape == (2, 3, 8, 8) and images.isfinite().all()
    further = train(Edm(augment=0.1), settings(tmp_path / "further", None, init=str(whole.model), steps=1), quiet=True)
    assert further.finished


def test_who_cannot_be_told_is_refused_with_advice(tiny, told, tmp_path):
    ours = "use --network ddpmpp-32, ddpmpp-64, ncsnpp-32, ncsnpp-64, ddpmpp-pocket"
    with pytest.raises(ValueError, match=f"tells the network by 9 numbers.*this UNet2DModel reads none: {ours}"):
        train(Edm(augment=0.1), settings(tmp_path / "run", tiny.network), quiet=True)
    with pytest.raises(ValueError, match="this DDPMPP reads none"):
        augmentation(0.1, adapt(small()))
    with pytest.raises(ValueError, match="this DDPMPP reads 5"):
        augmentation(0.1, adapt(small(augment_dim=5)))
    assert augmentation(0.0, adapt(small())) is None
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        train(Edm(augment=1.5), settings(tmp_path / "run", told), quiet=True)
    assert not (tmp_path / "run").exists()


def test_latents_are_not_augmented(tiny, told, tmp_path):
    given = settings(tmp_path / "run", told, vae=tiny.vae, size=16, cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="--augment alters images, and with --vae latents are trained"):
        train(Edm(augment=0.1), given, quiet=True)
    assert not (tmp_path / "cache").exists(), "said before anything is encoded"
    with pytest.raises(ValueError, match="with --vae latents are trained"):
        augmentation(0.1, adapt(small(augment_dim=LABEL)), vae=object())


def test_the_papers_presets():
    kind = recipes()["edm"]
    for name, images_seen, augment, rate, steps in (("paper-cifar10", 512, 0.12, 1e-3, 18), ("paper-ffhq64", 256, 0.15, 2e-4, 40)):
        knobs, given = kind.preset(name)
        assert isinstance(knobs, Edm)
        assert (knobs.augment, given.batch, given.lr, given.sample_steps, given.clip) == (augment, images_seen, rate, steps, None)
        assert given.steps * given.batch == 200_000_000
        assert given.warmup * given.batch == pytest.approx(10_000_000, rel=1e-4)
        assert (given.ema, given.ema_halflife, given.optimizer) == ("edm", 500_000, "adam")

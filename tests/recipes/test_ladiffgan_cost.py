"""What bench/translate.py compares computes the same, and a step of LaDiffGAN does nothing twice."""

import runpy
from types import SimpleNamespace

import pytest
import torch
from processes import ROOT

from percepta.networks import Autoencoder
from percepta.networks.critics import UgatitCritic

bench = SimpleNamespace(**runpy.run_path(str(ROOT / "bench" / "_translators.py")))


def test_two_steps_are_those_of_the_published_loop():
    """In float64, so that round-off can neither hide a difference nor make one; a step of Adam is 1e-4."""
    assert bench.gap(size=16, channels=8, steps=2) < 1e-7


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return bench.phases(tmp_path_factory.mktemp("phases"), 16)


@pytest.mark.parametrize(("flags", "encodings"), [
    ({}, 4), ({"denoising": "B"}, 4), ({"denoising": "C"}, 4), ({"denoising": "none"}, 4), ({"latent_gan": "none"}, 4),
], ids=str)  # fmt: skip
def test_each_image_is_encoded_once_in_a_step(found, flags, encodings, monkeypatch):
    """Two autoencoders, whoever reads them; real images and translations of either domain."""
    settings = bench.settings_of(16, 2)
    method = bench.method_of(settings, 8, found, **flags)
    judges = [part for term in method.terms for part in vars(term.objective).values() if isinstance(part, torch.nn.Module)]
    assert len({id(part) for judge in judges for part in judge.modules() if isinstance(part, Autoencoder)}) == 2
    images, encode = [], Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: (images.append((id(self), x.detach().clone())), encode(self, x))[1])
    bench.Ours(method, settings, bench.images(settings))()
    assert len(images) == encodings
    assert not any(a == b and torch.equal(x, y) for i, (a, x) in enumerate(images) for b, y in images[:i])


def test_a_critic_looks_once_in_its_turn_and_once_in_the_generators(monkeypatch):
    settings, passes, forward = bench.settings_of(16, 2), [], UgatitCritic.forward
    method = bench.method_of(settings, 8, **bench.ALONE)
    monkeypatch.setattr(UgatitCritic, "forward", lambda self, x: (passes.append(len(x)), forward(self, x))[1])
    bench.Ours(method, settings, bench.images(settings))()
    assert passes == [4, 4, 2, 2]

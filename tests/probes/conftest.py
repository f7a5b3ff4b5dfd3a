"""Autoencoders whose latents are known: each is a mean over a square of pixels, and is decoded to that square again, or to a blur of it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from percepta.networks import Autoencoder
from percepta.probes import Look


class Squares(Autoencoder):
    """Latents are small pictures, times `scale`; `blur` is how many pixels the decoder reaches beyond a latent's own."""

    def __init__(self, factor: int = 4, blur: int = 0, scale: float = 1.0) -> None:
        nn.Module.__init__(self)
        self.factor, self.blur, self.latent_channels, self.in_channels = factor, blur, 3, 3
        self.weight = nn.Parameter(torch.ones(1))
        self.scale, self.shift = torch.full((1, 3, 1, 1), scale), torch.zeros(1, 3, 1, 1)

    def encode(self, x):
        z = avg_pool2d(x, self.factor) * self.scale
        return z, torch.zeros_like(z)

    def decode(self, z):
        x = interpolate(z / self.scale, scale_factor=self.factor)
        return x if not self.blur else avg_pool2d(x, 2 * self.blur + 1, 1, self.blur)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return interpolate(torch.rand(6, 3, 8, 8, generator=generator) * 1.6 - 0.8, (32, 32), mode="bilinear")


@pytest.fixture
def look(images, tmp_path):
    return lambda vae, **knobs: Look(vae, images, tmp_path / "figures", **knobs)


@pytest.fixture
def squares():
    """The class, for tests that cannot import it from here."""
    return Squares

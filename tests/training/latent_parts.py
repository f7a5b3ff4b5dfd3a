"""The smallest translator, and what judges it in latents: real parts of diffusers."""

import copy

import torch
from diffusers import UNet2DModel
from processes import small_autoencoder
from torch import nn

from percepta.estimate import Batch, Translate
from percepta.formulation import Denoiser, Formulation
from percepta.networks import Autoencoder, adapt
from percepta.networks.latent_prior import Conditioned, LatentPrior
from percepta.path import LinearBeta


class Toy(nn.Module):
    """Two convolutions: A to B, and B to A."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a2b, self.b2a = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def taps(self, a, b, rng):
        return {"real_a": a, "real_b": b, "fake_b": torch.tanh(self.a2b(a)), "fake_a": torch.tanh(self.b2a(b))}


class Nothing:
    """A product that is never asked for."""

    judged_by = "samples"

    def check(self, settings): ...

    def preview(self, settings, device, check): ...

    def judged(self, settings, device, check, real): ...

    def export(self, out, card): ...

    def next_command(self, run): ...


def autoencoder(seed=0):
    made = Autoencoder(small_autoencoder())
    if seed:
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    return made.requires_grad_(False).eval()


def unet(channels=3, beside=0):
    torch.manual_seed(2)
    return UNet2DModel(
        sample_size=4, in_channels=channels + beside, out_channels=channels, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip


MEANING = Formulation(LinearBeta(1000), "noise")


def denoiser():
    return Denoiser(adapt(unet()), MEANING).requires_grad_(False).eval()


def prior(seed=3):
    return LatentPrior(Denoiser(Conditioned(adapt(unet(3, 3)), 3), MEANING), autoencoder(), autoencoder(seed))


def batch(rows=4, dtype=torch.float32, size=8):
    made = torch.Generator().manual_seed(5)
    a, b = torch.rand(2, rows, 3, size, size, generator=made, dtype=dtype) * 2 - 1
    return Batch(b, source=a)


def estimate(model, rng, rows=4):
    return Translate(model)(batch(rows), rng)


def bits(*modules):
    return [copy.deepcopy(module.state_dict()) for module in modules]


def same(one, two):
    return all(torch.equal(a[k], b[k]) for a, b in zip(one, two, strict=True) for k in a)

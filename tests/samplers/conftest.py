"""What the sampler tests share: a denoiser with a closed-form chain, and a real U-Net of a few thousand weights."""

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from percepta.formulation import Denoiser, Formulation, expand
from percepta.path import LinearBeta


class Gaussian(nn.Module):
    """The exact denoiser of data ~ N(0, variance): x0_hat = alpha v x_t/(alpha^2 v + sigma^2). Counts its evaluations.

    The probability-flow ODE then has the solution x_s = x_t deviation(s)/deviation(t).
    """

    def __init__(self, path, variance=0.25):
        super().__init__()
        self.path = path
        self.variance = nn.Parameter(torch.tensor(variance, dtype=torch.float64))
        self.calls = 0

    def forward(self, x_t, t, cond=None):
        self.calls += 1
        alpha, sigma = expand(self.path.alpha(t), x_t), expand(self.path.sigma(t), x_t)
        v = self.variance.to(x_t.dtype)
        return alpha * v / (alpha**2 * v + sigma**2) * x_t

    def deviation(self, t):
        t = torch.tensor([t], dtype=torch.float64)
        return (self.path.alpha(t) ** 2 * self.variance.detach() + self.path.sigma(t) ** 2).sqrt().item()


class Net(nn.Module):
    """diffusers' U-Net behind the call that a Denoiser makes."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, time, cond=None):
        return self.unet(x, time.to(x.dtype), class_labels=cond).sample


def tiny_unet(out_channels=3, classes=None):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=out_channels, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        num_class_embeds=classes,
    )  # fmt: skip
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def gaussian():
    return Gaussian


@pytest.fixture(scope="session")
def denoiser():
    """Makes a Denoiser around a real U-Net: denoiser(formulation, out_channels=3, classes=None)."""

    def make(formulation=None, out_channels=3, classes=None):
        return Denoiser(Net(tiny_unet(out_channels, classes)), formulation or Formulation(LinearBeta()))

    return make


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

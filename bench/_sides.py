"""One training step, three times: Percepta's, the same by hand, and that of diffusers' training script."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from percepta.estimate import Batch
from percepta.networks import build
from percepta.recipes.ddpm import Ddpm
from percepta.rng import Rng
from percepta.training.job import prepare_networks
from percepta.training.precision import autocast
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

CPU = torch.device("cpu")
STEPS, LR = 1000, 1e-4


def images(settings: Settings) -> Tensor:
    return torch.rand(settings.batch, 3, settings.size, settings.size) * 2 - 1


class Ours:
    """take_step and the averages: what a step of the loop does, without its data and its log."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.batch = settings, Batch(images(settings))
        self.method = Ddpm(schedule="linear").build(Context(3, settings.size, network=settings.network))
        prepare_networks(self.method, settings, CPU)
        self.state = make_state(self.method, settings, CPU)

    def __call__(self) -> None:
        state, rows = self.state, self.settings.batch
        rng = Rng(self.settings.seed, tuple(range(state.step * rows, (state.step + 1) * rows)), state.step)
        report = take_step(self.method, state, self.settings, self.batch, rng)
        assert report.bad is None, report
        state.step += 1
        state.images += rows
        assert state.ema is not None
        state.ema.update(state.images)


class Bare:
    """The same step as plain PyTorch, as good as one writes it by hand."""

    def __init__(self, settings: Settings, classes: int | None = None) -> None:
        self.settings, self.x0, self.classes = settings, images(settings), classes
        self.model: Any = build(settings.network or "unet-cifar", size=settings.size, num_classes=classes).model.train()
        self.params = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.params]
        self.adamw = torch.optim.AdamW(self.params, lr=LR, weight_decay=0.0, fused=True)
        abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0)
        self.alpha, self.sigma = abar.sqrt().float(), (1 - abar).sqrt().float()

    def __call__(self) -> None:
        k = torch.randint(STEPS, (len(self.x0),))
        eps = torch.randn_like(self.x0)
        x_t = self.alpha[k, None, None, None] * self.x0 + self.sigma[k, None, None, None] * eps
        labels = {}
        if self.classes is not None:
            drawn = torch.randint(self.classes, (len(self.x0),))
            labels = {"class_labels": torch.where(torch.rand(len(drawn)) < 0.1, self.classes, drawn)}
        with autocast(self.settings.mixed_precision, CPU):
            loss = F.mse_loss(self.model(x_t, k, **labels, return_dict=False)[0].float(), eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.adamw.step()
        self.adamw.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.params, 1e-4)
        loss.item()


class Script:
    """examples/unconditional_image_generation/train_unconditional.py with its defaults and --use_ema."""

    def __init__(self, settings: Settings, device: torch.device = CPU) -> None:
        self.settings, self.x0, self.device = settings, images(settings).to(device), device
        self.model: Any = build(settings.network or "unet-cifar", size=settings.size).model.train().to(device)
        self.scheduler = DDPMScheduler(num_train_timesteps=STEPS, beta_schedule="linear")
        self.adamw = torch.optim.AdamW(self.model.parameters(), lr=LR, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        self.rate = get_scheduler("cosine", self.adamw, num_warmup_steps=500, num_training_steps=100_000)
        self.ema = EMAModel(self.model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.ema.to(device)

    def __call__(self) -> None:
        noise = torch.randn(self.x0.shape, device=self.device)
        timesteps = torch.randint(0, STEPS, (len(self.x0),), device=self.device).long()
        noisy = self.scheduler.add_noise(self.x0, noise, timesteps)  # pyright: ignore[reportArgumentType]
        with autocast(self.settings.mixed_precision, self.device):
            output = self.model(noisy, timesteps).sample
        loss = F.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adamw.step()
        self.rate.step()
        self.adamw.zero_grad()
        self.ema.step(self.model.parameters())
        loss.detach().item()

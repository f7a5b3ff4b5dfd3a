"""Recipes for tests of the loop: one with a critic that takes a turn of its own, one whose loss fails for some steps."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from percepta.estimate import Batch, Denoise, Estimate
from percepta.formulation import Denoiser, Formulation
from percepta.objectives import AbstractPerSample, Term, TrainsCritic, weight_named
from percepta.path import Cosine
from percepta.rng import Rng
from percepta.training.method import Method
from percepta.training.recipe import Context, Recipe, denoising_method


class Fooled(AbstractPerSample, TrainsCritic):
    """Least squares GAN with a small critic that has dropout and sees a little noise."""

    def __init__(self, dropout: float = 0.1) -> None:
        self.critic = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(8, 1, 4))

    def __call__(self, est: Estimate) -> Tensor:
        return ((self.critic(est.x0_hat) - 1) ** 2).flatten(1).mean(1)

    def critic_loss(self, est: Estimate, rng: Rng) -> Tensor:
        noise = 0.1 * rng.normal("critic", est.x0.shape[1:], est.x0.dtype)
        return ((self.critic(est.x0 + noise) - 1) ** 2).mean() + (self.critic(est.x0_hat + noise) ** 2).mean()


@dataclass(frozen=True, kw_only=True)
class Duel(Recipe):
    """Denoising with a critic."""

    name = "duel"
    summary = "denoising with a critic"
    example = "percepta train duel"

    dropout: float = 0.1
    """Of the critic."""

    def build(self, context: Context) -> Method:
        plain = denoising_method(context, Formulation(Cosine(), "noise"), weight_named("noise"), 0.0, "unet-pocket")
        terms = [*plain.terms, Term("fooled", Fooled(self.dropout), 0.5)]
        return Method(plain.model, plain.estimate, terms, plain.product)


@dataclass(frozen=True)
class Spoilt:
    """An estimate that is not a number at some steps of one random stream."""

    inner: Denoise
    steps: tuple[int, ...]
    streams: tuple[str, ...]

    def __call__(self, batch: Batch, rng: Rng) -> Estimate:
        est = self.inner(batch, rng)
        bad = rng.step in self.steps and rng.stream in self.streams
        return Estimate(est.x0_hat * torch.tensor(float("nan") if bad else 1.0), est.x0, True, est.noised, est.path)


@dataclass(frozen=True, kw_only=True)
class Failing(Recipe):
    """Denoising whose loss is not a number at some steps (numbers from 0)."""

    name = "failing"
    summary = "denoising that fails"
    example = "percepta train failing"

    at: tuple[int, ...] = (5, 6)
    """Steps that fail."""
    streams: tuple[str, ...] = ("train",)
    """In which random streams: after a rollback it is train-1."""

    def build(self, context: Context) -> Method:
        plain = denoising_method(context, Formulation(Cosine(), "noise"), weight_named("noise"), 0.0, "unet-pocket")
        assert isinstance(plain.model, Denoiser)
        return Method(plain.model, Spoilt(Denoise(plain.model), self.at, self.streams), plain.terms, plain.product)

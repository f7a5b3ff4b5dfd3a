"""One step of U-GAT-IT, twice: Percepta's, and the same networks in the loop that its authors published, written out as plain PyTorch.

The published order: critics first (translate both ways, 8 maps of logits and 8 CAM logits against 1 and 0, one backward, Adam), then generators (translate both
ways again, back, and what is of the target domain already; critics, L1 and cross-entropy; one backward, Adam), then rho into [0, 1]. Its fakes are not
detached, so that the critics' backward runs through the generators too; `careful` detaches them, has Adam fused, and is as good as one writes it in that order.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percepta.estimate import Batch
from percepta.formulation import Denoiser
from percepta.networks import build, build_autoencoder
from percepta.networks.latent_prior import Conditioned, save_prior
from percepta.networks.ugatit import UgatitPair
from percepta.recipes.ladiffgan import TrainLadiffgan
from percepta.recipes.prior import TrainPrior
from percepta.rng import Rng
from percepta.training.job import prepare_networks
from percepta.training.method import Method
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

CPU = torch.device("cpu")
ALONE: dict[str, Any] = {"latent_gan": "none", "denoising": "none"}
SUPERVISION: dict[str, dict[str, Any]] = {  # what is told of a row: the flags of percepta train ladiffgan
    "ours": ALONE,
    "ours, Diffusion-GAN": ALONE | {"diffusion_gan": True},
    "ours, latent GAN": {"denoising": "none"},
    "ours, denoising": {"latent_gan": "none"},
    "ours, both": {},
}


def settings_of(size: int, batch: int) -> Settings:
    given = dict(TrainLadiffgan.settings) | {"size": size, "batch": batch, "steps": 10**6}
    return Settings(**given)


def images(settings: Settings) -> Batch:
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.rand(settings.batch, 3, settings.size, settings.size, generator=draw) * 2 - 1 for _ in "ab")
    return Batch(b, source=a)


def phases(folder: Path, size: int) -> dict[str, Path]:
    """What a run would have trained first, as its recipes build it, with random weights."""
    coders = {domain: build_autoencoder(size=size, seed=seed).eval() for seed, domain in enumerate("ab")}
    found: dict[str, Path] = {}
    for domain, other in (("a", "b"), ("b", "a")):
        own, beside = coders[domain], coders[other]
        network = build("unet-pocket", channels=own.latent_channels, size=size // own.factor, seed=0, beside=beside.latent_channels)
        denoiser = Denoiser(Conditioned(network, own.latent_channels), TrainPrior().formulation())
        found |= {f"autoencoder_{domain}": folder / f"ae-{domain}", f"prior_{domain}": folder / f"prior-{domain}"}
        own.save_pretrained(found[f"autoencoder_{domain}"])
        save_prior(found[f"prior_{domain}"], denoiser, own, beside)
    return found


def method_of(settings: Settings, channels: int | None = None, found: dict[str, Path] | None = None, **flags: Any) -> Method:
    batch = images(settings)
    context = Context(3, settings.size, examples=lambda: batch.x0, source_examples=lambda: batch.x0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TrainLadiffgan(channels=channels, **flags, **(found or {})).build(context)


class Ours:
    """take_step: what a step of the loop does, without its data and its log."""

    def __init__(self, method: Method, settings: Settings, batch: Batch) -> None:
        self.method, self.settings, self.batch = method, settings, batch
        prepare_networks(method, settings, CPU)
        self.state = make_state(method, settings, CPU)

    def __call__(self) -> None:
        state, rows = self.state, self.settings.batch
        rng = Rng(self.settings.seed, tuple(range(state.step * rows, (state.step + 1) * rows)), state.step)
        report = take_step(self.method, state, self.settings, self.batch, rng)
        assert report.bad is None, report
        state.step += 1


class Plain:
    """The published loop over copies of a method's networks."""

    def __init__(self, method: Method, settings: Settings, batch: Batch, careful: bool) -> None:
        players: dict[str, Any] = {name: copy.deepcopy(module).train() for name, module in method.players.items()}
        self.players: dict[str, nn.Module] = players
        self.pair: UgatitPair = players["model"]
        self.critics = {domain: players[f"adversarial/{domain}"] for domain in "ab"}
        assert batch.source is not None
        self.a, self.b, self.careful = batch.source, batch.x0, careful
        weights = {"G": list(self.pair.parameters()), "D": [p for critic in self.critics.values() for p in critic.parameters()]}
        self.adam = {
            name: torch.optim.Adam(
                params, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=careful or None
            )
            for name, params in weights.items()
        }

    def __call__(self) -> None:
        shown = self._critics_turn(), self._generators_turn()
        _ = [float(loss) for loss in shown]  # printed at every step

    def _critics_turn(self) -> Tensor:
        self.adam["D"].zero_grad()
        fake_b, fake_a = self.pair.generated(self.a, "a2b").image, self.pair.generated(self.b, "b2a").image
        if self.careful:
            fake_b, fake_a = fake_b.detach(), fake_a.detach()
        loss = torch.zeros(())
        for domain, real, fake in (("a", self.a, fake_a), ("b", self.b, fake_b)):
            says, of_fake = self.critics[domain](real), self.critics[domain](fake)
            for x in says:
                loss = loss + F.mse_loss(x, torch.ones_like(x))
            for x in of_fake:
                loss = loss + F.mse_loss(x, torch.zeros_like(x))
        loss.backward()
        self.adam["D"].step()
        for critic in self.critics.values():
            critic.settle()
        return loss.detach()

    def _generators_turn(self) -> Tensor:
        self.adam["G"].zero_grad()
        pair, a, b = self.pair, self.a, self.b
        to_b, to_a = pair.generated(a, "a2b"), pair.generated(b, "b2a")
        back_a, back_b = pair.generated(to_b.image, "b2a"), pair.generated(to_a.image, "a2b")
        same_a, same_b = pair.generated(a, "b2a"), pair.generated(b, "a2b")
        loss = torch.zeros(())
        for domain, fake in (("a", to_a), ("b", to_b)):
            for x in self.critics[domain](fake.image):
                loss = loss + F.mse_loss(x, torch.ones_like(x))
        for real, back, same in ((a, back_a, same_a), (b, back_b, same_b)):
            loss = loss + 10 * F.l1_loss(back.image, real) + 10 * F.l1_loss(same.image, real)
        for made, same in ((to_a, same_a), (to_b, same_b)):
            told = F.binary_cross_entropy_with_logits(made.logits, torch.ones_like(made.logits))
            loss = loss + 1000 * (told + F.binary_cross_entropy_with_logits(same.logits, torch.zeros_like(same.logits)))
        loss.backward()
        self.adam["G"].step()
        pair.settle()
        return loss.detach()


def gap(size: int = 64, channels: int | None = None, steps: int = 2) -> float:
    """The largest difference between weights after some steps of both, in float64, where round-off cannot pass for a difference or hide one."""
    settings = settings_of(size, 2)
    method, batch = method_of(settings, channels, **ALONE), images(settings)
    for module in method.players.values():
        module.double()
    batch = Batch(batch.x0.double(), source=None if batch.source is None else batch.source.double())
    sides = [Plain(method, settings, batch, careful) for careful in (False, True)]
    begin = {name: [p.detach().clone() for p in module.parameters()] for name, module in method.players.items()}
    ours = Ours(method, settings, batch)
    for side in (ours, *sides):
        for _ in range(steps):
            side()
    most = 0.0
    for name, module in method.players.items():
        assert any(not torch.equal(p, q) for p, q in zip(module.parameters(), begin[name], strict=True)), f"{name} did not move"
        for side in sides:
            pairs = zip(module.state_dict().values(), side.players[name].state_dict().values(), strict=True)
            most = max(most, *(float((p - q).abs().max()) for p, q in pairs))
    return most

"""What one rank of a test computes and leaves in a file; run alone, the same code is the reference."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from latent_parts import Nothing, Toy, autoencoder, prior
from latent_parts import denoiser as latent_denoiser
from processes import small_autoencoder
from safetensors.torch import save_file
from torch import Tensor

from percepta import distributed
from percepta.data.order import share
from percepta.estimate import Batch, Denoise, Estimate, Translate
from percepta.formulation import EDM, Denoiser, Formulation
from percepta.networks import Autoencoder, adapt, load_model
from percepta.networks.latent_critic import LatentCritic
from percepta.objectives import AbstractPerBatch, AdversarialStructure, Calibrated, Denoising, Term
from percepta.objectives.diffused import DiffusedAdversarial
from percepta.objectives.prior import Between, ConditionalDenoising, LatentDiffusionGan, LatentMatching
from percepta.path import LinearBeta
from percepta.recipes import recipes
from percepta.rng import Rng
from percepta.spaces import Space
from percepta.training.calibration import calibrate
from percepta.training.knobs import UpTo
from percepta.training.method import Method
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step


class Logits(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.layer(x)]


class Small(Space):
    """A convolution with batch norm, averaged: a judge that can be trained."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.norm = torch.nn.Conv2d(3, 12, 3), torch.nn.BatchNorm2d(12)
        torch.nn.init.uniform_(self.norm.running_var, 0.1, 0.3)
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.norm(self.layer(x)).square().mean((2, 3)),)


CASES = {"even": 8, "uneven": 5}


class Mmd(AbstractPerBatch):
    """Squared MMD with a Gaussian kernel between generated and real images of the whole batch, or of each rank's own."""

    def __init__(self, gather: bool) -> None:
        self.gather = distributed.gather_rows if gather else (lambda x: x)

    def __call__(self, est: Estimate) -> Tensor:
        fake, real = self.gather(est.x0_hat.flatten(1)), self.gather(est.x0.flatten(1))

        def kernel(a: Tensor, b: Tensor) -> Tensor:
            return torch.exp(-((a[:, None] - b[None]) ** 2).mean(-1)).mean()

        return kernel(fake, fake) - 2 * kernel(fake, real) + kernel(real, real)


def latent_method() -> Method:
    """A translator with all that judges it in latents, and with Diffusion-GAN's critic, whose T moves in this step."""
    model, critic = Toy().double(), torch.nn.Conv2d(3, 1, 4, stride=2)
    torch.nn.init.constant_(critic.bias, 1.5)
    diffused = DiffusedAdversarial(Logits(critic), "real_b", "fake_b", kimg=0.02)
    diffused.critic.seen[2] = 3  # steps of four
    latent = LatentDiffusionGan(autoencoder(), LatentCritic(3, 4, 1), LinearBeta(1000), real="real_a", fake="fake_a")
    terms = [
        Term("diffused", diffused),
        Term("latent", latent),
        Term("matching", LatentMatching(autoencoder(), latent_denoiser(), Between(), "real_b", "fake_b")),
        *(Term(f"denoising/{option}", ConditionalDenoising(prior(), "b2a", option)) for option in "ABC"),
    ]
    translate = Translate(model)
    method = Method(model, lambda batch, rng: translate(Batch(batch.x0, source=batch.x0.flip(-1)), rng), terms, Nothing())
    for player in method.players.values():
        player.double()
    return method


def method_of(name: str, network: str, duel: type) -> Method:
    torch.manual_seed(0)
    made = {**recipes(), "duel": duel}
    base = name.split("/")[0]
    kind = made.get(base, made["ddpm"])
    quiet = {
        "autoencoder": {"perceptual": "none"},
        "duel": {"dropout": 0.0},
        "ladiffgan": {"source": "shapes:length=6", "latent_gan": "none", "denoising": "none", "channels": 8, "blocks": 1},
        "lpl": {"loss_weight": "0.5"},
        "mmd": {"space": "pixels", "sampler_steps": 2},
        "prior": {"own": f"{network}-vae", "other": f"{network}-vae"},
        "sadm": {"space": "pixels"},
    }
    if base == "latent":
        return latent_method()
    quiet["ladiffgan"] |= {"generator": name.partition("/")[2] or "ugatit"}
    recipe = kind(**quiet.get(base, {}))
    side = 16 if base == "ladiffgan" else 8
    images = torch.zeros(2, 3, side, side)
    if base == "mmd":
        init = Denoiser(adapt(load_model(network)), Formulation(LinearBeta(1000), "noise"))
        context = Context(3, 8, init=init, micro_batch=2)
    else:
        own = {
            "autoencoder": None,
            "casdm": "unet-pocket",
            "dual": "unet-pocket",
            "ladiffgan": None,
            "prior": None,
        }  # cascades are made of presets
        vae = Autoencoder(small_autoencoder()).double() if base == "lpl" else None
        context = Context(3, side, network=own.get(base, network), examples=lambda: images, vae=vae, source_examples=lambda: images)
    method = recipe.build(context)
    if base == "gaussian":
        method = Method(method.model, method.estimate, [Term("mmd", Mmd(not name.endswith("own")))], method.product)
    if base == "sadm" and "critic" in name:
        critic = Term("structure", AdversarialStructure(Small(), chunk=2, anchor=3.0), 0.7)
        estimate = Denoise(method.estimate.denoiser, micro=2, one_time=not name.endswith("times"))
        method = Method(method.model, estimate, [method.terms[0], critic], method.product)
        with torch.no_grad():
            for p in critic.objective.critic.parameters():  # or the anchor would pull at nothing
                p.mul_(1.1)
    for player in method.players.values():
        player.double()
        if name.endswith("channels_last"):
            player.to(memory_format=torch.channels_last)
    return method


def step_of(name: str, rows: int, network: str, duel: type, world: distributed.World) -> dict[str, Tensor]:
    """The gradient that the optimizers got for a global batch of this size, and what was logged."""
    method = method_of(name, network, duel)
    settings = Settings(batch=rows, clip=None, steps=4, lr=1e-3, micro_batch=2 if name.endswith("micro") else None)
    state = make_state(method, settings, torch.device("cpu"))
    translates = name.startswith("ladiffgan")
    side = 16 if translates else 8
    images = torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1
    mine = share(0, rows, world.rank, world.size)
    batch = Batch(images[mine.start : mine.stop])
    if translates:
        batch = Batch(batch.x0, source=batch.x0.flip(-1))
    report = take_step(method, state, settings, batch, Rng(0, tuple(mine)))
    out = {f"log/{k}": torch.tensor(v, dtype=torch.float64) for k, v in {**report.losses, **report.norms}.items()}
    for player in state.players.values():
        for k, p in player.module.named_parameters():
            if p in player.optimizer.state:
                out[f"{player.name}/{k}"] = player.optimizer.state[p]["exp_avg"].contiguous() * 10
    return out


def small_functions(world: distributed.World) -> dict[str, Tensor]:
    """What distributed.py promises by itself."""
    out = {}
    weight = torch.arange(6.0, dtype=torch.float64).reshape(3, 2).requires_grad_()
    rows = share(0, 3, world.rank, world.size)  # 2 and 1
    everything = distributed.gather_rows(weight[rows.start : rows.stop] * 1)
    (everything.prod(1).sum() ** 2 * len(rows) / 3).backward()
    distributed.reduce_gradients([weight])
    out["gathered"], out["gradient"] = everything.detach(), weight.grad.clone()
    empty = torch.ones(2 if world.first else 0, 4, requires_grad=True)
    out["from one rank"] = distributed.gather_rows(empty).detach()
    ours, nobodys = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    if world.first:
        ours.grad = torch.ones(2)
    distributed.reduce_gradients([ours, nobodys])
    out["ours"] = ours.grad.clone()
    out["nobody's"] = torch.tensor(nobodys.grad is None)
    layout = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
    layout.grad = torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    distributed.reduce_gradients([layout])
    out["layout"] = torch.tensor(layout.grad.is_contiguous(memory_format=torch.channels_last))
    out["summed"] = distributed.summed(torch.tensor([1.0, float(world.rank)]))
    return out


def shared_time(world: distributed.World) -> dict[str, Tensor]:
    """The time that this rank's rows of 5 have in each of three steps."""

    class Same(torch.nn.Module):
        def forward(self, x, time, cond):
            return x

    estimate, out = Denoise(Denoiser(Same(), EDM), one_time=True), []
    for step in range(3):
        mine = share(5 * step, 5 * (step + 1), world.rank, world.size)
        out.append(estimate(Batch(torch.zeros(len(mine), 3, 8, 8)), Rng(0, tuple(mine), step)).t)
    return {"t": torch.stack([t[:2] for t in out]), "spread": torch.stack([t.max() - t.min() for t in out])}


def calibrated(world: distributed.World, network: str, duel: type) -> dict[str, Tensor]:
    """The weights that are found on the first batches, of 5 images each, and what they make of the terms."""
    method = method_of("ddpm", network, duel)
    rules = {"share": Calibrated("share", 0.3), "variance": Calibrated("variance", 0.1)}
    rules["levels"] = Calibrated("levels", by=Term("by", Denoising(), weight=lambda est: est.level, keep=UpTo(3.0)))
    more = [Term(name, Denoising(), 2.0, lambda est: est.level, UpTo(3.0), calibrated=rule) for name, rule in rules.items()]
    method.terms = [*method.terms, *more]

    def batches(first: int, last: int) -> Iterator[tuple[tuple[int, ...], Batch]]:
        for step in range(first, last):
            mine = share(5 * step, 5 * (step + 1), world.rank, world.size)
            images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            yield tuple(mine), Batch(images[mine.start - 5 * step : mine.stop - 5 * step])

    found = calibrate(method, batches, Settings(batch=5, micro_batch=2), torch.device("cpu"))
    return {name: torch.tensor([weight, method.scales[name]], dtype=torch.float64) for name, weight in found.items()}


def main(out: str, network: str, names: list[str]) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
    from duel import Duel

    results = {}
    with distributed.joined("cpu", 60) as world:
        for case, rows in CASES.items():
            for name in names:
                found = step_of(name, rows, network, Duel, world)
                results |= {f"{name}|{case}|{k}": v.clone() for k, v in found.items()}
        results |= {f"small||{k}": v.clone() for k, v in small_functions(world).items()}
        results |= {f"time||{k}": v for k, v in shared_time(world).items()}
        results |= {f"calibrated||{k}": v for k, v in calibrated(world, network, Duel).items()}
    save_file(results, f"{out}/{world.size}-{world.rank}.safetensors")

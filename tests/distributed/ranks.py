"""What one rank of a test computes and leaves in a file; run alone, the same code is the reference."""

import sys
from pathlib import Path

import torch
from processes import small_autoencoder
from safetensors.torch import save_file
from torch import Tensor

from percepta import distributed
from percepta.data.order import share
from percepta.estimate import Batch, Estimate
from percepta.formulation import Denoiser, Formulation
from percepta.networks import Autoencoder, adapt, load_model
from percepta.objectives import AbstractPerBatch, Term
from percepta.path import LinearBeta
from percepta.recipes import recipes
from percepta.rng import Rng
from percepta.training.method import Method
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

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


def method_of(name: str, network: str, duel: type) -> Method:
    torch.manual_seed(0)
    made = {**recipes(), "duel": duel}
    base = name.split("/")[0]
    kind = made.get(base, made["ddpm"])
    quiet = {
        "autoencoder": {"perceptual": "none"},
        "duel": {"dropout": 0.0},
        "lpl": {"loss_weight": "0.5"},
        "mmd": {"space": "pixels", "sampler_steps": 2},
    }
    recipe = kind(**quiet.get(base, {}))
    images = torch.zeros(2, 3, 8, 8)
    if base == "mmd":
        init = Denoiser(adapt(load_model(network)), Formulation(LinearBeta(1000), "noise"))
        context = Context(3, 8, init=init, micro_batch=2)
    else:
        own = {"autoencoder": None, "casdm": "unet-pocket", "dual": "unet-pocket"}  # cascades are made of presets
        vae = Autoencoder(small_autoencoder()).double() if base == "lpl" else None
        context = Context(3, 8, network=own.get(base, network), examples=lambda: images, vae=vae)
    method = recipe.build(context)
    if base == "gaussian":
        method = Method(method.model, method.estimate, [Term("mmd", Mmd(not name.endswith("own")))], method.product)
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
    images = torch.rand(rows, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2 - 1
    mine = share(0, rows, world.rank, world.size)
    batch = Batch(images[mine.start : mine.stop])
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
    save_file(results, f"{out}/{world.size}-{world.rank}.safetensors")

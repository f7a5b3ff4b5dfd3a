"""The training step: against bare PyTorch, against diffusers' training script (goal P15), its memory, and what the loop costs.

    python bench/step.py [--quick] [--json] [--threads N]

1. One step of `unet-cifar` (Ho et al. 2020, 35.7M) at batch 32 on data in memory: noise, forward, backward, clip at 1, AdamW, EMA.
   `percepta` is take_step and the averages, as `percepta train` runs them; `bare` the same step written out by hand over the same diffusers
   network, with fused AdamW and a foreach EMA; `diffusers script` the default step of examples/unconditional_image_generation with
   --use_ema (AdamW as it comes, EMAModel, DDPMScheduler.add_noise), without accelerate around it.
2. Peak memory of the first two, each in a process of its own; and of ours in micro-batches.
3. The whole loop at `unet-pocket`, batch 64, class-conditional: data, noise, step, averages, log, over forward + backward + AdamW alone on
   tensors that lie ready. "first epoch" draws the built-in images while it trains; the other figures are of later epochs.

Random weights: times are right, losses mean nothing. --quick takes batch 8 in part 1 and 2, and the smaller size in part 3.
"""

import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _common import about, finish, headline, interleaved, make_loop, medians, parser, peak_mib, printer, run_loop
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor

from percepta.estimate import Batch
from percepta.networks import build
from percepta.path import LinearBeta
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

    def __init__(self, settings: Settings) -> None:
        self.settings, self.x0 = settings, images(settings)
        self.model: Any = build("unet-cifar", size=settings.size).model.train()
        self.params = list(self.model.parameters())
        self.average = [p.detach().clone() for p in self.params]
        self.adamw = torch.optim.AdamW(self.params, lr=LR, weight_decay=0.0, fused=True)
        abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0)
        self.alpha, self.sigma = abar.sqrt().float(), (1 - abar).sqrt().float()

    def __call__(self) -> None:
        k = torch.randint(STEPS, (len(self.x0),))
        eps = torch.randn_like(self.x0)
        x_t = self.alpha[k, None, None, None] * self.x0 + self.sigma[k, None, None, None] * eps
        with autocast(self.settings.mixed_precision, CPU):
            loss = F.mse_loss(self.model(x_t, k, return_dict=False)[0].float(), eps)
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


SIDES: dict[str, Callable[[Settings], Callable[[], None]]] = {"percepta": Ours, "bare": Bare, "diffusers script": Script}


def cifar(quick: bool) -> Settings:
    return Settings(network="unet-cifar", size=32, batch=8 if quick else 32, lr=LR)


def compare_steps(quick: bool) -> dict[str, float]:
    """Median seconds of a step of each side."""
    full = cifar(quick)
    half = replace(full, mixed_precision="bf16")
    sides = {name: make(full) for name, make in SIDES.items()} | {"percepta bf16": Ours(half), "bare bf16": Bare(half)}
    if not quick:
        sides["diffusers script bf16"] = Script(half)
    return medians(interleaved(sides, 5 if quick else 11))


def compare_memory(quick: bool) -> dict[str, float]:
    """MiB at the peak of three steps."""
    threads = str(torch.get_num_threads())

    def measure(side: str) -> float:
        command = [sys.executable, __file__, "--threads", threads, "--memory-of", side] + (["--quick"] if quick else [])
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    return {side: measure(side) for side in ("percepta", "bare", "percepta micro")}


def memory_of(side: str, quick: bool) -> float:
    settings = cifar(quick)
    if side == "percepta micro":
        settings = replace(settings, micro_batch=settings.batch // 4)
    step = SIDES[side.split()[0]](settings)
    for _ in range(3):
        step()
    return peak_mib()


def core(settings: Settings, classes: int) -> Callable[[], None]:
    """Forward, backward and AdamW on tensors that lie ready."""
    network: Any = build("unet-pocket", size=settings.size, num_classes=classes).model.train()
    adamw = torch.optim.AdamW(network.parameters(), lr=LR, weight_decay=0.0, fused=True)
    k, labels = torch.randint(STEPS, (settings.batch,)), torch.randint(classes, (settings.batch,))
    path, x0, eps = LinearBeta(), images(settings), torch.randn(settings.batch, 3, settings.size, settings.size)
    t = path.time_of(k)
    x_t = path.alpha(t).float()[:, None, None, None] * x0 + path.sigma(t).float()[:, None, None, None] * eps

    def step() -> None:
        F.mse_loss(network(x_t, k, labels, return_dict=False)[0], eps).backward()
        adamw.step()
        adamw.zero_grad()

    return step


def loop_cost(size: int, rounds: int, first_epoch: bool = False) -> tuple[float, float]:
    """Median seconds of the loop's step, and of forward + backward + AdamW, which runs in turn with it."""
    count = 50_000 if first_epoch else 2048
    settings = Settings(network="unet-pocket", size=size, data=f"shapes:length={count}", sample_every=0, checkpoint_every=10**9,
                        steps=10**9)  # fmt: skip
    step = core(settings, 64)
    whole: list[float] = []
    alone: list[float] = []

    def after(seconds: float) -> bool:
        whole.append(seconds)
        begin = time.perf_counter()
        step()
        alone.append(time.perf_counter() - begin)
        return len(whole) > rounds

    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(Ddpm(schedule="linear"), settings, CPU, Path(folder))
        if not first_epoch:
            for _ in loop.batches(0, -(-count // settings.batch)):
                pass
        run_loop(loop, after)
    return statistics.median(whole[1:]), statistics.median(alone[1:])


def report_steps(say: Callable[..., None], quick: bool) -> dict[str, float]:
    batch, s = cifar(quick).batch, compare_steps(quick)
    say(f"\nA step of unet-cifar (35.7M), batch {batch}")
    for name, value in s.items():
        say(f"  {name:<24} {1e3 * value / batch:8.1f} ms/image {batch / value:8.2f} images/s")
    ratios = {
        "step-vs-bare": s["bare"] / s["percepta"],
        "step-vs-bare-bf16": s["bare bf16"] / s["percepta bf16"],
        "p15-fp32": s["diffusers script"] / s["percepta"],
        "p15-bf16": s["diffusers script"] / s["percepta bf16"],
    }
    say(f"  against bare PyTorch: fp32 {ratios['step-vs-bare']:.3f}x (floor 1.0), bf16 {ratios['step-vs-bare-bf16']:.3f}x")
    say(f"  P15, against the script in fp32: fp32 {ratios['p15-fp32']:.3f}x (floor 1.0, target 1.08), "
        f"bf16 {ratios['p15-bf16']:.3f}x (floor 1.5, target 1.75)")  # fmt: skip
    if not quick:
        ratios["script-bf16"] = s["diffusers script bf16"] / s["percepta bf16"]
        say(f"  against the script in bf16: bf16 {ratios['script-bf16']:.3f}x")
    return ratios


def report_memory(say: Callable[..., None], quick: bool) -> dict[str, float]:
    mib = compare_memory(quick)
    say("\nPeak memory of the process, MiB: " + ", ".join(f"{name} {value:.0f}" for name, value in mib.items()))
    ratios = {"memory-vs-bare": mib["bare"] / mib["percepta"], "memory-micro-vs-bare": mib["bare"] / mib["percepta micro"]}
    say(f"  percepta over bare: {mib['percepta'] / mib['bare'] - 1:+.1%} (limit +5%); in micro-batches of a quarter "
        f"{mib['percepta micro'] / mib['bare'] - 1:+.1%}")  # fmt: skip
    return ratios


def report_loop(say: Callable[..., None], quick: bool) -> dict[str, float]:
    ratios = {}
    say("\nThe loop at unet-pocket, batch 64: ms per step, and over forward + backward + AdamW alone (limit +3%)")
    for size, first in [(16, False)] if quick else [(16, False), (32, False), (16, True), (32, True)]:
        whole, alone = loop_cost(size, 40 if quick else 120, first)
        name = f"loop-{size}" + ("-first-epoch" if first else "")
        ratios[name] = alone / whole
        say(f"  {name:<22} {1e3 * whole:8.2f}  alone {1e3 * alone:8.2f}  {whole / alone - 1:+.2%}")
    return ratios


def main() -> None:
    ask = parser(__doc__, "about a minute: batch 8, and only the smaller size of the loop")
    ask.add_argument("--part", choices=["steps", "memory", "loop"], action="append", help="only these; may be repeated")
    ask.add_argument("--memory-of", help="(internal) print the peak memory of this side")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    if asked.memory_of:
        print(memory_of(asked.memory_of, asked.quick))
        return
    say, facts = printer(asked.json), about("diffusers")
    say(headline(facts))
    reports = {"steps": report_steps, "memory": report_memory, "loop": report_loop}
    ratios: dict[str, float] = {}
    for part in asked.part or reports:
        ratios |= reports[part](say, asked.quick)
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

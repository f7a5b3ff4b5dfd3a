"""The training step: against bare PyTorch, against diffusers' training script (goal P15), its memory, and what the loop costs.

    python bench/step.py [--quick] [--json] [--threads N]

1. One step of `unet-cifar` (Ho et al. 2020, 35.7M) at batch 32 on data in memory: noise, forward, backward, clip at 1, AdamW, EMA.
   `percepta` is take_step and the averages, as `percepta train` runs them; `bare` the same step written out by hand over the same diffusers
   network, with fused AdamW and a foreach EMA; `diffusers script` the default step of examples/unconditional_image_generation with
   --use_ema (AdamW as it comes, EMAModel, DDPMScheduler.add_noise), without accelerate around it. And the peak memory of each.
2. The whole loop at `unet-pocket`, batch 64, class-conditional: data, noise, step, averages, log, over forward + backward + AdamW alone on
   tensors that lie ready. "first epoch" draws the built-in images while it trains; the other figures are of later epochs. "by hand" is the same
   step as plain PyTorch, with its noise, clipping and average, on one batch that lies ready, in turns with the loop's: what a framework costs
   somebody who would otherwise have written the loop.

3. Percepta and bare PyTorch once more, both in one process, a step of each in turn: several fresh processes, and which is built first alternates.
   Part 1 cannot tell 5% from nothing in fp32 at batch 32, because where a process's memory happens to lie decides it; here both sides share it.

In part 1 every side is a process of its own and they take turns: its memory is its own, and no side gains by what another left in the
allocator. Part 2 times these three inside the loop's own steps, because two loops that do the same differ by 5% here, by where their memory
happens to lie.
Random weights: times are right, losses mean nothing. --quick takes batch 8 in part 1, and the smaller size in part 2.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _common import Requests, about, finish, headline, make_loop, medians, parser, printer, run_loop, take_turns
from _sides import CPU, LR, Bare, Ours, Script

from percepta.estimate import Batch
from percepta.networks import Network
from percepta.recipes.ddpm import Ddpm
from percepta.rng import Rng
from percepta.training.loop import Loop
from percepta.training.method import Turn
from percepta.training.settings import Settings

STEPS: dict[str, Callable[[Settings], Callable[[], None]]] = {"percepta": Ours, "bare": Bare, "diffusers script": Script}


def cifar(batch: int) -> Settings:
    return Settings(network="unet-cifar", size=32, batch=batch, lr=LR)


def pocket(size: int, first_epoch: bool) -> Settings:
    """A run that neither samples nor saves while it is measured."""
    count = 50_000 if first_epoch else 2048
    return Settings(
        network="unet-pocket", size=size, data=f"shapes:length={count}", sample_every=0, checkpoint_every=10**9, steps=10**9
    )


def serve(side: str) -> None:
    """Be one side: steps, as many as are asked for; for example "percepta / 32 / bf16"."""
    requests = Requests()
    name, *words = side.split(" / ")
    settings = cifar(int(words[0]))
    settings = replace(settings, mixed_precision="bf16") if "bf16" in words else settings
    requests.answer(STEPS[name](replace(settings, micro_batch=settings.batch // 4) if "micro" in words else settings))


class Inside:
    """Seconds spent in the network's forward, in backward, in letting go of its graph, and in the optimizer's step, since `take`."""

    def __init__(self, loop: Loop) -> None:
        self._sum = self._begin = 0.0
        self._turns = loop.method.step
        loop.method.step = self.step  # type: ignore[method-assign]
        (player,) = loop.state.players.values()
        (network,) = (part for part in player.module.modules() if isinstance(part, Network))
        network.register_forward_pre_hook(self.enter)
        network.register_forward_hook(self.leave)
        player.optimizer.register_step_pre_hook(self.enter)
        player.optimizer.register_step_post_hook(self.leave)

    def enter(self, *_: object) -> None:
        self._begin = time.perf_counter()

    def leave(self, *_: object) -> None:
        self._sum += time.perf_counter() - self._begin

    def step(self, batch: Batch, rng: Rng) -> Iterator[Turn]:
        """The method's one turn; what follows it is the end of the graph."""
        turns = self._turns(batch, rng)
        yield next(turns)
        self.enter()
        assert next(turns, None) is None
        self.leave()

    @contextmanager
    def backward(self) -> Iterator[None]:
        """torch.autograd.backward counts too."""

        def timed(*args: Any, **options: Any) -> None:
            self.enter()
            original(*args, **options)
            self.leave()

        original, torch.autograd.backward = torch.autograd.backward, timed
        yield
        torch.autograd.backward = original

    def take(self) -> float:
        seconds, self._sum = self._sum, 0.0
        return seconds


def loop_and_core(size: int, first_epoch: bool, count: int) -> list[tuple[float, float]]:
    """Seconds of a step of the loop, and of its forward, backward and AdamW, `count` times."""
    settings, pairs = pocket(size, first_epoch), []
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(Ddpm(schedule="linear"), settings, CPU, Path(folder))
        inside = Inside(loop)

        def after(seconds: float) -> bool:
            pairs.append((seconds, inside.take()))
            return len(pairs) >= count + 2

        if not first_epoch:
            for _ in loop.batches(0, 2048 // settings.batch):
                pass
        with inside.backward():
            run_loop(loop, after)
    return pairs[2:]


def loop_and_hand(size: int, count: int) -> list[tuple[float, float]]:
    """Seconds of a step of the loop, and of one that is written by hand, in turns, `count` times."""
    settings, pairs = pocket(size, first_epoch=False), []
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(Ddpm(schedule="linear"), settings, CPU, Path(folder))
        (network,) = (part for part in loop.method.model.modules() if isinstance(part, Network))
        bare = Bare(settings, network.num_classes)

        def after(seconds: float) -> bool:
            begin = time.perf_counter()
            bare()
            pairs.append((seconds, time.perf_counter() - begin))
            return len(pairs) >= count + 2

        for _ in loop.batches(0, 2048 // settings.batch):
            pass
        run_loop(loop, after)
    return pairs[2:]


def turns(names: list[str], batch: int, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of a step and peak MiB of these sides."""
    sides = {name: f"{name.split(' / ')[0]} / {batch} / {name.partition(' / ')[2]}" for name in names}
    seconds, mib = take_turns(__file__, sides, rounds)
    return medians(seconds), mib


def report_steps(say: Callable[..., None], quick: bool) -> dict[str, float]:
    batch, rounds = (8, 4) if quick else (32, 9)
    s, mib = turns(["percepta", "bare", "diffusers script", "percepta / bf16"], batch, rounds)
    ratios = {
        "step-vs-bare": s["bare"] / s["percepta"],
        "memory-vs-bare": mib["bare"] / mib["percepta"],
        "p15-fp32": s["diffusers script"] / s["percepta"],
        "p15-bf16": s["diffusers script"] / s["percepta / bf16"],
    }
    if not quick:  # apart, because that many networks in memory at once are too many
        again, more = turns(["percepta / bf16", "bare / bf16", "diffusers script / bf16"], batch, rounds)
        ratios["bf16-vs-bare"] = again["bare / bf16"] / again["percepta / bf16"]
        ratios["bf16-vs-script-bf16"] = again["diffusers script / bf16"] / again["percepta / bf16"]
        micro, parts = turns(["percepta / micro"], batch, 2)
        ratios["memory-micro-vs-whole"] = parts["percepta / micro"] / mib["percepta"]
        s, mib = again | s | micro, more | mib | parts
    say(f"\nA step of unet-cifar (35.7M), batch {batch}; micro: in micro-batches of a quarter")
    for name, value in s.items():
        say(f"  {name:<24}{1e3 * value / batch:8.1f} ms/image{batch / value:8.2f} images/s{mib[name]:8.0f} MiB at the peak")
    say(
        f"  against bare PyTorch: {ratios['step-vs-bare']:.3f}x (floor 1.0), memory {1 / ratios['memory-vs-bare'] - 1:+.1%} (limit +5%)"
    )
    say(f"  P15, against the script in fp32: fp32 {ratios['p15-fp32']:.3f}x (floor 1.0, target 1.08), "
        f"bf16 {ratios['p15-bf16']:.3f}x (floor 1.5, target 1.75)")  # fmt: skip
    if not quick:
        say(f"  in bf16 all: against bare PyTorch {ratios['bf16-vs-bare']:.3f}x, the script {ratios['bf16-vs-script-bf16']:.3f}x; "
            f"fp32 in micro-batches has its peak at {ratios['memory-micro-vs-whole']:.2f} of the whole batch's")  # fmt: skip
    return ratios


def report_loop(say: Callable[..., None], quick: bool) -> dict[str, float]:
    ratios: dict[str, float] = {}
    say("\nThe loop at unet-pocket, batch 64: ms per step; over forward + backward + AdamW alone (limit +3%)")
    for size in [16] if quick else [16, 32]:
        for name in ("loop", "loop, first epoch"):
            pairs = loop_and_core(size, "first" in name, 40 if quick else 120)
            share = statistics.median(whole / alone for whole, alone in pairs)
            ratios[f"{name.replace(', ', '-').replace(' ', '-')}-{size}"] = 1 / share
            whole, alone = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
            say(f"  {size} px {name:<18}{whole:8.2f}  alone {alone:8.2f}  {share - 1:+.2%}")
        pairs = loop_and_hand(size, 40 if quick else 120)
        share = statistics.median(whole / alone for whole, alone in pairs)
        ratios[f"loop-by-hand-{size}"] = 1 / share
        whole, alone = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
        say(f"  {size} px {'loop':<18}{whole:8.2f}  by hand {alone:6.2f}  {share - 1:+.2%}")
    return ratios


def pairs(batch: int, first: str, count: int) -> list[float]:
    """Bare over percepta of `count` pairs of steps, in this process."""
    order = [first, *(name for name in ("percepta", "bare") if name != first)]
    sides = {name: STEPS[name](cifar(batch)) for name in order}
    found: list[float] = []
    for k in range(count + 1):
        seconds = {}
        for name in order if k % 2 else reversed(order):
            begin = time.perf_counter()
            sides[name]()
            seconds[name] = time.perf_counter() - begin
        found.append(seconds["bare"] / seconds["percepta"])
    return found[1:]  # the first one warms up


def report_paired(say: Callable[..., None], quick: bool) -> dict[str, float]:
    batch, processes, count = (8, 2, 6) if quick else (32, 6, 8)
    say(
        f"\nA step of unet-cifar at batch {batch} against bare PyTorch, fp32, in turns in one process; {processes} processes, {count} pairs each"
    )
    each: list[float] = []
    for k in range(processes):
        first = ("percepta", "bare")[k % 2]
        command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--pairs", f"{batch} {first} {count}"]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        each.append(statistics.median(found))
        say(f"  {first + ' built first':<22}{each[-1]:.3f}x   from {min(found):.3f} to {max(found):.3f}")
    ratio = statistics.median(each)
    say(f"  median of the processes: {ratio:.3f}x (floor 1.0)")
    return {"step-vs-bare-paired": ratio}


def main() -> None:
    ask = parser(__doc__, "about a minute: batch 8, and only the smaller size of the loop")
    ask.add_argument("--part", choices=["steps", "loop", "paired"], action="append", help="only this part")
    ask.add_argument("--serve", help="(internal) be this side")
    ask.add_argument("--pairs", help="(internal) one process of part 3")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    if asked.serve:
        serve(asked.serve)
        return
    if asked.pairs:
        batch, first, count = asked.pairs.split()
        print(json.dumps(pairs(int(batch), first, int(count))))
        return
    say, facts = printer(asked.json), about("diffusers")
    say(headline(facts))
    reports = {"steps": report_steps, "loop": report_loop, "paired": report_paired}
    ratios: dict[str, float] = {}
    for part in asked.part or reports:
        ratios |= reports[part](say, asked.quick)
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

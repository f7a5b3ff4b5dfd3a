"""A whole training step of Cas-DM with LPIPS, against DDPM's, and against the same networks with the metric written naively.

    python bench/casdm.py [--quick] [--json] [--threads N] [--network unet-cifar] [--batch 8] [--metric-size 224]

Each side is a process of its own and they take turns: seconds of a step and peak memory. `naive` is the cascade and its losses as they are, and
the metric as one writes it with the package lpips: both images through the network with a graph, and LPIPS resized without a thought. VGG16 with random
weights and the package's heads: the time is right, the distance means nothing. `casdm + lpips / 4` judges in every fourth step.
--quick takes `unet-pocket`, batch 4, 64 pixels, three rounds.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from _common import Requests, about, finish, headline, medians, parser, printer, take_turns
from _sides import CPU
from torch import Tensor

from percepta.estimate import Batch, Estimate
from percepta.objectives import AbstractPerSample, Metric, Term
from percepta.recipes.casdm import CasDm
from percepta.recipes.ddpm import Ddpm
from percepta.recipes.dual import Dual
from percepta.rng import Rng
from percepta.spaces.lpips import Lpips
from percepta.training.job import prepare_networks
from percepta.training.method import Method
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

SIDES = ("ddpm", "dual", "casdm", "ddpm x0 + lpips", "casdm + lpips", "casdm + lpips / 4", "casdm + naive lpips")


class Naive(AbstractPerSample):
    """The package's call."""

    def __init__(self, size: int) -> None:
        import lpips

        self.size = size
        self.network: Any = lpips.LPIPS(net="vgg", pretrained=True, pnet_rand=True, verbose=False)

    def __call__(self, est: Estimate) -> Tensor:
        both = [torch.nn.functional.interpolate(x, size=(self.size, self.size), mode="bilinear") for x in (est.x0, est.x0_hat)]
        return self.network(*both).flatten()


def method_of(side: str, network: str, size: int) -> Method:
    context = Context(3, 32, network=network)
    recipe = Ddpm(predict="x0" if "x0" in side else "eps") if side.startswith("ddpm") else Dual() if side == "dual" else CasDm()
    method = recipe.build(context)
    if "lpips" in side:
        judge = Naive(size) if "naive" in side else Metric(Lpips("vgg16", weights="random", pooling="average"), size)
        method.terms = [*method.terms, Term("metric", judge, 0.1, every=4 if "/ 4" in side else 1)]
    return method


def step_of(side: str, network: str, batch: int, size: int) -> Callable[[], None]:
    settings = Settings(network=network, size=32, batch=batch, clip=None)
    method = method_of(side, network, size)
    prepare_networks(method, settings, CPU)
    state = make_state(method, settings, CPU)
    images = Batch(torch.rand(batch, 3, 32, 32) * 2 - 1)

    def step() -> None:
        rng = Rng(0, tuple(range(state.step * batch, (state.step + 1) * batch)), state.step)
        assert take_step(method, state, settings, images, rng).bad is None
        state.step += 1
        assert state.ema is not None
        state.ema.update(state.step * batch)

    return step


def main() -> None:
    ask = parser(__doc__, "a small network, three rounds")
    ask.add_argument("--network", default="unet-cifar")
    ask.add_argument("--batch", type=int, default=8)
    ask.add_argument("--metric-size", type=int, default=224)
    ask.add_argument("--serve", help="(internal) be this side")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    if asked.serve:
        side, network, batch, size = asked.serve.split(";")
        Requests().answer(step_of(side, network, int(batch), int(size)))
        return
    network, batch, size, rounds = ("unet-pocket", 4, 64, 3) if asked.quick else (asked.network, asked.batch, asked.metric_size, 8)
    say, facts = printer(asked.json), about("diffusers", "lpips")
    say(headline(facts))
    seconds, mib = take_turns(__file__, {side: f"{side};{network};{batch};{size}" for side in SIDES}, rounds, steps=4, warmup=4)
    s = {
        **medians(seconds),
        "casdm + lpips / 4": sum(seconds["casdm + lpips / 4"]) / len(seconds["casdm + lpips / 4"]),
    }  # its steps differ
    say(f"\nA step of {network}, batch {batch}, 32 px; LPIPS on VGG16 at {size} px")
    for side in SIDES:
        say(f"  {side:<22}{s[side]:8.3f} s{s[side] / s['ddpm']:7.2f}x DDPM eps{mib[side]:8.0f} MiB at the peak")
    ratios = {
        "naive-over-ours-time": s["casdm + naive lpips"] / s["casdm + lpips"],
        "naive-over-ours-memory": mib["casdm + naive lpips"] / mib["casdm + lpips"],
        "casdm-lpips-over-ddpm": s["casdm + lpips"] / s["ddpm"],
        "casdm-over-ddpm": s["casdm"] / s["ddpm"],
    }
    say(
        f"  naive over ours: time {ratios['naive-over-ours-time']:.2f}x, memory {ratios['naive-over-ours-memory']:.2f}x; "
        f"the metric alone: {(s['casdm + naive lpips'] - s['casdm']) / (s['casdm + lpips'] - s['casdm']):.2f}x"
    )
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

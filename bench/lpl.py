"""P12 and P14: LPL and its gradient with the gate before the decoder, against all samples decoded first; the outlier mask; a whole training step.

    python bench/lpl.py [--quick] [--json] [--threads N] [--batch 8] [--side 8] [--no-step]

The decoder is that of Stable Diffusion's autoencoder (49 M parameters) with random weights, on latents of 8 x 8 (images of 64 px), half of the samples below
the threshold. "decode first" is the way of diffusers' research script: both latents through the whole decoder, and the mask afterwards; it has the same
distance here, so that its value and gradient must be ours. The step is one of `mmdit-pocket` in these latents, each side a process of its own.
The mask is Alg. 1 as printed (every channel sorted) and ours, on 512 x 64^2, 256 x 128^2 and 128 x 256^2 features.
--quick takes a small decoder and three rounds.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

import torch
from _common import Requests, about, finish, headline, interleaved, medians, parser, printer, take_turns
from _sides import CPU
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import max_pool2d

from percepta.discrepancies.lpl import keep_mask, lpl
from percepta.estimate import Batch, Estimate
from percepta.networks import Autoencoder
from percepta.objectives import AbstractPerSample, LatentPerceptual, Term
from percepta.recipes.lpl import TrainLpl
from percepta.rng import Rng
from percepta.training.job import prepare_networks
from percepta.training.recipe import Context
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

FLOORS = {"gate first": 1.8, "gate first, bf16": 2.7}  # of P12
MASK_FLOOR = 3.0  # of P14
STEPS = ("plain", "lpl", "lpl, decode first")


def autoencoder(quick: bool) -> Autoencoder:
    widths = (32, 64, 64, 64) if quick else (128, 256, 512, 512)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=widths,
                layers_per_block=1 if quick else 2,
            ).eval()
        )  # fmt: skip


class DecodeFirst(AbstractPerSample):
    """All samples through the whole decoder, what it computes on its way, and the gate at the end."""

    def __init__(self, ours: LatentPerceptual, frozen: bool = True) -> None:
        self.ours, self.vae = ours, ours.space.vae
        self.found: list[Tensor] = []
        decoder = self.vae.model.decoder
        if not frozen:
            self.vae.model.requires_grad_(True)
        for block in (decoder.mid_block, *decoder.up_blocks):
            block.register_forward_hook(lambda module, given, out: self.found.append(out))

    def features(self, z: Tensor) -> list[Tensor]:
        self.found = []
        self.vae.model.decode(self.vae.raw(z))
        return self.found

    def __call__(self, est: Estimate) -> Tensor:
        with torch.no_grad():
            real = self.features(est.x0)
        losses = lpl(real, self.features(est.x0_hat), self.ours.weights)
        return torch.where(est.level <= 3, losses, 0)


def printed_mask(feature: Tensor, pixels: int = 1) -> Tensor:
    """Alg. 1 with its slips mended, in PyTorch as one writes it."""
    flat = feature.flatten(2)
    n = flat.shape[2]
    q1, q2 = (flat.kthvalue(max(1, int(n * q)), 2, keepdim=True).values for q in (0.02, 0.98))
    m = 2 * flat.std(-1, keepdim=True)
    keep = ((q1 - m < flat) & (flat < q2 + m)).view(feature.shape).float()
    grow, shrink = ceil(3 / pixels), ceil(5 / pixels)
    keep = max_pool2d(keep, grow, 1, grow // 2)
    return -max_pool2d(-keep, shrink, 1, shrink // 2) > 0.5


def gate(say: Callable[..., None], quick: bool, batch: int, side: int, rounds: int) -> dict[str, float]:
    """P12."""
    draw = torch.Generator().manual_seed(1)
    z0, z0_hat = (torch.randn(batch, 4, side, side, generator=draw) for _ in range(2))
    level = torch.where(torch.arange(batch) % 2 == 0, 1.0, 9.0)
    values: dict[str, tuple[float, Tensor]] = {}

    def timed(name: str, judge: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def once() -> None:
            z = z0_hat.clone().requires_grad_()
            value = judge(z)
            value.backward()
            assert z.grad is not None
            values[name] = (float(value.detach()), z.grad)

        return once

    def first(frozen: bool) -> Callable[[Tensor], Tensor]:
        made = DecodeFirst(LatentPerceptual(autoencoder(quick), outliers="none"), frozen)

        def judge(z: Tensor) -> Tensor:
            with torch.no_grad():
                real = made.features(z0)
            losses = lpl(real, made.features(z), made.ours.weights)
            return torch.where(level <= 3, losses, 0).sum() / batch

        return judge

    def ours(**options: Any) -> Callable[[Tensor], Tensor]:
        made = LatentPerceptual(autoencoder(quick), outliers="none", **options)
        return lambda z: made(z, z0, level)

    sides = {
        "decode first, weights not frozen": timed("decode first, weights not frozen", first(False)),
        "decode first": timed("decode first", first(True)),
        "gate first": timed("gate first", ours()),
        "gate first, bf16": timed("gate first, bf16", ours(precision="bf16")),
        "gate first, bf16, layers 0 to 3": timed("gate first, bf16, layers 0 to 3", ours(precision="bf16", layers=(0, 1, 2, 3))),
        "gate first, bf16, layers 0 to 2": timed("gate first, bf16, layers 0 to 2", ours(precision="bf16", layers=(0, 1, 2))),
    }
    seconds = medians(interleaved(sides, rounds, warmup=1))
    value, gradient = values["decode first"]
    say(f"\nLPL and its gradient, {batch} latents of {side} x {side}, half of them below the threshold")
    ratios = {}
    for name, spent in seconds.items():
        own, found = values[name]
        cosine = torch.nn.functional.cosine_similarity(found.flatten(), gradient.flatten(), dim=0).item()
        ratios[name] = seconds["decode first"] / spent
        floor = f" (floor {FLOORS[name]})" if name in FLOORS else ""
        equal = (
            "to the bit"
            if own == value and torch.equal(found, gradient)
            else f"value {own / value - 1:+.1e}, gradient's cosine {cosine:.5f}"
        )
        say(f"  {name:<34}{1000 * spent / batch:8.1f} ms per image  {ratios[name]:5.2f}x{floor}  {equal}")
    return ratios


def mask(say: Callable[..., None], quick: bool, rounds: int) -> dict[str, float]:
    """P14."""
    say("\nThe outlier mask, a channel in 64 with a patch of outliers")
    ratios = {}
    for channels, side in ((64, 32), (32, 64)) if quick else ((512, 64), (256, 128), (128, 256)):
        feature = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(2))
        feature[0, ::64, 5:9, 5:9] = 60
        assert torch.equal(keep_mask(feature), printed_mask(feature)), "the masks differ"
        spent = medians(
            interleaved({"printed": lambda f=feature: printed_mask(f), "ours": lambda f=feature: keep_mask(f)}, rounds, warmup=1)
        )
        ratios[f"mask-{channels}x{side}"] = ratio = spent["printed"] / spent["ours"]
        say(
            f"  {channels:>4} x {side}^2{1000 * spent['printed']:9.1f} ms{1000 * spent['ours']:9.1f} ms  {ratio:5.2f}x (floor {MASK_FLOOR:g}), equal to the bit"
        )
    return ratios


def step_of(side: str, batch: int, width: int, quick: bool) -> Callable[[], None]:
    """A whole training step in latents."""
    settings = Settings(network="mmdit-pocket", size=8 * width, batch=batch)
    vae = autoencoder(quick)
    recipe = TrainLpl(loss="none" if side == "plain" else "lpl", loss_weight="0.5", predict="flow", outliers="none")
    method = recipe.build(Context(4, width, network=settings.network, vae=vae))
    if "first" in side:
        ours = method.terms[1].objective
        assert isinstance(ours, LatentPerceptual)
        method.terms = [method.terms[0], Term("lpl", DecodeFirst(ours), 0.5)]
    prepare_networks(method, settings, CPU)
    state = make_state(method, settings, CPU)
    latents = Batch(torch.randn(batch, 4, width, width))

    def step() -> None:
        rng = Rng(0, tuple(range(state.step * batch, (state.step + 1) * batch)), state.step)
        assert take_step(method, state, settings, latents, rng).bad is None
        state.step += 1

    return step


def whole_steps(say: Callable[..., None], quick: bool, batch: int, side: int, rounds: int) -> dict[str, float]:
    seconds, mib = take_turns(__file__, {name: f"{name};{batch};{side};{int(quick)}" for name in STEPS}, rounds, steps=2, warmup=2)
    s = medians(seconds)
    say(
        f"\nA step of mmdit-pocket, batch {batch}, latents of {side} x {side}; times of a flow, of which LPL judges those up to 0.75"
    )
    for name in STEPS:
        say(f"  {name:<22}{s[name]:8.3f} s{s[name] / s['plain']:7.2f}x{mib[name]:8.0f} MiB at the peak")
    return {
        "step-over-plain": s["lpl"] / s["plain"],
        "step-first-over-ours": s["lpl, decode first"] / s["lpl"],
        "memory-first-over-ours": mib["lpl, decode first"] / mib["lpl"],
    }


def main() -> None:
    ask = parser(__doc__, "a small decoder, three rounds")
    ask.add_argument("--batch", type=int, default=8)
    ask.add_argument("--side", type=int, default=8, help="of the latents (default: %(default)s)")
    ask.add_argument("--no-step", action="store_true", help="leave the whole step out")
    ask.add_argument("--serve", help="(internal) be this side")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.serve:
        name, batch, side, quick = asked.serve.split(";")
        Requests().answer(step_of(name, int(batch), int(side), quick == "1"))
        return
    say, facts = printer(asked.json), about("diffusers")
    rounds = 3 if asked.quick else 7
    say(headline(facts))
    ratios = gate(say, asked.quick, asked.batch, asked.side, rounds) | mask(say, asked.quick, rounds)
    if not asked.no_step:
        ratios |= whole_steps(say, asked.quick, asked.batch, asked.side, rounds)
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

"""The gradient through a sampling chain: time and peak memory of replay, checkpointing and the whole graph (goals P10 and P11).

    python bench/rollout.py [--quick] [--json] [--threads N]

One iteration of MMD-DDM on `unet-cifar` (Ho et al. 2020, 35.7M) with DDIM: sample 8 images, Inception's 2048 features of them and of 8 real ones,
the cubic MMD, and the gradient at the network's parameters; fp32, dropout on. "micro" takes 2 images through the chain, and through Inception,
at a time. Every side is a process of its own, and they take turns. Peak memory is that of the process, less what it holds before the first
iteration (libraries, weights), so that what the three ways differ in is seen.
Random weights: times and memory are right, the features mean nothing. --quick takes K = 5 alone.
"""

import warnings
from collections.abc import Callable

import torch
from _common import Requests, about, finish, headline, medians, parser, peak_mib, printer, take_turns

from percepta.estimate import Batch
from percepta.formulation import Denoiser, Formulation
from percepta.networks import build
from percepta.objectives import Mmd, Term
from percepta.path import LinearBeta
from percepta.rng import rng_for
from percepta.rollout import Rollout
from percepta.samplers import grid, solver
from percepta.spaces.inception import Inception
from percepta.training.method import Method
from percepta.training.product import Sampled

BATCH, MICRO = 8, 2


class Iteration:
    """Gradients of one iteration, by one of the three ways."""

    def __init__(self, way: str, steps: int, micro: int | None) -> None:
        model = Denoiser(build("unet-cifar", size=32, seed=0), Formulation(LinearBeta(1000), "noise")).train()
        made = Rollout(model, solver("ddim"), grid(model.path, steps), backprop=way, micro=micro)  # pyright: ignore[reportArgumentType]
        self.batch = Batch(torch.rand(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
        self.method = Method(
            model, made, [Term("mmd", Mmd(Inception(weights="random"), chunk=micro))], Sampled(model, (3, 32, 32), "ddim")
        )
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # they are there in every iteration but the first
        self.before = peak_mib()

    def __call__(self) -> None:
        for p in self.method.model.parameters():
            assert p.grad is not None
            p.grad.zero_()
        (turn,) = self.method.step(self.batch, rng_for(0, 0, BATCH))
        if turn.backward is None:
            turn.loss.backward()
        else:
            turn.backward(1.0)

    def gradient(self) -> torch.Tensor:
        self()
        return torch.cat([p.grad.flatten() for p in self.method.model.parameters() if p.grad is not None])


def serve(side: str) -> None:
    """ "replay / 5 / 2": the way, the steps, and the micro-batch (0: all at once)."""
    requests = Requests()
    way, steps, micro = side.split(" / ")
    made = Iteration(way, int(steps), int(micro) or None)
    print(f"before {made.before:.0f} MiB")
    requests.answer(made)


def measured(steps: int, ways: list[tuple[str, int]], rounds: int) -> dict[str, tuple[float, float]]:
    sides = {name(way, micro): f"{way} / {steps} / {micro}" for way, micro in ways}
    seconds, mib = take_turns(__file__, sides, rounds)
    return {side: (value, mib[side]) for side, value in medians(seconds).items()}


def name(way: str, micro: int) -> str:
    return f"{way}, micro-batches of {micro}" if micro else way


def report(say: Callable[..., None], steps: int, rounds: int) -> dict[str, tuple[float, float]]:
    ways = [("checkpoint", 0), ("replay", 0), ("replay", MICRO)] + ([("full", 0)] if steps <= 10 else [])
    found = measured(steps, ways, rounds)
    say(f"\nK = {steps}, batch {BATCH}")
    for side, (seconds, mib) in found.items():
        say(f"  {side:<28}{seconds:8.2f} s per iteration{mib:8.0f} MiB at the peak")
    return found


def main() -> None:
    ask = parser(__doc__, "K = 5 alone, two rounds")
    ask.add_argument("--serve", help="(internal) be this side")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    if asked.serve:
        serve(asked.serve)
        return
    say, facts = printer(asked.json), about("diffusers")
    say(headline(facts))
    empty = baseline()
    say(f"a process before its first iteration holds {empty:.0f} MiB, which is taken off below")
    ratios: dict[str, float] = {}
    peaks: dict[int, float] = {}
    for steps in (5,) if asked.quick else (5, 10, 20):
        found = {side: (s, mib - empty) for side, (s, mib) in report(say, steps, 2 if asked.quick else 3).items()}
        small, check, replay = found[name("replay", MICRO)], found["checkpoint"], found["replay"]
        peaks[steps] = small[1]
        ratios |= {f"p10-time-{steps}": replay[0] / check[0], f"p10-memory-{steps}": replay[1] / check[1],
                   f"p11-time-{steps}": small[0] / check[0], f"p11-memory-checkpoint-{steps}": small[1] / check[1]}  # fmt: skip
        if "full" in found:
            ratios[f"p11-memory-full-{steps}"] = small[1] / found["full"][1]
        say("  " + ", ".join(f"{key} {value:.3f}" for key, value in ratios.items() if key.endswith(f"-{steps}")))
    if len(peaks) > 1:
        ratios["memory-20-over-5"] = peaks[20] / peaks[5]
        say(f"\nmicro-batches, memory at K = 20 over K = 5: {ratios['memory-20-over-5']:.3f} (limit 1.15)")
    one, other = Iteration("checkpoint", 5, None).gradient(), Iteration("replay", 5, None).gradient()
    ratios["bit-identical"] = float(torch.equal(one, other))
    say(f"the gradient by replay is {'' if ratios['bit-identical'] else 'NOT '}that of checkpointing, to the bit")
    finish(asked.json, ratios, about=facts)


def baseline() -> float:
    """Peak MiB of a process with everything loaded and nothing done."""
    import subprocess
    import sys

    code = "import sys; sys.path.insert(0, sys.argv[1]); import rollout; print(rollout.Iteration('replay', 5, 2).before)"
    folder = __file__.rpartition("/")[0] or "."
    return float(
        subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout.split()[-1]
    )


if __name__ == "__main__":
    main()

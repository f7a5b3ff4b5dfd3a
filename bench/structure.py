"""SADM's structure term and its gradient, time and memory at |B| 64, 128 and 256, against the equation written down in plain PyTorch.

    python bench/structure.py [--quick] [--json] [--threads N] [--space alex] [--size 64] [--sizes 64 128 256] [--chunk 16]

"plain" takes all samples at once with a graph on both sides, in a space whose weights train: an adversarial loss as one writes it. "plain, frozen" has the
weights frozen, and so no graph on the real side. Ours goes through the space --chunk images at a time and once more in the backward pass, with real
features computed, or "known": kept from an epoch before. The critic's turn is the gradient at the weights, with xh held. Spaces have random weights: times
are right, values mean nothing. `--space inception-768` is what the paper has, up to a layer, at 299 px, whatever --size is.
Every side at every |B| is a process of its own, which take turns; memory is the process's peak in its steps, less that of one that does nothing. A ratio is
plain over ours. Gradients are compared before anything is timed, and have to be equal. --quick takes |B| 16 and 32, and two rounds.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import Requests, about, finish, headline, medians, parser, printer, take_turns
from torch import Tensor, nn

from percepta.estimate import Estimate
from percepta.formulation import Noised
from percepta.objectives import AdversarialStructure, Structure
from percepta.path import Rectified
from percepta.rng import rng_for
from percepta.spaces import Space
from percepta.spaces.opening import open_space
from percepta.spaces.space import enlarging

MODEL = ("plain", "plain, frozen", "ours", "ours, known")
CRITIC = ("plain critic", "ours critic")
TIME = 0.3
CLOSE = 1e-3  # of the largest gradient: sums of float32 in another order


def pairs(count: int, size: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x0 = torch.rand(count, 3, size, size, generator=draw) * 2 - 1
    return x0, (0.7 * x0 + 0.3 * torch.rand(x0.shape, generator=draw)).requires_grad_()


def space_of(name: str, size: int, trains: bool) -> Space:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return enlarging(open_space(name, weights="random"), size).requires_grad_(trains)


def plain_loss(space: nn.Module, x0: Tensor, x0_hat: Tensor) -> Tensor:
    real, fake = (F.normalize(space(x)[0]) for x in (x0, x0_hat))
    return (real @ real.T - fake @ fake.T).square().mean() / TIME


def side(name: str, space_name: str, count: int, size: int, chunk: int) -> Callable[[], list[Tensor]]:
    """A function that gives the gradients: at the images, or for a critic at its weights."""
    x0, x0_hat = pairs(count, size)
    est = Estimate(x0_hat, x0, noised=Noised(x0, x0, torch.full((count,), TIME, dtype=torch.float64), x0), path=Rectified())
    space = space_of(space_name, size, "frozen" not in name)
    if name.startswith("plain"):
        held = x0_hat.detach() if "critic" in name else x0_hat

        def plain() -> list[Tensor]:
            x0_hat.grad = None
            space.zero_grad()
            loss = plain_loss(space, x0, held)
            (-loss if "critic" in name else loss).backward()
            return [p.grad for p in (space.parameters() if "critic" in name else [x0_hat]) if p.grad is not None]

        return plain
    if "critic" in name:
        critic, rng = AdversarialStructure(space, chunk=chunk), rng_for(0, 0, count)
        weights = list(critic.critic.parameters())

        def climbed() -> list[Tensor]:
            found = torch.autograd.grad(critic.critic_loss(est.detach(), rng), weights, allow_unused=True)
            return [g for g in found if g is not None]

        return climbed
    structure = Structure(space.requires_grad_(False), chunk=chunk, memory=2**30 if "known" in name else 0)
    return lambda: list(torch.autograd.grad(structure(est), x0_hat))


def check(say: Callable[..., None], space: str, size: int, chunk: int) -> None:
    """That all sides have the same gradients."""
    count = 2 * chunk + 1  # and a chunk that is not full
    for group in (MODEL, CRITIC):
        expected = side(group[0], space, count, size, chunk)()
        most = max(float(g.abs().max()) for g in expected)
        for name in group[1:]:
            found = side(name, space, count, size, chunk)
            found()  # what is known is known by now
            gap = max(float((a - b).abs().max()) for a, b in zip(found(), expected, strict=True)) / most
            say(f"  {name:<16}gradient of {count} images: largest difference to {group[0]} {gap:.1e} of the largest")
            assert gap < CLOSE, f"the gradient of {name} is another one: {gap:.1e}"


def reset_peak() -> None:
    """From here on the peak is that of the steps."""
    if (file := Path("/proc/self/clear_refs")).is_file():
        file.write_text("5")


def serve(asked: str) -> None:
    name, space, count, size, chunk = asked.split(";")
    step: Callable[[], object] = lambda: None  # noqa: E731
    if name != "nothing":
        step = side(name, space, int(count), int(size), int(chunk))
    else:
        kept = space_of(space, int(size), False), pairs(int(count), int(size))
        step = lambda: kept  # noqa: E731
    reset_peak()
    Requests().answer(step)


def measured(say: Callable[..., None], space: str, count: int, size: int, chunk: int, rounds: int) -> dict[str, float]:
    names = ("nothing", *MODEL, *CRITIC)
    seconds, mib = take_turns(__file__, {name: f"{name};{space};{count};{size};{chunk}" for name in names}, rounds)
    s, least = medians(seconds), mib["nothing"]
    say(f"\n|B| {count}")
    for name in names[1:]:
        say(f"  {name:<16}{s[name]:9.3f} s{1e3 * s[name] / count:9.1f} ms per image{mib[name] - least:9.0f} MiB")
    ratios = {}
    for name, plain in (("ours", "plain"), ("ours, known", "plain"), ("ours", "plain, frozen"), ("ours critic", "plain critic")):
        label = f"{count}-{name.replace(', ', '-').replace(' ', '-')}-vs-{plain.replace(', ', '-').replace(' ', '-')}"
        ratios[f"time-{label}"] = s[plain] / s[name]
        ratios[f"memory-{label}"] = (mib[plain] - least) / max(1.0, mib[name] - least)
        say(f"  {name} against {plain}: time {ratios[f'time-{label}']:.2f}x, memory {ratios[f'memory-{label}']:.1f}x")
    return ratios


def main() -> None:
    ask = parser(__doc__, "|B| 16 and 32, two rounds")
    ask.add_argument("--space", default="alex", help="alex, squeeze, vgg16, inception-768, ... (default: %(default)s)")
    ask.add_argument("--size", type=int, default=64, help="pixels a side (default: %(default)s)")
    ask.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="|B| (default: 64 128 256)")
    ask.add_argument("--chunk", type=int, default=16, help="images that go through the space at a time (default: %(default)s)")
    ask.add_argument("--serve", help="(internal) be this side")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.serve:
        serve(asked.serve)
        return
    say, facts = printer(asked.json), about()
    say(headline(facts))
    say(f"\nThe structure term in {asked.space}, images of {asked.size} px, chunks of {asked.chunk}")
    sizes, rounds, chunk = ([16, 32], 2, 4) if asked.quick else (asked.sizes, 7, asked.chunk)
    check(say, asked.space, asked.size, chunk)
    ratios: dict[str, float] = {}
    for count in sizes:
        ratios |= measured(say, asked.space, count, asked.size, chunk, rounds)
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

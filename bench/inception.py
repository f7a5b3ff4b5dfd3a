"""The FID network: images in memory to 2048 features, against torch-fidelity's network on the same random weights (goal P3).

    python bench/inception.py [--quick] [--json] [--threads N]

Batches of uint8 images at 299 px (no resize), 256 px and 32 px, in fp32 and in bf16, with the difference of the features. Each side is a
process of its own and they take turns, so its peak memory is its own, and the allocator's setting (percepta.memory.fast_malloc, which holds
for a process) reaches only the sides that are to have it. Two ratios come of that: "fast / default" is ours with the setting over the peer as
it comes, "fast / fast" gives it to both; the first is what a user sees, only the second is a difference of the networks.
--quick takes batches of 4 at 299 px alone.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from _common import Requests, about, finish, headline, medians, parser, printer, take_turns
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as peer_module

from percepta.memory import fast_malloc
from percepta.spaces.inception import Inception

PEER, OURS = "torch-fidelity", ("fp32", "bf16")
SIZES = (299, 256, 32)
Network = Callable[[Tensor], tuple[Tensor, ...]]


class Peer(peer_module.FeatureExtractorInceptionV3):
    """Its own code without its weights file, with random tensors that keep the size of activations."""

    def __init__(self) -> None:
        peer_module.load_state_dict_from_url = lambda *given, **options: {}
        super().__init__("peer", ["2048"])
        generator = torch.Generator().manual_seed(0)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, std=0.1, generator=generator)

    def load_state_dict(self, *given: Any, **options: Any) -> None:
        """The constructor has nothing to load."""


def networks(*names: str) -> list[Network]:
    peer = Peer()
    return [peer if name == PEER else Inception(("2048",), peer.state_dict(), precision=name).of_bytes for name in names]


def images(size: int, batch: int) -> Tensor:
    return torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def serve(side: str) -> None:
    """Be one side; for example "fp32 / 299 / 32 / fast"."""
    requests = Requests()
    name, size, batch, *setting = side.split(" / ")
    if setting and not fast_malloc():
        raise SystemExit("the allocator's setting cannot be had on this machine")
    (network,), x = networks(name), images(int(size), int(batch))
    with torch.no_grad():
        requests.answer(lambda: network(x))


def errors(size: int) -> dict[str, float]:
    """The relative error of our features."""
    x = images(size, 4)
    with torch.no_grad():
        truth, *found = (network(x)[0] for network in networks(PEER, *OURS))
    return {name: ((rows - truth).norm() / truth.norm()).item() for name, rows in zip(OURS, found, strict=True)}


def report(say: Callable[..., None], size: int, batch: int, rounds: int, settings: tuple[str, ...]) -> dict[str, float]:
    sides = {f"{name}{end}": f"{name} / {size} / {batch}{end}" for end in settings for name in (PEER, *OURS)}
    seconds, mib = take_turns(__file__, sides, rounds)
    ms = {name: 1e3 * value / batch for name, value in medians(seconds).items()}
    apart, ratios = errors(size), dict[str, float]()
    say(f"\n{size} px, batch {batch}")
    for name in sides:
        say(f"  {name:<24}{ms[name]:8.1f} ms/image{mib[name]:8.0f} MiB at the peak")
    for name in OURS:
        key = f"p3-{name}-{size}"
        ratios[key] = ms[PEER] / ms[name]
        line = f"  {name}: {ratios[key]:.2f}x"
        if " / fast" in settings:
            ratios[f"{key}-fast-default"] = ms[PEER] / ms[f"{name} / fast"]
            ratios[f"{key}-fast-fast"] = ms[f"{PEER} / fast"] / ms[f"{name} / fast"]
            line += f", fast / default {ratios[f'{key}-fast-default']:.2f}x, fast / fast {ratios[f'{key}-fast-fast']:.2f}x"
        say(line + f"; features differ by {apart[name]:.1e}")
    return ratios


def main() -> None:
    ask = parser(__doc__, "about a minute: batches of 4 at 299 px")
    ask.add_argument("--serve", help="(internal) be this side")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    if asked.serve:
        serve(asked.serve)
        return
    say, facts = printer(asked.json), about("torch_fidelity")
    say(headline(facts))
    say(f"ratios are {PEER}'s time over ours (P3, fp32: floor 1.9, target 2.5)")
    settings = ("", " / fast") if fast_malloc() else ("",)  # this process measures nothing
    batch, rounds = (4, 3) if asked.quick else (32, 5)
    ratios: dict[str, float] = {}
    for size in SIZES[:1] if asked.quick else SIZES:
        ratios |= report(say, size, batch, rounds, settings)
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

"""A training step of U-GAT-IT, time and memory, against the same networks in the loop that its authors published; and what latent diffusion supervision adds.

    python bench/translate.py [--quick] [--json] [--threads N] [--size 64] [--channels 32] [--batches 1 4] [--rounds 9]

"published" is the published order in plain PyTorch (bench/_translators.py): generators run again after the critics have moved, fakes are not detached, Adam as it
comes. "careful" detaches them and has Adam fused. Ours is take_step, as `percepta train ladiffgan` runs it. After two steps in float64 all three have the same
weights, which is checked before anything is timed. Supervised rows are ours with --latent-gan, --denoising or both, behind autoencoders and priors of the sizes
that the recipe trains, with random weights: times are right, losses mean nothing.

All sides at one batch are in one process and take their steps in turn: seconds of the wall clock, and seconds of the CPU, which other programs do not lengthen.
A ratio is the median over the rounds of the peer's time over ours. Memory is the peak of a process that takes three steps of one side, less that of one that
takes none. --quick takes 32 px, 16 channels, batch 1 and three rounds.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from _common import about, finish, headline, parser, peak_mib, printer
from _translators import ALONE, SUPERVISION, Ours, Plain, gap, images, method_of, phases, settings_of

PEERS = ("published", "careful")
NOTHING = "nothing"
CLOSE = 1e-3  # of a step of Adam, whose quotient blows up round-off where a gradient is nearly 0
LR = 1e-4


def side(name: str, size: int, channels: int, batch: int, found: Mapping[str, Path]) -> Callable[[], None]:
    settings = settings_of(size, batch)
    if name in PEERS:
        return Plain(method_of(settings, channels, **ALONE), settings, images(settings), careful=name == "careful")
    return Ours(method_of(settings, channels, found, **SUPERVISION[name]), settings, images(settings))


def in_turns(sides: Mapping[str, Callable[[], None]], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of the wall clock and of the CPU, of each side in each round; every other round runs the sides backwards."""
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds + 1):
        for name in list(sides) if k % 2 else reversed(list(sides)):
            begin = time.perf_counter(), time.process_time()
            sides[name]()
            if k:  # the first is the warm-up
                wall[name].append(time.perf_counter() - begin[0])
                cpu[name].append(time.process_time() - begin[1])
    return wall, cpu


def over(seconds: Mapping[str, list[float]], peer: str, name: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[peer], seconds[name], strict=True))


def memory(name: str, size: int, channels: int, batch: int, folder: Path) -> float:
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(torch.get_num_threads()),
        "--peak",
        f"{name};{size};{channels};{batch};{folder}",
    ]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def found_in(folder: Path) -> dict[str, Path]:
    return {
        f"{what}_{domain}": folder / f"{short}-{domain}"
        for what, short in (("autoencoder", "ae"), ("prior", "prior"))
        for domain in "ab"
    }


def peak(asked: str) -> None:
    """In a process of its own: three steps of a side, and its peak on stdout."""
    name, size, channels, batch, folder = asked.split(";")
    if name != NOTHING:
        step = side(name, int(size), int(channels), int(batch), found_in(Path(folder)))
        for _ in range(3):
            step()
    print(peak_mib())


def measured(say: Callable[..., None], size: int, channels: int, batch: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as made:
        folder, names = Path(made), (*PEERS, *SUPERVISION)
        wall, cpu = in_turns({name: side(name, size, channels, batch, phases(folder, size)) for name in names}, rounds)
        mib = {name: memory(name, size, channels, batch, folder) for name in (NOTHING, *names)}
    say(f"\n{size} px, {channels} channels, batch {batch}; ratios to ours without supervision")
    ratios: dict[str, float] = {}
    for name in names:
        used, least = mib[name] - mib[NOTHING], mib["ours"] - mib[NOTHING]
        found = {"time": over(wall, name, "ours"), "cpu": over(cpu, name, "ours"), "memory": used / least}
        ratios |= {f"{batch}-{what}-{name.replace(', ', '-').replace(' ', '-')}": value for what, value in found.items()}
        say(f"  {name:<22}{1e3 * statistics.median(wall[name]):8.0f} ms{found['time']:7.2f}x"
            f"{1e3 * statistics.median(cpu[name]):9.0f} ms of CPU{found['cpu']:7.2f}x{used:9.0f} MiB{found['memory']:7.2f}x")  # fmt: skip
    return ratios


def main() -> None:
    ask = parser(__doc__, "32 px, 16 channels, batch 1, three rounds")
    ask.add_argument("--size", type=int, default=64, help="pixels a side (default: %(default)s)")
    ask.add_argument(
        "--channels", type=int, default=32, help="of generators and critics (default: %(default)s, the recipe's at 64 px)"
    )
    ask.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="default: 1 4")
    ask.add_argument("--rounds", type=int, default=9, help="steps of each side that are timed (default: %(default)s)")
    ask.add_argument("--peak", help="(internal) be this side, and tell the memory")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.peak:
        peak(asked.peak)
        return
    say, facts = printer(asked.json), about("diffusers")
    say(headline(facts))
    size, channels, rounds, batches = (32, 16, 3, [1]) if asked.quick else (asked.size, asked.channels, asked.rounds, asked.batches)
    far = gap(16, 8) / LR
    say(f"largest difference between weights after two steps of published, careful and ours in float64: {far:.1e} of a step")
    assert far < CLOSE, f"the sides do not compute the same: {far:.1e} of a step"
    ratios: dict[str, float] = {}
    for batch in batches:
        ratios |= measured(say, size, channels, batch, rounds)
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

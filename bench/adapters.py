"""What --peft lora saves: bytes of gradients, optimizer, averages and checkpoints, peak memory and time of a step, against all weights.

    python bench/adapters.py [--quick] [--json] [--network unet-cifar] [--batch N] [--rank R] [--device cpu|cuda] [--threads N]

One training step of plain diffusion in fp32 with AdamW and averaged weights, on random images and a network with random weights (sizes and times
are those of a trained one), with and without --gradient-checkpointing. Every side is a process of its own, one after the other; seconds are
the median of its steps after the first. Bytes are counted, tensor by tensor. The peak is the allocator's on a GPU; elsewhere that of the process
while it steps, less what it held before the network was built. A ratio is that of all weights to LoRA. --quick takes 3 steps instead of 8,
without checkpointing.
"""

import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from _common import about, finish, headline, parser, peak_mib, printer

from percepta.estimate import Batch, Denoise
from percepta.formulation import Denoiser, Formulation
from percepta.networks import PRESETS, build
from percepta.objectives import Denoising, Term
from percepta.path import LinearBeta
from percepta.rng import rng_for
from percepta.training.adapting import adapt_method
from percepta.training.job import prepare_networks
from percepta.training.method import Method
from percepta.training.product import Sampled
from percepta.training.settings import Settings
from percepta.training.state import State, make_state
from percepta.training.step import take_step

MIB = 2**20


def reset_peak(device: torch.device) -> None:
    """From here on the peak is that of what follows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").is_file():
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else peak_mib()


def counted(state: State) -> dict[str, float]:
    """MiB of what a run holds beside activations, and of a checkpoint."""
    player = state.players["model"]
    assert state.ema is not None

    def mib(*tensors: torch.Tensor) -> float:
        return sum(x.nbytes for x in tensors) / MIB

    return {
        "weights": mib(*player.module.parameters()),
        "gradients": mib(*player.params),
        "optimizer": mib(*(x for moments in player.optimizer.state.values() for x in moments.values())),
        "averages": mib(*(x for named in state.ema.tensors().values() for x in named.values())),
        "checkpoint": mib(*(x for named in state.tensors().values() for x in named.values())),
    }


def serve(asked: Any) -> dict[str, Any]:
    """One side: builds, steps, and tells what it took."""
    device = torch.device(asked.device)
    before = 0.0 if device.type == "cuda" else peak_mib()
    data = PRESETS[asked.network].typical
    network = build(asked.network, channels=data.channels, size=data.size, num_classes=data.num_classes, seed=0)
    model = Denoiser(network, Formulation(LinearBeta(1000), "noise"))
    shape = (data.channels, data.size, data.size)
    method = Method(model, Denoise(model, 0.0), [Term("denoising", Denoising())], Sampled(model, shape, "ddim"))
    lora = {"peft": "lora", "lora_rank": asked.rank, "init": "random weights"} if asked.serve.startswith("lora") else {}
    settings = Settings(batch=asked.batch, gradient_checkpointing=asked.serve.endswith("checkpointing"), **lora)  # pyright: ignore
    adapt_method(method, settings)
    method.to(device)
    prepare_networks(method, settings, device)
    state = make_state(method, settings, device)
    labels = None if data.num_classes is None else torch.arange(asked.batch, device=device) % data.num_classes
    batch = Batch(torch.rand(asked.batch, *shape, device=device) * 2 - 1, labels)
    reset_peak(device)
    seconds = []
    for step in range(1 + asked.steps):
        begin = time.perf_counter()
        take_step(method, state, settings, batch, rng_for(0, step * asked.batch, asked.batch, step=step, device=device))
        state.ema.update((step + 1) * asked.batch)  # pyright: ignore[reportOptionalMemberAccess]
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"seconds": statistics.median(seconds[1:]), "peak": peak(device) - before, "trained": trained / 1e6, **counted(state)}


def measured(side: str, asked: Any) -> dict[str, Any]:
    words = [
        "--network",
        asked.network,
        "--batch",
        asked.batch,
        "--rank",
        asked.rank,
        "--device",
        asked.device,
        "--steps",
        asked.steps,
    ]
    command = [sys.executable, __file__, "--serve", side, "--threads", str(asked.threads), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the side {side!r} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    ask = parser(__doc__, "3 steps, without checkpointing")
    ask.add_argument(
        "--network", default="unet-cifar", choices=list(PRESETS), help="a preset, on its typical data (default: %(default)s)"
    )
    ask.add_argument("--batch", type=int, default=2, help="images per step (default: %(default)s)")
    ask.add_argument("--rank", type=int, default=8, help="--lora-rank (default: %(default)s)")
    ask.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    ask.add_argument("--steps", type=int, help="steps after the first (default: 8, or 3)")
    ask.add_argument("--serve", help="(internal) be this side")
    asked = ask.parse_args()
    asked.steps = asked.steps or (3 if asked.quick else 8)
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    if asked.serve:
        print(json.dumps(serve(asked)))
        return
    say, facts = printer(asked.json), about("diffusers", "peft", device=asked.device)
    say(headline(facts))
    say(f"{asked.network}, batch {asked.batch}, LoRA of rank {asked.rank}; MiB, seconds per step")
    columns = ("trained", "weights", "gradients", "optimizer", "averages", "checkpoint", "peak", "seconds")
    say(f"{'':<24}" + "".join(f"{'M trained' if name == 'trained' else name:>12}" for name in columns))
    ratios: dict[str, float] = {}
    found: dict[str, dict[str, Any]] = {}
    for more in ("",) if asked.quick else ("", ", checkpointing"):
        for side in ("full", "lora"):
            made = found[side + more] = measured(side + more, asked)
            say(f"{side + more:<24}" + "".join(f"{made[name]:>12.2f}" for name in columns))
        full, lora = found[f"full{more}"], found[f"lora{more}"]
        states = ("gradients", "optimizer", "averages")
        values = {"gradients, optimizer, averages": sum(full[k] for k in states) / sum(lora[k] for k in states)}
        values |= {name: full[name] / lora[name] for name in ("checkpoint", "peak", "seconds")}
        ratios |= {f"{name}{more}": value for name, value in values.items()}
    say("all weights / LoRA: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    finish(asked.json, ratios, sides=found, about=facts)


if __name__ == "__main__":
    main()

"""P17: one step of the averages and of the optimizer, against diffusers and torch's defaults, on a 35.7M-parameter U-Net's tensors.

Both sides run in turn in one process; medians and ratios (peer's time over ours). Gradients are random; no network is run.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from torch import nn

from percepta.training.ema import Classic, Ema
from percepta.training.optim import clip_gradients, make_optimizer


def network() -> nn.Module:
    """Ho et al. 2020 on CIFAR-10."""
    return UNet2DModel(
        32, block_out_channels=(128, 256, 256, 256), layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def interleaved(sides: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each side; every round runs all of them."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for k in range(rounds + 2):
        for name, side in sides.items():
            begin = time.perf_counter()
            side()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if k >= 2:  # the first rounds allocate
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(t) for name, t in times.items()}


def measure(rounds: int, device: torch.device) -> tuple[dict[str, float], dict[str, float], float]:
    torch.manual_seed(0)
    net = network().to(device)
    params = list(net.parameters())
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    guarded, bare = Ema(net, Classic()), Ema(net, Classic(), guard=False)
    peer, peer_foreach = EMAModel(params, decay=0.9999), EMAModel(params, decay=0.9999, foreach=True)
    ema = interleaved({
        "ema": lambda: bare.update(bare.images + 1),
        "ema, guarded": lambda: guarded.update(guarded.images + 1),
        "diffusers EMAModel": lambda: peer.step(params),
        "diffusers EMAModel foreach": lambda: peer_foreach.step(params),
    }, rounds, device)  # fmt: skip
    del guarded, bare, peer, peer_foreach
    optimizers = {
        "adamw": make_optimizer(net),
        "torch AdamW default": torch.optim.AdamW(params, weight_decay=0.0),
        "torch AdamW foreach": torch.optim.AdamW(params, weight_decay=0.0, foreach=True),
    }
    adamw = interleaved({name: o.step for name, o in optimizers.items()}, rounds, device)
    falling = (0.9**k for k in itertools.count())  # every call clips: the gradients are within the last one's bound
    clip = interleaved({
        "clip, not reached": lambda: clip_gradients(params, 1e9),
        "torch clip, not reached": lambda: nn.utils.clip_grad_norm_(params, 1e9),
        "clip": lambda: clip_gradients(params, next(falling)),
        "torch clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(params, next(falling)),
    }, rounds, device)  # fmt: skip
    ms = ema | adamw | clip
    ratios = {
        "P17_ema_vs_diffusers": ms["diffusers EMAModel"] / ms["ema"],
        "P17_ema_guarded_vs_diffusers": ms["diffusers EMAModel"] / ms["ema, guarded"],
        "P17_ema_vs_diffusers_foreach": ms["diffusers EMAModel foreach"] / ms["ema"],
        "P17_adamw_vs_torch_default": ms["torch AdamW default"] / ms["adamw"],
        "P17_adamw_vs_torch_foreach": ms["torch AdamW foreach"] / ms["adamw"],
        "clip_vs_torch": ms["torch clip_grad_norm_"] / ms["clip"],
        "clip_not_reached_vs_torch": ms["torch clip, not reached"] / ms["clip, not reached"],
    }
    return ms, ratios, sum(p.numel() for p in params) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 rounds instead of 60")
    parser.add_argument("--json", action="store_true", help="one object with the ratios on stdout, and nothing else")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    device = torch.device(args.device)
    ms, ratios, millions = measure(15 if args.quick else 60, device)
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    about = {
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    if args.json:
        print(json.dumps({"ratios": ratios, "milliseconds": ms, **about}))
        return
    print(", ".join(f"{k} {v}" for k, v in about.items()) + f"; {millions:.1f}M parameters")
    for name, value in ms.items():
        print(f"  {name:28s} {value:8.2f} ms")
    for name, value in ratios.items():
        print(f"  {name:32s} {value:6.2f}x")


if __name__ == "__main__":
    main()

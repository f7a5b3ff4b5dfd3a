"""P17: one step of the averages and of the optimizer, against diffusers and torch's defaults, on a 35.7M-parameter U-Net's tensors.

Both sides run in turn in one process; medians and ratios (peer's time over ours). Gradients are random; no network is run.
"""

import itertools
from collections.abc import Callable

import torch
from _common import about, finish, headline, interleaved, medians, parser
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


def measure(rounds: int, device: torch.device) -> tuple[dict[str, float], dict[str, float], float]:
    def milliseconds(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        return {name: 1e3 * value for name, value in medians(interleaved(sides, rounds, 2, wait)).items()}  # the first two allocate

    torch.manual_seed(0)
    net = network().to(device)
    params = list(net.parameters())
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    guarded, bare = Ema(net, Classic()), Ema(net, Classic(), guard=False)
    peer, peer_foreach = EMAModel(params, decay=0.9999), EMAModel(params, decay=0.9999, foreach=True)
    ema = milliseconds({
        "ema": lambda: bare.update(bare.images + 1),
        "ema, guarded": lambda: guarded.update(guarded.images + 1),
        "diffusers EMAModel": lambda: peer.step(params),
        "diffusers EMAModel foreach": lambda: peer_foreach.step(params),
    })  # fmt: skip
    del guarded, bare, peer, peer_foreach
    optimizers = {
        "adamw": make_optimizer(net),
        "torch AdamW default": torch.optim.AdamW(params, weight_decay=0.0),
        "torch AdamW foreach": torch.optim.AdamW(params, weight_decay=0.0, foreach=True),
    }
    adamw = milliseconds({name: o.step for name, o in optimizers.items()})
    falling = (0.9**k for k in itertools.count())  # every call clips: the gradients are within the last one's bound
    clip = milliseconds({
        "clip, not reached": lambda: clip_gradients(params, 1e9),
        "torch clip, not reached": lambda: nn.utils.clip_grad_norm_(params, 1e9),
        "clip": lambda: clip_gradients(params, next(falling)),
        "torch clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(params, next(falling)),
    })  # fmt: skip
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
    ask = parser(__doc__, "15 rounds instead of 60")
    ask.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="default: %(default)s")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    ms, ratios, millions = measure(15 if asked.quick else 60, torch.device(asked.device))
    facts = about("diffusers", device=asked.device)
    if not asked.json:
        print(f"{headline(facts)}; {millions:.1f}M parameters")
        for name, value in ms.items():
            print(f"  {name:28s} {value:8.2f} ms")
        for name, value in ratios.items():
            print(f"  {name:32s} {value:6.2f}x")
    finish(asked.json, ratios, milliseconds=ms, about=facts)


if __name__ == "__main__":
    main()

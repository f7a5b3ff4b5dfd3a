"""`unet-cifar` on CIFAR-10 on one GPU: Percepta's real loop in several precisions, beside the default step of diffusers' script.

    python bench/gpu/train_cifar.py --data cifar10_60k_jpegq75.npz [--batch 128] [--seconds 15] [--variants NAME ...] [--json]

Each variant trains for some seconds after its warm-up (compilation included there) and gives images/s, the share of the card's bf16 rate
(an 8192^3 matmul measured here, over the network's floating point operations as torch.utils.flop_counter counts them: forward and backward,
without the optimizer) and peak memory. The script's step gets its data on the card for nothing; ours reads the set. Then sampling: 10 steps
of DDIM. Weights are those of a fresh network: rates are right, images mean nothing. With OUT set the JSON goes to $OUT/train_cifar.json.

--tiny is a trial without a GPU: `unet-pocket`, few images, two steps a variant.
"""

import gc
import io
import itertools
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import about, finish, headline, make_loop, parser, printer, run_loop
from _sides import Script
from diffusers import DDIMPipeline, DDIMScheduler

from percepta.formulation import Denoiser, Formulation
from percepta.networks import adapt, build
from percepta.path import LinearBeta
from percepta.recipes.ddpm import Ddpm
from percepta.rng import rng_for
from percepta.samplers import sample
from percepta.training.precision import compile_network
from percepta.training.settings import Settings

NHWC = {"mixed_precision": "bf16", "channels_last": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"mixed_precision": "bf16"},
    "bf16 nhwc": NHWC,
    "bf16 nhwc compiled": NHWC | {"compile": "default"},
    "bf16 nhwc graphs": NHWC | {"compile": "reduce-overhead"},
}
PEERS: dict[str, dict[str, Any]] = {"diffusers script": {}, "diffusers script bf16": {"mixed_precision": "bf16"}}


@dataclass
class Clock:
    """Counts steps for some seconds after a warm-up; both ends wait for the device."""

    device: torch.device
    seconds: float
    warmup: int
    most: int
    count: int = field(default=0, init=False)
    begin: float = field(default=0.0, init=False)
    first_s: float = field(default=0.0, init=False)  # everything up to the end of the warm-up

    def __post_init__(self) -> None:
        self.made = time.perf_counter()

    def tick(self, _: float = 0.0) -> bool:
        """After each step; True when it is enough."""
        self.count += 1
        if self.count == self.warmup:
            self._wait()
            self.begin = time.perf_counter()
            self.first_s = self.begin - self.made
        steps = self.count - self.warmup
        if steps < 1 or (time.perf_counter() - self.begin < self.seconds and steps < self.most):
            return False
        self._wait()
        self.step_s = (time.perf_counter() - self.begin) / steps
        return True

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Run:
    """What is the same for all variants."""

    settings: Settings
    device: torch.device
    seconds: float
    tiny: bool

    def clock(self) -> Clock:
        return Clock(self.device, self.seconds, *(1, 1) if self.tiny else (20, 10**9))

    def train(self, name: str) -> dict[str, float]:
        """images/s and memory of a variant; the state that other variants left is gone before."""
        gc.collect()
        torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        clock = self.clock()
        if name in PEERS:
            step = Script(replace(self.settings, **PEERS[name]), self.device)
            step()
            while not clock.tick():
                step()
        else:
            with tempfile.TemporaryDirectory() as folder:
                recipe = Ddpm(schedule="linear")
                run_loop(make_loop(recipe, replace(self.settings, **VARIANTS[name]), self.device, Path(folder)), clock.tick)
        memory = {}
        if self.device.type == "cuda":
            memory = {"allocated_mib": torch.cuda.max_memory_allocated(self.device) / 2**20,
                      "reserved_mib": torch.cuda.max_memory_reserved(self.device) / 2**20}  # fmt: skip
        return {
            "images_per_s": self.settings.batch / clock.step_s,
            "step_ms": 1e3 * clock.step_s,
            "first_s": clock.first_s,
            **memory,
        }

    def sampling(self, compiled: bool) -> dict[str, float]:
        """Images/s of 10 steps of DDIM: diffusers' pipeline in fp32, and ours in bf16 channels_last, compiled with CUDA graphs or not."""
        batch, steps = (2, 2) if self.tiny else (256, 10)
        network = build(self.settings.network or "unet-cifar", size=self.settings.size)
        pipeline = DDIMPipeline(network.model.to(self.device).eval(), DDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        rates = {
            "DDIMPipeline fp32": self._rate(lambda: pipeline(batch_size=batch, num_inference_steps=steps, output_type="np"), batch)
        }
        half: Any = network.model.to(self.device, torch.bfloat16, memory_format=torch.channels_last)
        ours = adapt(half)
        denoiser = Denoiser(ours, Formulation(LinearBeta())).eval()
        rng = rng_for(0, 0, batch, stream="sample", device=self.device)

        def draw() -> Any:
            images = sample(denoiser, "ddim", steps, shape=(3, self.settings.size, self.settings.size), rng=rng, batch_size=batch)
            return images.clamp(-1, 1).cpu().numpy()

        rates["percepta bf16 nhwc"] = self._rate(draw, batch)
        if compiled and compile_network(ours, self.device, "reduce-overhead"):
            rates["percepta bf16 nhwc graphs"] = self._rate(draw, batch)
        return rates

    def _rate(self, draw: Callable[[], object], images: int) -> float:
        clock = Clock(self.device, self.seconds / 3, 1 if self.tiny else 3, 10**9)
        draw()
        while not clock.tick():
            draw()
        return images / clock.step_s


def bf16_rate(device: torch.device, size: int) -> float:
    """FLOP/s of one large matmul: the ceiling that shares refer to."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    clock = Clock(device, 3600.0, 3, 10)
    a @ b
    while not clock.tick():
        a @ b
    return 2 * size**3 / clock.step_s


def flops_per_image(settings: Settings, device: torch.device) -> float:
    """Of the network, forward and backward, counted on a small batch."""
    model: Any = build(settings.network or "unet-cifar", size=settings.size).model.train().to(device)
    x = torch.randn(4, 3, settings.size, settings.size, device=device)
    with FlopCounterMode(display=False) as counter:
        model(x, torch.zeros(4, device=device), return_dict=False)[0].square().mean().backward()
    return counter.get_total_flops() / 4


def as_npz(pack: Path, folder: Path, limit: int | None) -> Path:
    """The training part of a pack of JPEGs as one .npz of pixels and labels; any other .npz is taken as it is."""
    with np.load(pack, allow_pickle=False) as stored:
        if "train_jpeg" not in stored:
            return pack
        raw, ends, labels = (
            stored["train_jpeg"].tobytes(),
            stored["train_offset"][: limit and limit + 1],
            stored["train_label"][:limit],
        )
    images = np.stack([np.asarray(Image.open(io.BytesIO(raw[a:b])).convert("RGB")) for a, b in itertools.pairwise(ends)])
    np.savez(folder / "cifar10.npz", arr_0=images, arr_1=labels.astype(np.int64))
    return folder / "cifar10.npz"


def measure(run: Run, names: list[str], say: Callable[..., None]) -> tuple[dict[str, Any], dict[str, float]]:
    """The table of the variants, and the ratios. A variant that fails is a row that says so."""
    rate, flops = bf16_rate(run.device, 256 if run.tiny else 8192), flops_per_image(run.settings, run.device)
    say(f"bf16 matmul {rate / 1e12:.1f} TFLOP/s; the network {flops / 1e9:.1f} GFLOP per image, forward and backward")
    say(f"\n  {'variant':<24}{'images/s':>10}{'ms/step':>10}{'of bf16':>9}{'MiB':>8}{'warm-up s':>11}")
    rows: dict[str, Any] = {}
    for name in names:
        try:
            row = run.train(name)
        except Exception as error:  # one variant must not cost the others' figures
            traceback.print_exc()
            rows[name] = {"failed": f"{type(error).__name__}: {error}"}
            say(f"  {name:<24}failed: {type(error).__name__}")
            continue
        row["share_of_bf16"] = row["images_per_s"] * flops / rate
        rows[name] = row
        say(f"  {name:<24}{row['images_per_s']:10.0f}{row['step_ms']:10.2f}{row['share_of_bf16']:9.1%}"
            f"{row.get('allocated_mib', 0):8.0f}{row['first_s']:11.1f}")  # fmt: skip
    baseline = rows.get("diffusers script", {}).get("images_per_s")
    done = {name: row["images_per_s"] for name, row in rows.items() if "images_per_s" in row}
    ratios = {f"{name} / diffusers script": value / baseline for name, value in done.items() if baseline and name in VARIANTS}
    return {"bf16_flops": rate, "flops_per_image": flops, "variants": rows}, ratios


def main() -> None:
    ask = parser(__doc__, "5 seconds a variant")
    ask.add_argument(
        "--data", type=Path, default=Path("../shared/data/cifar10_60k_jpegq75.npz"), help="pack of JPEGs, or an .npz of pixels"
    )
    ask.add_argument("--batch", type=int, default=128, help="images per step (default: %(default)s, as Ho et al. 2020)")
    ask.add_argument("--seconds", type=float, default=15.0, help="of each variant, after its warm-up (default: %(default)s)")
    ask.add_argument("--variants", nargs="+", choices=[*VARIANTS, *PEERS], default=[*VARIANTS, *PEERS], metavar="NAME")
    ask.add_argument("--tiny", action="store_true", help="a trial on any device")
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    if not (torch.cuda.is_available() or asked.tiny):
        ask.error("no CUDA device here; --tiny tries the script out without one")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    say, facts = printer(asked.json), about("diffusers", device=device.type)
    say(headline(facts))
    with tempfile.TemporaryDirectory() as folder:
        data = as_npz(asked.data, Path(folder), 256 if asked.tiny else None)
        settings = Settings(network="unet-pocket" if asked.tiny else "unet-cifar", data=str(data), conditional="no", flip=True,
                            batch=4 if asked.tiny else asked.batch, steps=10**9, sample_every=0, checkpoint_every=10**9)  # fmt: skip
        run = Run(settings, device, 0.0 if asked.tiny else 5.0 if asked.quick else asked.seconds, asked.tiny)
        found, ratios = measure(run, asked.variants, say)
        if best := max(ratios.values(), default=None):
            say(f"\n  P18: the fastest over the script's default step {best:.2f}x (goal 2.0)")
        found["sampling_images_per_s"] = rates = run.sampling("bf16 nhwc graphs" in asked.variants)
        say(f"\n  {'sampling, 10 steps of DDIM':<40}images/s\n" + "\n".join(f"  {k:<40}{v:8.0f}" for k, v in rates.items()))
    if out := os.environ.get("OUT"):
        (Path(out) / "train_cifar.json").write_text(json.dumps({"ratios": ratios, **found, "about": facts}, indent=2))
    finish(asked.json, ratios, **found, about=facts)


if __name__ == "__main__":
    main()

"""Folders to metrics, against the tools people use: P1 (FID, fp32), P2 (FID, bf16) and P8 (all six metrics in one pass).

    python bench/evaluate.py [--quick] [--json] [--threads N] [--num N] [--size 256] [--size 32]

Every side judges the same two folders of PNG files with the same weights (random ones of the published shapes: times are right, the numbers mean
nothing, but must agree). Each turn of a side is a process of its own, timed from the folders to the number without Python's start and imports;
the sides take turns. Features are never cached. `+ malloc`: glibc keeps freed memory (percepta evaluate --fast-malloc), shown apart because a user
could set it for the peers too.

P8's peers are two passes of torch-fidelity: FID, KID and IS, then precision and recall; it has neither sFID nor density and coverage.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import about, finish, headline, medians, parser, peak_mib, printer
from PIL import Image

PACKAGES = ("torch-fidelity", "pytorch-fid", "clean-fid", "torchmetrics")
FID_SIDES = ("torch-fidelity", "pytorch-fid", "clean-fid", "torchmetrics", "percepta", "percepta bf16", "percepta + malloc")
SUITE_SIDES = ("torch-fidelity, two passes", "percepta, six metrics", "percepta bf16, six metrics")
BATCH = 32


def write_images(root: Path, count: int, size: int, seed: int) -> None:
    """Pictures with structure at several scales, so that PNG compresses and features vary as with photographs."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        image = np.zeros((size, size, 3))
        for scale in (4, 16, size):
            coarse = rng.integers(0, 256, (scale, scale, 3), dtype=np.uint8)
            image += np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)) * (
                0.5 if scale == 4 else 0.25
            )
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{k:05d}.png")


def write_weights(path: Path) -> None:
    """A random network of the published shapes, as torch-fidelity and pytorch-fid read it; activations of about the same size at every depth."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    original = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state, **kw: None  # type: ignore[method-assign]
    torch.save({}, path)
    network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=str(path))
    FeatureExtractorInceptionV3.load_state_dict = original  # type: ignore[method-assign]
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith("conv.weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        elif name.endswith("fc.weight"):
            value.normal_(0, 0.05)
    torch.save(state, path)


# ---- the sides: two folders and a weights file -> a number


def torch_fidelity(a: str, b: str, weights: str, **what: bool) -> dict[str, float]:
    import torch_fidelity

    options = {"cuda": False, "verbose": False, "cache": False, "batch_size": BATCH, "feature_extractor_weights_path": weights}
    return torch_fidelity.calculate_metrics(input1=a, input2=b, **options, **what)


def fid_of_torch_fidelity(a: str, b: str, weights: str) -> float:
    return torch_fidelity(a, b, weights, fid=True)["frechet_inception_distance"]


def fid_of_pytorch_fid(a: str, b: str, weights: str) -> float:
    from pytorch_fid import fid_score, inception

    inception.load_state_dict_from_url = lambda *_, **__: torch.load(weights, weights_only=True)  # its download
    return fid_score.calculate_fid_given_paths([a, b], BATCH, torch.device("cpu"), 2048, num_workers=0)


def fid_of_clean_fid(a: str, b: str, weights: str) -> float:
    """Its TorchScript file cannot be had here: torch-fidelity's network, frozen by TorchScript, stands for it."""
    from cleanfid import fid
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("bench", ["2048"], feature_extractor_weights_path=weights).eval()
    names = [name for name, _ in network.named_children() if name not in ("AvgPool", "fc")]
    layers = torch.nn.Sequential(*(getattr(network, name) for name in names))
    traced = torch.jit.freeze(torch.jit.trace(layers.eval(), torch.zeros(1, 3, 299, 299)))

    def features(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return traced((x - 128) / 128).mean((2, 3))

    return fid.compute_fid(a, b, mode="clean", custom_feat_extractor=features, num_workers=0, batch_size=BATCH,
                           device=torch.device("cpu"), verbose=False, use_dataparallel=False)  # fmt: skip


def fid_of_torchmetrics(a: str, b: str, weights: str) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=weights)
    for folder, real in ((a, False), (b, True)):
        paths = sorted(Path(folder).glob("*.png"))
        for start in range(0, len(paths), BATCH):
            images = [np.array(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]]
            metric.update(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), real=real)
    return float(metric.compute())


def ours(precision: str, names: tuple[str, ...]) -> Callable[[str, str, str], float]:
    def run(a: str, b: str, weights: str) -> float:
        from percepta.evaluation import evaluate as front
        from percepta.spaces.extractor import Extractor
        from percepta.spaces.inception import TAPS, Inception

        built: dict[tuple[str, ...], Inception] = {}

        def read(images: torch.Tensor, layers: Any) -> dict[str, torch.Tensor]:
            taps = tuple(layers)
            if taps not in built:
                built[taps] = Inception(taps, torch.load(weights, weights_only=True), precision=precision)
            return dict(zip(taps, built[taps].of_bytes(images), strict=True))

        extractor = Extractor("inception", TAPS, "2048", "tf1-bilinear", "bench", read, precision)
        front.open_extractor = lambda *_, **__: extractor  # random weights are refused by the front door
        with tempfile.TemporaryDirectory() as cache:
            return front.evaluate(a, b, metrics=names, spaces=("inception-2048",), batch=BATCH, cache=Path(cache))["fid"]

    return run


SIX = ("fid", "sfid", "is", "kid", "pr", "dc")


def two_passes(a: str, b: str, weights: str) -> float:
    size = min(len(list(Path(folder).iterdir())) for folder in (a, b))
    found = torch_fidelity(a, b, weights, fid=True, isc=True, kid=True, kid_subset_size=min(1000, size))
    torch_fidelity(a, b, weights, prc=True, feature_extractor="inception-v3-compat")
    return found["frechet_inception_distance"]


SIDES: dict[str, Callable[[str, str, str], float]] = {
    "torch-fidelity": fid_of_torch_fidelity,
    "pytorch-fid": fid_of_pytorch_fid,
    "clean-fid": fid_of_clean_fid,
    "torchmetrics": fid_of_torchmetrics,
    "percepta": ours("fp32", ("fid",)),
    "percepta bf16": ours("bf16", ("fid",)),
    "percepta + malloc": ours("fp32", ("fid",)),
    "percepta bf16 + malloc": ours("bf16", ("fid",)),
    "torch-fidelity, two passes": two_passes,
    "percepta, six metrics": ours("fp32", SIX),
    "percepta bf16, six metrics": ours("bf16", SIX),
}


def serve(side: str, a: str, b: str, weights: str) -> None:
    """One turn, in this process."""
    import torch_fidelity  # noqa: F401  everybody's imports come before the clock
    import torchmetrics.image.fid  # noqa: F401

    import percepta.evaluation.evaluate  # noqa: F401

    if "malloc" in side:
        from percepta.memory import fast_malloc

        fast_malloc()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr
    begin = time.perf_counter()
    value = SIDES[side](a, b, weights)
    print(json.dumps({"seconds": time.perf_counter() - begin, "value": float(value), "peak_mib": peak_mib()}), file=out, flush=True)


def turn(side: str, folders: list[str], weights: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--threads", str(torch.get_num_threads()), "--serve", side, *folders, weights]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(names: tuple[str, ...], folders: list[str], weights: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds, peak MiB and the value of each side; every other round runs backwards."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for k in range(rounds):
        for name in names if k % 2 == 0 else tuple(reversed(names)):
            found[name].append(turn(name, folders, weights))
    seconds = medians({name: [one["seconds"] for one in turns] for name, turns in found.items()})
    return {name: {**turns[0], "seconds": seconds[name]} for name, turns in found.items()}


def report(say: Callable[..., None], title: str, found: dict[str, dict[str, float]], images: int) -> None:
    say(f"\n{title}")
    base = next(side["seconds"] for name, side in found.items() if name.startswith("percepta"))
    for name, side in found.items():
        say(f"  {name:<28}{side['seconds']:8.2f} s{1e3 * side['seconds'] / images:8.1f} ms/image{side['peak_mib']:8.0f} MiB"
            f"   FID {side['value']:.6g}   {side['seconds'] / base:.2f}x")  # fmt: skip


def main() -> None:
    ask = parser(__doc__, "24 images a side of 256 px, one round; the peers' Frechet distance weighs more than in earnest")
    ask.add_argument("--num", type=int, help="images a side (default: 384)")
    ask.add_argument("--size", type=int, action="append", help="side of the files (default: 256 and 32)")
    ask.add_argument("--rounds", type=int, help="turns of each side (default: 3)")
    ask.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.simplefilter("ignore")
    if asked.serve:
        serve(*asked.serve)
        return
    num, rounds = asked.num or (24 if asked.quick else 384), asked.rounds or (1 if asked.quick else 3)
    say, facts = printer(asked.json), about(*PACKAGES, "pillow")
    say(headline(facts))
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / "weights.pth"
        write_weights(weights)
        for size in asked.size or ([256] if asked.quick else [256, 32]):
            folders = [str(Path(scratch) / f"{name}{size}") for name in "ab"]
            for seed, folder in enumerate(folders):
                write_images(Path(folder), num, size, seed)
            one = compare(FID_SIDES, folders, str(weights), rounds)
            report(say, f"FID of two folders of {num} PNG files, {size} px", one, 2 * num)
            fastest = min(one[name]["seconds"] for name in FID_SIDES[:4])
            ratios |= {f"p1-{size}": fastest / one["percepta"]["seconds"], f"p2-{size}": fastest / one["percepta bf16"]["seconds"],
                       f"p1-malloc-{size}": fastest / one["percepta + malloc"]["seconds"]}  # fmt: skip
            six = compare(SUITE_SIDES, folders, str(weights), rounds)
            report(say, f"FID, sFID, IS, KID, precision/recall, density/coverage; {size} px", six, 2 * num)
            ratios[f"p8-{size}"] = six[SUITE_SIDES[0]]["seconds"] / six[SUITE_SIDES[1]]["seconds"]
            say(f"  P1 {ratios[f'p1-{size}']:.2f}x (floor 2.5, target 3.0), P2 {ratios[f'p2-{size}']:.2f}x (4.5, 5.5), "
                f"P8 {ratios[f'p8-{size}']:.2f}x (2 x P1, 3 x P1)")  # fmt: skip
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

"""MMD-DDM on CIFAR-10 on one GPU, by the commands that a user types: pretrain `unet-cifar`, finetune it to 5 steps, judge both.

    python bench/gpu/mmd_cifar.py --data cifar10_60k_jpegq75.npz [--pretrain-steps 20000] [--steps 500] [--num 10000] [--json]

The paper's CIFAR-10 row is 32.7 (DDIM, 5 steps) to 5.48 (finetuned, Inception's 2048 features, 50,000 images). Here the model trains for minutes, not
days, and is compared in Inception's 768 features, as far as the weights at hand reach: the ratio of before to after is what can be set beside the
paper's, not the values. It is finetuned in one space and judged in that one and in another (AlexNet's of LPIPS), which it never saw. With OUT set the JSON goes to
$OUT/mmd_cifar.json.

--tiny is a trial without a GPU: `unet-pocket`, a few images and steps.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _common import about, finish, headline, parser, printer
from train_cifar import as_npz

CHAIN = ["--sampler", "ddim", "--steps", "5"]


def percepta(*words: str) -> tuple[float, str]:
    """Seconds and standard output of a command."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "percepta", *words], stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - begin, done.stdout


def judged(model: Path, data: Path, num: int, spaces: str, *how: str) -> dict[str, float]:
    """Frechet distances of a model's samples by space."""
    found: dict[str, Any] = json.loads(
        percepta(
            "evaluate",
            str(model),
            str(data),
            "--metrics",
            "fid",
            "--space",
            spaces,
            "--num",
            str(num),
            "--seed",
            "1",
            "--json",
            *how,
        )[1]
    )
    return {value["space"]: value["value"] for value in found["metrics"].values()}


def main() -> None:
    ask = parser(__doc__, "the same as --tiny")
    ask.add_argument("--data", type=Path, required=True, help="a pack of JPEGs, or an .npz of images")
    ask.add_argument("--pretrain-steps", type=int, default=20_000, help="steps of the model that is finetuned")
    ask.add_argument("--steps", type=int, default=500, help="steps of the finetuning")
    ask.add_argument("--num", type=int, default=10_000, help="images that are judged")
    ask.add_argument("--spaces", default="inception-768,alex", help="the first one is trained against too")
    ask.add_argument("--tiny", action="store_true", help="a trial without a GPU")
    asked = ask.parse_args()
    tiny = asked.tiny or asked.quick
    say, facts = printer(asked.json), about("diffusers")
    say(headline(facts))
    space, found = asked.spaces.split(",")[0], {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = as_npz(asked.data, root, 64 if tiny else None)
        common = ["--data", str(data), "--size", "32", "--conditional", "no", "--sample-every", "0"]
        precise = [] if tiny else ["--mixed-precision", "bf16", "--channels-last"]
        base = [
            "--network",
            "unet-pocket" if tiny else "unet-cifar",
            "--schedule",
            "linear",
            "--flip",
            "--steps",
            str(2 if tiny else asked.pretrain_steps),
        ]
        size = ["--batch", "4"] if tiny else ["--batch", "128", "--lr", "2e-4", "--warmup", "1000", "--checkpoint-every", "5000"]
        found["pretrain minutes"] = percepta("train", "ddpm", *common, *precise, *base, *size, "--out", str(root / "base"))[0] / 60
        size = ["--batch", "4", "--micro-batch", "2"] if tiny else ["--batch", "128", "--micro-batch", "128"]
        tune = ["--init", str(root / "base"), "--space", space, "--sampler-steps", "5", "--steps", str(2 if tiny else asked.steps)]
        found["finetune minutes"] = percepta("train", "mmd", *common, *precise, *tune, *size, "--out", str(root / "fast"))[0] / 60
        num = 8 if tiny else asked.num
        found["before"] = judged(root / "base", data, num, asked.spaces, *CHAIN)
        found["before, 50 steps"] = judged(root / "base", data, num, asked.spaces, "--sampler", "ddim", "--steps", "50")
        found["after"] = judged(root / "fast", data, num, asked.spaces)
    for name, value in found.items():
        say(
            f"  {name:<18}" + (f"{value:8.1f}" if isinstance(value, float) else "".join(f"  {k} {v:.3f}" for k, v in value.items()))
        )
    ratios = {f"mmd-{name}": value / found["after"][name] for name, value in found["before"].items()}
    say("  before / after    " + "".join(f"  {k.removeprefix('mmd-')} {v:.2f}x" for k, v in ratios.items()))
    if "OUT" in os.environ:
        (Path(os.environ["OUT"]) / "mmd_cifar.json").write_text(
            json.dumps({"found": found, "ratios": ratios, "about": facts}, indent=2)
        )
    finish(asked.json, ratios, about=facts)


if __name__ == "__main__":
    main()

"""`make demo`: train a small class-conditional model on built-in images, export it, judge it, report, and say what to do next.

It is judged in the space `domain`, an encoder trained on the built-in images: nothing has to be downloaded.

The commands it runs are printed as a user would type them.
"""

import sys
import time
from pathlib import Path

TRAIN = (
    "train ddpm --data shapes:labels=shape --size 16 --steps 2400 --batch 64 --lr 1e-3 --warmup 50 --lr-schedule cosine --ema-decay 0.998 "
    "--sample-every 800 --sample-num 64 --sampler ddpm --sample-steps 40 --guidance 2 --checkpoint-every 800 --log-every 50 "
    "--eval-every 1200 --eval-metrics fid,kid,pr --eval-num 256 --eval-steps 20 --eval-space domain "
    "--eval-data shapes:labels=shape,length=4000"
)
SAMPLE = "--num 64 --sampler ddpm --steps 40 --guidance 2 --seed 7"
REAL = "shapes:labels=shape,length=4000,size=16 --size 16"
EVALUATE = "--metrics fid,kid,pr --space domain --num 256 --sampler ddpm --steps 20 --guidance 2"  # the seed of the run: the encoder is there already


def main() -> int:
    from percepta.cli import main as percepta
    from percepta.training.log import console

    out = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    started = time.monotonic()
    for command in (
        f"{TRAIN} --out {out}",
        f"sample {out} {SAMPLE} --out {out}/demo.png",
        f"evaluate {out} {REAL} {EVALUATE}",
        f"report {out} --out {out}/report.html",
    ):
        console.print(f"\n$ percepta {command}", style="bold")
        code = percepta(command.split())
        if code:
            return code
    console.print(
        f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.\n"
        f"  {out}/demo.png            64 new images, a column for each of the 8 classes\n"
        f"  {out}/report.html         losses, metrics and grids on one page: open it in a browser\n"
        f"  {out}/samples/            the same seeds while the model learnt\n"
        f"  {out}/evaluation/         the metrics, each with its protocol\n"
        f"  {out}/model/              a diffusers pipeline: DiffusionPipeline.from_pretrained('{out}/model')\n"
        f"  {out}/metrics.jsonl       losses; config.json repeats the run\n"
        "Next: your own images, in class sub-folders or flat:\n"
        "  percepta doctor --data ./images\n"
        "  percepta train ddpm --data ./images --size 32 --steps 20000 --out runs/mine",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

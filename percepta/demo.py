"""`make demo`: train a small class-conditional model on built-in images, finetune it to sample in 5 steps, judge both, and report.

It is finetuned against one encoder of the built-in images (the space `domain`, of seed 0) and judged by another one (of seed 1): nothing has to
be downloaded, and no number is of the space that was trained against.

The commands it runs are printed as a user would type them.
"""

import sys
import time
from pathlib import Path

DATA = "--data shapes:labels=shape,length=4000 --size 16"
SLOW = (
    f"train ddpm {DATA} --steps 2400 --batch 64 --lr 1e-3 --warmup 50 --lr-schedule cosine --ema-decay 0.998 --sample-every 1200 --sample-num 64 "
    "--sampler ddpm --sample-steps 40 --guidance 2 --checkpoint-every 800 --log-every 50 --out {out}/slow"
)
FAST = (
    f"train mmd --init {{out}}/slow {DATA} --sampler-steps 5 --space domain --steps 60 --batch 64 --lr 1e-4 --sample-every 20 --sample-num 64 "
    "--checkpoint-every 20 --log-every 2 --out {out}/fast"
)
JUDGE = "shapes:labels=shape,length=4000,size=16 --size 16 --metrics fid,kid,pr --space domain --num 512 --seed 1"
COMMANDS = (
    SLOW,
    FAST,
    f"evaluate {{out}}/slow {JUDGE} --sampler ddim --steps 5",
    f"evaluate {{out}}/fast {JUDGE}",
    "report {out}/slow {out}/fast --out {out}/report.html",
)


def main() -> int:
    from percepta.cli import main as percepta
    from percepta.training.log import console

    out = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    started = time.monotonic()
    for command in COMMANDS:
        words = command.format(out=out)
        console.print(f"\n$ percepta {words}", style="bold")
        code = percepta(words.split())
        if code:
            return code
    console.print(
        f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.\n"
        f"  {out}/report.html             before and after, on the same noise: open it in a browser\n"
        f"  {out}/fast/samples/           5-step samples while it was finetuned, a column for each of the 8 classes\n"
        f"  {out}/fast/model/             a diffusers pipeline that samples in 5 steps: DiffusionPipeline.from_pretrained('{out}/fast/model')\n"
        f"  {out}/slow/                   the model before, and its samples of 40 steps\n"
        "  .../evaluation/, .../config.json    metrics, each with its protocol; what repeats a run\n"
        "Next: your own images, in class sub-folders or flat, and your own pipeline:\n"
        "  percepta doctor --data ./images\n"
        "  percepta train mmd --init ./pipeline --data ./images --sampler-steps 5 --out runs/mine",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

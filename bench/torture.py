"""R1: training is killed with SIGKILL again and again, half of the times inside a save, and resumed until it is done.

What the run leaves must be what an uninterrupted run leaves, to the bit: sha256 of weights, optimizer, averages, counters, metrics,
sample grids and exported model. Peers (accelerate, Lightning, plain torch.save): 5 to 95 % of the resumes after a kill in a save fail.

    python bench/torture.py                                          200 kills of `ddpm`
    python bench/torture.py --recipe edm --kills 40 -- --flip --ema power --micro-batch 2

One process imports everything once and forks those that die: a kill costs a part of a second. Flags after `--` are those of
`percepta train`. `--recipe` also takes FILE.py:CLASS.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with threads must not fork
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import torch
from _common import about, headline
from diffusers import UNet2DModel

from percepta.cli.train import read
from percepta.recipes import recipes
from percepta.training import checkpoint, ema
from percepta.training.job import train
from percepta.training.recipe import Recipe
from percepta.training.settings import Settings

CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")  # what a save does to the disk
LATEST_CALL = 60  # about two saves: a kill at call 1 .. 60 falls anywhere in one
COMMON = [
    "--data",
    "shapes:length=20",
    "--conditional",
    "no",
    "--size",
    "8",
    "--batch",
    "4",
    "--steps",
    "12",
    "--checkpoint-every",
    "2",
    "--log-every",
    "3",
    "--sample-every",
    "6",
    "--sample-num",
    "2",
    "--sample-steps",
    "2",
    "--device",
    "cpu",
]  # 20 images: three epochs, and most checkpoints lie in the middle of one
OWN = {"autoencoder": ["--perceptual", "none"]}  # recipes that do not take the small U-Net


@dataclass(frozen=True)
class Scenario:
    """One way to train, and how often it is killed. `turns`: more flags, another list of them at each restart."""

    label: str
    recipe: str
    flags: Sequence[str] = ()
    kills: int = 20
    turns: Sequence[Sequence[str]] = ((),)


@dataclass
class Result:
    """Kills at random moments and inside a save; finished runs, how many left other bits, and processes that failed."""

    random: int = 0
    inside: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return self.random + self.inside

    @property
    def good(self) -> bool:
        return not self.different and not self.failed


def recipe_class(name: str) -> type[Recipe]:
    """By name, or FILE.py:CLASS."""
    file, _, wanted = name.rpartition(":")
    if not file.endswith(".py"):
        return recipes()[name]
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None, name
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, wanted)


def small_network(folder: Path, dropout: float = 0.1) -> str:
    """A U-Net of 60 thousand parameters for 8 x 8 images without classes, with dropout."""
    torch.manual_seed(0)
    UNet2DModel(
        sample_size=8, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8, dropout=dropout, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def die_at(call: int) -> None:
    """From now on this process kills itself at the `call`-th disk operation of its saves; a write is then half done."""
    inside, number = False, 0

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            nonlocal number
            number += inside
            if inside and number == call:
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return operation

    def save(*args: Any, **options: Any) -> Any:
        nonlocal inside
        inside = True
        try:
            return real_save(*args, **options)
        finally:
            inside = False

    real_save = checkpoint.save
    checkpoint.save = ema.save = save
    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def forked(recipe: Recipe, settings: Settings, log: Path, kill_after: float | None = None, kill_at: int | None = None) -> int:
    """Train in a process of its own; its exit code, negative where a signal ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            into = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(into, 1)
            os.dup2(into, 2)
            if kill_at is not None:
                die_at(kill_at)
            train(recipe, settings, quiet=True)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        end = time.monotonic() + kill_after
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fingerprint(run: Path) -> dict[str, str]:
    """sha256 of everything that must not depend on interruptions; `timing.jsonl` and the time in a card may."""
    kept = [p for p in sorted(run.rglob("*")) if p.is_file() and p.suffix in (".safetensors", ".png", ".json", ".jsonl")]
    names = {str(p.relative_to(run)): p for p in kept if p.name not in ("timing.jsonl", "config.json")}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}


def torture(scenario: Scenario, work: Path, draw: random.Random, say: Callable[..., None]) -> Result:
    kind = recipe_class(scenario.recipe)
    given = [*COMMON, *OWN.get(scenario.recipe, ["--network", small_network(work / "network")]), *scenario.flags]
    turns = [read(kind, [*given, *more]) for more in scenario.turns]
    recipe, settings = turns[0]
    result, log, started = Result(), work / "log.txt", time.monotonic()
    code = forked(recipe, replace(settings, out=work / "straight"), log)
    if code != 0:
        raise SystemExit(f"{scenario.label}: the uninterrupted run fails ({code}):\n{log.read_text()[-3000:]}")
    length = time.monotonic() - started
    expected = fingerprint(work / "straight")
    restarts = 0
    while result.kills < scenario.kills or result.runs == 0:
        run, code = work / f"run-{result.runs}", -signal.SIGKILL
        while code == -signal.SIGKILL:
            over = result.kills >= scenario.kills
            inside = result.inside < result.random + (scenario.kills % 2)
            after, at = (
                (None, None) if over else (None, draw.randint(1, LATEST_CALL)) if inside else (draw.uniform(0, length), None)
            )
            recipe, settings = turns[restarts % len(turns)]
            code = forked(recipe, replace(settings, out=run, resume=True), log, after, at)
            restarts += 1
            if code == -signal.SIGKILL:
                result.inside, result.random = result.inside + inside, result.random + (not inside)
        result.runs += 1
        if code != 0:
            result.failed.append(f"run {result.runs} ended with {code}: {log.read_text()[-2000:]}")
            break
        found = fingerprint(run)
        result.different += [f"run {result.runs}: {k}" for k in sorted(found.keys() | expected) if found.get(k) != expected.get(k)]
        say(f"{scenario.label}: {result.kills}/{scenario.kills} kills, run {result.runs} {'equal' if result.good else 'DIFFERENT'}")
    result.seconds = time.monotonic() - started
    return result


def table(results: dict[str, Result]) -> str:
    head = f"{'scenario':<24} {'kills':>6} {'in a save':>9} {'runs':>5} {'equal':>6} {'seconds':>8}"
    rows = [
        f"{label:<24} {r.kills:>6} {r.inside:>9} {r.runs:>5} {'yes' if r.good else 'NO':>6} {r.seconds:>8.1f}"
        for label, r in results.items()
    ]
    return "\n".join([head, *rows])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="ddpm", help="a recipe's name, or FILE.py:CLASS (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=200, help="how many, half of them inside a save (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="20 kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--scenarios", type=Path, help="a JSON list of {label, recipe, flags, kills, turns} instead")
    parser.add_argument("--json", action="store_true", help="one object on stdout and nothing else there")
    parser.add_argument("flags", nargs="*", help="after --: flags of percepta train")
    args = parser.parse_args()
    torch.set_num_threads(1)
    single = [{"label": args.recipe, "recipe": args.recipe, "flags": args.flags, "kills": 20 if args.quick else args.kills}]
    asked = json.loads(args.scenarios.read_text()) if args.scenarios else single
    facts = about("diffusers")

    def say(*text: object) -> None:
        print(*text, file=sys.stderr, flush=True)

    say(headline(facts))
    results = {}
    for scenario in (Scenario(**one) for one in asked):
        with tempfile.TemporaryDirectory(prefix="torture-") as work:
            results[scenario.label] = torture(scenario, Path(work), random.Random(f"{args.seed}/{scenario.label}"), say)
    if args.json:
        shown = {label: {**vars(r), "kills": r.kills, "good": r.good} for label, r in results.items()}
        print(json.dumps({"ratios": {}, "scenarios": shown, **facts}))
    else:
        print(table(results))
    for label, result in results.items():
        for line in (*result.different, *result.failed):
            say(f"{label}: {line}")
    return 0 if all(r.good for r in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

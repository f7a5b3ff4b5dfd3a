"""percepta evaluate: every metric of one set of images against another, with the protocol beside the numbers."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.progress import TaskID

from percepta.cli import fail
from percepta.cli.parse import Usage, parse, to_stdout


@dataclass(frozen=True)
class Evaluate:
    """Judge GENERATED against REAL: all metrics in one pass over each side, cached by content.

    Example: percepta evaluate samples/ images/ --metrics fid,kid,pr

    Each side is a folder of images, an .npz of uint8 images (`arr_0`), an .npz of statistics (`mu`, `sigma`: Frechet distances only), a
    built-in set such as `shapes`, or, for GENERATED, a run or a pipeline folder, which is drawn from first (--num, --sampler, --steps).
    Metrics: fid sfid is kid pr (precision, recall) dc (density, coverage) clip-fd fd-dinov2 cmmd lpips-diversity; `default` is the first
    six, `all` every one. Weights are never downloaded: what is missing is named with its address and its folder.
    """

    generated: tyro.conf.Positional[str]
    """What is judged."""
    real: tyro.conf.Positional[str]
    """What it should look like."""
    metrics: str = "default"
    """Names, separated by commas."""
    space: str = ""
    """Where fid, kid, pr and dc are computed, instead of Inception's 2048 features: inception-768, clip, dinov2, domain (trained on REAL),
    pixels, ...; several separated by commas. `percepta doctor` lists those whose weights are here."""
    dialect: Literal["torch-fidelity", "pytorch-fid", "adm", "clean"] = "torch-fidelity"
    """The tool whose numbers these are to equal: its resize and its conventions."""
    num: int | None = None
    """Images of GENERATED to use, or to draw. Default: all of a set; 50,000 drawn from a model."""
    size: int | None = None
    """Bring both sides to this size first, as training does. Default: images as they are."""
    crop: Literal["center-crop", "stretch", "pad", "none"] = "center-crop"
    """With --size: how an image becomes a square."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A file that cannot be read: stop and name it, or skip and count it."""
    kid_subsets: int | None = None
    """Subsets of KID. Default: 100."""
    kid_size: int | None = None
    """Images in a subset of KID. Default: 1000, or the smaller set."""
    neighbours: int = 0
    """Show the nearest images of REAL for so many generated ones, and whether the model copies (writes figures; needs --out or a run)."""
    held_out: str | None = None
    """With --neighbours: real images that the model was not trained on, to compare distances with."""
    out: Path | None = None
    """Folder for evaluation.json, protocol.json and figures. Default: RUN/evaluation for a run, nothing otherwise."""
    sampler: str | None = None
    """For a model: see percepta sample."""
    steps: int = 50
    """For a model: steps of the sampler."""
    guidance: float = 1.0
    """For a model: classifier-free guidance."""
    seed: int = 0
    """Of the drawn images, of random subsets and of the `domain` space."""
    batch: int = 32
    """Images at a time: memory only."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the feature networks. bf16 is up to twice as fast and moves FID by a few tenths of a per cent."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    cache: Path | None = None
    """Where features are kept. Default: PERCEPTA_CACHE, or ~/.cache/percepta."""
    fast_malloc: bool = False
    """Let glibc keep freed memory instead of giving it back (Linux; holds for the whole process): up to 1.3 times as fast on CPUs."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Evaluate, args, "percepta evaluate")
    for name in ("num", "steps", "batch", "size"):
        value = getattr(command, name)
        if value is not None and value < 1:
            raise Usage(f"percepta evaluate: --{name} must be at least 1, got {value}")
    if command.fast_malloc:
        from percepta.memory import fast_malloc

        fast_malloc()
    from percepta.training.signals import Interrupted, stop_on_signals

    with stop_on_signals() as flag:
        try:
            return _judge(command, flag.check)
        except Interrupted:
            return fail("stopped; what is computed is kept, run the same command again to go on", 3)


def _judge(command: Evaluate, check) -> int:
    from percepta.judging import is_generator, save
    from percepta.sampling import Job
    from percepta.training.log import console

    model = is_generator(command.generated)
    job = None
    if model:
        job = Job(source=Path(command.generated), num=command.num or 50_000, steps=command.steps, sampler=command.sampler,
                  guidance=command.guidance, seed=command.seed, device=command.device)  # fmt: skip
    out = command.out or (Path(command.generated) / "evaluation" if model else None)
    if command.neighbours and out is None:
        raise Usage("percepta evaluate: --neighbours writes figures: say where with --out DIR")
    with progress_bar() as progress:
        result = _result(command, job, console.print, check, progress)
    if command.neighbours:
        assert out is not None
        from percepta.judging import copying

        found = copying(result, command.real, command.held_out, command.neighbours, out, console.print, check, **_reading(command))
        held = (
            "" if found["nearer"] is None else f"; {found['nearer']:.1%} of the samples are nearer than 99% of the held-out images"
        )
        console.print(
            f"nearest reference image in {found['space']}: median distance {found['generated']:.4g}{held}; figures in {out}/figures"
        )
    if command.json:
        to_stdout(json.dumps(result.to_json(), default=str))
    else:
        _show(result)
    if out is not None:
        console.print(f"written: {save(result, out)} and protocol.json beside it")
    return 0


def _result(command: Evaluate, job, note, check, progress):
    from percepta.judging import evaluate

    return evaluate(
        command.generated, command.real, job, note=note, check=check, progress=progress, metrics=_names(command.metrics),
        spaces=_names(command.space), num=command.num, batch=command.batch, **_reading(command), kid_subsets=command.kid_subsets, kid_size=command.kid_size,
    )  # fmt: skip


def _reading(command: Evaluate) -> dict:
    """How images are read, for the evaluation and for the neighbours alike."""
    from percepta.training.precision import pick_device

    return {
        "dialect": command.dialect, "size": command.size, "crop": command.crop, "on_bad": command.on_bad_image,
        "precision": command.precision, "device": str(pick_device(command.device)), "cache": command.cache, "seed": command.seed,
    }  # fmt: skip


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per side on a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from percepta.training.log import console

    if not console.is_terminal:
        yield lambda text, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def update(text: str, done: int, total: int) -> None:
            if text not in tasks:
                tasks[text] = bar.add_task(text, total=total)
            bar.update(tasks[text], completed=done, total=total)

        yield update


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _show(result) -> None:
    """A table for a terminal; warnings below it."""
    import sys

    from rich.console import Console

    from percepta.evaluation.show import table_of, warning_lines

    console = Console(file=sys.stdout, highlight=False)
    console.print(table_of(result))
    for line in warning_lines(result):
        console.print(line)

"""percepta evaluate: every metric of one set of images against another, with the protocol beside the numbers."""

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro
from rich.progress import TaskID

from percepta.cli import fail
from percepta.cli.parse import Usage, check_folder, parse, to_stdout


@dataclass(frozen=True)
class Evaluate:
    """Judge GENERATED against REAL: all metrics in one pass over each side, cached by content.

    Example: percepta evaluate samples/ images/ --metrics fid,kid,pr

    Each side is a folder of images, an .npz of uint8 images (`arr_0`), an .npz of statistics (`mu`, `sigma`: Frechet distances only), a
    built-in set such as `shapes`, or, for GENERATED, a run or a pipeline folder, which is drawn from first (--num, --sampler, --steps). A run of
    ladiffgan translates its own test sets, A to B and B to A, and needs no REAL; or --source A and REAL, images of B.
    Metrics: fid sfid is kid pr (precision, recall) dc (density, coverage) clip-fd fd-dinov2 cmmd lpips-diversity; `default` is the first
    six, `all` every one. Weights are never downloaded: what is missing is named with its address and its folder.
    """

    generated: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="GENERATED")]
    """What is judged."""
    real: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="REAL")] = None
    """What it should look like. A translator has test sets of its own."""
    source: str | None = None
    """For a translator, with REAL: other images of A than its test set, to be translated to B; those of REAL are translated back."""
    metrics: str = "default"
    """Names, separated by commas."""
    space: str = ""
    """Where fid, kid, pr and dc are computed, instead of Inception's 2048 features: inception-768, clip, dinov2, domain (trained on REAL),
    pixels, ...; several separated by commas. `percepta doctor` lists those whose weights are here."""
    dialect: Literal["torch-fidelity", "pytorch-fid", "adm", "clean"] = "torch-fidelity"
    """The tool whose numbers these are to equal: its resize and its conventions."""
    num: int | None = None
    """Images of GENERATED to use, to draw, or to translate of each test set. Default: all of a set; 50,000 drawn from a model."""
    size: int | None = None
    """Bring both sides to this size first, as training does. Default: images as they are; for a translator, its training size."""
    crop: Literal["center-crop", "stretch", "pad", "none"] | None = None
    """With --size: how an image becomes a square. Default: center-crop; for a translator, as its training cut them."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A file that cannot be read: stop and name it, or skip and count it."""
    kid_subsets: int | None = None
    """Subsets of KID. Default: 100."""
    kid_size: int | None = None
    """Images in a subset of KID. Default: 1000, or the smaller set; for a translator, at most half of the smaller test set."""
    neighbours: int = 0
    """Show the nearest images of REAL for so many generated ones, and whether the model copies (writes figures; needs --out or a run)."""
    held_out: str | None = None
    """With --neighbours: real images that the model was not trained on, to compare distances with."""
    out: Path | None = None
    """Folder for evaluation.json, protocol.json and figures. Default: RUN/evaluation for a run, nothing otherwise."""
    sampler: str | None = None
    """For a model: see percepta sample."""
    steps: int | None = None
    """For a model: steps of the sampler. Default: those it was finetuned for, or 50."""
    guidance: str | None = None
    """For a model: classifier-free guidance; 1 is none. 1:4:0.25 (from:to:step) or 1,1.5,4 draws and judges it at each weight with the same
    seeds: a table, sweep.json and its plot. Default: what it was finetuned to be sampled with, else 1."""
    prompts: str | None = None
    """For a model that reads text: prompts with ; between, or a file with one a line. They are taken in turn. Default: the captions of REAL."""
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
    resume: bool = True
    """Use what is in the cache: an interrupted evaluation goes on where it was. --no-resume computes everything anew and keeps nothing."""
    fast_malloc: bool = False
    """Let glibc keep freed memory instead of giving it back (Linux; holds for the whole process): about a tenth faster on CPUs."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Evaluate, args, "percepta evaluate")
    _check(command)
    if command.fast_malloc:
        from percepta.memory import fast_malloc

        fast_malloc()
    from percepta import distributed
    from percepta.evaluation.sweep import is_sweep
    from percepta.training.precision import pick_device
    from percepta.training.signals import Interrupted, stop_on_signals

    stopped = "stopped; what is computed is kept, run the same command again to go on"
    device = pick_device(command.device, int(os.environ.get("LOCAL_RANK", "0")))
    with stop_on_signals() as flag:
        try:
            with distributed.joined(device.type) as world, _cache(command) as cache:
                judge = _sweep if command.guidance is not None and is_sweep(command.guidance) else _judge
                judge(command, str(device), cache, flag.check, world.first)
        except Interrupted:
            return fail(stopped, 3)
        except RuntimeError as error:
            if flag.asked is not None:  # the other ranks left at the same signal, a little earlier
                return fail(stopped, 3)
            if not str(error).startswith("rank "):
                raise
            return fail(f"percepta evaluate: {error}", 1)
    return 0


@contextmanager
def _cache(command: Evaluate) -> Iterator[Path | None]:
    """--cache, the usual one (None), or with --no-resume one that is empty and goes away."""
    if command.resume:
        yield command.cache
        return
    if command.cache is not None:
        command.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="percepta-", dir=command.cache) as folder:
        yield Path(folder)


def _check(command: Evaluate) -> None:
    """What can be refused without looking at an image."""

    def refuse(text: str) -> NoReturn:
        raise Usage(f"percepta evaluate: {text}")

    for name in ("num", "steps", "batch", "size"):
        value = getattr(command, name)
        if value is not None and value < 1:
            refuse(f"--{name} must be at least 1, got {value}")
    for name in ("metrics", "space"):
        if getattr(command, name) and not _names(getattr(command, name)):
            refuse(f"--{name} names nothing, got {getattr(command, name)!r}")
    if not command.metrics:
        refuse("--metrics names nothing; leave it out for the usual ones")
    if command.neighbours < 0:
        refuse(f"--neighbours must be at least 0, got {command.neighbours}")
    if command.held_out is not None and not command.neighbours:
        refuse("--held-out is for --neighbours N, which is not asked for")
    from percepta.evaluation.sweep import is_sweep, weights_of
    from percepta.judging import is_generator, is_translator

    if is_translator(command.generated):
        _check_translator(command, refuse)
    elif command.source is not None:
        refuse(f"--source is for a translator, a run of ladiffgan; {command.generated} is none")
    elif command.real is None:
        refuse(f"say what {command.generated} should look like: percepta evaluate {command.generated} REAL, a folder of images; only a "
               "translator, a run of ladiffgan, has test sets of its own")  # fmt: skip
    try:
        weights_of("1" if command.guidance is None else command.guidance)
    except ValueError as error:
        refuse(str(error))
    if command.guidance is not None and is_sweep(command.guidance):
        if not is_generator(command.generated):
            refuse(f"--guidance {command.guidance} draws from a model; {command.generated} is no run and no pipeline folder")
        if command.neighbours:
            refuse(f"--neighbours looks at the images of one weight, got --guidance {command.guidance}")
    if not is_generator(command.generated) and _is_set(command.generated):
        for name in ("sampler", "steps", "guidance", "prompts"):
            if getattr(command, name) is not None:
                refuse(f"--{name} says how a model draws; {command.generated} is no run and no pipeline folder")
    out = _out(command)
    if command.neighbours and out is None:
        refuse("--neighbours writes figures: say where with --out DIR")
    for flag, folder in (("--out", out), ("--cache", command.cache)):
        if folder is not None:
            check_folder(folder, f"percepta evaluate: {flag} {folder}")


def _check_translator(command: Evaluate, refuse: Callable[[str], NoReturn]) -> None:
    for name in ("neighbours", "held_out", "sampler", "steps", "guidance", "prompts"):
        if getattr(command, name):
            refuse(f"--{name.replace('_', '-')} is for images that are drawn; {command.generated} translates")
    if (command.source is None) != (command.real is None):
        missing = f"REAL, images of B, beside --source {command.source}" if command.real is None else (
            f"--source, images of A, beside {command.real} of B")  # fmt: skip
        refuse(f"a translator is judged on two sets: give {missing}; or neither, for the run's own test sets")


def _is_set(generated: str) -> bool:
    """Whether this names images rather than a path that is not there, of which it is said later that it is not."""
    path = Path(generated)
    return path.exists() or "{" in path.name or generated.partition(":")[0] in ("shapes", "hf")


def _out(command: Evaluate) -> Path | None:
    from percepta.judging import is_generator, is_translator
    from percepta.translating.judging import run_of

    given = Path(command.generated)
    if command.out is not None or not is_generator(command.generated):
        return command.out
    if is_translator(given):  # a model's own folder is replaced by its next export
        return None if not run_of(given) else (given.parent if given.name == "model" else given) / "evaluation"
    return given / "evaluation"


def _judge(command: Evaluate, device: str, cache: Path | None, check: Callable[[], None], first: bool) -> None:
    """On several ranks all compute, and the first one tells and writes."""
    from percepta.judging import open_images, save
    from percepta.training.log import console

    out, reading = _out(command), _reading(command, device, cache)
    note: Callable[[str], None] = console.print if first else lambda text: None
    if command.neighbours and command.real is not None:  # refused now, not after an hour
        open_images((command.real, *([] if command.held_out is None else [command.held_out])), **reading)
    with progress_bar(first) as progress:
        result = _result(command, reading, note, check, progress)
    if command.neighbours and out is not None:
        note(_copying(command, reading, result, out, note, check))
    if not first:
        return
    if command.json:
        to_stdout(json.dumps(result.to_json(), default=str))
    else:
        _show(result)
    if out is not None:
        note(f"written: {save(result, out)} and its protocol beside it")


def _sweep(command: Evaluate, device: str, cache: Path | None, check: Callable[[], None], first: bool) -> None:
    """As `_judge`, at several guidance weights: one table of all, and an evaluation of each in a folder of its own."""
    from percepta.evaluation.show_sweep import show_sweep
    from percepta.evaluation.sweep import weights_of
    from percepta.sweeping import save_sweep, sweep
    from percepta.training.log import console

    out, weights = _out(command), weights_of(command.guidance or "")
    assert out is not None and command.real is not None, "a model has a folder, and is compared with something"
    note: Callable[[str], None] = console.print if first else lambda text: None
    with progress_bar(first) as progress:
        found = sweep(
            command.generated, command.real, weights, out, _job(command, None), command.resume, note=note, check=check,
            progress=progress, **_asked(command, _reading(command, device, cache)),
        )  # fmt: skip
    if not first:
        return
    file = save_sweep(found, out)
    if command.json:
        to_stdout(json.dumps(found.to_json(), default=str))
    else:
        show_sweep(found, _console())
    note(f"written: {file}, the plot in {out / 'figures'}, and the evaluation at each weight in a folder beside it")


def _result(command: Evaluate, reading: dict, note, check, progress):
    from percepta.judging import evaluate, is_generator, is_translator

    if is_translator(command.generated):
        out = _out(command)
        return evaluate(
            command.generated, command.real, None, out and out / "figures", note, check, command.source, progress=progress,
            num=command.num, **_asked(command, reading),
        )  # fmt: skip
    weight = None if command.guidance is None else float(command.guidance)
    job = _job(command, weight) if is_generator(command.generated) else None
    asked = _asked(command, reading)
    return evaluate(command.generated, command.real, job, note=note, check=check, progress=progress, num=command.num, **asked)


def _job(command: Evaluate, guidance: float | None):
    from percepta.judging import DRAWN
    from percepta.sampling import Job, prompts_of

    return Job(source=Path(command.generated), num=command.num or DRAWN, steps=command.steps, sampler=command.sampler, guidance=guidance,
               prompts=prompts_of(command.prompts), seed=command.seed, device=command.device)  # fmt: skip


def _asked(command: Evaluate, reading: dict) -> dict:
    """What is computed, for one evaluation and for each of a sweep."""
    return {
        **reading, "metrics": _names(command.metrics), "spaces": _names(command.space), "batch": command.batch,
        "kid_subsets": command.kid_subsets, "kid_size": command.kid_size,
    }  # fmt: skip


def _copying(command: Evaluate, reading: dict, result, out: Path, note, check) -> str:
    from percepta.judging import copying

    assert command.real is not None, "what is drawn is compared with something"
    found = copying(result, command.real, command.held_out, command.neighbours, out, note, check, **reading)
    text = f"nearest reference image in {found['space']}: median distance {found['generated']:.4g}"
    if found["nearer"] is not None:
        text += f", of held-out images {found['held_out']:.4g}; {found['nearer']:.1%} of the samples are nearer than 99% of those"
    if found["same"]:
        text += f"; {found['same']:,} samples are a reference image, pixel for pixel"
    return f"{text}; figures in {out / 'figures'}"


def _reading(command: Evaluate, device: str, cache: Path | None) -> dict:
    """How images are read, for the evaluation and for the neighbours alike."""
    return {
        "dialect": command.dialect, "size": command.size, **_cropped(command), "on_bad": command.on_bad_image,
        "precision": command.precision, "device": device, "cache": cache and cache / "features", "seed": command.seed,
    }  # fmt: skip


def _cropped(command: Evaluate) -> dict[str, str]:
    """How images become squares; a translator's run says it, where the command does not."""
    from percepta.judging import is_translator

    if command.crop is None and is_translator(command.generated):
        return {}
    return {"crop": command.crop or "center-crop"}


@contextmanager
def progress_bar(first: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per side on a terminal; nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from percepta.training.log import console

    if not (first and console.is_terminal):
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
    from percepta.evaluation.show import show
    from percepta.evaluation.show_translation import show_translations

    (show_translations if "b2a" in result.protocol else show)(result, _console())


def _console():
    import sys

    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without a letter for it must not cost the numbers
    return Console(file=sys.stdout, highlight=False)

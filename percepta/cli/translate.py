"""percepta translate: images of one domain as images of the other."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from percepta.cli import fail
from percepta.cli.parse import Usage, parse, to_stdout

if TYPE_CHECKING:
    from percepta.translating import Done


@dataclass(frozen=True)
class Translate:
    """Translate images with a run of the recipe ladiffgan.

    Example: percepta translate runs/ladiffgan photos/ painted/

    Each translation has the size of its image. What is transparent stays so, pictures are turned upright, grey becomes RGB, 16 bits become 8.
    A folder is read with all that is below it, and each NAME.jpg becomes NAME.png; one that was left half full by the same command is filled up.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder, or a model folder of one."""
    images: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IN")]
    """An image, or a folder of images."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """A folder; or, for one image, FILE.png, .jpg, .webp or .tif, which must not exist."""
    direction: Literal["a2b", "b2a"] = "a2b"
    """From the source domain of the training to its target, or back."""
    fit: Literal["resize", "tile", "pad"] = "resize"
    """resize: to the training size by the shorter side, and back; tile: windows of the training size that overlap; pad: at the image's own size."""
    size: int | None = None
    """Pixels to resize to, or of a window. Default: the training size."""
    seed: int = 0
    """The style, where the model has several (munit)."""
    batch: int = 16
    """Images, or windows, at a time: memory only."""
    on_bad_image: Literal["error", "skip"] = "error"
    """A file that cannot be read: stop and name it, or skip and count it."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print what was done as one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Translate, args, "percepta translate")
    if command.batch < 1:
        raise Usage(f"percepta translate: --batch must be at least 1, got {command.batch}")
    from percepta import distributed
    from percepta.training.precision import pick_device
    from percepta.training.signals import Interrupted, stop_on_signals
    from percepta.translating import Job, translate_files

    job = Job(
        model=command.run, images=command.images, out=command.out, direction=command.direction, fit=command.fit, size=command.size,
        seed=command.seed, batch=command.batch, device=command.device, on_bad=command.on_bad_image,
    )  # fmt: skip
    stopped = f"stopped; run the same command again to go on: {command.out}"
    device, first = pick_device(command.device, int(os.environ.get("LOCAL_RANK", "0"))), True
    with stop_on_signals() as flag:
        try:
            with distributed.joined(device.type) as world, _telling(world.first) as told:
                first = world.first
                done, record = translate_files(job, flag.check, told)
        except Interrupted:
            return fail(stopped, 3) if first else 3
        except RuntimeError as error:
            if flag.asked is not None:  # the other ranks left at the same signal, a little earlier
                return fail(stopped, 3)
            if not str(error).startswith("rank "):
                raise
            return fail(f"percepta translate: {error}", 1)
    if not first:
        return 0
    for bad in done.skipped:
        fail(f"skipped {bad['name']}: {bad['reason']}")
    if command.json:
        to_stdout(json.dumps({"out": str(command.out), **dataclasses.asdict(done), "protocol": record}))
    else:
        to_stdout(sentence(done, command.out))
    return 0


def sentence(done: "Done", out: Path) -> str:
    parts = ["1 image translated" if done.translated == 1 else f"{done.translated} images translated"]
    parts += [f"{done.already} there already"] if done.already else []
    parts += [f"{len(done.skipped)} skipped, which cannot be read"] if done.skipped else []
    return f"{', '.join(parts)}: {out}"


@contextmanager
def _telling(first: bool) -> Iterator[Callable[["Done"], None]]:
    """Progress, from one of the processes."""
    if not first:
        yield lambda _: None
        return
    told = Told()
    try:
        yield told
    finally:
        told.close()


class Told:
    """Progress: a bar in a terminal, elsewhere a line every ten seconds."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from percepta.training.log import console

        self.console, self.last = console, time.monotonic()
        columns = (TextColumn("[bold]translating"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console) if console.is_terminal else None
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("translating", total=None)

    def __call__(self, done: "Done") -> None:
        count = done.already + done.translated + len(done.skipped)
        if self.bar is not None:
            self.bar.update(self.task, total=done.num, completed=count)
        elif time.monotonic() - self.last > 10:
            self.last = time.monotonic()
            self.console.print(f"image {count}/{done.num}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

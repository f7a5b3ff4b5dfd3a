"""What a run tells while it runs: one live line in a terminal, a plain line now and then elsewhere, and trackers on request."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from percepta.training.settings import Settings

console = Console(stderr=True, highlight=False, soft_wrap=True)


@runtime_checkable
class Tracker(Protocol):
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("--report-to tensorboard needs the package: pip install 'percepta[track]'") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Board:
    """trackio and wandb share an interface."""

    def __init__(self, module: str, folder: Path, config: Mapping[str, Any]) -> None:
        import importlib

        try:
            self.board = importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"--report-to {module} needs the package: pip install 'percepta[track]'") from error
        self.board.init(project="percepta", name=folder.name, config=dict(config))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.board.log(dict(values), step=step)

    def close(self) -> None:
        self.board.finish()


def make_trackers(names: Sequence[str], folder: Path, settings: Settings) -> list[Tracker]:
    config = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}
    return [_TensorBoard(folder) if name == "tensorboard" else _Board(name, folder, config) for name in names]


class Meter:
    """Progress of a run: rate over the last half minute, time left, losses, memory."""

    def __init__(self, start: int, stop: int, batch: int, quiet: bool = False) -> None:
        self.start, self.stop, self.batch = start, stop, batch
        self.quiet = quiet
        self.marks: list[tuple[float, int]] = [(time.monotonic(), start)]
        self.last_print = time.monotonic()
        self.live = None if quiet or not console.is_terminal else Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), TaskProgressColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"), console=console, refresh_per_second=4,
        )  # fmt: skip
        if self.live is not None:
            self.live.start()
            self.task = self.live.add_task("training", total=stop, completed=start, text="")

    def tick(self, step: int) -> None:
        now = time.monotonic()
        self.marks.append((now, step))
        while len(self.marks) > 2 and now - self.marks[0][0] > 30:
            self.marks.pop(0)
        if self.live is not None:
            self.live.update(self.task, completed=step)

    @property
    def rate(self) -> float:
        """Images per second over the last half minute."""
        (t0, s0), (t1, s1) = self.marks[0], self.marks[-1]
        return (s1 - s0) * self.batch / (t1 - t0) if t1 > t0 else 0.0

    def pause(self) -> None:
        """Time from here to `go_on` is not training (a sample grid, a checkpoint) and does not count in the rate."""
        self.paused_at = time.monotonic()

    def go_on(self) -> None:
        gone = time.monotonic() - self.paused_at
        self.marks = [(t + gone, s) for t, s in self.marks]

    def show(self, step: int, losses: Mapping[str, float], memory: float) -> None:
        left = (self.stop - step) * self.batch / self.rate if self.rate else float("nan")
        text = f"{self.rate:.0f} img/s  " + "  ".join(f"{k} {v:.4f}" for k, v in losses.items()) + f"  {memory / 1024:.1f} GiB"
        if self.live is not None:
            self.live.update(self.task, text=text)
        elif not self.quiet and (time.monotonic() - self.last_print > 10 or step >= self.stop or step <= self.start + 1):
            self.last_print = time.monotonic()
            console.print(f"step {step}/{self.stop}  {text}  ETA {clock(left)}")

    def note(self, text: str) -> None:
        if not self.quiet:
            console.print(text)

    def close(self) -> None:
        if self.live is not None:
            self.live.stop()
        sys.stderr.flush()


def clock(seconds: float) -> str:
    """1:02:03, 4:05, or 0:00."""
    if seconds != seconds:
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"

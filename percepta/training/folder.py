"""The run folder: what a run leaves (design: section 4), written so that a resumed run leaves the same files as a straight one.

`metrics.jsonl` holds only what follows from the seed; rates and memory, which do not, are in `timing.jsonl`.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked."""


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")
    os.replace(temporary, path)


class RunFolder:
    """One run's folder. `writes` is true on rank 0 only; other ranks see the same paths and write nothing."""

    def __init__(self, root: Path, writes: bool = True) -> None:
        self.root = root
        self.writes = writes
        self._lock: IO[str] | None = None
        self._made: list[Path] = []  # the folders that `open` made, the innermost first
        self._lines: dict[str, IO[str]] = {}

    def open(self, resume: bool) -> None:
        """Make or take the folder; a second training in it is refused, and so is a fresh start over an old run."""
        if not self.writes:
            return
        if self.root.exists() and not self.root.is_dir():
            raise RunFolderError(f"{self.root} is a file; choose another --out")
        # a save that was complete but for its last rename is a run too
        used = any(self.root.glob("checkpoint-*")) or any(self.root.glob(".tmp-checkpoint-*/MANIFEST.json"))
        if used and not resume:
            raise RunFolderError(f"{self.root} already holds a run: add --resume to go on with it, or choose another --out")
        self._made = [path for path in (self.root, *self.root.absolute().parents) if not path.exists()]
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = (self.root / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise RunFolderError(f"another process is training in {self.root}; wait for it, or choose another --out") from error
        if used or self.config.is_file():
            self._sweep()

    def _sweep(self) -> None:
        """Remove what a process left that was killed while it wrote; unfinished checkpoints are checkpoint.py's."""
        for left in (
            *self.root.glob(".*.tmp"),
            *self.root.glob("samples/.*.tmp"),
            *self.root.glob("evaluation/.*.tmp"),
            *self.root.glob(".model.*"),
            *self.root.glob(".adapter.*"),
        ):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()

    def close(self) -> None:
        for file in self._lines.values():
            file.close()
        self._lines.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def leave_no_trace(self) -> None:
        """Of a run that was refused: remove the folders that `open` made, where nothing but the lock came into them."""
        if not self._made or [path.name for path in self.root.iterdir()] != [".lock"]:
            return
        (self.root / ".lock").unlink()  # still locked, so that no other run is in it
        for path in self._made:
            if any(path.iterdir()):
                return
            path.rmdir()

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    def samples(self, step: int) -> Path:
        return self.root / "samples" / f"step-{step:07d}.png"

    def evaluation(self, step: int) -> Path:
        return self.root / "evaluation" / f"step-{step:07d}.json"

    def rewind(self, step: int) -> None:
        """Drop the lines, grids and evaluations of steps after `step`: what an interrupted run wrote beyond its checkpoint is
        written again."""
        if not self.writes:
            return
        for made in (self.root / "evaluation").glob("step-*.json"):
            if int(made.stem.removeprefix("step-")) > step:
                made.unlink()
        for grid in (self.root / "samples").glob("step-*.png"):
            if int(grid.stem.removeprefix("step-")) > step:
                grid.unlink()
                grid.with_suffix(".json").unlink(missing_ok=True)
        for name in ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl"):
            self.rewind_lines(name, step)

    def rewind_lines(self, name: str, step: int) -> None:
        """Drop the lines of steps after `step` from one file."""
        path = self.root / name
        if not self.writes or not path.is_file():
            return
        if name in self._lines:
            self._lines.pop(name).close()
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        temporary = path.with_name(f".{name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept))
        os.replace(temporary, path)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """One JSON line, flushed."""
        if not self.writes:
            return
        if name not in self._lines:
            self._lines[name] = (self.root / name).open("a")
        file = self._lines[name]
        file.write(json.dumps(record) + "\n")
        file.flush()

    def reopen(self) -> None:
        """Let go of open line files, after `rewind` replaced them."""
        for file in self._lines.values():
            file.close()
        self._lines.clear()


def _step_of(line: str) -> float:
    """The step of a line; a line cut off by a kill counts as too late."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")

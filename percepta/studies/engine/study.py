"""What a study is: rows that make images, columns that judge them, and the numbers that the paper printed.

    Row("DDIM", make, paper=(32.7, 13.6))     make(at, column, seed) -> the images: a Job that leaves them, or a set of images by name
    Column("5 steps", "metrics.fid", 5)       which value of the judgement, and what the row needs to know (`setting`)
    Study(rows, columns, judge)               judge(at, images, column, seed) -> Reading, the Job that judges and the place of the value

A Job is one command. Its words name other jobs where it reads their results, so that a cell is a chain, and two cells with the same first
commands share them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

OUT = "{out}"  # in the words of a job: the folder that is its own
SCALES = ("pocket", "paper")


@dataclass(frozen=True)
class Job:
    """One `percepta` command without its first word. A Job among the words stands for that job's folder.

    `after` names jobs that have to be done before, though no word reads them.
    """

    words: "tuple[str | Job, ...]"
    after: "tuple[Job, ...]" = ()

    @cached_property
    def key(self) -> str:
        """What the command and everything that it reads come to: equal for equal work, wherever it lies."""
        return sha256(json.dumps([w if isinstance(w, str) else w.key for w in self.words]).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Its folder's name: train-mmd-1f0c..., sample-9ab3..."""
        plain = [w for w in self.words[: 2 if self.words[0] == "train" else 1] if isinstance(w, str)]
        return "-".join([*plain, self.key])

    @property
    def inputs(self) -> "tuple[Job, ...]":
        return tuple(w for w in self.words if isinstance(w, Job))

    def chain(self, read_only: bool = False) -> "Iterator[Job]":
        """Everything that has to be done for it, in order, itself last; some jobs may come twice. `read_only`: only what its words read."""
        for job in self.inputs if read_only else (*self.after, *self.inputs):
            yield from job.chain(read_only)
        yield self


@dataclass(frozen=True)
class Reading:
    """One value: `place` is its dotted path in what the job prints as JSON, or in `file` of its folder. With `less`, what it is more than that."""

    job: Job
    place: str
    file: str | None = None
    less: "Reading | None" = None

    @property
    def jobs(self) -> tuple[Job, ...]:
        return (self.job,) if self.less is None else (self.job, *self.less.jobs)


class Impossible(ValueError):
    """Raised by `make` and `judge` where a cell cannot be had here; its text stands in the table."""


@dataclass(frozen=True)
class At:
    """Where a study is run: its scale, the user's data, and the paper's own sizes at that scale (`sizes`, a record of the paper's)."""

    scale: str
    sizes: Any
    data: str
    size: int
    init: str | None = None
    held_out: str | None = None
    targets: tuple[str, ...] = ()  # other images, to which a model is brought


Images = Job | str
Make = Callable[[At, "Column", int], Images]


@dataclass(frozen=True)
class Column:
    """`place` is read from the judgement; `setting` is for the rows: steps, a backbone, a direction. Columns of a `group` stand in one table.

    `times`: so many times the value is shown, where that is the custom (KID x100)."""

    label: str
    place: str
    setting: Any = None
    better: Literal["lower", "higher", ""] = "lower"
    group: str = ""
    times: float = 1.0


@dataclass(frozen=True)
class Row:
    """`make` says how the images come about; None: only the paper has this row. `paper` has a number, or None, per column. A yardstick
    does not compete for the best of a column."""

    label: str
    make: Make | None = None
    paper: tuple[float | None, ...] = ()
    scales: tuple[str, ...] = SCALES
    yardstick: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """One table or figure. `printed` says what the paper's numbers are: metric, samples, data. `facts` is the budget, the same for all rows.

    `sizes` has the paper's own record for each scale, with a `size`, the side of the images. `data` are the images of a scale and those
    that are held out, where there are some; None where the user has to name them.
    """

    name: str
    summary: str
    printed: str
    ask: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    judge: Callable[[At, Images, Column, int], Reading]
    sizes: Mapping[str, Any]
    facts: Callable[[At], list[tuple[str, str]]]
    data: Mapping[str, tuple[str, str | None] | None]
    figures: Callable[[At], "list[Figure]"] = lambda at: []

    def rows_at(self, scale: str) -> list[Row]:
        """Rows that are run at this scale, and those that only the paper has."""
        return [row for row in self.rows if row.make is None or scale in row.scales]

    def at(
        self, scale: str, *, data: str | None = None, size: int | None = None, init: str | None = None, held_out: str | None = None,
        targets: tuple[str, ...] = (),
    ) -> At:  # fmt: skip
        """Where it is run; ValueError where the scale needs what was not given."""
        if scale not in SCALES:
            raise ValueError(f"--scale is {' or '.join(SCALES)}, got {scale!r}")
        own = self.data[scale]
        if data is None and own is None:
            raise ValueError(f"--scale {scale} of {self.name} needs the images of the paper: name them with --data")
        if data is None and own is not None:
            data, held_out = own[0], held_out or own[1]
        assert data is not None
        return At(scale, self.sizes[scale], data, size or self.sizes[scale].size, init, held_out, targets)


@dataclass(frozen=True)
class Figure:
    """A picture that is there once `job` is done, in its folder or in that of the job `place`. No job: it cannot be had, and `why` says so."""

    title: str
    caption: str
    job: Job | None = None
    file: str = ""
    place: Job | None = None
    why: str = ""

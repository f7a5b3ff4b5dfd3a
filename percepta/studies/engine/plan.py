"""From a study to its jobs: every cell with its reading per seed, or the reason why it has none."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from percepta.studies.engine.study import At, Column, Figure, Impossible, Job, Reading, Row, Study


@dataclass(frozen=True)
class Cell:
    """A place in the matrix. `readings`: one per seed, in order, equal ones once; `why` is said where there are none."""

    row: Row
    column: Column
    readings: tuple[Reading, ...] = ()
    why: str = ""
    paper: float | None = None


@dataclass(frozen=True)
class Counts:
    """How far a study is. `cells_without` have no number at this scale; a cell is done when all its readings are."""

    cells_done: int
    cells_to_do: int
    cells_without: int
    jobs_done: int
    jobs: int

    def told(self) -> str:
        without = f"; {self.cells_without} have no number here" if self.cells_without else ""
        return (
            f"cells: {self.cells_done} done, {self.cells_to_do} to do{without}. Jobs: {self.jobs_done} done, "
            f"{self.jobs - self.jobs_done} to do"
        )


@dataclass(frozen=True)
class Plan:
    """A study at a scale, for so many seeds."""

    study: Study
    at: At
    seeds: tuple[int, ...]
    rows: tuple[tuple[Cell, ...], ...]
    figures: tuple[Figure, ...]

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row]

    @property
    def jobs(self) -> list[Job]:
        """Each once, none before those that it needs; column by column, so that a study that is stopped can compare its rows in some."""
        by_column = (cell for column in zip(*self.rows, strict=True) for cell in column)
        wanted = [job for cell in by_column for reading in cell.readings for job in reading.jobs]
        wanted += [figure.job for figure in self.figures if figure.job is not None]
        return in_order(wanted)

    def counts(self, is_done: Callable[[Job], bool]) -> "Counts":
        computed = [cell for cell in self.cells if cell.readings]
        done = sum(all(is_done(job) for reading in cell.readings for job in reading.jobs) for cell in computed)
        nowhere = sum(not cell.readings and cell.row.make is not None for cell in self.cells)
        return Counts(done, len(computed) - done, nowhere, sum(map(is_done, self.jobs)), len(self.jobs))

    def budget(self) -> list[tuple[str, str]]:
        return [*self.study.facts(self.at), ("Seeds", ", ".join(map(str, self.seeds)))]


def make_plan(study: Study, at: At, seeds: Sequence[int]) -> Plan:
    rows = tuple(tuple(_cells(study, at, seeds, row)) for row in study.rows_at(at.scale))
    return Plan(study, at, tuple(seeds), rows, tuple(study.figures(at)))


def _cells(study: Study, at: At, seeds: Sequence[int], row: Row) -> Iterator[Cell]:
    printed: Sequence[Any] = row.paper or (None,) * len(study.columns)
    for column, paper in zip(study.columns, printed, strict=True):
        if row.make is None:
            yield Cell(row, column, why="only the paper's", paper=paper)
            continue
        try:
            # a row on which the seed has no influence is one reading: it has no spread
            readings = tuple(dict.fromkeys(study.judge(at, row.make(at, column, seed), column, seed) for seed in seeds))
        except Impossible as reason:
            yield Cell(row, column, why=str(reason), paper=paper)
        else:
            yield Cell(row, column, readings, paper=paper)


def in_order(wanted: Sequence[Job]) -> list[Job]:
    """The jobs and all that they need, each once."""
    found: dict[str, Job] = {}
    for job in wanted:
        for each in job.chain():
            found.setdefault(each.key, each)
    return list(found.values())

"""A guidance sweep as text for a terminal: a row per weight, a column per metric, and below it what belongs to all of them."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from percepta.evaluation.show import heading, label_of, missing_lines, protocol_lines, text_of, warning_lines
from percepta.evaluation.sweep import Sweep

BEST, MARK = "*", "!"  # behind a value: letters that every terminal has
GAP = 2


def show_sweep(sweep: Sweep, console: Console) -> None:
    """The whole of it; more columns than the terminal is wide for go on in a second table below the first."""
    common = sweep.summary()
    for line in heading(common):
        console.print(line, soft_wrap=True)
    for table in tables_of(sweep, console.width):
        console.print()
        console.print(table)
    console.print()
    for lines in (best_lines(sweep), missing_lines(common), warning_lines(common), protocol_lines(common)):
        for line in lines:
            console.print(line, soft_wrap=True)


def tables_of(sweep: Sweep, width: int) -> Iterator[Table]:
    """As many tables as it takes, each with the weights in front."""
    front = ["guidance", *(f"{weight:.10g}" for weight in sweep.points)]
    room = left = width - max(map(len, front))
    columns: list[list[str]] = []
    for metric in sweep.metrics:
        column = _column(sweep, metric)
        needed = max(map(len, column)) + GAP
        if columns and needed > left:
            yield _table(front, columns)
            columns, left = [], room
        columns.append(column)
        left -= needed
    yield _table(front, columns)


def _column(sweep: Sweep, metric: str) -> list[str]:
    """Its name and its values, the best marked, and what is printed as it is. A mark is as wide as a space, so that digits stand below digits."""
    curve, best = sweep.curve(metric), sweep.starred().get(metric, [])
    space = next(iter(curve.values())).space
    suffix = metric.partition("@")[2]
    cells = [f"{label_of(metric, space)}{f' @{suffix}' if suffix else ''} "]
    for weight in sweep.points:
        found = curve.get(weight)
        mark = BEST if weight in best else MARK if found is not None and found.contaminated else " "
        cells.append("- " if found is None else f"{text_of(found.value)}{mark}")
    return cells


def _table(front: Sequence[str], columns: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for cells in (front, *columns):
        table.add_column(cells[0], justify="right", no_wrap=True)
    for row in zip(*(cells[1:] for cells in (front, *columns)), strict=True):
        table.add_row(*(Text(cell, "bold" if cell.endswith(BEST) else "yellow" if cell.endswith(MARK) else "") for cell in row))
    return table


def best_lines(sweep: Sweep) -> Iterator[Text]:
    """What the marks say, and which weights are as good as the best."""
    if sweep.best():
        yield Text(f"{BEST} the best of its metric", "dim")
    if any(found.contaminated for point in sweep.points.values() for found in point.metrics.values()):
        yield Text(f"{MARK} trained against: never the best", "yellow")
    for metric, weights in sweep.close().items():
        told = ", ".join(f"{weight:.10g}" for weight in weights)
        yield (
            Text()
            .append("not told apart  ", "yellow")
            .append(f"{metric}: {told} from the best; equal, or within the spread over subsets")
        )

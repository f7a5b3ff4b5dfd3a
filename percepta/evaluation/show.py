"""An evaluation as text for a terminal: what was compared, a narrow table, and below it everything that needs a sentence."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from percepta.data.image import CONVERSIONS
from percepta.evaluation.evaluate import Evaluation
from percepta.evaluation.metrics import HIGHER, METRICS

LABELS = {
    "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage", "lpips-diversity": "LPIPS diversity",
    "sfid": "sFID", "kid": "KID", "is": "Inception Score", "cmmd": "CMMD", "clip-fd": "CLIP-FD", "fd-dinov2": "FD-DINOv2",
}  # fmt: skip
MARK = "trained against"
DRAWN = ("source", "sampler", "steps", "guidance", "seed")  # of the protocol of a drawing, what people ask for first
NOTHING = 1e-9  # what rounding leaves of a distance of 0


def show(result: Evaluation, console: Console) -> None:
    """The whole of it. Sentences with an address in them are left to the terminal to break, so that it can be copied."""
    wide = not console.is_terminal
    for line in heading(result):
        console.print(line, soft_wrap=True)
    console.print()
    console.print(table_of(result))
    console.print()
    for line in missing_lines(result):
        console.print(line, soft_wrap=True)
    for line in warning_lines(result):
        if wide:
            console.print(line, soft_wrap=True)
        else:
            _hanging(console, line)
    for line in protocol_lines(result):
        console.print(line, soft_wrap=wide)


def heading(result: Evaluation) -> Iterator[Text]:
    """Both sides and their counts, a line each."""
    sides = result.protocol["generated"], result.protocol["reference"]
    counts = [_count(side) for side in sides]
    width = max(map(len, counts))
    for word, side, count in zip(("generated", "reference"), sides, counts, strict=True):
        yield Text().append(f"{word}  ", "dim").append(f"{count:>{width}}", "bold").append(f"  {_name(side)}")


def _count(side: Mapping[str, Any]) -> str:
    if side.get("statistics"):
        return "statistics" if side["count"] is None else f"statistics of {side['count']:,}"
    return f"{side['count']:,} images"


def _name(side: Mapping[str, Any]) -> str:
    """Images that were drawn are known by their model; the folder they lie in has a hash for a name."""
    source = side.get("drawn", {}).get("source")
    return source if source and side["name"].startswith(f"{source}/") else side["name"]


def label_of(key: str, space: str) -> str:
    """What a reader calls it: FID only where it is the published one."""
    name = key.partition("@")[0]
    if name == "fid":
        special = {"inception-2048": "FID", "inception-768": "FID-768", "inception-192": "FID-192", "inception-64": "FID-64"}
        return special.get(space, "Frechet distance")
    return LABELS.get(name) or METRICS[name].label


def text_of(value: float, std: float | None = None) -> str:
    def one(x: float) -> str:
        if abs(x) < NOTHING:
            return "0.0000"
        return f"{x:.3g}" if abs(x) < 0.01 else f"{x:.4f}" if abs(x) < 10 else f"{x:.3f}"

    if std is None:
        return one(value)
    if max(abs(value), std) >= 0.001:  # the same digits in both: 0.0123 ± 0.0004
        digits = 4 if max(abs(value), std) < 10 else 3
        return f"{value:.{digits}f} ± {std:.{digits}f}"
    return f"{one(value)} ± {one(std)}"


def table_of(result: Evaluation) -> Table:
    """Metrics in a fixed order, those of a space together. Only short words: it is never wider than 80 columns."""
    marked = any(found.contaminated for found in result.metrics.values())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in (("metric", "left"), ("value", "right"), ("better", "left"), ("space", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    if marked:
        table.add_column("")
    before = None
    for key, found in sorted(result.metrics.items(), key=lambda item: item[0].partition("@")[2]):  # stable
        group = key.partition("@")[2]
        if before not in (None, group):
            table.add_section()
        before = group
        better = "higher" if key.partition("@")[0] in HIGHER else "lower"
        style = "yellow" if found.contaminated else ""
        row = [label_of(key, found.space), text_of(found.value, found.std), better, found.space]
        table.add_row(*(Text(cell, style) for cell in row), *([Text(MARK if found.contaminated else "", "bold yellow")] * marked))
    return table


def missing_lines(result: Evaluation) -> Iterator[Text]:
    """The metrics that were asked for and could not be had, those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for key, reason in result.missing.items():
        reasons.setdefault(reason, []).append(key)
    for reason, names in reasons.items():
        yield Text().append("not computed  ", "yellow").append(", ".join(names), "bold").append(f": {reason}")


def warning_lines(result: Evaluation) -> Iterator[Text]:
    """What a reader must know; what is missing has lines of its own."""
    for line in result.warnings:
        if line not in result.missing.values():
            yield Text().append("! ", "yellow").append(line)


def protocol_lines(result: Evaluation) -> Iterator[Text]:
    """How the numbers were made, as far as it fits a line: images that were changed or left out first."""
    protocol = result.protocol
    for side in (protocol["generated"], protocol["reference"]):
        changes = [f"{count:,} {name} ({CONVERSIONS[name]})" if name in CONVERSIONS else f"{count:,} {name}"
                   for name, count in side.get("conversions", {}).items()]  # fmt: skip
        if changes:
            yield Text().append("converted  ", "dim").append(f"{side['name']}: {', '.join(changes)}")
        if side.get("bad"):
            first = next(iter(side["bad_files"].items()))
            yield (
                Text()
                .append("left out  ", "yellow")
                .append(f"{side['name']}: {side['bad']:,} that cannot be read, {first[0]}: {first[1]}", "default")
            )
    drawn = protocol["generated"].get("drawn", {})
    if drawn:
        words = [f"{key} {drawn[key]}" for key in DRAWN if drawn.get(key) is not None]
        yield Text().append("drawn  ", "dim").append(", ".join(words))
    counts = " against ".join(
        "?" if side["count"] is None else f"{side['count']:,}" for side in (protocol["generated"], protocol["reference"])
    )
    spaces = "; ".join(_space(name, facts) for name, facts in protocol["extractors"].items())
    yield Text(f"how  dialect {protocol['dialect']['name']}, N {counts}{'; ' if spaces else ''}{spaces}", "dim")


def _space(name: str, facts: Mapping[str, Any]) -> str:
    weights = "" if facts["weights"] in ("none", "") else f", weights {facts['weights'][:8]}"
    return f"{name}: resize {facts['resize']}{weights}, {facts['precision']}"


def _hanging(console: Console, line: Text) -> None:
    """A sentence after its mark, indented where it wraps."""
    grid = Table.grid()
    grid.add_column(width=2)
    grid.add_column(overflow="fold")
    grid.add_row(line[:2], line[2:])
    console.print(grid)

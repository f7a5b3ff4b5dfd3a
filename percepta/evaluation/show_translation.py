"""The evaluation of a translator as text for a terminal: a row per metric, a column per direction, and what belongs beside them."""

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from percepta.evaluation.evaluate import Evaluation
from percepta.evaluation.metrics import HIGHER, Value
from percepta.evaluation.show import MARK, label_of, missing_lines, protocol_lines, text_of, warning_lines
from percepta.evaluation.translation import HIGHER as HIGHER_BESIDE
from percepta.evaluation.translation import KEYS, NEITHER, WAYS

LABELS = {
    "lpips-to-source": "LPIPS to source", "cycle-error": "cycle error", "psnr": "PSNR", "lpips-to-truth": "LPIPS to truth",
    "shape-accuracy": "shape right", "colour-accuracy": "colour right",
}  # fmt: skip
COLUMNS = {"a2b": "A -> B", "b2a": "B -> A"}
HUNDREDFOLD = "kid"  # shown times 100, as papers on translation have it


def show_translations(result: Evaluation, console: Console) -> None:
    """The whole of it."""
    for line in heading(result):
        console.print(line, soft_wrap=True)
    console.print()
    console.print(table_of(result))
    console.print()
    for line in (*missing_lines(result), *warning_lines(result), *_below(result)):
        console.print(line, soft_wrap=True)


def heading(result: Evaluation) -> Iterator[Text]:
    """What translates, and both test sets."""
    back = {**result.protocol, **result.protocol["b2a"]}
    drawn = result.protocol["generated"].get("drawn", {})
    if drawn.get("source"):
        told = f"{drawn['source']}  {drawn.get('model', '')}, {drawn.get('size', '?')} px"
        yield Text().append("translator  ", "dim").append(told)
    sides = {"A": (back["reference"], result.protocol["generated"]), "B": (result.protocol["reference"], back["generated"])}
    for name, (side, made) in sides.items():
        used = "" if made["count"] == side["count"] else f", {made['count']:,} of them translated"
        yield Text().append(f"{name}  ", "dim").append(f"{side['count']:,} images", "bold").append(f"{used}  {side['name']}")


def table_of(result: Evaluation) -> Table:
    """Metrics in a fixed order, those of a space together."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name, justify in (("metric", "left"), *((COLUMNS[way], "right") for way in WAYS), ("better", "left"), ("space", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    marked = any(found.contaminated for found in result.metrics.values())
    if marked:
        table.add_column("")
    before = None
    keys = dict.fromkeys(key.rpartition("/")[0] for key in result.metrics)
    for key in sorted(keys, key=lambda key: (key in KEYS, key.partition("@")[2])):  # stable
        group = (key in KEYS, key.partition("@")[2])
        if before not in (None, group):
            table.add_section()
        before = group
        found = {way: result.metrics[f"{key}/{way}"] for way in WAYS if f"{key}/{way}" in result.metrics}
        first = next(iter(found.values()))
        style = "yellow" if first.contaminated else ""
        row = [_label(key, first), *(_number(key, found.get(way)) for way in WAYS), _better(key), first.space]
        table.add_row(*(Text(cell, style) for cell in row), *([Text(MARK if style else "", "bold yellow")] * marked))
    return table


def _label(key: str, found: Value) -> str:
    return LABELS.get(key) or label_of(key, found.space) + (" x100" if key.partition("@")[0] == HUNDREDFOLD else "")


def _number(key: str, found: Value | None) -> str:
    if found is None:
        return ""
    times = 100 if key.partition("@")[0] == HUNDREDFOLD else 1
    return text_of(found.value * times, None if found.std is None else found.std * times)


def _better(key: str) -> str:
    if key == NEITHER:
        return ""
    return "higher" if key.partition("@")[0] in HIGHER or key in HIGHER_BESIDE else "lower"


def _below(result: Evaluation) -> Iterator[Text]:
    protocol: dict[str, Any] = result.protocol
    if protocol["pairs"]:
        yield (
            Text()
            .append("paired  ", "dim")
            .append(f"by {protocol['pairing']}: {protocol['pairs']:,} pairs, of which training knows nothing")
        )
    real = protocol.get("real")
    if real:
        told = f"shape {real['shape-accuracy']:.1%}, colour {real['colour-accuracy']:.1%} of {real['count']} real images of B"
        yield Text().append("read right  ", "dim").append(told)
    if any(key.startswith(HUNDREDFOLD) for key in result.metrics):
        how = protocol["dialect"]
        yield Text(f"KID  {how['kid_subsets']} subsets of {how['kid_size']}, times 100", "dim")
    yield from list(protocol_lines(result))[-1:]

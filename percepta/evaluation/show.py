"""An evaluation as a table for a terminal."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from percepta.evaluation.evaluate import Evaluation
from percepta.evaluation.metrics import METRICS

LABELS = {
    "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage", "lpips-diversity": "LPIPS diversity",
}  # fmt: skip
HIGHER = ("is", "precision", "recall", "density", "coverage", "lpips-diversity")


def label_of(key: str, space: str) -> str:
    """What a reader calls it: FID only where it is the published one."""
    name = key.partition("@")[0]
    if name == "fid":
        special = {"inception-2048": "FID", "inception-768": "FID-768", "inception-192": "FID-192", "inception-64": "FID-64"}
        return special.get(space, "Frechet distance")
    if name in ("sfid", "kid", "is", "cmmd"):
        return {"sfid": "sFID", "kid": "KID", "is": "Inception Score", "cmmd": "CMMD"}[name]
    return LABELS.get(name) or METRICS[name].label


def text_of(value: float, std: float | None = None) -> str:
    def one(x: float) -> str:
        return f"{x:.3g}" if abs(x) < 0.01 and x else f"{x:.4f}" if abs(x) < 10 else f"{x:.3f}"

    return one(value) if std is None else f"{one(value)} ± {one(std)}"


def table_of(result: Evaluation) -> Table:
    sides = result.protocol["generated"], result.protocol["reference"]
    title = f"{sides[0]['count']:,} images of {sides[0]['name']} against {sides[1]['count']:,} of {sides[1]['name']}"
    table = Table("metric", "value", "better", "space", title=title, title_justify="left")
    table.columns[1].justify = "right"
    for key, found in result.metrics.items():
        better = "higher" if key.partition("@")[0] in HIGHER else "lower"
        mark = " trained against" if found.contaminated else ""
        table.add_row(
            label_of(key, found.space), text_of(found.value, found.std), better, Text(found.space).append(mark, "bold yellow")
        )
    for key, reason in result.missing.items():
        table.add_row(f"[dim]{key}", "[dim]-", "", f"[dim]{reason.split(':')[0]}")
    return table


def warning_lines(result: Evaluation) -> Iterator[Text]:
    for line in result.warnings:
        yield Text("! ", "yellow").append(line, "default")
    dialect = result.protocol["dialect"]["name"]
    resizes = {e["resize"] for e in result.protocol["extractors"].values()}
    yield Text(f"dialect {dialect}, resize {', '.join(sorted(resizes))}; --json has the whole protocol", "dim")

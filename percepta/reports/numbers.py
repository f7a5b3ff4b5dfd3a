"""The metric table: the latest evaluation of each run side by side, with what makes numbers incomparable said beside them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from percepta.reports.run import Judged, Run, number

HIGHER = ("is", "precision", "recall", "density", "coverage", "lpips-diversity")
LOWER = ("fid", "sfid", "kid", "cmmd", "clip-fd", "fd-dinov2")
NAMES = {
    "fid": "FID", "sfid": "sFID", "is": "Inception Score", "kid": "KID", "precision": "Precision", "recall": "Recall",
    "density": "Density", "coverage": "Coverage", "clip-fd": "CLIP-FD", "fd-dinov2": "FD-DINOv2", "cmmd": "CMMD",
    "lpips-diversity": "LPIPS diversity",
}  # fmt: skip
MOVABLE = ("fid", "kid", "precision", "recall", "density", "coverage")  # those that follow --space
ABOUT = {
    "fid": "how far the features of both sets lie apart, as two Gaussians: means and covariances together. In squared units of the features; 0 is equal",
    "sfid": "the same on features that still know where in the image they are: whether things stand in the right place",
    "is": "whether each image is clearly of one class, and all classes occur. It never sees real images",
    "kid": "how far the features lie apart without taking them for Gaussian; its mean does not depend on the number of images. The spread is that over subsets",
    "precision": "the share of generated images that lie among the real ones: do they look right? From 0 to 1",
    "recall": "the share of real images that lie among the generated ones: does the model make all kinds? From 0 to 1",
    "density": "as precision, but an outlier among the real images counts little; may exceed 1",
    "coverage": "the share of real images that have a generated one near them. From 0 to 1",
    "clip-fd": "a Frechet distance in what CLIP sees: meaning more than texture",
    "fd-dinov2": "a Frechet distance in what DINOv2 sees, which agrees best with people's judgement",
    "cmmd": "a distance in what CLIP sees that takes nothing for Gaussian",
    "lpips-diversity": "how different pairs of generated images look; the real set's own value is what it should be near, noise has more",
}  # fmt: skip
# a protocol says much that does not make numbers incomparable: which folder, which versions; these parts do
DECISIVE = ("reference.fingerprint", "generated.count", "generated.transform", "reference.transform", "dialect.", "extractors.")
DRAWN = "generated.drawn."
NOT_DRAWN = ("source", "weights", "num", "seed", "percepta")


def direction(metric: str) -> str:
    """lower, higher, or nothing where it is not known which is better. `kid@SPACE` is as good as `kid`."""
    name = metric.split("@")[0]
    return "higher" if name in HIGHER else "lower" if name in LOWER else ""


def spoken(metric: str, space: str = "") -> str:
    """A metric's name for readers: `kid@dinov2` is KID in dinov2. FID is said only of Inception's features, and which where not 2048."""
    base, _, other = metric.partition("@")
    where = f" in {other or space}" if other or space not in ("", "inception-2048") else ""
    if base == "fid" and where:
        layer = (other or space).removeprefix("inception-")
        return f"FID-{layer}" if layer.isdigit() else f"Frechet distance{where}"
    return NAMES.get(base, base) + (where if base in MOVABLE else "")


def shown(value: Any, digits: int = 4) -> str:
    """A number as a table shows it: four figures, a spread two."""
    known = number(value)
    if known is None:
        return "not finite" if isinstance(value, float) else "none"
    size = abs(known)
    if size >= 10**digits:
        return f"{known:,.0f}"
    if size and size < 1e-5:
        return f"{known:.{digits - 1}e}"
    return f"{known:#.{digits}g}".removesuffix(".") if size else "0"


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted names."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), json.dumps(value, sort_keys=True) if isinstance(value, list | Mapping) else value


def differences(protocols: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """(what makes the numbers incomparable, what else differs in how the images were drawn), a sentence part each."""
    tables = [dict(flat(p)) for p in protocols]
    decisive, drawn = [], []
    for key in dict.fromkeys(k for table in tables for k in table):
        values = list(dict.fromkeys(str(table.get(key, "not said")) for table in tables))
        if len(values) < 2:
            continue
        text = f"{key} ({' or '.join(v if len(v) <= 24 else v[:12] + '…' for v in values)})"
        if key.startswith(DECISIVE):
            decisive.append(text)
        elif key.startswith(DRAWN) and key.removeprefix(DRAWN) not in NOT_DRAWN:
            drawn.append(text)
    return decisive, drawn


def metric_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Rows by metric, a cell per run that was evaluated; marks for the best and for those trained against."""
    columns: list[tuple[Run, Judged]] = [(run, run.latest) for run in runs if run.latest is not None]
    decisive, drawn = differences([judged.protocol for _, judged in columns]) if len(columns) > 1 else ([], [])
    names = list(dict.fromkeys(name for _, judged in columns for name in judged.metrics))
    notes: list[str] = []
    rows = []
    for name in names:
        cells = [_cell(judged.metrics.get(name), notes) for _, judged in columns]
        if not decisive:
            _mark_best(name, cells)
        rows.append(_row(name, cells))
    return {
        "columns": [_column(run, judged) for run, judged in columns],
        "about": _about(names, rows),
        "warnings": _warnings(columns),
        "rows": rows,
        "notes": notes,
        "contaminated": any(cell and cell["contaminated"] for row in rows for cell in row["cells"]),
        "best": any(cell and cell["best"] for row in rows for cell in row["cells"]),
        "decisive": decisive,
        "drawn": drawn,
    }


def sweep_table(sweep: Mapping[str, Any]) -> dict[str, Any] | None:
    """A guidance sweep: columns by metric, a row per weight. What is best was decided where it was measured; never a value that was trained against."""
    if not sweep:
        return None
    names = list(dict.fromkeys(name for row in sweep["sweep"] for name in row["metrics"]))
    weights = [row["guidance"] for row in sweep["sweep"]]
    columns, cells = [], []
    for name in names:
        column = [_cell(row["metrics"].get(name), []) for row in sweep["sweep"]]
        _mark_printed(column, next((k for k, weight in enumerate(weights) if number(sweep["best"].get(name)) == weight), None))
        cells.append(column)
        space = next(str(row["metrics"][name].get("space") or "") for row in sweep["sweep"] if name in row["metrics"])
        columns.append({"name": spoken(name, space), "better": direction(name)})
    rows = [{"guidance": f"{weight:.10g}", "cells": [column[k] for column in cells]} for k, weight in enumerate(weights)]
    return {"columns": columns, "rows": rows, "warnings": [str(text) for text in sweep["warnings"]]}


def _mark_printed(column: Sequence[dict[str, Any] | None], best: int | None) -> None:
    """The best, and what is printed as it is; nothing where all are."""
    first = None if best is None else column[best]
    honest = [cell for cell in column if cell and not cell["contaminated"] and cell["number"] is not None]
    if first is None or len({cell["value"] for cell in honest}) < 2:
        return
    for cell in honest:
        cell["best"] = cell["value"] == first["value"]


def _about(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What each metric of the table says, once, under the name that it has there."""
    first = {}
    for name, row in zip(names, rows, strict=True):
        first.setdefault(name.partition("@")[0], row["name"])
    return [(said, ABOUT[base]) for base, said in first.items() if base in ABOUT]


def _row(name: str, cells: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    base, _, space = name.partition("@")
    spaces = sorted({cell["space"] for cell in cells if cell and cell["space"]})
    said = spoken(base, space or (spaces[0] if len(spaces) == 1 else "")).partition(" in ")[0]  # the space has a line of its own
    return {"name": said, "space": space or ", ".join(spaces), "better": direction(name), "cells": cells}


def _column(run: Run, judged: Judged) -> dict[str, Any]:
    generated = judged.protocol.get("generated")
    count = number(generated.get("count")) if isinstance(generated, Mapping) else None
    label = "" if judged.label == "evaluation" else judged.label  # the name of the file says nothing to a reader
    told = ", ".join(part for part in (label, f"{count:,.0f} images" if count is not None else "") if part)
    return {
        "run": run.name, "label": told, "step": judged.step, "protocol": [(key, "none" if value is None else value) for key, value in flat(judged.protocol)],
    }  # fmt: skip


def _warnings(columns: Sequence[tuple[Run, Judged]]) -> list[dict[str, Any]]:
    """Each warning once, with the runs that it is about."""
    about: dict[str, list[str]] = {}
    for run, judged in columns:
        missing = [f"{name}: {why}" for name, why in judged.missing.items() if why not in judged.warnings]
        for text in dict.fromkeys([*judged.warnings, *missing]):
            about.setdefault(text, []).append(run.name)
    return [{"text": text, "runs": [] if len(names) == len(columns) else names} for text, names in about.items()]


def _cell(value: Mapping[str, Any] | None, notes: list[str]) -> dict[str, Any] | None:
    if value is None:
        return None
    note = str(value.get("note") or "")
    if note and note not in notes:
        notes.append(note)
    return {
        "value": shown(value.get("value")), "std": shown(value["std"], 2) if number(value.get("std")) is not None else "",
        "number": number(value.get("value")), "spread": number(value.get("std")) or 0.0, "space": str(value.get("space") or ""), "contaminated": bool(value.get("contaminated")),
        "note": notes.index(note) + 1 if note else 0, "best": False,
    }  # fmt: skip


def _mark_best(name: str, cells: Sequence[dict[str, Any] | None]) -> None:
    """The best of the honest values: never one in a space that was trained against, and none where the spread hides which is best."""
    honest = [c for c in cells if c and c["number"] is not None and not c["contaminated"]]
    if len({c["value"] for c in honest}) < 2 or not direction(name) or len({c["space"] for c in honest}) > 1:
        return
    first, *others = sorted(honest, key=lambda c: c["number"], reverse=direction(name) == "higher")
    if any(abs(c["number"] - first["number"]) < max(c["spread"], first["spread"]) for c in others):
        return
    for cell in honest:
        cell["best"] = cell["value"] == first["value"]  # as printed: nobody sees a difference beyond

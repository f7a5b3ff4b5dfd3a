"""The metric table: the latest evaluation of each run side by side, with what makes numbers incomparable said beside them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from percepta.reports.names import ABOUT, WAYS, direction, hundredfold, parts, spoken
from percepta.reports.run import Judged, Run, number

# a protocol says much that does not make numbers incomparable: which folder, which versions; these parts do
DECISIVE = ("reference.fingerprint", "generated.count", "generated.transform", "reference.transform", "dialect.", "extractors.")
DRAWN = "generated.drawn."
NOT_DRAWN = ("source", "weights", "num", "seed", "percepta")


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
        if key.removeprefix("b2a.").startswith(DECISIVE):
            decisive.append(text)
        elif key.startswith(DRAWN) and key.removeprefix(DRAWN) not in NOT_DRAWN:
            drawn.append(text)
    return decisive, drawn


def metric_table(runs: Sequence[Run]) -> dict[str, Any]:
    """Rows by metric, a cell per run that was evaluated, of a translator one per direction; marks for the best and for those trained against."""
    judged: list[tuple[Run, Judged]] = [(run, run.latest) for run in runs if run.latest is not None]
    columns = [(run, one, way) for way in ("", *WAYS) for run, one in judged if way in _ways(one)]
    decisive, drawn = differences([one.protocol for _, one in judged]) if len(judged) > 1 else ([], [])
    names = list(dict.fromkeys(_either_way(name) for _, one in judged for name in one.metrics))
    notes: list[str] = []
    rows = []
    for name in names:
        cells = [_cell(_found(one, name, way), notes, 100 if hundredfold(name) else 1) for _, one, way in columns]
        for way in () if decisive else ("", *WAYS):
            _mark_best(name, [cell for cell, (*_, its) in zip(cells, columns, strict=True) if its == way])
        rows.append(_row(name, cells))
    return {
        "columns": [_column(*column, several=len(runs) > 1) for column in columns],
        "judged": [_told(run, one) for run, one in judged],
        "about": _about(names, rows),
        "warnings": _warnings(judged),
        "rows": rows,
        "notes": notes,
        "contaminated": any(cell and cell["contaminated"] for row in rows for cell in row["cells"]),
        "best": any(cell and cell["best"] for row in rows for cell in row["cells"]),
        "decisive": decisive,
        "drawn": drawn,
    }


def _either_way(metric: str) -> str:
    """A translator's row has both directions: fid/a2b and fid/b2a are of the row fid/a2b."""
    bare, slash, way = metric.rpartition("/")
    return f"{bare}/a2b" if slash and way in WAYS else metric


def _ways(judged: Judged) -> list[str]:
    """The directions of an evaluation, each a column; the empty one is of what has none."""
    there = {parts(name)[2] for name in judged.metrics}
    return [way for way in ("", *WAYS) if way in there]


def _found(judged: Judged, row: str, way: str) -> Mapping[str, Any] | None:
    """The value of a row in the column of a direction, with what real images have where that is known."""
    name, _, of = parts(row)
    if bool(of) != bool(way):
        return None
    value = judged.metrics.get(f"{row.rpartition('/')[0]}/{way}" if way else row)
    back = judged.protocol.get("b2a")
    real = [
        dict(flat(part)).get(f"real.{name}")
        for part in (back if way == "b2a" else None, judged.protocol)
        if isinstance(part, Mapping)
    ]
    ceiling = next((one for one in map(number, real) if one is not None), None)
    if value is None or ceiling is None or value.get("note"):
        return value
    return {**value, "note": f"Read by a program that is right on {100 * ceiling:.4g} % of real images"}


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
        first.setdefault(parts(name)[0], row["name"])
    return [(said, ABOUT[base]) for base, said in first.items() if base in ABOUT]


def _row(name: str, cells: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    base, space, _ = parts(name)
    spaces = sorted({cell["space"] for cell in cells if cell and cell["space"]})
    said = spoken(base, space or (spaces[0] if len(spaces) == 1 else "")).partition(" in ")[0]  # the space has a line of its own
    said += " × 100" if hundredfold(name) else ""
    return {"name": said, "space": space or ", ".join(spaces), "better": direction(name), "cells": cells}


def _column(run: Run, judged: Judged, way: str, several: bool) -> dict[str, Any]:
    """The head of a column: the run, or of a single translator the direction."""
    part = judged.protocol.get("b2a") if way == "b2a" else None
    sides = [one.get("generated") for one in (part, judged.protocol) if isinstance(one, Mapping)]
    counts = [number(one.get("count")) for one in sides if isinstance(one, Mapping)]
    label = "" if judged.label == "evaluation" else judged.label  # the name of the file says nothing to a reader
    said = (WAYS[way] if way and several else "", label, *(f"{count:,.0f} images" for count in counts[:1] if count is not None))
    return {"run": WAYS[way] if way and not several else run.name, "label": ", ".join(filter(None, said)), "step": judged.step}


def _told(run: Run, judged: Judged) -> dict[str, Any]:
    return {"run": run.name, "protocol": [(key, "none" if value is None else value) for key, value in flat(judged.protocol)]}


def _warnings(columns: Sequence[tuple[Run, Judged]]) -> list[dict[str, Any]]:
    """Each warning once, with the runs that it is about."""
    about: dict[str, list[str]] = {}
    for run, judged in columns:
        missing = [f"{name}: {why}" for name, why in judged.missing.items() if why not in judged.warnings]
        for text in dict.fromkeys([*judged.warnings, *missing]):
            about.setdefault(text, []).append(run.name)
    return [{"text": text, "runs": [] if len(names) == len(columns) else names} for text, names in about.items()]


def _cell(value: Mapping[str, Any] | None, notes: list[str], times: int = 1) -> dict[str, Any] | None:
    if value is None:
        return None
    value = {key: v * times if key in ("value", "std") and number(v) is not None else v for key, v in value.items()}
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

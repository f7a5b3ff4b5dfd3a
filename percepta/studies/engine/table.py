"""From finished jobs to the table: mean and spread over seeds, the paper's number beside each, and what cannot be had with its reason.

The table is a plain record (table.json); page.py writes it as text and as a page.
"""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any

from percepta._version import __version__
from percepta.studies.engine.plan import Cell, Plan, in_order
from percepta.studies.engine.running import Outcome
from percepta.studies.engine.store import Store
from percepta.studies.engine.study import Figure, Job, Reading

Table = dict[str, Any]
NOT_YET = "not done yet"


def make_table(plan: Plan, store: Store, outcome: Outcome) -> Table:
    """Everything that is known so far; `finished` says whether that is all."""
    study, everyone = plan.study, _shared(plan)
    rows = [_row(cells, store, outcome, everyone) for cells in plan.rows]
    for place, column in enumerate(study.columns):
        competing = [row["cells"][place] for row, cells in zip(rows, plan.rows, strict=True) if not cells[0].row.yardstick]
        mark_best(competing, column.better)
    return {
        "study": study.name, "summary": study.summary, "ask": study.ask, "printed": study.printed, "scale": plan.at.scale,
        "seeds": list(plan.seeds), "percepta": __version__, "finished": all(job.key in outcome.records for job in plan.jobs),
        "budget": [list(pair) for pair in plan.budget()],
        "columns": [{"label": c.label, "place": c.place, "better": c.better, "group": c.group} for c in study.columns],
        "groups": [{"title": title, "columns": [k for k, _ in found]}
                   for title, found in groupby(enumerate(study.columns), key=lambda item: item[1].group)],
        "rows": rows, "spaces": _spaces(plan, outcome), "figures": [_figure(figure, store, outcome) for figure in plan.figures],
        "shared": [store.command(job) for job in plan.jobs if job.key in everyone],
        "seconds": round(sum(record["seconds"] for record in outcome.records.values()), 1),
        "failed": {job.name: outcome.failed[job.key] for job in plan.jobs if job.key in outcome.failed},
    }  # fmt: skip


def mark_best(cells: Sequence[dict[str, Any]], better: str) -> None:
    """The best of a column, and what lies within the spread of it. Never a value in a space that was trained against, nor one of another
    space than the others; and none where all are alike."""
    honest = [cell for cell in cells if cell["mean"] is not None and not cell["contaminated"]]
    if not better or len(honest) < 2 or len({cell["space"] for cell in honest}) > 1:
        return
    best = (min if better == "lower" else max)(honest, key=lambda cell: cell["mean"])
    alike = [c for c in honest if abs(c["mean"] - best["mean"]) <= max(c["spread"] or 0, best["spread"] or 0)]
    if len(alike) < len(honest):
        for cell in alike:
            cell["best"] = True


def _row(cells: Sequence[Cell], store: Store, outcome: Outcome, everyone: Mapping[str, Job]) -> dict[str, Any]:
    jobs = in_order([job for cell in cells for reading in cell.readings for job in reading.jobs])
    own = [job for job in jobs if job.key not in everyone]
    first = next((cell.readings[0].job for cell in cells if cell.readings), None)
    return {
        "label": cells[0].row.label,
        "cells": [_cell(cell, store, outcome) for cell in cells],
        "seconds": round(sum(outcome.records[job.key]["seconds"] for job in own if job.key in outcome.records), 1),
        "commands": [] if first is None else list(dict.fromkeys(store.command(job) for job in first.chain(read_only=True))),
    }


def _cell(cell: Cell, store: Store, outcome: Outcome) -> dict[str, Any]:
    """Seeds that have no value are left out of the mean, and said."""
    found = [value_of(reading, store, outcome) for reading in cell.readings]
    known = [one for one in found if isinstance(one, dict)]
    values = [one["value"] * cell.column.times for one in known]
    why = cell.why or "; ".join(dict.fromkeys(one for one in found if isinstance(one, str)))
    if values and why:
        why = f"{len(values)} of {len(found)} seeds: {why}"
    return {
        "mean": fmean(values) if values else None, "spread": stdev(values) if len(values) > 1 else None, "values": values,
        "space": ", ".join(dict.fromkeys(one["space"] for one in known)), "contaminated": any(one["contaminated"] for one in known),
        "best": False, "paper": cell.paper, "why": why, "jobs": [job.name for reading in cell.readings for job in reading.jobs],
    }  # fmt: skip


def value_of(reading: Reading, store: Store, outcome: Outcome) -> dict[str, Any] | str:
    """{value, space, contaminated}, or the reason why there is none."""
    found = _value(reading, store, outcome)
    if reading.less is None or isinstance(found, str):
        return found
    other = value_of(reading.less, store, outcome)
    if isinstance(other, str):
        return other
    return {
        **found, "value": found["value"] - other["value"], "contaminated": found["contaminated"] or other["contaminated"],
    }  # fmt: skip


def _value(reading: Reading, store: Store, outcome: Outcome) -> dict[str, Any] | str:
    job = reading.job
    if job.key in outcome.failed:
        told = outcome.failed[job.key].splitlines()
        return told[-1] if len(told) > 1 else told[0]
    if job.key not in outcome.records:
        return NOT_YET
    result: Any = outcome.records[job.key]["result"]
    if reading.file is not None:
        file = store.folder(job) / reading.file
        try:
            text = file.read_text()
            result = json.loads(text.splitlines()[-1] if file.suffix == ".jsonl" else text)  # a log is read at its end
        except (OSError, ValueError, IndexError) as error:
            return f"{file} cannot be read: {error}"
    found = result
    for part in reading.place.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if found is None:
        missing = result.get("missing", {}) if isinstance(result, Mapping) else {}
        name = reading.place.rpartition(".")[2]
        return str(missing.get(name, f"{name} was not computed"))
    facts: Mapping[str, Any] = found if isinstance(found, Mapping) else {"value": found}
    value = facts["value"]
    if not isinstance(value, int | float) or not math.isfinite(value):
        return f"not finite: {value}"
    return {"value": float(value), "space": str(facts.get("space", "")), "contaminated": bool(facts.get("contaminated"))}


def _shared(plan: Plan) -> dict[str, Job]:
    """Jobs behind every row that is computed: the pretrained model."""
    chains = [
        {job.key: job for job in in_order([job for cell in cells for r in cell.readings for job in r.jobs])} for cells in plan.rows
    ]
    chains = [chain for chain in chains if chain]
    return {key: job for key, job in (chains[0] if chains else {}).items() if all(key in chain for chain in chains)}


def _spaces(plan: Plan, outcome: Outcome) -> list[str]:
    """Each feature network that judged, once, as the protocols have it."""
    out: dict[str, None] = {}
    for job in plan.jobs:
        result = outcome.records.get(job.key, {}).get("result")
        protocol = result.get("protocol", {}) if isinstance(result, Mapping) else {}
        sides = protocol.get("reference", {})
        for name, facts in protocol.get("extractors", {}).items():
            about = f", {facts['about']}" if facts.get("about") else ""
            weights = "" if facts["weights"] in ("none", "") else f", weights {facts['weights'][:12]}"
            against = f"against {sides.get('count', 0):,} images of {sides.get('name')}"
            out[f"{name}: {against}; {facts['resize']}{weights}{about}"] = None
    return list(out)


def _figure(figure: Figure, store: Store, outcome: Outcome) -> dict[str, Any]:
    why, path = figure.why, None
    if figure.job is not None:
        file = store.folder(figure.place or figure.job) / figure.file
        if figure.job.key in outcome.failed:
            why = outcome.failed[figure.job.key].splitlines()[-1]
        elif figure.job.key not in outcome.records:
            why = NOT_YET
        elif not file.is_file():
            why = f"{file} is not there"
        else:
            path = str(file)
    return {"title": figure.title, "caption": figure.caption, "file": path, "why": why}

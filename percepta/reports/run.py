"""A run folder as a report sees it: every file may be missing, half written or of a run that still goes on.

Only config.json has to be there: without it a folder is not a run's. What cannot be read is left out and said in `notes`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from percepta.absent import absent

FIGURES = ("figures", "evaluation/figures", "evaluation")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".svg")


@dataclass(frozen=True)
class Grid:
    """The sample grid of one step, and how it was drawn."""

    step: int
    path: Path
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    """A picture of figures/ with its words."""

    path: Path
    title: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Judged:
    """One evaluation: Evaluation.to_json() of some step."""

    step: int | None
    label: str
    metrics: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What was found in one folder. Records are in order of their steps, a step once."""

    root: Path
    name: str
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = ()
    timing: Sequence[Mapping[str, Any]] = ()
    grids: Sequence[Grid] = ()
    during: Sequence[Judged] = ()  # evaluations.jsonl: while it trained
    judged: Sequence[Judged] = ()  # evaluation/*.json: afterwards
    sweep: Mapping[str, Any] = field(default_factory=dict)  # evaluation/sweep.json: over guidance weights
    panels: Sequence[Panel] = ()
    notes: Sequence[str] = ()
    written: datetime | None = None

    @property
    def recipe(self) -> str:
        return str(self.config.get("recipe", "unknown recipe"))

    @property
    def settings(self) -> Mapping[str, Any]:
        return _mapping(self.config.get("settings"))

    @property
    def knobs(self) -> Mapping[str, Any]:
        """The flags of its recipe."""
        return _mapping(self.config.get("knobs"))

    @property
    def resolved(self) -> Mapping[str, Any]:
        return _mapping(self.config.get("resolved"))

    @property
    def step(self) -> int:
        """The last step that a line was written for."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def finished(self) -> bool:
        asked = self.settings.get("steps")
        return isinstance(asked, int) and self.step >= asked

    @property
    def latest(self) -> Judged | None:
        """The evaluation of the latest step; one made afterwards comes before one made while training."""
        every = [*self.during, *self.judged]  # of equals the last wins; one without a step is of the finished model
        return max(enumerate(every), key=lambda e: (math.inf if e[1].step is None else e[1].step, e[0]))[1] if every else None

    @property
    def seconds(self) -> float | None:
        """Time spent training, summed from the rates: pauses for grids and checkpoints are not in it."""
        total, last = 0.0, 0
        batch = self.settings.get("batch")
        for line in self.timing:
            rate = number(line.get("images_per_s"))
            if rate and isinstance(batch, int):
                total += (line["step"] - last) * batch / rate
            last = line["step"]
        return total or None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Several runs, each under a name of its own: the folder's, and as much of its path as tells it from the others."""
    if not folders:
        raise ValueError("no run folder was given; say which: percepta report runs/first")
    roots = list(dict.fromkeys(Path(folder).expanduser().resolve() for folder in folders))
    names = [root.name for root in roots]
    depth = 1
    while len(set(names)) < len(names):
        depth += 1
        names = ["/".join(root.parts[-depth:]) for root in roots]
    return [read_run(root, name) for root, name in zip(roots, names, strict=True)]


def read_run(root: Path, name: str | None = None) -> Run:
    """Everything of one run folder; ValueError where it is none."""
    if not root.exists():
        raise ValueError(absent(root, "a run folder"))
    if not (root / "config.json").is_file():
        raise ValueError(f"{root} is not a run folder: it has no config.json; give the --out folder of percepta train")
    notes: list[str] = []
    config = _json(root / "config.json", notes)
    if not isinstance(config, dict):
        raise ValueError(f"{root / 'config.json'} is not a run's config.json; give the --out folder of percepta train")
    lines = {file: _lines(root / file, notes) for file in ("metrics.jsonl", "timing.jsonl", "evaluations.jsonl")}
    files = [p for p in (root / "metrics.jsonl", root / "config.json") if p.is_file()]
    return Run(
        root=root,
        name=name or root.name,
        config=config,
        metrics=lines["metrics.jsonl"],
        timing=lines["timing.jsonl"],
        grids=_grids(root / "samples", notes),
        during=[j for line in lines["evaluations.jsonl"] if (j := _judged(line, f"step {line['step']:,}"))],
        judged=_evaluations(root / "evaluation", notes),
        sweep=_sweep(root / "evaluation" / "sweep.json", notes),
        panels=[panel for folder in FIGURES for panel in _panels(root / folder, notes)],
        notes=notes,
        written=datetime.fromtimestamp(max(p.stat().st_mtime for p in files), UTC),
    )


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(path: Path, notes: list[str]) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{path.parent.name}/{path.name} could not be read and is left out: {error}")
        return None


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The records of a JSON-lines file by step; a line cut off by a kill is left out, a step written twice counts once."""
    if not path.is_file():
        return []
    records, bad, last_bad = {}, 0, False
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            last_bad = not (isinstance(record, dict) and isinstance(record["step"], int))
        except (ValueError, KeyError):
            last_bad = True
        if last_bad:
            bad += 1
        else:
            records[record["step"]] = record
    if bad:
        which = "its last line was" if bad == 1 and last_bad else f"{bad} lines were"
        notes.append(f"{path.name}: {which} cut off or damaged, and left out")
    return [records[step] for step in sorted(records)]


def _grids(folder: Path, notes: list[str]) -> list[Grid]:
    out = []
    for path in sorted(folder.glob("step-*.png")):
        digits = path.stem.removeprefix("step-")
        if digits.isdigit():
            beside = path.with_suffix(".json")
            out.append(Grid(int(digits), path, _mapping(_json(beside, notes)) if beside.is_file() else {}))
    return sorted(out, key=lambda grid: grid.step)


def _evaluations(folder: Path, notes: list[str]) -> list[Judged]:
    """evaluation/*.json, oldest first."""
    out = []
    for path in sorted(folder.glob("*.json"), key=lambda p: (p.stat().st_mtime, p.name)):
        record = _json(path, notes)
        if judged := _judged(record, _spoken(path.stem)):
            out.append(judged)
    return out


def _sweep(path: Path, notes: list[str]) -> Mapping[str, Any]:
    """Empty where there is none, or where its rows are not of weights and metrics."""
    record = _mapping(_json(path, notes)) if path.is_file() else {}
    rows = [row for row in _list(record.get("sweep")) if isinstance(row, dict) and number(row.get("guidance")) is not None]
    kept = [{**row, "metrics": judged.metrics} for row in rows if (judged := _judged(row, "")) is not None]
    return {"sweep": kept, "best": _mapping(record.get("best")), "warnings": list(_list(record.get("warnings")))} if kept else {}


def _spoken(stem: str) -> str:
    """step-0001000 as `step 1,000`; other names as they are."""
    digits = stem.removeprefix("step-")
    return f"step {int(digits):,}" if stem != digits and digits.isdigit() else stem


def _judged(record: Any, label: str) -> Judged | None:
    """None for a file that holds no metrics (a protocol alone)."""
    if not isinstance(record, dict) or not isinstance(record.get("metrics"), dict):
        return None
    step = record.get("step")
    return Judged(
        step=step if isinstance(step, int) else None,
        label=str(record.get("label") or label),
        metrics={k: v if isinstance(v, dict) else {"value": v} for k, v in record["metrics"].items()},
        protocol=_mapping(record.get("protocol")),
        warnings=tuple(map(str, _list(record.get("warnings")))),
        missing={str(k): str(v) for k, v in _mapping(record.get("missing")).items()},
    )


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else ()


def _panels(folder: Path, notes: list[str]) -> list[Panel]:
    out = []
    for path in sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURES and not p.name.startswith(".")):
        beside = path.with_suffix(".json")
        words = _mapping(_json(beside, notes)) if beside.is_file() else {}
        title = str(words.get("title") or path.stem.replace("-", " ").replace("_", " "))
        out.append(Panel(path, title, str(words.get("caption") or ""), str(words.get("alt") or title)))
    return out

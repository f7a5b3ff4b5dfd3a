"""One HTML file from run folders: text, styles, script and pictures inside, and a policy in its head that forbids fetching anything.

Script and style are allowed by their own hash only, so that nothing that a run folder says can run; all text is escaped by the template.
"""

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from percepta._version import __version__
from percepta.reports.commands import commands
from percepta.reports.curves import evaluation_charts, training_charts
from percepta.reports.facts import fact_table, facts, lede, state
from percepta.reports.numbers import flat, metric_table, sweep_table
from percepta.reports.pictures import GRIDS, PAGE, chosen, picture
from percepta.reports.run import Grid, Run, read_runs
from percepta.reports.translations import Cut, blocks, comparable_strips, cut

TEMPLATES = Path(__file__).with_name("templates")
HOW_DRAWN = ("shows", "sampler", "steps", "spacing", "eta", "clip", "guidance", "seed", "num", "weights")
MOST_RUNS = 20


@dataclass(frozen=True)
class Report:
    """What was written."""

    out: Path
    size: int
    runs: tuple[str, ...]
    notes: tuple[str, ...]


def write_report(folders: Sequence[Path], out: Path) -> Report:
    """The report of one or several runs, written whole or not at all."""
    check_out(out)
    runs = read_runs(folders)
    if len(runs) > MOST_RUNS:
        raise ValueError(f"a report compares up to {MOST_RUNS} runs, got {len(runs)}: choose some of them")
    context = contents(runs)
    page = render(context)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, out)
    notes = tuple(f"{run['name']}: {note}" for run in context["runs"] for note in run["notes"])
    return Report(out, out.stat().st_size, tuple(run.name for run in runs), notes)


def check_out(out: Path) -> None:
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out}: a report is one file, give a name that ends in .html")


def contents(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    charts = training_charts(runs)
    evaluations, told = evaluation_charts(runs)
    shown = [_run(run, k, len(runs)) for k, run in enumerate(runs)]
    ways = blocks([(run["name"], run["cuts"]) for run in shown])
    laid = [_comparable(run, k, ways) for k, run in enumerate(shown)]
    groups = {**charts, "panels": [chart for panel in charts["panels"] for chart in panel["charts"]], "evaluations": evaluations}
    everything = [chart for group in groups.values() for chart in group]
    for k, chart in enumerate(everything):
        chart["id"] = f"chart-{k}"  # a name of ours in the page, whatever a term is called
    return {
        "title": " · ".join(run.name for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else ""),
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "runs": shown,
        "differ": fact_table(runs)[0],
        "same": fact_table(runs)[1],
        "table": metric_table(runs),
        "charts": charts,
        "evaluations": evaluations,
        "told": told,
        "ways": ways,
        "laid": max(Counter(one.get("of") for grids in laid for one in grids).values(), default=0) > 1,
        "steps": sorted(
            {one["step"] for run in shown for one in run["grids"]} | {one.step for run in shown for one in run["cuts"]}
        ),
        "data": {
            "charts": {chart["id"]: chart for chart in everything},
            "batches": [run.settings.get("batch") if isinstance(run.settings.get("batch"), int) else 1 for run in runs],
            "runs": [{"name": run["name"], "grids": grids} for run, grids in zip(shown, laid, strict=True)],
        },
    }


def render(context: dict[str, Any]) -> str:
    """The page as text."""
    import jinja2
    import markupsafe

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (TEMPLATES / "style.css.jinja").read_text(encoding="utf-8")
    script = "\n".join((TEMPLATES / f"{name}.js.jinja").read_text(encoding="utf-8") for name in ("charts", "page"))
    data = json.dumps(context["data"], allow_nan=False, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026")
    return environment.get_template("page.html.jinja").render(
        **{k: v for k, v in context.items() if k != "data"}, style=markupsafe.Markup(style), script=markupsafe.Markup(script),
        data=markupsafe.Markup(data), style_hash=policy_hash(style), script_hash=policy_hash(script),
    )  # fmt: skip


def policy_hash(text: str) -> str:
    """The hash by which the policy knows a script or style: of the very text between the tags."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _run(run: Run, place: int, of: int) -> dict[str, Any]:
    """A run as the template reads it; pictures that cannot be read are left out and named in its notes."""
    notes = list(run.notes)
    grids, cuts = [], []
    for grid in chosen(run.grids, of):
        if (parts := _cut(grid, notes)) is not None:
            cuts.append(parts)
        elif (drawn := _picture(grid.path, PAGE // GRIDS, notes)) is not None:
            how = {key: grid.protocol[key] for key in HOW_DRAWN if key in grid.protocol}
            grids.append({"id": f"grid-{place}-{grid.step}", "step": grid.step, "picture": drawn, "how": how})
    panels = []
    for panel in run.panels:
        if (drawn := _picture(panel.path, 300_000, notes)) is not None:
            panels.append({"title": panel.title, "caption": panel.caption, "alt": panel.alt, "picture": drawn})
    return {
        "name": run.name, "recipe": run.recipe, "lede": lede(run), "state": state(run), "facts": facts(run), "commands": commands(run),
        "settings": [(k, "none" if v is None else v) for k, v in flat({"knobs": run.config.get("knobs"), **run.settings})],
        "grids": grids, "cuts": cuts, "all_grids": len(run.grids), "how": how_drawn(grids[-1]["how"]) if grids else "",
        "panels": panels, "judged": bool(run.latest), "sweep": sweep_table(run.sweep), "notes": notes,
    }  # fmt: skip


def _comparable(run: Mapping[str, Any], place: int, ways: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The pictures of a run that can be laid over others: its grids, or its translations by direction."""
    whole = [{k: grid[k] for k in ("id", "step", "how")} for grid in run["grids"]]
    return whole + [one for block in ways for owner, one in comparable_strips(block) if owner == place]


def _cut(grid: Grid, notes: list[str]) -> Cut | None:
    try:
        return cut(grid)
    except ValueError as error:
        _note(notes, str(error))
        return None


def _picture(path: Path, budget: int, notes: list[str]) -> Any:
    try:
        return picture(path, budget)
    except ValueError as error:
        _note(notes, str(error))
        return None


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def how_drawn(how: dict[str, Any]) -> str:
    """A grid's protocol as one line."""
    if not how:
        return "How these were drawn is not recorded."
    parts = [
        f"{how['num']} images" if "num" in how else "", str(how.get("shows", "")), f"{how['sampler']}, {how.get('steps', '?')} steps" if "sampler" in how else "",
        f"seed {how['seed']}" if "seed" in how else "", f"guidance {how['guidance']:g}" if how.get("guidance", 1) != 1 else "",
        {"ema": "averaged weights", "raw": "last weights"}.get(str(how.get("weights")), ""),
    ]  # fmt: skip
    return "; ".join(part for part in parts if part)

"""A table as files: table.json for programs, table.md for notes and issues, table.html for reading (one file, which fetches nothing)."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from percepta.reports.numbers import shown
from percepta.reports.page import TEMPLATES, policy_hash
from percepta.reports.pictures import picture
from percepta.studies.engine.table import Table
from percepta.training.folder import write_json

HERE = Path(__file__).with_name("templates")
MARK = "†"
READ = "Ours: mean ± standard deviation over seeds. In brackets: the paper's numbers."
POCKET = " At pocket scale data, number of samples and feature network are others than the paper's: compare the order of the rows, not sizes."
BOLD = "Bold: the best of ours in its column, and what lies within the spread of it; nowhere, where the spread hides which is best."
CONTAMINATED = f"{MARK} trained against: the model was trained to please this very space, so the number is no evidence of quality and never the best."


def save(table: Table, folder: Path) -> dict[str, Path]:
    """The three files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    out = {kind: folder / f"table.{kind}" for kind in ("json", "md", "html")}
    for number, figure in enumerate(table["figures"]):
        if figure["file"]:
            _write(folder / figure_name(number, figure), Path(figure["file"]).read_bytes())
    write_json(out["json"], table)
    _write(out["md"], markdown(table))
    _write(out["html"], html(table))
    return out


def figure_name(number: int, figure: dict[str, Any]) -> str:
    """A copy beside table.md, so that the folder can be sent as it is."""
    return f"figure-{number + 1}{Path(figure['file']).suffix}"


def _write(path: Path, content: str | bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def cell_text(cell: dict[str, Any]) -> tuple[str, str]:
    """(ours, the paper's): `0.3121 ± 0.0083` and `5.48`; empty where there is none."""
    ours = ""
    if cell["mean"] is not None:
        ours = shown(cell["mean"]) + (f" ± {shown(cell['spread'], 2)}" if cell["spread"] is not None else "")
    return ours, "" if cell["paper"] is None else f"{cell['paper']:g}"


def notes(table: Table) -> list[dict[str, Any]]:
    """Reasons of cells without a number, each once with the cells that it is about; reasons that only the paper's rows have are left out."""
    about: dict[str, list[str]] = {}
    for row in table["rows"]:
        if not row["commands"] and all(cell["why"] == "only the paper's" for cell in row["cells"]):
            continue
        for text in dict.fromkeys(cell["why"] for cell in row["cells"] if cell["why"]):
            whole = all(cell["why"] == text for cell in row["cells"])
            about.setdefault(text, []).append(row["label"] if whole else f"{row['label']} ({', '.join(_places(table, row, text))})")
    return [{"text": text, "cells": cells, "number": number} for number, (text, cells) in enumerate(about.items(), 1)]


def _places(table: Table, row: dict[str, Any], text: str) -> Iterator[str]:
    """The columns where a row has this reason; of a group that has it everywhere its title."""
    for group in table["groups"]:
        found = [k for k in group["columns"] if row["cells"][k]["why"] == text]
        if group["title"] and len(found) == len(group["columns"]) > 1:
            yield group["title"]
        else:
            yield from (" ".join(filter(None, (group["title"], table["columns"][k]["label"]))) for k in found)


def header(table: Table) -> str:
    state = "" if table["finished"] else " Not finished: what is missing is marked."
    return f"{table['scale']} scale, seeds {', '.join(map(str, table['seeds']))}, {minutes(table['seconds'])} of computing.{state}"


def reading(table: Table) -> str:
    return READ + (POCKET if table["scale"] == "pocket" else "")


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def markdown(table: Table) -> str:
    """As a page of Markdown that reads as text too."""
    told = notes(table)
    lines = [f"# {table['study']}: {table['summary']}", "", table["ask"], "", header(table), ""]
    for group in table["groups"]:
        lines += [f"## {group['title']}", ""] if group["title"] else []
        lines += [*_markdown_rows(table, group["columns"], told), ""]
    lines += [reading(table), "", f"The paper: {table['printed']}", "", BOLD]
    if any(cell["contaminated"] for row in table["rows"] for cell in row["cells"]):
        lines += ["", CONTAMINATED]
    if told:
        lines += ["", *(f"{note['number']}. {note['text']}: {'; '.join(note['cells'])}" for note in told)]
    lines += ["", "## Budget, the same for all rows", "", *(f"- {name}: {text}" for name, text in table["budget"])]
    lines += [f"- Judged in {space}" for space in table["spaces"]]
    for number, figure in enumerate(table["figures"]):
        place = f"![{figure['title']}]({figure_name(number, figure)})" if figure["file"] else f"Not there: {figure['why']}"
        lines += ["", f"## {figure['title']}", "", figure["caption"], "", place]
    lines += ["", "## Commands", "", "Of each row's first cell and seed; the other cells differ in steps and seed only."]
    for row in table["rows"]:
        if row["commands"]:
            lines += ["", f"{row['label']} ({minutes(row['seconds'])} in all)", "", "```text", *row["commands"], "```"]
    if table["failed"]:
        lines += ["", "## Failed", "", *(f"- {name}: {text.splitlines()[-1]}" for name, text in table["failed"].items())]
    return "\n".join(lines) + "\n"


def _markdown_rows(table: Table, columns: list[int], told: list[dict[str, Any]]) -> list[str]:
    arrow = {"lower": " ↓", "higher": " ↑", "": ""}
    numbers = {note["text"]: note["number"] for note in told}
    heads = [f"{table['columns'][k]['label']}{arrow[table['columns'][k]['better']]}" for k in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(columns)]
    for row in table["rows"]:
        texts = []
        for cell in (row["cells"][k] for k in columns):
            ours, paper = cell_text(cell)
            ours = (f"**{ours}**" if cell["best"] else ours) + (MARK if cell["contaminated"] else "")
            note = f"[{numbers[cell['why']]}]" if cell["why"] in numbers else ""
            texts.append(" ".join(filter(None, (ours, f"({paper})" if paper else "", note))) or "–")
        lines.append(f"| {row['label']} | " + " | ".join(texts) + " |")
    return lines


def html(table: Table) -> str:
    import jinja2
    import markupsafe

    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (TEMPLATES / "style.css.jinja").read_text(encoding="utf-8")
    told = notes(table)
    return environment.get_template("study.html.jinja").render(
        table=table, style=markupsafe.Markup(style), style_hash=policy_hash(style), header=header(table), read=reading(table), bold=BOLD,
        contaminated=CONTAMINATED, mark=MARK, notes=told, numbers={note["text"]: note["number"] for note in told},
        cell_text=cell_text, minutes=minutes, made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        pictures={figure["file"]: picture(Path(figure["file"]), 900_000) for figure in table["figures"] if figure["file"]},
    )  # fmt: skip

"""The table: means and spreads, the paper's numbers, what is best, what was trained against, and why a place is empty."""

import json
import re
from dataclasses import replace

import pytest

from percepta.studies.engine.page import html, markdown, notes, save
from percepta.studies.engine.plan import make_plan
from percepta.studies.engine.running import Outcome
from percepta.studies.engine.study import At, Column, Figure, Impossible, Job, Reading, Row, Study
from percepta.studies.engine.table import make_table, mark_best

BASE = Job(("train", "base"))
# label -> value per seed, and whether it was trained against
VALUES = {"plain": ([3.0, 5.0, 4.0], False), "tuned": ([1.0, 1.2, 1.1], False), "vain": ([0.1, 0.1, 0.2], True)}


def make(label):
    return lambda at, column, seed: Job(("sample", BASE, label, str(seed)))


def lacking(at, column, seed):
    raise Impossible("the weights of clip are not here")


def judge(at, images, column, seed):
    return Reading(Job(("evaluate", images, column.label, "--json")), column.place)


def study(**changes):
    ours = [Row(label, make(label), (9.5, None)) for label in VALUES]
    made = Study(
        name="toy", summary="A toy", printed="of 50,000 samples", ask="Which?", judge=judge, sizes={"pocket": None, "paper": None},
        facts=lambda at: [("Steps", "3")], data={"pocket": ("shapes:length=4", ""), "paper": None},
        columns=(Column("a", "metrics.fid"), Column("b", "metrics.is", better="higher")),
        rows=(*ours, Row("clip", lacking, (7.0, 6.0)), Row("GENIE", None, (13.9, 1.0))),
    )  # fmt: skip
    return replace(made, **changes)


def outcome(plan, values=VALUES):
    """What the evaluations would have printed: fid is there, `is` cannot be had."""
    out = Outcome()
    for job in plan.jobs:
        result = None
        if job.words[0] == "evaluate":
            label, seed = job.words[1].words[2:]
            numbers, marked = values[label]
            result = {
                "metrics": {"fid": {"value": numbers[int(seed)], "space": "domain", "contaminated": marked}},
                "missing": {"is": "Inception's last block is not here"},
                "protocol": {"extractors": {"domain": {"resize": "none", "weights": "ab" * 32, "about": "taught"}}, "reference": {"name": "shapes", "count": 9}},
            }  # fmt: skip
        out.records[job.key] = {"seconds": 10.0, "result": result}
    return out


@pytest.fixture
def table(store):
    plan = make_plan(study(), At("pocket", None, "shapes:length=4", 8), range(3))
    return make_table(plan, store, outcome(plan))


def cell(table, label, place=0):
    return next(row for row in table["rows"] if row["label"] == label)["cells"][place]


def test_mean_spread_and_the_papers_number(table):
    plain = cell(table, "plain")
    assert plain["mean"] == pytest.approx(4.0) and plain["spread"] == pytest.approx(1.0)
    assert plain["values"] == [3.0, 5.0, 4.0] and plain["paper"] == 9.5 and plain["space"] == "domain"
    assert [row["label"] for row in table["rows"]] == ["plain", "tuned", "vain", "clip", "GENIE"]
    assert table["finished"] and table["seeds"] == [0, 1, 2] and table["budget"][0] == ["Steps", "3"]
    # the base is all rows', its 10 seconds are nobody's own: 3 samples and 2 columns of 3 judgements
    assert [row["seconds"] for row in table["rows"]] == [90.0, 90.0, 90.0, 0, 0] and len(table["shared"]) == 1


def test_the_best_is_honest(table):
    assert [cell(table, label)["best"] for label in VALUES] == [False, True, False]
    assert cell(table, "vain")["contaminated"]


@pytest.mark.parametrize(
    ("means", "better", "best"),
    [
        ([(1.0, 0.1), (2.0, 0.1)], "lower", [True, False]),
        ([(1.0, 0.1), (2.0, 0.1)], "higher", [False, True]),
        ([(1.0, 0.1), (1.05, 0.1), (2.0, 0.1)], "lower", [True, True, False]),
        ([(1.0, 0.1), (1.05, 0.1)], "lower", [False, False]),
        ([(1.0, None), (1.05, None)], "lower", [True, False]),
        ([(1.0, 0.1), (2.0, 0.1)], "", [False, False]),
        ([(1.0, 0.1)], "lower", [False]),
        ([(None, None), (2.0, 0.1), (3.0, 0.1)], "lower", [False, True, False]),
    ],
)
def test_what_is_best(means, better, best):
    cells = [{"mean": m, "spread": s, "contaminated": False, "space": "x", "best": False} for m, s in means]
    mark_best(cells, better)
    assert [one["best"] for one in cells] == best


def test_a_yardstick_is_never_the_best(store):
    rows = (Row("plain", make("plain")), Row("tuned", make("tuned")), Row("vain", make("vain"), yardstick=True))
    plan = make_plan(study(rows=rows), At("pocket", None, "shapes:length=4", 8), range(3))
    made = make_table(plan, store, outcome(plan, VALUES | {"vain": ([0.0, 0.0, 0.1], False)}))
    assert [cell(made, label)["best"] for label in VALUES] == [False, True, False]


def test_values_of_different_spaces_are_not_compared():
    cells = [
        {"mean": m, "spread": 0.1, "contaminated": False, "space": s, "best": False} for m, s in ((1.0, "clip"), (2.0, "domain"))
    ]
    mark_best(cells, "lower")
    assert not any(one["best"] for one in cells)


def test_an_empty_place_says_why(table, store):
    assert cell(table, "clip")["why"] == "the weights of clip are not here"
    assert cell(table, "plain", 1)["why"] == "Inception's last block is not here"
    plan = make_plan(study(), At("pocket", None, "shapes:length=4", 8), range(3))
    partly = outcome(plan, VALUES | {"plain": ([3.0, float("nan"), 4.0], False)})
    lost = next(job for job in plan.jobs if job.words[0] == "evaluate" and job.words[1].words[2:] == ("tuned", "2"))
    partly.failed[lost.key] = "evaluate-x ended with 1: percepta evaluate\nno room"
    del partly.records[lost.key]
    made = make_table(plan, store, partly)
    assert cell(made, "plain")["why"].startswith("2 of 3 seeds: not finite") and cell(made, "plain")["mean"] == pytest.approx(3.5)
    assert cell(made, "tuned")["why"] == "2 of 3 seeds: no room" and not made["finished"]
    assert list(made["failed"]) == [lost.name]
    nothing = make_table(plan, store, Outcome(stopped=True))
    assert cell(nothing, "plain")["why"] == "not done yet" and not nothing["finished"]
    assert "Not finished" in markdown(nothing) and "not done yet" in html(nothing)


def test_a_row_without_a_seed_has_no_spread(store):
    rows = (Row("real", lambda at, column, seed: "images"), Row("plain", make("plain")))
    plan = make_plan(study(rows=rows), At("pocket", None, "shapes:length=4", 8), range(3))
    assert [len(one.readings) for one in plan.cells] == [1, 1, 3, 3]


def test_rows_of_the_other_scale_are_left_out():
    rows = (
        Row("small", make("plain"), scales=("pocket",)),
        Row("large", make("plain"), scales=("paper",)),
        Row("theirs", None, (1.0, 2.0)),
    )
    for scale, labels in (("pocket", ["small", "theirs"]), ("paper", ["large", "theirs"])):
        plan = make_plan(study(rows=rows), At(scale, None, "x", 8), range(1))
        assert [cells[0].row.label for cells in plan.rows] == labels


def test_a_number_too_many_of_the_paper_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        make_plan(study(rows=(Row("x", make("plain"), (1.0, 2.0, 3.0)),)), At("pocket", None, "x", 8), range(1))


def test_the_text(table):
    text = markdown(table)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "4.000 ± 1.0 (9.5)" in lines["plain"] and "**1.100 ± 0.10** (9.5)" in lines["tuned"]
    assert "0.1333 ± 0.058† (9.5)" in lines["vain"] and "(13.9)" in lines["GENIE"]
    assert "a ↓" in text and "b ↑" in text and "of 50,000 samples" in text and "trained against" in text
    assert "percepta sample" in text and "domain: against 9 images of shapes" in text and "taught" in text
    assert [note["text"] for note in notes(table)] == ["Inception's last block is not here", "the weights of clip are not here"]
    assert [note["cells"] for note in notes(table)] == [["plain (b)", "tuned (b)", "vain (b)"], ["clip"]]
    clean = [row for row in table["rows"] if row["label"] != "vain"]
    assert "trained against" not in markdown({**table, "rows": clean})


def test_a_note_names_a_group_that_has_no_number_at_all(store):
    columns = (
        Column("a", "metrics.fid"),
        *(Column(label, "metrics.is", group=group) for group in ("far", "wide") for label in "bc"),
    )
    plan = make_plan(study(columns=columns, rows=(Row("plain", make("plain")),)), At("pocket", None, "x", 8), range(1))
    made = make_table(plan, store, outcome(plan))
    assert [note["cells"] for note in notes(made)] == [["plain (far, wide)"]]
    made["rows"][0]["cells"][2]["why"] = ""
    assert [note["cells"] for note in notes(made)] == [["plain (far b, wide)"]]


def test_the_page_is_one_file_that_runs_nothing(table, store, tmp_path):
    from PIL import Image

    store.folder(BASE).mkdir(parents=True)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(store.folder(BASE) / "a.png")
    figures = [
        Figure("Shown", "words", BASE, "a.png"),
        Figure("Gone", "words", BASE, "b.png"),
        Figure("Never", "words", why="no <run>"),
    ]
    plan = make_plan(study(figures=lambda at: figures, summary="<script>alert(1)</script>"), At("pocket", None, "x", 8), range(3))
    made = make_table(plan, store, outcome(plan))
    files = save(made, tmp_path / "out")
    page = files["html"].read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "no &lt;run&gt;" in page
    assert "default-src 'none'" in page and not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/webp") == 1 and "b.png is not there" in page
    assert "trained&nbsp;against" in page and "paper 9.5" in page and '<span class="mark">best</span>' in page
    assert json.loads(files["json"].read_text()) == json.loads(json.dumps(made))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["figure-1.png", "table.html", "table.json", "table.md"]


def test_a_value_in_a_file_of_the_job(store):
    rows = (Row("x", make("plain")),)

    def from_file(at, images, column, seed):
        return Reading(images, column.place, "copying.json")

    plan = make_plan(study(rows=rows, judge=from_file, columns=(Column("near", "nearer"),)), At("pocket", None, "x", 8), range(2))
    out = Outcome(records={job.key: {"seconds": 1.0, "result": None} for job in plan.jobs})
    first = plan.cells[0].readings[0].job
    store.folder(first).mkdir(parents=True)
    (store.folder(first) / "copying.json").write_text('{"nearer": 0.25}')
    found = make_table(plan, store, out)["rows"][0]["cells"][0]
    assert found["values"] == [0.25] and "cannot be read" in found["why"]

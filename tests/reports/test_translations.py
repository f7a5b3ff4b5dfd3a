"""Translations in the page: strips are cut out of a grid where its protocol says they lie, and each direction has a block of its own."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import COLUMNS, EVIL, Page, tile_colour, translation_grid

from percepta.images import grid as lay
from percepta.images import save_png
from percepta.reports import read_run, write_report
from percepta.reports.pictures import PAGE
from percepta.reports.run import Grid
from percepta.reports.translations import LATEST, PER_LINE, Cut, _budgets, blocks, comparable_strips, cut

PROTOCOL = {"columns": ["image", "translation"], "rows": {"a2b": 1, "b2a": 1}}


def cuts_of(*roots) -> list[tuple[str, list[Cut]]]:
    return [(run.name, [part for one in run.grids if (part := cut(one))]) for run in map(read_run, roots)]


def test_every_image_is_found_at_its_place(make_translator) -> None:
    ((_, (first, last)),) = cuts_of(make_translator(rows=3))
    assert first.step == 20 and last.counts == {"a2b": 3, "b2a": 3} and len(last.strips) == 8
    for (way, kind), strip in last.strips.items():
        assert strip.size == (3 * 66 - 2, 64)
        for row in range(3):
            tile = np.asarray(strip)[:, row * 66 : row * 66 + 64]
            assert (tile == tile_colour(way, row, kind, 40)).all(), (way, kind, row)


@pytest.mark.parametrize("side", [8, 32, 64, 160])
def test_what_a_preview_lays_is_what_is_cut(tmp_path, side: int) -> None:
    """The white between images is that of percepta.images.grid, at every size."""
    values = torch.linspace(-1, 0.9, 6)
    save_png(tmp_path / "g.png", lay(values[:, None, None, None].expand(6, 3, side, side), 2))
    protocol = {"columns": ["image", "translation"], "rows": {"a2b": 2, "b2a": 1}}
    found = cut(Grid(1, tmp_path / "g.png", protocol))
    assert found is not None and found.coarse == (side < 128)
    order = [
        ("a2b", "image", 0),
        ("a2b", "translation", 0),
        ("a2b", "image", 1),
        ("a2b", "translation", 1),
        ("b2a", "image", 0),
        ("b2a", "translation", 0),
    ]
    zoomed = side * max(1, 64 // side)
    for value, (way, kind, k) in zip(values, order, strict=True):
        tile = np.asarray(found.strips[way, kind])[:, k * (zoomed + 2) :][:, :zoomed]
        assert tile.shape == (zoomed, zoomed, 3) and (tile == round((value.item() + 1) * 127.5)).all()


@pytest.mark.parametrize(
    "protocol",
    [
        {}, {"shows": "threes: image, translation, and back; first a2b, then b2a", "together": 3, "num": 12}, {**PROTOCOL, "columns": "image"},
        {**PROTOCOL, "columns": ["image", "back"]}, {**PROTOCOL, "columns": ["image", "translation", "else"]}, {**PROTOCOL, "columns": [1, {}]},
        {**PROTOCOL, "columns": ["image", "image", "translation"]}, {**PROTOCOL, "rows": {}}, {**PROTOCOL, "rows": {"a2b": 0}},
        {**PROTOCOL, "rows": {"a2b": "2"}}, {**PROTOCOL, "rows": {"c2d": 1}}, {**PROTOCOL, "rows": [1]}, {**PROTOCOL, "rows": {"a2b": True}},
    ],
)  # fmt: skip
def test_other_grids_are_shown_whole(make_translator, tmp_path, protocol) -> None:
    root = make_translator()
    for path in (root / "samples").glob("*.json"):
        path.write_text(json.dumps(protocol))
    assert all(cut(one) is None for one in read_run(root).grids)
    report = write_report([root], tmp_path / "r.html")
    text = report.out.read_text()
    assert not report.notes and text.count('alt="Grid of samples of first') == 2 and 'class="way"' not in text


def test_a_grid_that_is_not_what_is_said_of_it_is_shown_whole_and_named(make_translator, tmp_path) -> None:
    root = make_translator(grids=(20, 40, 60))
    Image.new("RGB", (100, 100)).save(root / "samples" / "step-0000040.png")
    (root / "samples" / "step-0000060.png").write_bytes(b"\x89PNG")
    (root / "samples" / "step-0000080.png").write_bytes(b"")
    report = write_report([root], tmp_path / "r.html")
    assert len(report.notes) == 3 and len(set(report.notes)) == 3
    assert "step-0000040.png is 100 x 100 px" in report.notes[0] and "shown whole" in report.notes[0]
    text = report.out.read_text()
    assert 'alt="Grid of samples of first at step 40"' in text and "of first at step 20" in text


def test_one_run_has_a_block_per_direction(make_translator) -> None:
    there, back = blocks(cuts_of(make_translator()))
    assert (there["title"], back["title"], there["apart"], there["attention"]) == ("A → B", "B → A", False, True)
    assert [row["label"] for row in there["rows"]] == ["Source", "Attention", "Translation", "Back again"] and not there["more"]
    assert [len(row["pictures"]) for row in there["rows"]] == [1, 2, 2, 2], "the source is the same at every step"
    assert [one["step"] for one in back["rows"][2]["pictures"]] == [20, 40]
    assert "Translations B → A of first at step 40" in back["rows"][2]["pictures"][-1]["alt"]


def test_runs_of_the_same_images_stand_under_each_other(make_translator) -> None:
    runs = cuts_of(make_translator("a"), make_translator("b", columns=("image", "translation", "back")), make_translator("c"))
    there, _ = blocks(runs)
    assert [row["label"] for row in there["rows"]] == ["Source", "a", "b", "c"]
    assert [(row["label"], row["beside"]) for row in there["more"]] == [
        ("Attention", "a"), ("Attention", "c"), ("Back again", "a"), ("Back again", "b"), ("Back again", "c"),
    ]  # fmt: skip
    assert [place for place, _ in comparable_strips(there)] == [0, 0, 1, 1, 2, 2]
    assert len({one["how"]["images"] for _, one in comparable_strips(there)}) == 1


def test_runs_of_other_images_are_kept_apart(make_translator) -> None:
    found = blocks(cuts_of(make_translator("a"), make_translator("b", seed=1), make_translator("c")))
    assert [[row["label"] for row in block["rows"]] for block in found] == [["Source", "a", "c"], ["Source", "b"]] * 2
    assert all(block["apart"] for block in found)


def test_steps_at_which_a_run_saw_other_images_are_left_out(make_translator) -> None:
    root = make_translator(grids=(20, 40, 60))
    translation_grid(root / "samples" / "step-0000020.png", 20, 3, COLUMNS, seed=9)
    there, _ = blocks(cuts_of(root))
    assert [one["step"] for one in there["rows"][2]["pictures"]] == [40, 60]


def test_many_images_go_on_below(make_translator) -> None:
    ((_, cuts),) = cuts_of(make_translator(rows=PER_LINE - 1, grids=(2,)))
    assert cuts[0].strips["a2b", "image"].size == ((PER_LINE - 1) * 66 - 2, 64)
    ((_, cuts),) = cuts_of(make_translator("more", rows=PER_LINE + 2, grids=(2,)))
    assert cuts[0].strips["b2a", "back"].size == ((PER_LINE // 2 + 1) * 66 - 2, 130), "lines of one length"
    below = np.asarray(cuts[0].strips["b2a", "back"])[66:, :64]
    assert (below == tile_colour("b2a", PER_LINE // 2 + 1, "back", 2)).all()
    assert blocks([("more", cuts)])[0]["wide"]


def test_a_page_stays_small() -> None:
    """However many runs, steps and strips there are: half of the room for the last steps, half for all before."""
    strips = {(way, kind): Image.new("RGB", (4, 4)) for way in ("a2b", "b2a") for kind in COLUMNS}
    for runs in (1, 3, 20):
        for steps in (1, 2, 24):
            cuts = [[Cut(k, strips, {}, {}, True) for k in range(steps)]] * runs
            latest, earlier = _budgets(cuts)
            assert runs * 8 * (latest + (steps - 1) * earlier) <= PAGE and max(latest, earlier) <= LATEST
    assert _budgets([]) == (LATEST, LATEST)


def test_the_page_is_whole_and_can_be_read_with_ears(make_translator, tmp_path) -> None:
    roots = [make_translator(EVIL.replace("/", "")), make_translator("b", seed=1, rows=2)]
    page = Page(write_report(roots, tmp_path / "r.html").out.read_text())
    assert page.open == []
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    pictures = [a for a in page.all("img") if a.get("src")]
    assert len(pictures) >= 2 * 2 * (1 + 3 * 2) and all(a.get("alt") for a in pictures)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert [name for name, a in page.tags if "onerror" in a or a.get("src") == "x"] == []
    assert "have not translated the same images" in page.text and "each image by a scale of its own" in page.text


def test_a_generator_without_attention_is_not_said_to_have_some(make_translator, tmp_path) -> None:
    root = make_translator(columns=("image", "translation", "back"))
    text = write_report([root], tmp_path / "r.html").out.read_text()
    assert "Attention" not in text.partition('id="samples"')[2].partition('id="compare"')[0] and "The way back" not in text
    assert (
        "The way back"
        in write_report([root, make_translator("b", columns=("image", "translation", "back"))], tmp_path / "r.html").out.read_text()
    )


def test_a_translator_next_to_another_method(make_translator, make_run, tmp_path) -> None:
    page = Page(write_report([make_run("noise"), make_translator("ways")], tmp_path / "r.html").out.read_text())
    assert (
        page.open == []
        and "Source" in page.text
        and "Grid of samples of noise at step 40" in {a.get("alt") for a in page.all("img")}
    )
    data = json.loads(page.inside["script"][0])
    assert [[one.get("of") for one in run["grids"]] for run in data["runs"]] == [[None, None], ["A → B", "A → B", "B → A", "B → A"]]


def test_one_step_is_nothing_to_compare(make_translator, tmp_path) -> None:
    root = make_translator(grids=(20,))
    assert "Nothing to compare" in write_report([root], tmp_path / "r.html").out.read_text()
    assert "Nothing to compare" not in write_report([root, make_translator("b", grids=(20,))], tmp_path / "r.html").out.read_text()


def test_a_small_share_is_not_called_none(make_translator, tmp_path) -> None:
    root = make_translator()
    shares = {"share/cycle": 0.963, "share/cam": 0.0312, "share/identity": 0.0001, "share/adversarial/a": 0.0}
    (root / "metrics.jsonl").write_text(json.dumps({"step": 1, "cycle": 1.0, "critic/adversarial/a": 1.0, **shares}) + "\n")
    text = " ".join(Page(write_report([root], tmp_path / "r.html").out.read_text()).text.split())
    for said in (
        "There and back 96% → 96%",
        "Attention classifier 3.1% → 3.1%",
        "Leaving alone what is there under 0.1% →",
        "critic of A 0% → 0%",
    ):
        assert said in text, said

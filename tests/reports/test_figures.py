"""Figures: the pixels that were given are in the picture, the words beside it, and what does not fit is refused."""

import json

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from percepta.reports import Words, curve_plots, distribution_plot, figures, heat_map, heat_maps, neighbour_panel, strip

WORDS = Words("A title", "A caption", "What is seen")


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_strip_holds_every_image_in_its_place(tmp_path) -> None:
    images = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * 40 + np.zeros((32, 32, 3), np.uint8)
    path = strip(tmp_path / "figures", "walk", [list(row) for row in images], WORDS)
    out = pixels(path)
    assert out.shape == (2 * 68 - 4, 3 * 68 - 4, 3), "32 pixels are shown as 64, with a gap of 4"
    for i in range(2):
        for j in range(3):
            assert (out[i * 68 : i * 68 + 64, j * 68 : j * 68 + 64] == 40 * (3 * i + j)).all()
    assert json.loads(path.with_suffix(".json").read_text()) == {"title": "A title", "caption": "A caption", "alt": "What is seen"}
    assert sorted(p.name for p in path.parent.iterdir()) == ["walk.json", "walk.png"]


def test_neighbours_are_shown_in_their_colours(tmp_path) -> None:
    colours = [np.full((8, 8, 3), c, np.uint8) for c in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    path = neighbour_panel(tmp_path, "near", colours[:1], [colours[1:]], np.array([[0.5, 1.5]]), WORDS)
    seen = {tuple(c) for c in pixels(path).reshape(-1, 3)[::7].tolist()}
    assert {(200, 0, 0), (0, 200, 0), (0, 0, 200)} <= seen
    with pytest.raises(ValueError, match="do not fit"):
        neighbour_panel(tmp_path, "near", colours[:1], [colours[1:]], np.zeros((1, 3)), WORDS)


def test_a_heat_map_and_a_distribution(tmp_path) -> None:
    a = pixels(heat_map(tmp_path, "map", np.eye(3), WORDS, rows=["a", "b", "c"], columns=["x", "y", "z"]))
    b = pixels(heat_map(tmp_path, "map", 1 - np.eye(3), WORDS, rows=["a", "b", "c"], columns=["x", "y", "z"]))
    assert a.shape == b.shape and (a != b).any()
    rng = np.random.default_rng(0)
    path = distribution_plot(
        tmp_path, "d", {"samples": rng.normal(size=50).tolist(), "held out": rng.normal(size=9).tolist()}, WORDS
    )
    assert pixels(path).std() > 5


def test_heat_maps_share_one_scale(tmp_path) -> None:
    out = pixels(heat_maps(tmp_path, "half", {"a": np.eye(3), "b": 2 * np.eye(3)}, WORDS)).astype(int)
    tops = {}
    for value in (0.5, 1.0):
        colour = (np.array(colormaps["cividis"](value)[:3]) * 255).round()
        tops[value] = (np.abs(out - colour).max(-1) <= 2).sum()
    assert tops[0.5] > 5000 and tops[1.0] == pytest.approx(tops[0.5], rel=0.1), (
        "the ones of the first map are half way up the scale"
    )
    for wrong in ({}, {"a": np.full((2, 2), np.nan)}):
        with pytest.raises(ValueError, match="heat maps"):
            heat_maps(tmp_path, "none", wrong, WORDS)


def test_curves_are_drawn_in_plots_of_their_own(tmp_path) -> None:
    one = {1.0: (3.0, None), 2.0: (1.0, None), 3.0: (2.0, None)}
    plain = pixels(curve_plots(tmp_path, "c", {"FID": one}, WORDS, "guidance"))
    marked = pixels(curve_plots(tmp_path, "c", {"FID": one}, WORDS, "guidance", {"FID": (2.0,)}))
    banded = pixels(curve_plots(tmp_path, "c", {"FID": {x: (y, 0.5) for x, (y, _) in one.items()}}, WORDS, "guidance"))
    assert (plain != 255).any(-1).sum() < min((marked != 255).any(-1).sum(), (banded != 255).any(-1).sum())
    five = pixels(curve_plots(tmp_path, "c", {f"metric {k}": one for k in range(5)}, WORDS, "guidance"))
    assert five.shape[0] > 1.5 * plain.shape[0] and five.shape[1] > 2 * plain.shape[1], "three beside each other, two below"


@pytest.mark.parametrize("level", [12.345, 0.01234, 2345.6])
def test_a_curve_that_hardly_moves_is_flat_and_its_axis_says_what_it_is(level, tmp_path, monkeypatch) -> None:
    drawn, seen = figures._drawn, []

    def spy(figure, *options):
        picture = drawn(figure, *options)
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        labels = [
            float(t.get_text().replace("\N{MINUS SIGN}", "-")) for t in axes.get_yticklabels() if low <= t.get_position()[1] <= high
        ]
        seen.append((axes.yaxis.get_offset_text().get_text(), labels, (high - low) / level))
        return picture

    monkeypatch.setattr(figures, "_drawn", spy)
    for step in (1e-7, 1e-2):
        curve_plots(tmp_path, "c", {"FID": {float(k): (level * (1 + step * k), None) for k in range(4)}}, WORDS, "guidance")
    curve_plots(tmp_path, "c", {"FID": {1.0: (float("nan"), None)}}, WORDS, "guidance")
    for offset, labels, _ in seen[:2]:
        assert offset == "" and len(labels) > 1
        assert all(abs(label / level - 1) < 0.1 for label in labels), "no differences to a number above the axis"
    assert seen[0][2] == pytest.approx(0.002, rel=0.01) and 0.03 < seen[1][2] < 0.05


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda f: strip(f, "../out", [[np.zeros((4, 4, 3), np.uint8)]], WORDS), "file name"),
        (lambda f: strip(f, "x", [[np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)]], WORDS), "one size"),
        (lambda f: strip(f, "x", [], WORDS), "one size"),
        (lambda f: heat_map(f, "x", np.array([[np.nan]]), WORDS), "finite"),
        (lambda f: heat_map(f, "x", np.eye(2), WORDS, rows=["only one"]), "labels"),
        (lambda f: distribution_plot(f, "x", {"a": []}, WORDS), "'a'"),
        (lambda f: distribution_plot(f, "x", {}, WORDS), "lists"),
        (lambda f: curve_plots(f, "x", {}, WORDS, "guidance"), "curves need points"),
        (lambda f: curve_plots(f, "x", {"FID": {}}, WORDS, "guidance"), "curves need points, got {'FID': 0}"),
    ],
)
def test_what_does_not_fit_is_refused(draw, said: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=said):
        draw(tmp_path)
    assert not list(tmp_path.iterdir())

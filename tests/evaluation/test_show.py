"""The table of a terminal: every name survives, whatever its letters, and sides without a count do not break it."""

import io

import pytest
from rich.console import Console

from percepta.evaluation.evaluate import Evaluation
from percepta.evaluation.metrics import METRICS, Value
from percepta.evaluation.show import label_of, show, text_of


def result(metrics, missing=None, name="runs/[bold]a", **reference):
    side = {"name": name, "count": 24, "conversions": {}}
    extractors = {"inception": {"weights": "a" * 64, "resize": "tf1-bilinear to 299", "precision": "fp32", "layers": ["2048"]}}
    protocol = {"generated": side, "reference": {**side, **reference}, "dialect": {"name": "adm"}, "extractors": extractors}
    return Evaluation(metrics, protocol, ["a set is [red]small[/red]"], missing or {})


def shown(found, width=100):
    out = io.StringIO()
    show(found, Console(file=out, width=width))
    return out.getvalue()


def test_names_with_brackets_are_shown_as_they_are():
    text = shown(result({"fid": Value(12.5, "inception-2048")}, {"is": "weights [x] are missing: put f from https://a/b"}))
    for words in ("runs/[bold]a", "[red]small[/red]", "weights [x] are missing", "https://a/b"):
        assert words in text
    assert "FID" in text
    assert "12.500" in text


def test_statistics_without_a_count_are_shown():
    text = shown(result({"fid": Value(1.0, "inception-2048")}, name="s.npz", count=None, statistics=True))
    assert "statistics" in text
    assert "None" not in text


def test_a_mark_stands_in_the_row_of_its_metric():
    found = result({"fid": Value(1.0, "pixels", None, True), "fid@inception-64": Value(2.0, "inception-64")})
    rows = {row.split()[-1] if "trained" not in row else "marked": row for row in shown(found).splitlines() if "1.0000" in row or "2.0000" in row}  # fmt: skip
    assert "1.0000" in rows["marked"]
    assert "2.0000" in rows["inception-64"]


@pytest.mark.parametrize("width", [80, 120])
def test_values_are_whole_at_any_width(width):
    metrics = {key: Value(0.0123, metric.home, 0.0004) for metric in METRICS.values() for key in metric.keys}
    text = shown(result(metrics), width)
    assert text.count("0.0123 ± 0.0004") == len(metrics)


def test_only_the_published_distance_is_called_fid():
    spaces = {"inception-2048": "FID", "inception-768": "FID-768", "pixels": "Frechet distance", "clip": "Frechet distance"}
    assert {space: label_of("fid@x", space) for space in spaces} == spaces


@pytest.mark.parametrize(
    ("value", "std", "text"),
    [(12.3456, None, "12.346"), (0.5, None, "0.5000"), (0.0, None, "0.0000"), (0.00012345, None, "0.000123"), (0.0123, 0.0004, "0.0123 ± 0.0004")],
)  # fmt: skip
def test_numbers_keep_the_digits_that_matter(value, std, text):
    assert text_of(value, std) == text

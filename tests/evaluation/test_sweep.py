"""Guidance sweeps without a model: which weights a flag names, what is best, what all weights share, and the table."""

import io
import json

import pytest
from rich.console import Console

from percepta.evaluation.evaluate import Evaluation
from percepta.evaluation.metrics import Value
from percepta.evaluation.show_sweep import show_sweep
from percepta.evaluation.sweep import Sweep, decisive, from_json, is_sweep, shared, weights_of


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("1.5", (1.5,)),
        ("1:4:0.25", tuple(1 + k / 4 for k in range(13))),
        ("1:2:0.1", (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)),
        ("1:2:0.4", (1.0, 1.4, 1.8)),
        ("2:2:1", (2.0,)),
        ("4, 1,1.50,1.5", (1.0, 1.5, 4.0)),
        ("1,", (1.0,)),
        ("-1,0", (-1.0, 0.0)),
        ("1:100:1", tuple(float(k) for k in range(1, 101))),
    ],
)
def test_weights_are_read_as_written(text, weights):
    assert weights_of(text) == weights
    assert is_sweep(text) == (text != "1.5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "'' is not a guidance weight"), ("big", "'big' is not a guidance weight"), ("nan", "'nan' is not"), ("1,inf", "'inf' is not"),
        ("1,,2", "'' is not"), ("1:4", "has 2 parts"), ("1:2:3:4", "has 4 parts"), ("1:4:0", "the step must be above 0, got 0"),
        ("1:4:-1", "must be above 0"), ("4:1:1", "ends below its beginning; write 1:4:1"), ("1:x:1", "'x' is not"),
        ("1:101:1", "names 101 weights, up to 100"), ("0:1e6:1e-9", "up to 100 are drawn"), ("1e9", "is not a guidance weight"),
        (",".join(map(str, range(101))), "names 101 weights"),
    ],
)  # fmt: skip
def test_a_malformed_weight_is_named(text, said):
    with pytest.raises(ValueError, match="--guidance") as refused:
        weights_of(text)
    assert said in str(refused.value)


def judged(weight, **metrics):
    generated = {"name": f"runs/a/evaluation/drawn/{weight}", "count": 8, "transform": "none", "fingerprint": str(weight)}
    drawn = {"source": "runs/a", "sampler": "ddim", "steps": 3, "guidance": weight, "seed": 0, "clip": None}
    protocol = {
        "generated": {**generated, "drawn": drawn}, "reference": {"name": "real", "count": 9}, "extractors": {},
        "dialect": {"name": "torch-fidelity"}, "seed": 0,
    }  # fmt: skip
    values = {name: value if isinstance(value, Value) else Value(value, "inception-2048") for name, value in metrics.items()}
    warnings = [f"runs/a/evaluation/drawn/{weight}: 8 images are too few", "KID-768 is not KID"]
    return Evaluation(values, protocol, warnings, {"cmmd": "no weights"})


def made(**curves):
    weights = (1.0, 1.5, 2.0)
    return Sweep("runs/a", {w: judged(w, **{name: curve[k] for name, curve in curves.items()}) for k, w in enumerate(weights)})


def test_the_best_is_the_lowest_or_the_highest_and_never_one_that_was_trained_against():
    marked = [Value(v, "pixels", None, True) for v in (1.0, 2.0, 3.0)]
    found = made(fid=(3.0, 1.0, 2.0), recall=(0.1, 0.2, 0.3), kid=marked, sfid=(1.0, 1.0, 1.0), cmmd=(float("nan"), 2.0, 3.0))
    assert found.best() == {"fid": 1.5, "recall": 2.0, "cmmd": 1.5}
    assert found.metrics == ("fid", "recall", "kid", "sfid", "cmmd")


def test_what_is_printed_alike_is_starred_alike():
    found = made(fid=(12.34501, 12.34549, 12.3449), recall=(0.1, 0.50001, 0.50003), kid=(3.0, 1.0, 2.0))
    assert found.best() == {"recall": 2.0, "kid": 1.5}, "nothing tells the first three: none is the best"
    assert found.starred() == {"recall": [1.5, 2.0], "kid": [1.5]}
    assert found.close() == {"recall": [1.5]}
    rows = [line.split() for line in shown(found, 80).splitlines() if line[:8].strip() in ("1", "1.5", "2")]
    assert [row[1:3] for row in rows] == [["12.345", "0.1000"], ["12.345", "0.5000*"], ["12.345", "0.5000*"]]
    marked = Sweep(
        "runs/a", {1.0: judged(1.0, fid=Value(1.0, "x", None, True)), 2.0: judged(2.0, fid=1.00001), 3.0: judged(3.0, fid=2.0)}
    )
    assert marked.starred() == {"fid": [2.0]}, "never what was trained against"


def test_weights_that_nothing_tells_from_the_best_are_named():
    values = [Value(v, "pixels", 0.2) for v in (1.0, 1.1, 1.5)]
    assert made(kid=values, fid=(1.0, 1.1, 2.0), recall=(0.1, 0.5, 0.5)).close() == {"kid": [1.5], "recall": [2.0]}


def test_what_is_shared_and_what_is_said_once():
    common = made(fid=(3.0, 1.0, 2.0)).summary()
    generated = common.protocol["generated"]
    assert generated["name"] == "runs/a"
    assert "fingerprint" not in generated
    assert generated["drawn"] == {"source": "runs/a", "sampler": "ddim", "steps": 3, "seed": 0, "clip": None}
    assert common.warnings == ["runs/a: 8 images are too few", "KID-768 is not KID"]
    assert common.missing == {"cmmd": "no weights"}
    assert shared([{"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 3}]) == {"a": {"b": 1}}


def test_two_weights_of_a_sweep_are_alike_in_all_that_decides_but_the_weight():
    one, other = (decisive(judged(w, fid=1.0).protocol) for w in (1.0, 2.0))
    assert one == other
    changed = judged(2.0, fid=1.0).protocol
    for part, key, value in (("drawn", "steps", 4), ("generated", "count", 9)):
        there = changed["generated"]["drawn"] if part == "drawn" else changed["generated"]
        before, there[key] = there[key], value
        assert decisive(changed) != one, key
        there[key] = before
    assert decisive({**changed, "seed": 1}) != one


def test_json_goes_there_and_back():
    found = made(fid=(3.0, 1.0, 2.0), kid=[Value(v, "pixels", 0.1) for v in (1.0, 2.0, 3.0)])
    point = found.points[1.5]
    assert from_json(json.loads(json.dumps(point.to_json()))) == point
    record = found.to_json()
    assert [row["guidance"] for row in record["sweep"]] == [1.0, 1.5, 2.0]
    assert record["sweep"][1]["metrics"]["fid"] == {"value": 1.0, "space": "inception-2048", "contaminated": False}
    assert record["best"] == {"fid": 1.5, "kid": 1.0}
    assert set(record) == {"sweep", "best", "close", "protocol", "warnings", "missing"}


def shown(found, width):
    out = io.StringIO()
    show_sweep(found, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def test_the_table_has_a_row_per_weight_and_marks_the_best():
    text = shown(made(fid=(30.0, 10.0, 20.0), recall=(0.1, 0.2, 0.3), kid=[Value(v, "pixels", None, True) for v in (1, 2, 3)]), 80)
    rows = [line.split() for line in text.splitlines() if line[:8].strip() in ("1", "1.5", "2")]
    assert rows == [
        ["1", "30.000", "0.1000", "1.0000!"],
        ["1.5", "10.000*", "0.2000", "2.0000!"],
        ["2", "20.000", "0.3000*", "3.0000!"],
    ]
    assert "guidance" in text.splitlines()[3]
    assert "* the best of its metric" in text
    assert "! trained against: never the best" in text
    assert "drawn  source runs/a, sampler ddim, steps 3, seed 0" in text
    assert "not computed  cmmd: no weights" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_columns_that_do_not_fit_go_on_below(width):
    names = ("fid", "sfid", "is", "kid", "precision", "recall", "density", "coverage", "lpips-diversity")
    text = shown(made(**dict.fromkeys(names, (3.0, 1.0, 2.0))), width)
    tables = [line for line in text.splitlines() if "guidance" in line]
    assert len(tables) >= 2
    assert max(map(len, tables)) <= width
    heads = " ".join(tables)
    assert all(word in heads for word in ("FID", "sFID", "Inception Score", "KID", "precision", "LPIPS diversity"))
    assert text.count("…") == 0

"""Charts: thinning loses no spike, gaps stay gaps, and evaluations made differently are not drawn as one line."""

import json
import math

import pytest
from run_folders import translated

from percepta.reports import read_run, read_runs
from percepta.reports.curves import comparable, evaluation_charts, thin, training_charts


def by_title(charts) -> dict:
    return {chart["title"]: chart for chart in charts}


@pytest.mark.parametrize("count", [5, 399, 400, 401, 1000, 20_000])
def test_thinning_keeps_the_envelope(count: int) -> None:
    y = [math.sin(k) for k in range(count)]
    y[count // 2] = 100.0
    out = thin(range(count), y, 400)
    assert len(out["x"]) == min(count, 400)
    assert max(out.get("hi", out["y"])) == 100.0
    assert min(out.get("lo", out["y"])) == pytest.approx(min(y), rel=1e-4)
    assert out["x"][-1] == count - 1 and out["x"] == sorted(out["x"])
    if count > 400:
        assert all(lo <= mean <= hi for lo, mean, hi in zip(out["lo"], out["y"], out["hi"], strict=True))


def test_thinning_of_gaps() -> None:
    out = thin(range(1000), [None] * 500 + [1.0] * 500, 10)
    assert out["y"] == [None] * 5 + [1.0] * 5 == out["lo"] == out["hi"]


def test_what_is_drawn_where(make_run) -> None:
    groups = training_charts(read_runs([make_run("a"), make_run("b")]))
    assert list(by_title(groups["terms"])) == ["denoising"]
    assert list(by_title(groups["shares"])) == ["Share of the gradient: a", "Share of the gradient: b"]
    assert [line["name"] for line in groups["shares"][0]["lines"]] == ["denoising", "mmd2"]
    assert list(by_title(groups["optimizer"])) == ["Gradient norm: model", "Learning rate"]
    assert list(by_title(groups["machine"])) == ["Throughput", "Memory"]
    line = groups["terms"][0]["lines"][1]
    assert (line["run"], line["name"], line["first"], line["last"], line["least_at"]) == (1, "b", 0.5, 0.025, 40)
    assert line["x"] == list(range(2, 41, 2)) and line["y"][0] == 0.5


def test_what_is_told_of_a_term_is_no_loss(make_run) -> None:
    root = make_run()
    told = {"denoising": 1.0, "structure/a": 0.5, "structure/a/drift": 0.1, "weight/structure/a": 2.0}
    (root / "metrics.jsonl").write_text(json.dumps({"step": 1, **told}) + "\n")
    groups = training_charts([read_run(root)])
    assert list(by_title(groups["terms"])) == ["denoising", "structure/a"]
    assert list(by_title(groups["told"])) == ["structure/a/drift", "weight/structure/a"]


def test_not_finite_values_are_gaps_that_are_counted(make_run) -> None:
    root = make_run()
    (root / "metrics.jsonl").write_text('{"step": 1, "a": NaN, "b": NaN}\n{"step": 2, "a": 3.0, "b": Infinity}\n')
    charts = by_title(training_charts([read_run(root)])["terms"])
    assert list(charts) == ["a"], "a term without a finite value has no line"
    assert charts["a"]["lines"][0]["y"] == [None, 3.0] and charts["a"]["lines"][0]["gaps"] == 1


def evaluated(root, steps, count=5000, contaminated=False) -> None:
    protocol = {"generated": {"count": count}, "reference": {"fingerprint": "x"}}
    metrics = {"kid": {"value": 0.5, "std": 0.125, "space": "clip", "contaminated": contaminated}}
    with (root / "evaluations.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": s, "metrics": metrics, "protocol": protocol}) + "\n" for s in steps)


def test_evaluation_curves_have_spread_and_marks(make_run) -> None:
    root = make_run()
    evaluated(root, [20, 40], contaminated=True)
    (chart,), notes = evaluation_charts([read_run(root)])
    (line,) = chart["lines"]
    assert (chart["title"], chart["about"], notes) == ("KID in clip", "lower is better", [])
    assert (line["x"], line["y"], line["lo"], line["hi"], line["marked"]) == (
        [20, 40],
        [0.5] * 2,
        [0.375] * 2,
        [0.625] * 2,
        [True] * 2,
    )


def test_one_evaluation_is_no_curve(make_run) -> None:
    root = make_run()
    evaluated(root, [40])
    assert evaluation_charts([read_run(root)]) == ([], [])


def test_evaluations_of_another_protocol_are_left_out_and_said(make_run) -> None:
    root = make_run()
    evaluated(root, [20, 40])
    (root / "evaluation").mkdir()
    record = {"step": 40, "label": "final", "metrics": {"kid": {"value": 9.0}}, "protocol": {"generated": {"count": 50000}}}
    (root / "evaluation" / "final.json").write_text(json.dumps(record))
    run = read_run(root)
    assert [j.metrics["kid"]["value"] for j in comparable(run)[0]] == [0.5, 0.5]
    _, notes = evaluation_charts([run])
    assert notes == ["first: final measured in another way, and not in these curves"]


def test_runs_measured_differently_are_said_to_be(make_run) -> None:
    a, b = make_run("a"), make_run("b")
    evaluated(a, [20, 40])
    evaluated(b, [20, 40], count=10_000)
    _, notes = evaluation_charts(read_runs([a, b]))
    assert len(notes) == 1 and "generated.count (5000 or 10000)" in notes[0]


def test_a_translator_has_a_curve_per_direction(make_translator) -> None:
    root = make_translator()
    found = [{"step": s, **translated(fid=100 / s)} for s in (20, 40)]
    (root / "evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    charts, notes = evaluation_charts([read_run(root)])
    assert list(by_title(charts)) == [
        "FID, A → B", "FID, B → A", "KID × 100, A → B", "KID × 100, B → A", "Shape right, A → B", "Shape right, B → A",
    ]  # fmt: skip
    (fid,), (kid,) = charts[1]["lines"], charts[2]["lines"]
    assert fid["y"] == [10.0, 5.0] and kid["y"] == [0.5, 0.25] and kid["lo"] == [0.35, 0.1] and kid["hi"] == [0.65, 0.4]
    assert notes == [] and charts[0]["about"] == "lower is better" and charts[4]["about"] == "higher is better"
    for one in found:
        one["metrics"] = dict(reversed(one["metrics"].items()))
    (root / "evaluations.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    titles = list(by_title(evaluation_charts([read_run(root)])[0]))
    assert titles == [f"{name}, {way}" for name in ("Shape right", "KID × 100", "FID") for way in ("A → B", "B → A")]


def test_another_set_for_the_way_back_is_another_protocol(make_translator) -> None:
    root, other = make_translator("a"), make_translator("b")
    changed = translated()
    changed["protocol"]["b2a"]["reference"]["fingerprint"] = "new"
    for one, record in ((root, translated()), (other, changed)):
        (one / "evaluations.jsonl").write_text("".join(json.dumps({"step": s, **record}) + "\n" for s in (20, 40)))
    _, notes = evaluation_charts(read_runs([root, other]))
    assert len(notes) == 1 and "b2a.reference.fingerprint (ra or new)" in notes[0]

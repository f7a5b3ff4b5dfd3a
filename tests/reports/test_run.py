"""Reading run folders: whatever is missing or broken is left out and said, and never stops a report."""

import json

import pytest

from percepta.reports import read_run, read_runs


def test_a_whole_run(make_run) -> None:
    run = read_run(make_run(evaluated={"fid": 8.5}))
    assert (run.recipe, run.step, run.finished) == ("ddpm", 40, True)
    assert [grid.step for grid in run.grids] == [20, 40]
    assert run.grids[0].protocol["seed"] == 0
    assert run.latest is not None and run.latest.metrics["fid"]["value"] == 8.5
    assert run.latest.warnings == ("5,000 images are few",)
    assert run.seconds == pytest.approx(40 * 16 / 32)
    assert not run.notes


def test_a_run_that_was_just_started(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"recipe": "flow", "settings": {"steps": 10}}')
    run = read_run(tmp_path)
    assert (run.step, run.finished, run.latest, run.seconds) == (0, False, None, None)
    assert not run.metrics and not run.grids and not run.panels and not run.notes


def test_the_last_line_may_be_half(make_run) -> None:
    run = read_run(make_run(tail='{"step": 42, "deno'))
    assert run.step == 40
    assert run.notes == ["metrics.jsonl: its last line was cut off or damaged, and left out"]


def test_lines_are_in_order_and_a_step_counts_once(make_run) -> None:
    root = make_run()
    (root / "metrics.jsonl").write_text('{"step": 4, "a": 1}\n{"step": 2, "a": 2}\nnoise\n[1]\n{"step": 4, "a": 3}\n')
    run = read_run(root)
    assert [(r["step"], r["a"]) for r in run.metrics] == [(2, 2), (4, 3)]
    assert run.notes == ["metrics.jsonl: 2 lines were cut off or damaged, and left out"]


def test_damaged_files_are_left_out_and_named(make_run) -> None:
    root = make_run(evaluated={"fid": 1.0})
    (root / "evaluation" / "evaluation.json").write_text("{")
    (root / "samples" / "step-0000020.json").write_text("\x00")
    run = read_run(root)
    assert run.latest is None and len(run.grids) == 2
    assert len(run.notes) == 2 and "evaluation.json" in " ".join(run.notes) and "step-0000020.json" in " ".join(run.notes)


@pytest.mark.parametrize("content", [None, "[]", "{", '"x"'])
def test_not_a_run_folder_is_one_line(tmp_path, content) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="not a run") as error:
        read_run(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        read_run(tmp_path / "nowhere")


def test_runs_of_one_name_are_told_apart_and_one_run_is_one(make_run, tmp_path) -> None:
    a, b = make_run("a/run"), make_run("b/run")
    assert [run.name for run in read_runs([a, b, a])] == ["a/run", "b/run"]
    with pytest.raises(ValueError, match="no run folder was given"):
        read_runs([])


def test_the_latest_evaluation(make_run) -> None:
    """By step; at one step the one made after training, and one without a step is of the finished model."""
    root = make_run()
    record = {"metrics": {"fid": {"value": 3.0}}, "protocol": {}}
    (root / "evaluations.jsonl").write_text(json.dumps({**record, "step": 20}) + "\n" + json.dumps({**record, "step": 40}) + "\n")
    assert read_run(root).latest.label == "step 40"
    (root / "evaluation").mkdir()
    (root / "evaluation" / "step-0000040.json").write_text(json.dumps({**record, "step": 40, "label": "after"}))
    (root / "evaluation" / "protocol.json").write_text("{}")
    assert read_run(root).latest.label == "after"
    (root / "evaluation" / "step-0000030.json").write_text(json.dumps({**record, "step": 30}))
    assert read_run(root).latest.label == "after"
    (root / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    assert read_run(root).latest.label == "evaluation"


def test_figures_are_found_with_their_words(make_run) -> None:
    from PIL import Image

    root = make_run()
    (root / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(root / "figures" / "with-words.png")
    (root / "figures" / "with-words.json").write_text('{"title": "T", "caption": "C", "alt": "A"}')
    Image.new("RGB", (4, 4)).save(root / "figures" / "no_words.png")
    assert [(p.title, p.caption, p.alt) for p in read_run(root).panels] == [("no words", "", "no words"), ("T", "C", "A")]

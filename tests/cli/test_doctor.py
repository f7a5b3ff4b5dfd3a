"""percepta doctor on the spaces: what can be used, and what to put where for the others."""

import json
from pathlib import Path

import pytest

from percepta.cli import main
from percepta.spaces.extractor import PARTIAL, known_extractors, open_extractor, weights_behind
from percepta.spaces.metrics import METRICS, known_metrics
from percepta.weights import known_weights


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A machine without weights; where they would be put."""
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(folder))
    return folder


def told(capsys) -> tuple[dict, dict[str, str]]:
    """The spaces as JSON, and the line of each on the page."""
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["spaces"]
    assert main(["doctor"]) == 0
    page = capsys.readouterr().out
    part = page.partition("Spaces to judge in")[2].partition("\n\n")[0].splitlines()[1:]
    return facts, {line.split()[0]: line for line in part}


def test_a_line_for_every_space(empty, capsys):
    facts, lines = told(capsys)
    assert list(facts) == list(lines) == list(known_extractors())
    for name, fact in facts.items():
        if weights_behind(name):
            assert (fact["here"], fact["folder"]) == (False, str(empty))
            assert lines[name].endswith(f"put {fact['file']} into {empty}")
        else:
            assert fact["here"] and fact["file"] is None
            assert "put" not in lines[name]
    assert {name for name, fact in facts.items() if fact["here"]} == {"domain", "pixels"}


@pytest.mark.parametrize("name", [name for name in known_extractors() if weights_behind(name)])
def test_the_file_it_names_is_the_one_that_opening_asks_for(empty, capsys, name):
    facts, _ = told(capsys)
    with pytest.raises(ValueError, match="are missing: put") as error:
        open_extractor(name)
    assert f"put {facts[name]['file']} from" in str(error.value)
    assert str(empty) in str(error.value)


def test_what_is_here_is_said_and_how_far_it_reaches(empty, capsys):
    for name in (PARTIAL, "alexnet"):
        Path(empty / known_weights(name).file).write_bytes(b"")
    facts, lines = told(capsys)
    assert facts["inception"]["here"] and lines["inception"].endswith("; up to 768 features only")
    assert facts["alex"] == facts["alex"] | {"here": True, "folder": None, "limit": None, "file": known_weights("alexnet").file}
    assert " here " in lines["alex"] and "not here" in lines["squeeze"]
    (empty / known_weights("fid_inception_full_pt").file).write_bytes(b"")
    facts, lines = told(capsys)
    assert facts["inception"]["limit"] is None and "only" not in lines["inception"]


def test_a_line_for_every_metric_function(empty, capsys):
    """What is missing is what opening it asks for first, and it is in the table of weights on the same page."""
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["metrics"]
    assert list(facts) == list(known_metrics())
    assert {name for name, fact in facts.items() if fact["here"]} == {"domain"}
    for group in METRICS["lpips"].weights:
        Path(empty / known_weights(group[0]).file).write_bytes(b"")
    assert main(["doctor"]) == 0
    part = capsys.readouterr().out.partition("Metric functions to train with")[2].partition("\n\n")[0].splitlines()[1:]
    lines = {line.split()[0]: line for line in part}
    assert list(lines) == list(facts)
    assert {name for name, line in lines.items() if "not here" not in line} == {"domain", "lpips", "lpips-vgg16"}
    assert lines["dists"].endswith("missing: dists_weights.pt")
    assert lines["swin"].endswith("missing: swin_t-704ceda3.pth")

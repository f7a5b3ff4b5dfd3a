"""What a run was trained against reaches the metrics: through its folder, through images drawn from it, and wherever they lie."""

import io
import json
import shutil

import pytest
from front import folder
from rich.console import Console

from percepta import judging
from percepta.evaluation.show import show


def run(root, *spaces):
    """As training leaves it, as far as this is concerned."""
    (root / "model").mkdir(parents=True)
    entries = [{"space": space, "term": "near"} for space in spaces]
    (root / "config.json").write_text(json.dumps({"recipe": "ddpm", "settings": {}, "resolved": {"trained_against": entries}}))
    return root


def drawn(root, source, **record):
    folder(root, 12)
    (root / "protocol.json").write_text(json.dumps({"source": str(source), "sampler": "ddim", "steps": 3, "seed": 0, **record}))
    return root


def judged(images, tmp_path, **options):
    real = tmp_path / "real"
    if not real.is_dir():
        folder(real, 15, first=100)
    options = {"metrics": ("fid",), "spaces": ("pixels", "inception-64"), **options}
    return judging.evaluate(images, real, cache=tmp_path / "cache", **options)


def marks(result):
    return {name: value["contaminated"] for name, value in result.to_json()["metrics"].items()}


def test_images_drawn_from_a_run_carry_its_record(inception, tmp_path):
    images = drawn(tmp_path / "images", run(tmp_path / "run", "pixels"))
    result = judged(images, tmp_path)
    assert marks(result) == {"fid": True, "fid@inception-64": False}
    assert any(line.endswith("not trained against: fid@inception-64") for line in result.warnings)
    assert result.protocol["generated"]["drawn"]["source"] == str(tmp_path / "run")
    assert marks(judged(drawn(tmp_path / "more", run(tmp_path / "plain")), tmp_path)) == {"fid": False, "fid@inception-64": False}


def test_the_record_stays_when_the_run_is_gone(inception, tmp_path):
    images = drawn(tmp_path / "images", "runs/gone", trained_against=["pixels"])
    result = judged(images, tmp_path)
    assert marks(result)["fid"]
    assert not any("not known" in line for line in result.warnings)


def test_a_run_that_is_gone_and_left_no_record_is_not_a_clean_one(inception, tmp_path):
    result = judged(drawn(tmp_path / "images", "runs/gone"), tmp_path)
    assert not any(marks(result).values())
    assert "drawn from runs/gone, which is not here: what that was trained against is not known" in result.warnings
    shutil.rmtree(tmp_path / "images")
    assert not any("not known" in line for line in judged(folder(tmp_path / "images", 12), tmp_path).warnings)


def test_a_damaged_record_stops(inception, tmp_path):
    images = drawn(tmp_path / "images", "runs/a")
    (images / "protocol.json").write_text('{"source": "ru')
    with pytest.raises(ValueError, match=r"protocol.json is damaged, so it is not known how the images were made"):
        judged(images, tmp_path)


def test_what_the_caller_knows_is_added(inception, tmp_path):
    images = drawn(tmp_path / "images", run(tmp_path / "run", "pixels"))
    assert all(marks(judged(images, tmp_path, trained_against=("inception",))).values())


def test_where_all_is_contaminated_another_space_stands_beside(inception, tmp_path):
    images = drawn(tmp_path / "images", run(tmp_path / "run", "pixels"))
    assert marks(judged(images, tmp_path, spaces=("pixels",))) == {"fid": True, "fid@inception-2048": False}


def test_it_is_seen_in_the_table(inception, tmp_path):
    out = io.StringIO()
    show(judged(drawn(tmp_path / "images", run(tmp_path / "run", "pixels")), tmp_path), Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    assert any("pixels" in line and "trained against" in line for line in lines)
    assert not any("inception-64 " in line and "trained against" in line for line in lines if "no evidence" not in line)
    out = io.StringIO()
    show(judged(folder(tmp_path / "plain", 12), tmp_path), Console(file=out, width=200))
    assert "trained against" not in out.getvalue()

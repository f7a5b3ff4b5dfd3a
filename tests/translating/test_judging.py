"""percepta evaluate of a translator: its own test sets or others, the table and the JSON, and one line for every mistake."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from percepta import evaluate
from percepta.cli import main
from percepta.networks.cyclegan import CycleganPair
from percepta.translating.judging import Asked, is_translator, own_tests, test_sets

PLAIN = ["--metrics", "fid,kid", "--space", "pixels"]
WAYS = ("a2b", "b2a")
sets_of = test_sets
del test_sets  # pytest takes it for a test


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> Path:
    """As a run of ladiffgan leaves it."""
    folder = tmp_path_factory.mktemp("translator") / "run"
    torch.manual_seed(0)
    CycleganPair(channels=4, blocks=1).save_pretrained(folder / "model")
    source, target = (f"shapes:length=8,domain={domain}" for domain in ("outline", "filled"))
    config = {
        "recipe": "ladiffgan",
        "knobs": {"source": source, "target": target},
        "settings": {"size": 16, "crop": "jitter", "ema": "none"},
        "resolved": {"trained_against": []},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def own(translator, tmp_path) -> Path:
    return Path(shutil.copytree(translator, tmp_path / "run"))


def images(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def judge(capsys, *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["evaluate", *map(str, args)])
    told = capsys.readouterr()
    return code, told.out, told.err


def refused(capsys, *args: object) -> str:
    code, out, err = judge(capsys, *args)
    assert (code, out) == (2, "") and "Traceback" not in err, (code, out, err)
    (line,) = [line for line in err.strip().splitlines() if not line.startswith("cache ")]
    return line


def test_a_run_is_judged_on_its_own_test_sets(own, capsys):
    code, out, err = judge(capsys, own, *PLAIN, "--json")
    assert code == 0, err
    found = json.loads(out)
    keys = ("fid", "kid", "cycle-error", "psnr", "shape-accuracy", "colour-accuracy")
    assert {f"{key}/{way}" for key in keys for way in WAYS} <= set(found["metrics"])
    assert found["protocol"]["generated"]["count"] == found["protocol"]["b2a"]["generated"]["count"] == 8
    drawn = found["protocol"]["generated"]["drawn"]
    assert (drawn["model"], drawn["direction"], drawn["size"], len(drawn["weights"])) == ("CycleganPair", "a2b", 16, 64)
    assert found["protocol"]["b2a"]["generated"]["drawn"]["direction"] == "b2a"
    assert found["protocol"]["reference"]["transform"].startswith("stretch to 16 x 16")  # what stands for jitter
    assert json.loads((own / "evaluation" / "evaluation.json").read_text()) == found
    figure = json.loads((own / "evaluation" / "figures" / "translations-a2b.json").read_text())
    assert "and the truth" in figure["caption"] and (own / "evaluation" / "figures" / "translations-b2a.png").is_file()
    code, out, err = judge(capsys, own / "model", *PLAIN, "--out", own.parent / "again")
    assert code == 0 and "A -> B" in out and "KID x100" in out and "by scenes: 8 pairs" in out
    again = json.loads((own.parent / "again" / "evaluation.json").read_text())
    assert again["metrics"] == found["metrics"]


def test_other_sets_and_a_saved_model_without_a_run(own, tmp_path, capsys):
    a, b = images(tmp_path / "a", 6), images(tmp_path / "b", 5)
    assert "is not a run's folder and has no test sets: give images of B" in refused(
        capsys, shutil.copytree(own / "model", tmp_path / "saved"), *PLAIN, "--size", 16
    )
    code, out, err = judge(capsys, tmp_path / "saved", b, "--source", a, *PLAIN, "--size", 16, "--json")
    assert code == 0, err
    protocol = json.loads(out)["protocol"]
    assert (protocol["generated"]["count"], protocol["reference"]["count"], protocol["pairs"]) == (6, 5, 0)
    assert protocol["reference"]["transform"].startswith("center-crop to 16 x 16")
    assert not any("psnr" in key for key in json.loads(out)["metrics"])
    result = evaluate(own, b, source=a, metrics=("fid",), spaces=("pixels",), crop="pad", num=4, cache=tmp_path / "cache")
    assert result.protocol["generated"]["count"] == 4 and result.protocol["reference"]["transform"].startswith("pad")


def test_it_leaves_torchs_generator_alone_and_says_the_same_twice(own, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, again = (evaluate(own, metrics=("kid",), spaces=("pixels",), cache=tmp_path / "cache") for _ in range(2))
    assert torch.equal(torch.rand(2), expected)
    assert first.to_json() == again.to_json()


def test_what_translates_is_recognised(own, run, tmp_path):
    assert all(is_translator(one) for one in (own, str(own), own / "model", run))
    (tmp_path / "images").mkdir()
    (tmp_path / "ddpm").mkdir()
    (tmp_path / "ddpm" / "config.json").write_text('{"recipe": "ddpm"}')
    for other in (tmp_path / "images", tmp_path / "nowhere", tmp_path / "ddpm", "shapes", np.zeros((2, 4, 4, 3), np.uint8)):
        assert not is_translator(other)
    shutil.rmtree(own / "model")
    assert is_translator(own)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--source", "shapes"], "give REAL, images of B, beside --source shapes"),
        (["shapes"], "give --source, images of A, beside shapes of B; or neither"),
        (["--steps", "3"], "--steps is for images that are drawn"),
        (["--guidance", "2"], "--guidance is for images that are drawn"),
        (["--neighbours", "2"], "--neighbours is for images that are drawn"),
        (["--num", "9"], "--num 9: so many of each test set are translated, 2 or more, and shapes:length=8"),
        (["--size", "18"], "multiple of 4"),
        (["--metrics", "fidd"], "there is no metric 'fidd'"),
    ],
)
def test_mistakes_with_a_translator(args, message, own, capsys):
    assert message in refused(capsys, own, *args)


def test_mistakes_with_anything_else(tmp_path, capsys):
    folder = images(tmp_path / "images")
    assert f"say what {folder} should look like: percepta evaluate {folder} REAL" in refused(capsys, folder)
    assert "--source is for a translator" in refused(capsys, folder, folder, "--source", folder)
    for wrong in ({"real": None}, {"real": folder, "source": folder}):
        with pytest.raises(ValueError, match="only a translator has test sets|translates nothing"):
            evaluate(folder, **wrong)


def test_a_run_whose_domains_have_no_test_images_or_that_has_no_model(own, tmp_path, capsys):
    config = json.loads((own / "config.json").read_text())
    for name in ("a", "b"):
        images(tmp_path / name)
    config["knobs"] = {"source": str(tmp_path / "a"), "target": str(tmp_path / "b")}
    (own / "config.json").write_text(json.dumps(config))
    assert "there are no test images of A and B" in refused(capsys, own)
    with pytest.raises(ValueError, match="--source"):
        sets_of(Asked(model=own, target="shapes"), 16)
    shutil.rmtree(own / "model")
    assert "has no model yet" in refused(capsys, own)


def test_test_sets_stay_where_they_are_without_those_of_training(tmp_path):
    for name in ("trainA", "trainB", "testA", "testB", "more"):
        images(tmp_path / name, 3)
    a, b = str(tmp_path / "trainA"), str(tmp_path / "trainB")
    assert own_tests(a, b, None) == (str(tmp_path / "testA"), str(tmp_path / "testB"))
    assert own_tests(a, b, str(tmp_path / "more"))[1] == str(tmp_path / "more")  # what it was evaluated with in training
    for name in ("trainA", "trainB"):
        shutil.rmtree(tmp_path / name)
    assert own_tests(a, b, None) == (str(tmp_path / "testA"), str(tmp_path / "testB"))
    shutil.rmtree(tmp_path / "testA")
    with pytest.raises(ValueError, match=r"trainA: does not exist .*Go to the folder that it was trained in"):
        own_tests(a, b, None)


def test_a_saved_model_is_judged_beside_no_report_of_its_own(own, tmp_path, capsys):
    a, b = images(tmp_path / "a", 4), images(tmp_path / "b", 4)
    saved = shutil.copytree(own / "model", tmp_path / "saved")
    before = sorted(path.name for path in saved.iterdir())
    assert judge(capsys, saved, b, "--source", a, *PLAIN, "--size", 16)[0] == 0
    assert sorted(path.name for path in saved.iterdir()) == before
    assert judge(capsys, own / "model", b, "--source", a, *PLAIN)[0] == 0
    assert (own / "evaluation" / "evaluation.json").is_file() and not (own / "model" / "evaluation").exists()

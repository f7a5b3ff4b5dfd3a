"""percepta probe as people meet it: numbers and pictures of an autoencoder, a count of FLOPs, and one line for every mistake."""

import json
from pathlib import Path

import pytest
from PIL import Image

from percepta.cli import main
from percepta.networks import build_autoencoder

DATA = ["--data", "shapes:length=6", "--size", "32", "--num", "3"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    build_autoencoder().save_pretrained(folder)
    return folder


def told(capsys, *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["probe", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("what", ["interpolation", "perturbation", "outliers"])
def test_a_look_leaves_numbers_pictures_and_how_they_were_made(what, vae, tmp_path, capsys):
    code, out, _ = told(capsys, vae, "--what", what, *DATA, "--out", tmp_path, "--json")
    assert code == 0
    found = json.loads(out)
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert saved == {key: value for key, value in found.items() if key != "protocol"} and saved["probe"] == what
    protocol = json.loads((tmp_path / "protocol.json").read_text())
    assert protocol == found["protocol"]
    assert protocol["vae"]["class"] == "AutoencoderKL" and len(protocol["vae"]["weights"]) == 64
    assert (protocol["images"]["count"], protocol["images"]["size"]) == (3, 32) and protocol["how"]
    assert found["figures"]
    for figure in map(Path, found["figures"]):
        with Image.open(figure) as picture:
            assert min(picture.size) > 50
        assert set(json.loads(figure.with_suffix(".json").read_text())) == {"title", "caption", "alt"}


def test_a_look_is_a_table_in_the_terminal(vae, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = told(capsys, vae, "--what", "interpolation", *DATA, "--scales", "2")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["latent_mse", "latent_mse_raw"]
    assert [line.split()[0] for line in lines[1:5]] == ["encoded-200", "nearest-200", "bilinear-200", "bicubic-200"]
    assert (tmp_path / "runs/probe-interpolation/probe.json").is_file()
    code, out, _ = told(capsys, vae, "--what", "perturbation", *DATA)
    assert code == 0 and out.startswith("share_outside")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--what", "outliers", "--size", "30"], "multiple of 4"),
        (["--what", "outliers", "--num", "0"], "--num"),
        (["--what", "perturbation", "--patch", "99"], "--patch"),
        (["--what", "perturbation", "--draws", "0"], "--draws"),
        (["--what", "interpolation", "--scales", "1"], "scale of 1"),
        (["--what", "interpolation", "--scales", ""], "--scales"),
        (["--what", "outliers", "--data", "nowhere"], "nowhere"),
        ([], "--what is missing: interpolation, perturbation, outliers (see"),
    ],
)
def test_a_mistake_is_one_line(flags, said, vae, tmp_path, capsys):
    code, out, err = told(capsys, vae, *DATA, "--out", tmp_path / "probe", *flags)
    assert code == 2 and not out and said in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "probe" / "probe.json").exists()


def test_taef2_needs_its_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    code, _, err = told(capsys, "taef2", "--what", "outliers")
    assert code == 2 and "taef2_fp16" in err


def test_flops_of_a_step(capsys):
    flags = ["--network", "mmdit-pocket", "--size", "64", "--batch", "10"]
    code, out, _ = told(capsys, "flops", *flags, "--json")
    assert code == 0
    found = json.loads(out)
    per, total = found["gflop_per_image"], found["tflop"]
    assert per["share"] == pytest.approx(0.475, abs=1e-3)
    assert total["plain"] == pytest.approx((per["encode"] + per["network"]) / 100)
    assert total["lpl"] == pytest.approx(total["plain"] + per["share"] * (per["target"] + per["predicted"]) / 100)
    assert total["ratio"] == pytest.approx(total["lpl"] / total["plain"])
    fewer = ["--schedule", "flow", "--layers", "0,1", "--cached", "--crop", "4"]
    text = told(capsys, "flops", *flags, *fewer)[1]
    assert "86.4% of the images" in text and "a step of 10 images of 64 px" in text and "(cached)" in text
    assert f"{per['target']:.1f}" not in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--layers", "0,9"], "layers 0"), (["--share", "2"], "share"), (["--tau", "0"], "tau"), (["--batch", "0"], "--batch"),
     (["--vae", "sdxx"], "sdxl"), (["--schedule", "flat"], "flow")],
)  # fmt: skip
def test_a_mistake_in_flops_is_one_line(flags, said, capsys):
    code, out, err = told(capsys, "flops", "--network", "mmdit-pocket", "--size", "64", *flags)
    assert code == 2 and not out and said in err and len(err.strip().splitlines()) == 1

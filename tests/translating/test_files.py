"""percepta translate: every kind of file, folders that are filled up, and what is refused, through the command line."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from percepta.cli import main
from percepta.translating import TranslationPipeline, files
from percepta.translating.files import target_names

SIZES = {  # width, height and mode of the translations
    "wide.png": (52, 40, "RGB"), "grey.png": (30, 30, "RGB"), "sub/rgba.png": (28, 20, "RGBA"), "sub/deep.png": (20, 24, "RGB"),
    "few.png": (22, 18, "RGB"), "turned.png": (20, 44, "RGB"), "pixel.png": (1, 1, "RGB"), "line.png": (300, 1, "RGB"),
}  # fmt: skip


def translated(out: Path) -> dict[str, Path]:
    return {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file() and path.name != "protocol.json"}


@pytest.mark.parametrize("fit", ["resize", "tile", "pad"])
def test_every_kind_of_file(fit: str, run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["translate", str(run), str(photos), str(out), "--fit", fit, "--batch", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num"], told["translated"], told["already"], told["skipped"]) == (8, 8, 0, [])
    found = translated(out)
    assert set(found) == set(SIZES)  # neither hidden files nor temporary ones
    for name, path in found.items():
        with Image.open(path) as image:
            assert (*image.size, image.mode) == SIZES[name]
    with Image.open(found["sub/rgba.png"]) as image, Image.open(photos / "sub" / "rgba.png") as given:
        assert np.array_equal(np.asarray(image)[..., 3], np.asarray(given)[..., 3])
    pipe = TranslationPipeline.from_pretrained(run)
    with Image.open(photos / "turned.jpg") as given, Image.open(found["turned.png"]) as image:
        (expected,) = pipe(given, fit=fit).images
        np.testing.assert_allclose(np.asarray(image).astype(int), np.asarray(expected).astype(int), atol=1)


def test_a_folder_goes_on_where_it_was_left(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = ["translate", str(run), str(photos), str(out), "--json"]
    assert main(command) == 0
    whole = {name: path.read_bytes() for name, path in translated(out).items()}
    for name in ("wide.png", "sub/rgba.png"):
        (out / name).unlink()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(photos / "added.png")
    stamp = (out / "grey.png").stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["num"], told["translated"], told["already"]) == (9, 3, 6)
    assert (out / "grey.png").stat().st_mtime_ns == stamp
    after = {name: path.read_bytes() for name, path in translated(out).items()}
    assert after.pop("added.png") and after == whole


@pytest.mark.parametrize(
    ("flags", "said"), [(["--direction", "b2a"], "direction"), (["--fit", "pad"], "fit"), (["--seed", "3"], "seed"), (["--size", "64"], "size")]
)  # fmt: skip
def test_a_folder_of_another_protocol_is_refused(
    flags: list[str], said: str, run: Path, photos: Path, tmp_path: Path, capsys
) -> None:
    command = ["translate", str(run), str(photos), str(tmp_path / "out")]
    assert main(command) == 0
    before = (tmp_path / "out" / "protocol.json").read_bytes()
    assert main([*command, *flags]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "out" / "protocol.json").read_bytes() == before


def test_an_image_that_changed_is_named(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    command = ["translate", str(run), str(photos), str(tmp_path / "out")]
    assert main(command) == 0
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(photos / "grey.png")
    assert main(command) == 2
    assert "grey.png is not what it was" in capsys.readouterr().err


def test_bad_files_stop_it_or_are_counted(run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "torn.png").write_bytes((photos / "wide.jpg").read_bytes()[:200])
    (photos / "empty.jpg").write_bytes(b"")
    command = ["translate", str(run), str(photos), str(tmp_path / "out"), "--batch", "1"]
    assert main(command) == 2
    err = capsys.readouterr().err.strip()
    assert "empty.jpg" in err and len(err.splitlines()) == 1
    assert main([*command, "--on-bad-image", "skip", "--json"]) == 0
    told = capsys.readouterr()
    assert [bad["name"] for bad in json.loads(told.out)["skipped"]] == ["empty.jpg", "torn.png"]
    assert "skipped torn.png" in told.err
    assert set(translated(tmp_path / "out")) == set(SIZES)


@pytest.mark.parametrize("name", ["one.png", "one.webp", "one.tif", "one.jpg", "new/deep/one.png"])
def test_one_file(name: str, run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / name
    command = ["translate", str(run), str(photos / "wide.jpg"), str(out)]
    assert main(command) == 0
    with Image.open(out) as image:
        assert image.size == (52, 40)
    assert json.loads(out.with_name(f"{out.name}.json").read_text())["direction"] == "a2b"
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err


def test_one_file_into_a_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    assert main(["translate", str(run), str(photos / "wide.jpg"), str(tmp_path / "out")]) == 0
    assert set(translated(tmp_path / "out")) == {"wide.png"}


@pytest.mark.parametrize(
    ("images", "out", "said"),
    [
        ("nowhere", "out", "does not exist"),
        ("photos", "photos/out", "lies in"),
        ("photos", "photos", "lies in"),
        ("photos", "out.png", "is a folder"),
        ("photos/sub/rgba.png", "out.jpg", "JPEG cannot"),
        ("photos/wide.jpg", "out.avif", ".png"),
        ("photos/notes.txt", "out.png", "notes.txt"),
        ("empty", "out", "no images"),
        ("photos", "empty-but-one", "is not empty"),
    ],
)
def test_what_is_refused(images: str, out: str, said: str, run: Path, photos: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty-but-one").mkdir()
    (tmp_path / "empty-but-one" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["translate", str(run), str(tmp_path / images), str(tmp_path / out)]) == 2
    err = capsys.readouterr().err.strip()
    assert said in err and len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_signal_leaves_whole_files_and_the_rest_follows(run: Path, photos: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    saved, count = files.save, []

    def save(path: Path, picture: Image.Image, name: str) -> None:
        saved(path, picture, name)
        count.append(name)
        if len(count) == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(files, "save", save)
    command = ["translate", str(run), str(photos), str(tmp_path / "out"), "--batch", "1"]
    assert main(command) == 3
    assert "run the same command again" in capsys.readouterr().err
    assert len(translated(tmp_path / "out")) == 3
    for path in translated(tmp_path / "out").values():
        with Image.open(path) as image:
            image.load()
    monkeypatch.setattr(files, "save", saved)
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["translated"] == 5


def test_large_images_are_held_a_few_at_a_time(run: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "in").mkdir()
    for k in range(4):
        Image.new("RGB", (40, 40), (k, 0, 0)).save(tmp_path / "in" / f"{k}.png")
    monkeypatch.setattr(files, "TOGETHER", 40 * 40 * 2)
    held, translate = [], TranslationPipeline.translate

    def counted(self, images, *rest):
        held.append(len(images))
        return translate(self, images, *rest)

    monkeypatch.setattr(TranslationPipeline, "translate", counted)
    assert main(["translate", str(run), str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    assert held == [2, 2]


def test_names_that_would_meet() -> None:
    assert target_names(["a.jpg", "b/a.png", "c.gif"]) == {"a.jpg": "a.png", "b/a.png": "b/a.png", "c.gif": "c.png"}
    assert target_names(["a.jpg", "a.png"]) == {"a.jpg": "a.jpg.png", "a.png": "a.png.png"}
    with pytest.raises(ValueError, match="rename"):
        target_names(["x.jpg", "x.png", "x.jpg.webp"])

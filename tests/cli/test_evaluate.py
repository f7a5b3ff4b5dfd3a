"""percepta evaluate as people meet it: what it shows, what it says of every odd image, and one line for every mistake."""

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from percepta.cli import main

RANDOM = np.random.default_rng(0)
PLAIN = ["--space", "pixels", "--metrics", "fid,pr"]


def pixels(height: int = 16, width: int = 16, channels: int = 3) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width, channels), dtype=np.uint8)


def folder(path: Path, count: int = 8, save=None) -> Path:
    """`count` images; `save(k, stem)` writes one."""
    path.mkdir(parents=True)
    for k in range(count):
        if save is None:
            Image.fromarray(pixels()).save(path / f"{k:02d}.png")
        else:
            save(k, path / f"{k:02d}")
    return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    folder(root / "good")
    folder(root / "real", 9)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The smallest run that can be drawn from."""
    out = tmp_path_factory.mktemp("runs") / "ddpm"
    flags = ["--data", "shapes:length=8", "--size", "8", "--steps", "1", "--batch", "2", "--sample-every", "0", "--sample-num", "2"]
    assert main(["train", "ddpm", *flags, "--out", str(out)]) == 0
    return out


def judge(capsys, *args: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["evaluate", *map(str, args)])
    told = capsys.readouterr()
    return code, told.out, told.err


def refused(capsys, *args: object) -> str:
    """The one line that is left of a mistake, after what the cache said."""
    code, out, err = judge(capsys, *args)
    lines = [line for line in err.strip().splitlines() if not line.startswith("cache ")]
    assert (code, out, len(lines)) == (2, "", 1), (code, out, err)
    assert "Traceback" not in err
    return lines[0]


def found(capsys, *args: object) -> dict:
    code, out, err = judge(capsys, *args, "--json")
    assert code == 0, err
    return json.loads(out)


def jpeg(image: np.ndarray, **how) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", **how)
    return data.getvalue()


def grey(k, stem):
    Image.fromarray(pixels()[..., 0]).save(stem.with_suffix(".png"))


def deep(k, stem):
    Image.fromarray(RANDOM.integers(0, 65536, (16, 16)).astype(np.uint16)).save(stem.with_suffix(".png"))


def clear(k, stem):
    Image.fromarray(pixels(channels=4)).save(stem.with_suffix(".png"))


def inks(k, stem):
    Image.fromarray(pixels()).convert("CMYK").save(stem.with_suffix(".jpg"))


def colours(k, stem):
    Image.fromarray(pixels()).convert("P").save(stem.with_suffix(".png"))


def moving(k, stem):
    first, *rest = [Image.fromarray(pixels()) for _ in range(3)]
    first.save(stem.with_suffix(".gif"), save_all=True, append_images=rest)


@pytest.mark.parametrize(
    ("save", "names"),
    [(grey, {"grey"}), (deep, {"grey", "16-bit"}), (clear, {"alpha"}), (inks, {"cmyk"}), (colours, {"palette"}),
     (moving, {"first-frame", "palette"})],
)  # fmt: skip
def test_every_conversion_is_stated(save, names, sets, tmp_path, capsys):
    odd = folder(tmp_path / "odd", 6, save)
    result = found(capsys, odd, sets / "real", *PLAIN)
    assert result["protocol"]["generated"]["conversions"].keys() >= names - {"palette"}
    assert set(result["protocol"]["generated"]["conversions"].values()) == {6}
    assert np.isfinite(result["metrics"]["fid"]["value"])
    text = judge(capsys, odd, sets / "real", *PLAIN)[1]
    (line,) = [line for line in text.splitlines() if line.startswith("converted")]
    for name in result["protocol"]["generated"]["conversions"]:
        assert f"6 {name} (" in line


def test_conversions_give_the_numbers_of_the_images_converted_by_hand(sets, tmp_path, capsys):
    """Grey and 16-bit files are judged as RGB files of the same pixels, to the bit."""
    shades = RANDOM.integers(0, 256, (6, 16, 16), dtype=np.uint8)
    values = RANDOM.integers(0, 65536, (6, 16, 16)).astype(np.uint16)
    ways = {
        "grey": lambda k, stem: Image.fromarray(shades[k]).save(stem.with_suffix(".png")),
        "grey-rgb": lambda k, stem: Image.fromarray(np.repeat(shades[k][..., None], 3, 2)).save(stem.with_suffix(".png")),
        "deep": lambda k, stem: Image.fromarray(values[k]).save(stem.with_suffix(".png")),
        "deep-rgb": lambda k, stem: Image.fromarray(np.repeat((values[k] >> 8).astype(np.uint8)[..., None], 3, 2)).save(
            stem.with_suffix(".png")
        ),
    }
    fids = {
        name: found(capsys, folder(tmp_path / name, 6, way), sets / "real", *PLAIN)["metrics"]["fid"]["value"]
        for name, way in ways.items()
    }
    assert fids["grey"] == fids["grey-rgb"] != fids["deep"] == fids["deep-rgb"]


def bad_folders(root: Path) -> dict[str, tuple[Path, str]]:
    """What is given -> what the line says."""
    whole = jpeg(pixels(64, 64))
    out = {
        "empty": (folder(root / "empty", 0), r"empty: no images found .*the folder holds nothing at all"),
        "one": (folder(root / "one", 1), r"one: holds 1 image; sets of at least 2"),
        "no images": (folder(root / "texts", 3, lambda k, p: p.with_suffix(".txt").write_text("x")), r"no images found .*3 x \.txt"),
        "truncated": (folder(root / "truncated"), r"truncated/cut\.jpg: is truncated or corrupt"),
        "liar": (folder(root / "liar"), r"liar/00\.png: is not an image"),
        "hollow": (folder(root / "hollow"), r"hollow/00\.png: .*empty"),
        "bomb": (folder(root / "bomb"), r"bomb/zz\.png: claims more pixels"),
        "sizes": (folder(root / "sizes", 6, lambda k, p: Image.fromarray(pixels(16 + k)).save(p.with_suffix(".png"))), r"several sizes.*--size"),
        "nowhere": (root / "nowhere", r"nowhere: does not exist"),
    }  # fmt: skip
    (root / "truncated" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "liar" / "00.png").write_text("no image")
    (root / "hollow" / "00.png").write_bytes(b"")
    Image.new("1", (20_000, 20_000)).save(root / "bomb" / "zz.png")
    return out


def test_bad_folders_are_one_line_on_either_side(sets, tmp_path, capsys):
    for name, (path, words) in bad_folders(tmp_path).items():
        for sides in ((path, sets / "real"), (sets / "good", path)):
            line = refused(capsys, *sides, *PLAIN)
            assert line.startswith("percepta evaluate: "), name
            assert re.search(words, line), (name, line)


def test_an_unreadable_file_is_named(sets, tmp_path, capsys, monkeypatch):
    """root may read everything, so the refusal is that of a folder with an image's name: the system's, whoever asks."""
    bad = folder(tmp_path / "bad")
    (bad / "03.png").unlink()
    (bad / "03.png").symlink_to(tmp_path / "gone")
    assert "03.png" in refused(capsys, bad, sets / "real", *PLAIN)
    real = Path.open

    def denied(self, *args, **kwargs):
        if self.name == "04.png":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    read = Path.read_bytes
    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(Path, "read_bytes", lambda self: denied(self, "rb").close() or read(self))
    (bad / "03.png").unlink()
    line = refused(capsys, bad, sets / "real", *PLAIN)
    assert "04.png" in line
    assert "ermission" in line


def test_bad_images_are_left_out_when_asked_and_counted(sets, tmp_path, capsys):
    bad = folder(tmp_path / "bad")
    (bad / "02.png").write_text("no image")
    (tmp_path / "clean").mkdir()
    for file in bad.iterdir():
        if file.name != "02.png":
            (tmp_path / "clean" / file.name).write_bytes(file.read_bytes())
    skipped = found(capsys, bad, sets / "real", *PLAIN, "--on-bad-image", "skip")
    clean = found(capsys, tmp_path / "clean", sets / "real", *PLAIN)
    assert skipped["metrics"] == clean["metrics"]
    assert skipped["protocol"]["generated"]["bad"] == 1
    text = judge(capsys, bad, sets / "real", *PLAIN, "--on-bad-image", "skip")[1]
    assert re.search(r"left out .*1 that cannot be read, .*02\.png: ", text)
    assert "7 images" in text


class Opened:
    """Notices when it is unpickled."""

    def __reduce__(self):
        return (print, ("EXECUTED",))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": np.array([Opened()], dtype=object)}, "pickled objects, which are never executed"),
        ({"mu": np.array([Opened()], dtype=object), "sigma": np.eye(2)}, "pickled objects, which are never executed"),
        ({"arr_0": np.zeros((4, 16, 16, 3), np.float32)}, r"uint8 \[n, h, w, 3\].*got float32"),
        ({"arr_0": np.zeros((4, 3, 16, 16), np.uint8)}, r"got uint8 \(4, 3, 16, 16\)"),
        ({"arr_0": np.zeros((1, 16, 16, 3), np.uint8)}, "holds 1 image"),
        ({"mu": np.zeros(4)}, "statistics are mu and sigma, it holds mu"),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, r"mu \[d\] and sigma \[d, d\]"),
        ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "not finite"),
        ({"other": np.zeros(3)}, "has no images: needs arr_0"),
    ],
)
def test_bad_npz_files_are_one_line(arrays, words, sets, tmp_path, capsys):
    np.savez(tmp_path / "bad.npz", **arrays)
    line = refused(capsys, tmp_path / "bad.npz", sets / "real", *PLAIN)
    assert re.search(words, line), line
    assert "bad.npz" in line


def test_a_file_that_is_no_npz_and_one_that_is_no_set(sets, tmp_path, capsys):
    (tmp_path / "x.npz").write_text("hello")
    assert "x.npz: cannot be read" in refused(capsys, tmp_path / "x.npz", sets / "real", *PLAIN)
    assert "is a file; data is a folder" in refused(capsys, sets / "good" / "00.png", sets / "real", *PLAIN)


def test_an_npz_is_the_folder_with_its_images(sets, tmp_path, capsys):
    stacked = np.stack([np.asarray(Image.open(file)) for file in sorted((sets / "good").iterdir())])
    np.savez(tmp_path / "good.npz", arr_0=stacked)
    assert (
        found(capsys, tmp_path / "good.npz", sets / "real", *PLAIN)["metrics"]
        == found(capsys, sets / "good", sets / "real", *PLAIN)["metrics"]
    )


def test_statistics_whose_file_does_not_say_how_many_they_are_of(sets, tmp_path, capsys):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(768), sigma=np.eye(768))
    code, out, _ = judge(capsys, sets / "good", tmp_path / "stats.npz", *PLAIN)
    assert code == 0
    assert re.search(r"reference +statistics +\S+stats\.npz", out)
    assert "N 8 against ?" in out
    assert "not computed  precision, recall: needs images on both sides" in out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "GENERATED is missing"),
        ("{good}", "say what {good} should look like"),
        ("{good} {real} {real}", "{real}"),
        ("{good} {real} --metrics fdi", "no metric 'fdi', did you mean fid?"),
        ("{good} {real} --metrics ,", "--metrics names nothing"),
        ("{good} {real} --space ,", "--space names nothing"),
        ("{good} {real} --space pixel", "did you mean pixels?"),
        ("{good} {real} --space inception-2049", "did you mean inception-2048?"),
        ("{good} {real} --space pixels,pixel", "did you mean pixels?"),
        ("{good} {real} --dialect torchfidelity", "invalid choice 'torchfidelity' for argument '--dialect'. Expected one of ('torch-fidelity'"),
        ("{good} {real} --metrcs fid", "did you mean --metrics?"),
        ("{good} {real} --on-bad-image ignore", "--on-bad-image"),
        ("{good} {real} --space pixels --metrics kid --kid-size 1", "KID subset size must be at least 2, got 1"),
        ("{good} {real} --space pixels --metrics kid --kid-subsets 0", "KID subsets must be at least 1, got 0"),
        ("{good} {real} --num 0", "--num must be at least 1"),
        ("{good} {real} --num 1", "at least 2 images are needed, got num=1"),
        ("{good} {real} --num 100 --space pixels", "100 images were asked for, it holds 8"),
        ("{good} {real} --batch 0", "--batch must be at least 1"),
        ("{good} {real} --neighbours -1 --out {tmp}/out", "--neighbours must be at least 0"),
        ("{good} {real} --neighbours 2", "say where with --out DIR"),
        ("{good} {real} --held-out {real}", "--held-out is for --neighbours"),
        ("{good} {real} --neighbours 2 --held-out {tmp}/no --out {tmp}/out", "no: does not exist"),
        ("{good} {real} --sampler ddim", "--sampler says how a model draws"),
        ("{good} {real} --steps 10", "--steps says how a model draws"),
        ("{tmp}/no {real} --steps 10", "no: does not exist"),
        ("{good} {real} --device gpu", "--device 'gpu' is not known"),
        ("{good} {real} --out {tmp}/file", "file is a file, a folder is needed"),
        ("{good} {real} --out {tmp}/file/deep", "file is a file, a folder is needed"),
        ("{good} {real} --cache {tmp}/file", "file is a file, a folder is needed"),
        ("{good} shapes:length=9,sise=16", "did you mean size?"),
        ("{good} shapes:length=9,size=8 --space pixels --metrics fid", "bring both to one (--size)"),
        ("{good} shapes:length=9,size=8 --space pixels --metrics kid", "bring both to one (--size)"),
        ("{good} {run}", "only the generated side, which comes first, is drawn"),
        ("{run} {real} --num 1", "at least 2 images have to be drawn"),
        ("{run} {real} --num 4 --sampler ddmi", "there is no sampler 'ddmi', did you mean dd"),
        ("{run} {real} --num 4 --guidance 2 --sampler ddim --space pixel", "did you mean pixels?"),
        ("{run} {tmp}/no --num 4", "no: does not exist"),
        ("{run} {real} --num 4 --kid-size 1", "KID subset size"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_before_any_work(line, said, sets, run, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    words = {"good": sets / "good", "real": sets / "real", "tmp": tmp_path, "run": run}
    before = sorted(run.rglob("*.png"))
    told = refused(capsys, *line.format(**words).split())
    assert said.format(**words) in told, told
    assert told.startswith("percepta evaluate: ")
    assert sorted(run.rglob("*.png")) == before, "nothing was drawn"
    assert not (tmp_path / "out").exists()


def test_a_cache_that_cannot_be_written_is_named(sets, capsys, monkeypatch):
    import os

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert re.search(
        r"--cache .*cannot be written to", refused(capsys, sets / "good", sets / "real", *PLAIN, "--cache", sets / "cache")
    )
    assert re.search(r"--out .*cannot be written to", refused(capsys, sets / "good", sets / "real", *PLAIN, "--out", sets / "out"))


def test_a_model_is_drawn_once_and_judged(run, capsys, tmp_path):
    args = (run, "shapes:length=9,size=8", "--num", 4, "--steps", 2, *PLAIN)
    code, text, err = judge(capsys, *args)
    assert code == 0, err
    assert re.search(rf"generated +4 images +{run}\n", text)
    assert re.search(rf"drawn +source {run}, sampler ddim, steps 2, guidance 1(\.0)?, seed 0", text)
    result = found(capsys, *args)
    kept = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert kept == result
    assert json.loads((run / "evaluation" / "protocol.json").read_text()) == result["protocol"]
    times = {file: file.stat().st_mtime_ns for file in run.rglob("0*.png")}
    assert len(times) == 4
    assert found(capsys, *args)["metrics"] == result["metrics"]
    assert {file: file.stat().st_mtime_ns for file in run.rglob("0*.png")} == times
    pipeline = tmp_path / "pipeline"
    assert main(["export", str(run), str(pipeline)]) == 0
    assert found(capsys, pipeline, *args[1:])["metrics"] == result["metrics"]


def test_neighbours_are_files_and_a_line(sets, tmp_path, capsys):
    args = (
        sets / "good",
        sets / "real",
        *PLAIN,
        "--neighbours",
        2,
        "--held-out",
        "shapes:length=9,size=16",
        "--out",
        tmp_path / "out",
    )
    code, out, err = judge(capsys, *args)
    assert code == 0, err
    assert "precision" in out
    assert re.search(r"median distance [\d.]+, of held-out images [\d.]+; [\d.]+% of the samples are nearer", err)
    assert {"evaluation.json", "protocol.json", "copying.json", "figures"} == {p.name for p in (tmp_path / "out").iterdir()}
    copied = judge(capsys, sets / "good", sets / "good", *PLAIN, "--neighbours", 2, "--out", tmp_path / "same")
    assert "8 samples are a reference image, pixel for pixel" in copied[2]


def test_metrics_without_their_weights_are_named_once_below_the_others(sets, tmp_path, capsys, monkeypatch):
    for name in ("PERCEPTA_WEIGHTS", "TORCH_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path))
    code, out, _ = judge(capsys, sets / "good", sets / "real", "--space", "pixels", "--metrics", "all")
    assert code == 0
    assert "Frechet distance" in out
    lines = [line for line in out.splitlines() if line.startswith("not computed")]
    assert lines[0].startswith("not computed  sfid, is: weights 'fid_inception_full'")
    assert all("http" in line and "sha256" in line and line.endswith(f"into {tmp_path}") for line in lines)
    assert out.count("fid_inception_full") == 1
    result = found(capsys, sets / "good", sets / "real", "--space", "pixels", "--metrics", "fid,cmmd")
    assert set(result["metrics"]) == {"fid"}
    assert set(result["missing"]) == {"cmmd"}


@pytest.mark.parametrize("columns", [80, 120])
def test_what_is_shown_fits_and_nothing_wraps_in_the_table(columns, sets, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = judge(capsys, sets / "good", sets / "real", "--space", "pixels,domain", "--metrics", "fid,kid,pr,dc", "--kid-size", 4)[1]
    head, table, rest = out.split("\n\n", 2)
    assert re.fullmatch(r"generated +8 images +\S+/good\nreference +9 images +\S+/real", head)
    lines = table.splitlines()
    assert re.fullmatch(r"metric +value +better +space *", lines[0])
    assert len(lines) == 2 + 6, "a line each metric"
    assert max(map(len, lines)) <= 80
    assert re.search(r"^KID +-?\d\.\d{4} ± \d\.\d{4} +lower +pixels", table, re.M)
    assert re.search(r"^how +dialect torch-fidelity, N 8 against 9; pixels: resize none", rest, re.M)


def test_an_ascii_terminal_loses_letters_and_no_numbers(sets, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert (
        main(["evaluate", str(sets / "good"), str(sets / "real"), "--space", "pixels", "--metrics", "kid", "--kid-size", "4"]) == 0
    )
    sys.stdout.flush()
    assert re.search(rb"KID\W+\d\.\d+ \? \d\.\d+\W+lower", raw.getvalue()), raw.getvalue()


def test_a_cache_is_used_again_unless_it_is_not_wanted(sets, tmp_path, capsys):
    judged = [sets / "good", sets / "real", *PLAIN, "--cache", tmp_path / "cache"]
    code, _, fresh = judge(capsys, *judged, "--no-resume")
    assert code == 0
    assert not list((tmp_path / "cache").iterdir())
    first, again = judge(capsys, *judged)[2], judge(capsys, *judged)[2]
    assert "hit" not in fresh + first
    assert "hit" in again
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["features"]
    assert "hit" not in judge(capsys, *judged, "--no-resume")[2]

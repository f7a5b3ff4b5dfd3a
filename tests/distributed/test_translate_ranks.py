"""percepta translate on two ranks: the files of one process to the byte; a bad file, a signal and a death reach both."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import free_port

from percepta.networks.cyclegan import CycleganPair

SIZES = [(20, 24), (31, 18), (16, 16), (40, 33), (24, 20), (18, 18), (29, 50)]
WHO = """
import os
import percepta.translating.files as files
real = files.save
def told(path, *rest):
    with open({log!r}, "a") as log:
        log.write(os.environ.get("RANK", "0") + " " + path.name + "\\n")
    return real(path, *rest)
files.save = told
"""
HOLD = """
import os, time
from pathlib import Path
import percepta.translating.files as files
real = files.save
def held(path, *rest):
    real(path, *rest)
    if os.environ.get("RANK") == "1":
        Path({here!r}).touch()
        while not Path({go!r}).exists():
            time.sleep(0.005)
files.save = held
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    CycleganPair(channels=4, blocks=1).save_pretrained(folder / "model")
    (folder / "config.json").write_text(json.dumps({"recipe": "ladiffgan", "settings": {"size": 16, "ema": "none"}}))
    return folder


@pytest.fixture
def photos(tmp_path):
    """Files 0 to 6: with --batch 2, rank 0 has 0, 1, 4, 5 and rank 1 has 2, 3, 6."""
    draw, root = np.random.default_rng(0), tmp_path / "photos"
    root.mkdir()
    for k, (width, height) in enumerate(SIZES):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{k}.png")
    return root


def started(zygote, size, words, before=""):
    code = f"{before}\nfrom percepta.cli import main\nraise SystemExit(main({['translate', *map(str, words)]!r}))"
    return zygote.ranks(size, code, free_port()) if size > 1 else [zygote.start(code)]


def ended(processes, *codes):
    found = [process.wait(60) for process in processes]
    assert found == list(codes), [process.err.read_text() for process in processes]
    return [(process.out.read_text(), process.err.read_text()) for process in processes]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_ranks_write_the_files_of_one_and_the_first_tells(zygote, run, photos, tmp_path):
    (photos / "3.png").write_bytes(b"torn")  # rank 1's
    told, words = {}, ["--batch", 2, "--fit", "tile", "--on-bad-image", "skip", "--json"]
    for size in (1, 2):
        log = tmp_path / f"log-{size}"
        ranks = started(zygote, size, [run, photos, tmp_path / str(size), *words], WHO.format(log=str(log)))
        (first, *others) = ended(ranks, *[0] * size)
        told[size] = json.loads(first[0])
        assert "skipped 3.png" in first[1] and all(said == ("", "") for said in others)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert told[2] == {**told[1], "out": told[2]["out"]} and told[2]["translated"] == 6
    assert [bad["name"] for bad in told[2]["skipped"]] == ["3.png"]
    shared = sorted((tmp_path / "log-2").read_text().split("\n")[:-1])
    assert shared == [f"0 {k}.png" for k in (0, 1, 4, 5)] + [f"1 {k}.png" for k in (2, 6)]


def test_what_a_rank_cannot_read_is_named_by_both(zygote, run, photos, tmp_path):
    (photos / "3.png").write_bytes(b"torn")
    for _, said in ended(started(zygote, 2, [run, photos, tmp_path / "out", "--batch", 2]), 2, 2):
        assert "3.png" in said and len(said.strip().splitlines()) == 1


def test_what_the_first_refuses_both_refuse(zygote, run, photos, tmp_path):
    ended(started(zygote, 1, [run, photos, tmp_path / "out"]), 0)
    before = contents(tmp_path / "out")
    for _, said in ended(started(zygote, 2, [run, photos, tmp_path / "out", "--direction", "b2a"]), 2, 2):
        assert "another protocol (direction differ)" in said
    assert contents(tmp_path / "out") == before


def held(zygote, run, photos, tmp_path):
    """Two ranks, the second of which waits after its first file."""
    here, go, words = tmp_path / "here", tmp_path / "go", [run, photos, tmp_path / "out", "--batch", 1]
    ranks = started(zygote, 2, words, HOLD.format(here=str(here), go=str(go)))
    ranks[1].until(here.exists)
    return ranks, go.touch, words


def test_a_signal_to_one_rank_stops_both_and_the_rest_follows(zygote, run, photos, tmp_path):
    ranks, go_on, words = held(zygote, run, photos, tmp_path)
    ranks[1].kill(signal.SIGTERM)
    go_on()
    (_, said), (_, other) = ended(ranks, 3, 3)
    assert "run the same command again" in said and other == ""
    assert 2 <= len(contents(tmp_path / "out")) - 1 < len(SIZES)
    ended(started(zygote, 2, words), 0, 0)
    ended(started(zygote, 1, [*words[:2], tmp_path / "whole", *words[3:]]), 0)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_rank_that_dies_is_an_error_that_names_a_rank(zygote, run, photos, tmp_path):
    ranks, _, _ = held(zygote, run, photos, tmp_path)
    ranks[1].kill(signal.SIGKILL)
    (_, said), _ = ended(ranks, 1, -signal.SIGKILL)
    assert "percepta translate: rank 0 of 2 failed in a collective" in said


def test_one_file_is_translated_by_the_first(zygote, run, photos, tmp_path):
    for size in (1, 2):
        (first, *_) = ended(started(zygote, size, [run, photos / "1.png", tmp_path / f"{size}.png", "--json"]), *[0] * size)
        assert json.loads(first[0])["translated"] == 1
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert (tmp_path / "2.png.json").is_file()

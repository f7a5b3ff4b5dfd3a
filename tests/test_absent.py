"""What is said of a path where nothing is, and that every command says it."""

from pathlib import Path

import pytest

from percepta.absent import absent
from percepta.cli import main


def test_the_place_where_the_way_ends_and_the_nearest_name(tmp_path, monkeypatch):
    (tmp_path / "runs" / "flowers").mkdir(parents=True)
    (tmp_path / "runs" / "a.txt").touch()
    near = tmp_path / "runs" / "flowers"
    assert absent(tmp_path / "runs" / "flower") == f"{tmp_path}/runs/flower: does not exist; did you mean {near}?"
    said = absent(tmp_path / "run" / "flowers" / "model", "a model")
    assert said == f"{tmp_path}/run/flowers/model: does not exist (a model is wanted); did you mean {tmp_path / 'runs'}?"
    assert absent(tmp_path / "runs" / "zzz").endswith(f"{tmp_path}/runs holds a.txt, flowers")
    assert absent(near / "x").endswith(f"{near} holds nothing")
    assert absent(tmp_path / "runs" / "a.txt" / "x").endswith(f"{tmp_path}/runs/a.txt holds nothing")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "did you mean" not in absent(tmp_path / "link")
    assert absent("~nobody-of-that-name/x").startswith("~nobody-of-that-name/x: does not exist")
    monkeypatch.chdir(tmp_path)
    assert absent("runs/flower") == f"runs/flower: does not exist; did you mean {near}?"


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        ("sample runs/flower --out x.png", "a pipeline, a run or a model"),
        ("sample ./runs/flower --out x.png", "a pipeline, a run or a model"),
        ("export runs/flower out", "a run folder"),
        ("convert runs/flower out --family dit", "a file of weights"),
        ("report runs/flower", "a run folder"),
        ("evaluate runs/flower shapes:length=4", ""),
        ("train ddpm --data runs/flower", ""),
        ("train ddpm --init runs/flower --data shapes:length=8", "a pipeline, a run or a model"),
        ("train ddpm --network runs/flower --data shapes:length=8", "a model's folder"),
        ("train ddpm --vae runs/flower --data shapes:length=8", "an autoencoder"),
        ("train ddpm --config runs/flower", "config.json"),
        ("probe flops --vae ./runs/flower", "an autoencoder"),
        ("study casdm-table1 --init runs/flower", ""),
    ],
)
def test_every_command_says_what_it_looked_for_and_what_is_near(command, wanted, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "flowers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"percepta {command.split()[0]}: ") and "runs/flower: does not exist" in said
    assert wanted in said and f"did you mean {Path('runs/flowers').absolute()}?" in said


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("sample", "SOURCE is missing"),
        ("export", "RUN, OUT are missing"),
        ("export runs/first", "OUT is missing"),
        ("convert", "CHECKPOINT, OUT, --family are missing"),
        ("convert a b", "--family is missing: improved-diffusion, guided-diffusion, dit"),
        ("translate a", "IN, OUT are missing"),
    ],
)
def test_what_was_not_given_is_called_by_its_name(command, missing, capsys):
    assert main(command.split()) == 2
    assert f"percepta {command.split()[0]}: {missing} (see percepta" in capsys.readouterr().err

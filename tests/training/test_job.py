"""A whole run, small: what it leaves, what follows from its seed, what it goes on from, what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from duel import Duel
from processes import FLAGS, digest, lines, small_network

from percepta.recipes import recipes
from percepta.training import checkpoint
from percepta.training.config import read_config
from percepta.training.folder import RunFolderError
from percepta.training.job import train
from percepta.training.settings import Settings

RECIPES = recipes()
DDPM = RECIPES["ddpm"]()


def settings(tiny, out, **changed):
    return Settings(**{**FLAGS, "network": tiny.network, "out": out, **changed})


def weights(run, step=6):
    return {k: v for k, v in digest(run).items() if k.startswith(f"checkpoint-{step}/") and k.endswith(".safetensors")}


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    """A finished run with grids."""
    return train(DDPM, settings(tiny, tmp_path_factory.mktemp("done") / "run", sample_every=2), quiet=True).folder


def test_a_run_leaves_what_the_design_says(done):
    assert {p.name for p in done.iterdir()} == {
        ".lock", "config.json", "checkpoint-4", "checkpoint-6", "metrics.jsonl", "timing.jsonl", "samples", "model",
    }  # fmt: skip
    assert sorted(p.name for p in (done / "samples").glob("*.png")) == [f"step-{k:07d}.png" for k in (2, 4, 6)]
    assert [line["step"] for line in lines(done)] == [1, 2, 3, 4, 5, 6]
    assert {"denoising", "grad_norm/model", "lr", "images"} <= lines(done)[0].keys()


def test_the_same_seed_gives_the_same_bits_and_previews_change_nothing(done, tiny, tmp_path):
    again = train(DDPM, settings(tiny, tmp_path / "again"), quiet=True).folder
    assert weights(again) == weights(done)
    assert len(weights(done)) == 3
    assert (again / "metrics.jsonl").read_bytes() == (done / "metrics.jsonl").read_bytes()


def test_a_run_is_repeated_from_its_config(done, tmp_path):
    recipe, asked = read_config(done / "config.json", RECIPES)
    again = train(recipe, replace(asked, out=tmp_path / "again"), quiet=True).folder
    assert digest(again) == digest(done)


def test_logging_checkpoints_and_seeds(done, tiny, tmp_path):
    rare = train(DDPM, settings(tiny, tmp_path / "rare", log_every=4, checkpoint_every=6), quiet=True).folder
    assert {k: v for k, v in weights(rare).items() if "ema" in k or "weights" in k} == {
        k: v for k, v in weights(done).items() if "ema" in k or "weights" in k
    }
    few, all_ = lines(rare), lines(done)
    assert [line["step"] for line in few] == [4, 6]
    assert few[0]["denoising"] == pytest.approx(sum(line["denoising"] for line in all_[:4]) / 4)
    assert few[1]["denoising"] == pytest.approx(sum(line["denoising"] for line in all_[4:]) / 2)
    other = train(DDPM, settings(tiny, tmp_path / "other", seed=1), quiet=True).folder
    assert weights(other) != weights(done)


@pytest.mark.parametrize("name", ["ddpm", "autoencoder"])
def test_fresh_weights_follow_from_the_seed(name, tmp_path):
    given = {
        "data": "shapes:length=8",
        "size": 16,
        "batch": 2,
        "steps": 1,
        "sample_every": 0,
        "sample_num": 2,
        "lr": 1e-30,
        "ema": "none",
    }
    recipe = RECIPES[name](**({"perceptual": "none"} if name == "autoencoder" else {}))
    found = []
    for k, seed in enumerate((0, 0, 1)):
        folder = train(recipe, Settings(**given, seed=seed, out=tmp_path / str(k)), quiet=True).folder
        found.append(checkpoint.load(folder).tensors["weights-model"])
    name = next(k for k, v in found[0].items() if v.ndim == 4)
    assert torch.equal(found[0][name], found[1][name])
    assert not torch.allclose(found[0][name], found[2][name], atol=1e-3)


def test_a_network_from_a_folder_trains_with_its_dropout(tiny, tmp_path):
    """Folders load in eval mode; training must not stay in it."""
    losses = []
    for dropout in (0.0, 0.5):
        network = small_network(tmp_path / f"network-{dropout}", dropout)
        folder = train(DDPM, replace(settings(tiny, tmp_path / f"run-{dropout}", steps=2), network=network), quiet=True).folder
        losses.append(lines(folder)[1]["denoising"])
    assert losses[0] != losses[1]


def test_a_network_that_does_not_fit_the_data_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="--network has no classes, the data has 64: use --conditional no"):
        train(DDPM, settings(tiny, tmp_path / "run", conditional="auto"), quiet=True)


def damage(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


def test_a_damaged_newest_checkpoint_is_passed_over_with_a_word(zygote, done, tiny, tmp_path):
    run = tmp_path / "run"
    train(DDPM, settings(tiny, run, sample_every=2, steps=4), quiet=True)
    damage(run / "checkpoint-4" / "weights-model.safetensors")
    process = zygote.command(["train", "ddpm", *tiny.flags(run, sample_every=2), "--resume"])
    assert process.wait() == 0, process.err.read_text()
    said = process.err.read_text()
    assert "checkpoint-4 is damaged and is not used: weights-model.safetensors is damaged" in said
    assert "going on from" in said
    assert "(step 2)" in said
    assert digest(run) == digest(done)


def test_with_no_whole_checkpoint_resume_is_an_error(tiny, tmp_path):
    run = tmp_path / "run"
    train(DDPM, settings(tiny, run, steps=2), quiet=True)
    damage(run / "checkpoint-2" / "state.json")
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        train(DDPM, settings(tiny, run, resume=True), quiet=True)


def test_more_steps_can_be_added_to_a_finished_run(done, tiny, tmp_path):
    run = tmp_path / "run"
    train(DDPM, settings(tiny, run, steps=4, sample_every=2), quiet=True)
    train(DDPM, settings(tiny, run, sample_every=2, resume=True), quiet=True)
    assert digest(run) == digest(done)


def test_a_deletion_that_was_interrupted_after_the_last_save_is_ended_by_resume(done, tiny, tmp_path):
    run = train(DDPM, settings(tiny, tmp_path / "run", sample_every=2, keep=3), quiet=True).folder
    assert (run / "checkpoint-2").is_dir()
    train(DDPM, settings(tiny, run, sample_every=2, resume=True), quiet=True)
    assert digest(run) == digest(done)


def test_resume_where_nothing_is_starts_from_the_beginning(done, tiny, tmp_path):
    run = train(DDPM, settings(tiny, tmp_path / "run", sample_every=2, resume=True), quiet=True).folder
    assert digest(run) == digest(done)


def test_an_old_run_is_not_overwritten(done, tiny):
    before = digest(done)
    with pytest.raises(RunFolderError, match="already holds a run: add --resume"):
        train(DDPM, settings(tiny, done), quiet=True)
    assert digest(done) == before


def test_a_save_that_was_whole_but_for_its_rename_is_a_run_too(done, tiny, tmp_path):
    run = train(DDPM, settings(tiny, tmp_path / "run", steps=2, sample_every=2), quiet=True).folder
    (run / "checkpoint-2").rename(run / ".tmp-checkpoint-2-abcdef01")
    with pytest.raises(RunFolderError, match="already holds a run"):
        train(DDPM, settings(tiny, run), quiet=True)
    train(DDPM, settings(tiny, run, sample_every=2, resume=True), quiet=True)
    assert digest(run) == digest(done)


def test_what_a_killed_process_left_half_written_is_swept(done, tiny, tmp_path):
    run = train(DDPM, settings(tiny, tmp_path / "run", steps=2, sample_every=2), quiet=True).folder
    for name in (".config.json.1.tmp", "samples/.step-0000004.png.1.tmp"):
        (run / name).write_text("half")
    (run / ".model.abcd").mkdir()
    train(DDPM, settings(tiny, run, sample_every=2, resume=True), quiet=True)
    assert {p.name for p in run.iterdir()} == {p.name for p in done.iterdir()}
    assert {p.name for p in (run / "samples").iterdir()} == {p.name for p in (done / "samples").iterdir()}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ema": "none"}, "--ema classic .now none."),
        ({"ema": "power"}, "--ema classic .now power."),
        ({"recipe": "duel"}, "is a run of the recipe .ddpm., not .duel."),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(tiny, tmp_path, changed, message):
    run = train(DDPM, settings(tiny, tmp_path / "run", steps=2), quiet=True).folder
    other = dict(changed)
    recipe = Duel() if other.pop("recipe", None) else DDPM
    with pytest.raises(ValueError, match=message):
        train(recipe, settings(tiny, run, resume=True, **other), quiet=True)


@pytest.mark.parametrize(
    ("place", "key", "near"), [("settings", "stesp", "steps"), ("settings", "batchsize", "batch"), ("knobs", "predcit", "predict")]
)
def test_an_unknown_entry_of_a_config_names_the_nearest(done, tmp_path, place, key, near):
    config = json.loads((done / "config.json").read_text())
    config[place][key] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"unknown entry '{key}', did you mean '{near}'"):
        read_config(tmp_path / "config.json", RECIPES)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"recipe": "ddpm", "knobs": 3, "settings": {}}'])
def test_a_config_that_is_none_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not a run's config.json"):
        read_config(tmp_path / "config.json", RECIPES)


def test_a_config_of_an_unknown_recipe_is_an_error(done, tmp_path):
    config = json.loads((done / "config.json").read_text()) | {"recipe": "gan"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="of the recipe 'gan'"):
        read_config(tmp_path / "config.json", RECIPES)
    with pytest.raises(ValueError, match="does not exist"):
        read_config(tmp_path / "nowhere" / "config.json", RECIPES)


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"batch": 0}, {"micro_batch": 0}, {"micro_batch": 9}, {"keep": 1}, {"lr": 0.0}, {"lr": -1.0}, {"ema_decay": 1.0},
     {"workers": -1}, {"warmup": -1}, {"log_every": 0}, {"checkpoint_every": 0}, {"max_bad_steps": 0}, {"size": 0}],
)  # fmt: skip
def test_settings_out_of_range_name_their_flag(bad):
    flag = "--" + next(iter(bad)).replace("_", "-")
    with pytest.raises(ValueError, match=flag):
        Settings(**{"batch": 8, **bad})


def test_two_players_have_two_optimizers_in_the_checkpoint(tiny, tmp_path):
    run = train(Duel(), settings(tiny, tmp_path / "run"), quiet=True).folder
    assert set(checkpoint.load(run).tensors) == {"weights-model", "weights-fooled", "optimizer-model", "optimizer-fooled", "ema"}


def test_a_folder_that_is_a_file_is_refused(tiny, tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunFolderError, match="is a file"):
        train(DDPM, settings(tiny, tmp_path / "run"), quiet=True)


def test_a_run_that_was_refused_leaves_nothing_behind(tiny, tmp_path):
    """The folders that this very call made, and only while nothing came into them."""
    deep, there, own = tmp_path / "runs" / "deep" / "run", tmp_path / "there", tmp_path / "own"
    there.mkdir()
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    for out in (deep, there, own):
        with pytest.raises(ValueError, match="nowhere"):
            train(DDPM, settings(tiny, out, data=str(tmp_path / "nowhere")), quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "there"]
    assert {path.name for path in own.iterdir()} == {"notes.txt", ".lock"}
    assert {path.name for path in there.iterdir()} == {".lock"}
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="nowhere"):
        train(DDPM, settings(tiny, deep, data=str(tmp_path / "nowhere")), quiet=True)
    assert list((tmp_path / "runs").iterdir()) == []

"""The studies of LPL by their plans: looks at autoencoders, and rows that begin at one checkpoint and differ in their loss."""

from itertools import pairwise
from pathlib import Path

import torch
from plans import LOOKS, LPL, STUDIES, all_weights, plan_of, words_of  # noqa: F401  (all_weights is for all tests here)

from percepta.networks import build_autoencoder
from percepta.probes import PROBES, Look
from percepta.studies import _probes


def test_looks_share_their_autoencoder_and_say_what_is_missing(monkeypatch):
    trained = {name: {job.key for job in plan_of(name).jobs if job.words[0] == "train"} for name in LOOKS}
    assert len(set.union(*trained.values())) == 1
    monkeypatch.setattr(_probes, "has_weights", lambda name: False)
    why = {cells[0].row.label: cells[0].why for cells in plan_of("lpl-fig12").rows}
    assert (
        "TAEF2" in why["TAEF2, factor 8"] and "--init" in why["the one of --init"] and not why["trained on these images, factor 4"]
    )
    assert len(plan_of("lpl-fig12").figures) == 1
    given = plan_of("lpl-fig12", init="./vae", data="./images", size=32)
    (words,) = [job.words for job in given.jobs if job.words[:2] == ("probe", "./vae")]
    assert words[words.index("--size") + 1] == "128"


def test_every_place_of_a_look_is_one_that_its_probe_has(tmp_path):
    """By the probes themselves, on a small autoencoder."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    look = Look(build_autoencoder().requires_grad_(False).eval(), images, tmp_path, draws=1)
    for name in LOOKS:
        study = STUDIES[name]
        (what,) = {words[words.index("--what") + 1] for words in words_of(name) if words[0] == "probe"}
        numbers = PROBES[what](look).numbers
        for column in study.columns:
            found = numbers
            for part in column.place.split("."):
                found = found[part]
            assert isinstance(found, float)
        for figure in study.figures(study.at("pocket")):
            assert (tmp_path / Path(figure.file).name).is_file()


def test_rows_of_lpl_begin_at_one_checkpoint_and_differ_in_their_loss():
    """The same steps, batch, rate and autoencoder; only table 7, of equal time, has more steps where they are cheaper."""
    own = {
        "--loss",
        "--max-level",
        "--weight-rule",
        "--loss-weight",
        "--alone",
        "--outliers",
        "--norm",
        "--weight",
        "--steps",
        "--seed",
        "--depth",
    }
    for name in LPL:
        jobs = [job for job in plan_of(name).jobs if job.words[:2] == ("train", "lpl")]
        tuned = [job.words for job in jobs if "--init" in job.words]
        bases = {job.key for words in tuned for job in words if not isinstance(job, str)}
        assert len(bases) == 2, "one checkpoint and one autoencoder"
        flags = [{k: v for k, v in pairwise(w) if str(k).startswith("--") and k not in own} for w in tuned]
        assert all(found == flags[0] for found in flags), name
        steps = {w[w.index("--steps") + 1] for w in tuned}
        assert steps == ({"200", "464"} if name == "lpl-table7" else {"50", "100", "200"} if name == "lpl-fig14-18" else {"200"})

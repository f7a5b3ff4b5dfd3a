"""Jobs: each once, none before what it needs, so many at a time, and what is left when one fails or all are stopped."""

import json
import os
import threading
import time
from dataclasses import replace

import pytest

from percepta.studies.engine import forks
from percepta.studies.engine.plan import in_order
from percepta.studies.engine.running import gpus, run_jobs, threads
from percepta.studies.engine.store import Store
from percepta.studies.engine.study import OUT, At, Job
from percepta.training.signals import StopFlag

AT = At("pocket", None, "shapes:length=4", 8)  # the one of the fixture `store`
BASE = Job(("train", "x", "--out", OUT, "base"))
TUNED = [Job(("train", "x", "--init", BASE, "--out", OUT, f"tuned{k}")) for k in range(3)]
JUDGED = [Job(("evaluate", tuned, "--json", f"judged{k}")) for k, tuned in enumerate(TUNED)]
ALL = in_order(JUDGED)


def test_shared_work_is_done_once_and_in_order(store, fake):
    assert len(ALL) == 7
    out = run_jobs(ALL, store, StopFlag())
    assert not out.failed and not out.stopped and len(out.records) == 7
    starts = [line.removeprefix("start ") for line in fake() if line.startswith("start")]
    assert sorted(starts) == sorted(["base", *(f"{what}{k}" for what in ("tuned", "judged") for k in range(3))])
    assert starts[0] == "base" and all(starts.index(f"tuned{k}") < starts.index(f"judged{k}") for k in range(3))
    assert out.records[JUDGED[1].key]["result"]["words"][1] == str(store.folder(TUNED[1]))


def test_what_is_done_is_not_done_again(store, fake):
    run_jobs(ALL[:3], store, StopFlag())
    before = len(fake())
    out = run_jobs(ALL, store, StopFlag())
    assert len(out.records) == 7
    assert len(fake()) - before == 2 * 4
    store.file(JUDGED[0], "json").write_text('{"seco')  # cut off by a crash of the machine: no record
    assert store.record(JUDGED[0]) is None
    assert len(run_jobs(ALL, store, StopFlag()).records) == 7 and len(fake()) - before == 2 * 5


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_at_a_time(store, fake, at_once):
    jobs = [Job(("sleep", "--sleep", "0.3", f"{k}")) for k in range(3)]
    run_jobs(jobs, store, StopFlag(), at_once)
    running_now, most = 0, 0
    for line in fake():
        running_now += 1 if line.startswith("start") else -1
        most = max(most, running_now)
    assert most == at_once


def test_a_failure_costs_the_jobs_behind_it_only(store, fake):
    bad = Job(("train", "x", "--out", OUT, "--fail", "bad"))
    behind = Job(("sample", bad, "behind"))
    last = Job(("evaluate", behind, "--json", "last"))
    said = []
    out = run_jobs(in_order([last, JUDGED[0]]), store, StopFlag(), 2, lambda job, s, done, of, left, ended: said.append(ended))
    assert set(out.failed) == {bad.key, behind.key, last.key} and set(out.records) == {BASE.key, TUNED[0].key, JUDGED[0].key}
    assert out.failed[bad.key].splitlines()[-1] == "no room on the device" and "ended with 1" in out.failed[bad.key]
    assert out.failed[last.key] == out.failed[behind.key] == f"not run: {bad.name} failed"
    assert sorted(said) == ["done", "done", "done", "failed"]
    assert not store.file(bad, "json").exists(), "a failed job is tried again by the next call"


def test_output_that_is_no_json_is_a_failure(store, fake):
    cut = Job(("evaluate", "--json", "--cut", "cut"))
    assert "no JSON" in run_jobs([cut], store, StopFlag()).failed[cut.key]


def test_a_stop_reaches_every_child_and_the_next_call_goes_on(store, fake):
    slow = [Job(("train", "x", "--out", OUT, "--sleep", "60", f"{k}")) for k in range(2)]
    flag = StopFlag()

    def stop_when_both_run():
        while not all((store.folder(job) / "ready").exists() for job in slow):
            time.sleep(0.02)
        flag.asked = "SIGTERM"

    threading.Thread(target=stop_when_both_run, daemon=True).start()
    started = time.monotonic()
    out = run_jobs([*slow, BASE], store, flag, 2)
    assert out.stopped and not out.records and not out.failed
    assert time.monotonic() - started < 30
    assert all((store.folder(job) / "stopped").read_text() == "by SIGTERM" for job in slow)
    assert all(store.spent(job) > 0 and not store.file(job, "json").exists() for job in slow)
    assert "start base" not in fake()


def test_an_interrupted_training_is_resumed_and_its_time_counts(store, fake):
    job = Job(("train", "x", "--out", OUT, "--json", "again"))
    store.folder(job).mkdir(parents=True)
    store.spend(job, 100.0)
    record = run_jobs([job], store, StopFlag()).records[job.key]
    assert record["result"]["words"][-1] == "--resume"
    assert record["seconds"] > 100
    other = Job(("sample", "x", "--out", OUT, "--json", "again"))  # drawing and judging go on by themselves
    store.folder(other).mkdir()
    assert "--resume" not in run_jobs([other], store, StopFlag()).records[other.key]["result"]["words"]


def test_threads_and_devices_are_divided(store, fake, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    jobs = [Job(("evaluate", "--json", "--sleep", "0.3", f"{k}")) for k in range(2)]
    records = run_jobs(jobs, store, StopFlag(), 2, devices=gpus()).records
    seen = [records[job.key]["result"]["env"] for job in jobs]
    assert [one["OMP_NUM_THREADS"] for one in seen] == ["4", "4"]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["4", "7"]
    alone = Job(("evaluate", "--json", "alone"))  # nobody else is ready: it has the machine
    assert run_jobs([alone], store, StopFlag(), 2).records[alone.key]["result"]["env"]["OMP_NUM_THREADS"] == "8"
    assert threads(100) == 1


def test_time_left_is_known_once_each_kind_was_seen(store, fake):
    told = []
    run_jobs(ALL, store, StopFlag(), 1, lambda job, s, done, of, left, ended: told.append(left))
    assert told[0] is None and told[-1] == 0
    assert any(left is not None and left > 0 for left in told)


def test_a_folder_is_of_one_scale_and_one_user(store, tmp_path):
    other = At("paper", None, AT.data, 8)
    with pytest.raises(ValueError, match="another study is at work"):
        Store(store.root).open(AT)
    store.close()
    with pytest.raises(ValueError, match=r"--scale pocket \(now paper\)"):
        Store(store.root).open(other)
    with pytest.raises(ValueError, match=r"--data shapes:length=4 \(now shapes:length=5\)"):
        Store(store.root).open(At("pocket", None, "shapes:length=5", 8))
    again = Store(store.root)
    again.open(AT, resume=True)
    again.close()
    with pytest.raises(ValueError, match="--resume"):
        Store(tmp_path / "new").open(AT, resume=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("")
    with pytest.raises(ValueError, match="not empty"):
        Store(tmp_path / "mine").open(AT)


def test_changed_images_under_the_same_name_are_refused(tmp_path):
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for k in range(3):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(images / f"{k}.png")
    at = At("pocket", None, str(images), 8)
    store = Store(tmp_path / "studies")
    store.open(at)
    store.close()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(images / "2.png")
    with pytest.raises(ValueError, match="fingerprint"):
        Store(tmp_path / "studies").open(at)


def opened(root, at):
    """The folder is taken and given back."""
    made = Store(root)
    made.open(at)
    made.close()
    return json.loads((root / "studies.json").read_text())


def test_changed_weights_under_the_same_name_are_refused(tmp_path):
    """As content: the new file has the old one's name, size and time. What a run left beside its model is none of it."""
    run, root = tmp_path / "run", tmp_path / "studies"
    (run / "model" / "unet").mkdir(parents=True)
    (run / "model" / "model_index.json").write_text("{}")
    weights, at = run / "model" / "unet" / "diffusion_pytorch_model.safetensors", replace(AT, init=str(run))
    weights.write_bytes(b"old")
    opened(root, at)
    (run / "metrics.jsonl").write_text("{}")
    (run / "report.json").write_text("{}")
    (run / "model" / "README.md").write_text("read me")
    opened(root, at)
    time_of = weights.stat()
    weights.write_bytes(b"new")
    os.utime(weights, ns=(time_of.st_atime_ns, time_of.st_mtime_ns))
    with pytest.raises(ValueError, match="weights behind --init with the sha256 .* .now .*: go on as they were begun"):
        opened(root, at)
    weights.write_bytes(b"old")
    opened(root, at)
    (run / "model" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(ValueError, match="weights behind --init"):
        opened(root, at)
    with pytest.raises(ValueError, match="there are no weights"):
        opened(tmp_path / "other", replace(AT, init=str(tmp_path / "nowhere")))


def test_the_scheduler_beside_a_bare_model_belongs_to_it(tmp_path):
    at = replace(AT, init=str(tmp_path / "unet"))
    for folder, name in (("unet", "config.json"), ("scheduler", "scheduler_config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("{}")
    opened(tmp_path / "studies", at)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "sample"}')
    with pytest.raises(ValueError, match="weights behind --init"):
        opened(tmp_path / "studies", at)


def test_changed_held_out_images_are_refused_and_others_may_be_added(tmp_path):
    from PIL import Image

    root = tmp_path / "studies"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for k in range(3):
            Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / folder / f"{k}.png")
    opened(root, AT)
    one, two = (replace(AT, held_out=str(tmp_path / folder)) for folder in ("one", "two"))
    opened(root, one)
    known = opened(root, two)["held_out"]
    assert set(known) == {one.held_out, two.held_out}
    Image.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "one" / "2.png")
    with pytest.raises(ValueError, match="--held-out .*one with the fingerprint"):
        opened(root, one)
    assert opened(root, two)["held_out"] == known


def test_changed_targets_are_refused_and_others_may_be_added(tmp_path):
    root, first = tmp_path / "studies", replace(AT, targets=("shapes:length=5",))
    opened(root, first)
    found = opened(root, replace(AT, targets=("cars=shapes:length=6",)))["targets"]
    assert set(found) == {"shapes:length=5", "cars=shapes:length=6"}
    assert found["cars=shapes:length=6"] == opened(root, replace(AT, targets=("shapes:length=6",)))["targets"]["shapes:length=6"]
    (root / "studies.json").write_text((root / "studies.json").read_text().replace(found["shapes:length=5"], "other"))
    with pytest.raises(ValueError, match="--target shapes:length=5 with the fingerprint"):
        opened(root, first)


def test_a_folder_that_is_older_than_what_is_kept_goes_on(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    at, root = replace(AT, init=str(tmp_path / "unet"), held_out="shapes:length=5"), tmp_path / "studies"
    now = opened(root, at)
    old = {key: value for key, value in now.items() if key not in ("weights", "held_out")}
    (root / "studies.json").write_text(json.dumps(old))
    assert opened(root, at) == now
    (root / "studies.json").write_text(json.dumps({key: value for key, value in now.items() if key != "fingerprint"}))
    with pytest.raises(ValueError, match="fingerprint"):
        opened(root, at)


def test_a_job_is_its_command_and_what_that_reads():
    assert Job(("sample", BASE)).key == Job(("sample", BASE), after=(TUNED[0],)).key
    assert Job(("sample", BASE)).key != Job(("sample", TUNED[0])).key
    assert json.loads(json.dumps(BASE.name)).startswith("train-x-") and forks.PERCEPTA[1:] == ("-m", "percepta")

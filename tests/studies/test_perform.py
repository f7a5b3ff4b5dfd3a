"""`percepta study` as a user meets it: real commands, a real SIGTERM, the same call again; exit codes; a whole study cut down."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import processes
import pytest

from percepta.cli import main
from percepta.studies import _mmd, studies
from percepta.studies.engine.perform import perform, told, usual
from percepta.studies.engine.plan import make_plan
from percepta.studies.engine.study import OUT, Column, Job, Reading, Row, Study
from percepta.training.signals import StopFlag, stop_on_signals

STEPS = 400  # long enough for a signal to come in between


def base(at):
    words = f"train ddpm --data {at.data} --size 8 --conditional no --network {at.init} --steps {STEPS} --batch 2 --checkpoint-every 2 --sample-every 0"
    return Job((*words.split(), "--log-every", "2", "--out", OUT))


def trained(at, column, seed):
    return base(at)


def judge(at, images, column, seed):
    words = f"--num 8 --steps {column.setting} --metrics kid --space pixels --seed {seed} --out {OUT} --json"
    return Reading(Job(("evaluate", images, at.data, *words.split())), column.place)


TINY = Study(
    name="tiny",
    summary="Real commands at 8 pixels",
    ask="Does it go on?",
    printed="nothing",
    rows=(Row("DDIM", trained, (1.0,)),),
    columns=(Column("2 steps", "metrics.kid", 2),),
    judge=judge,
    sizes={"pocket": replace(_mmd.POCKET, size=8), "paper": None},
    facts=lambda at: [],
    data={"pocket": ("shapes:length=16,size=8", ""), "paper": None},
)


def signal_when(there, number=signal.SIGTERM):
    """A signal to this process once something is there."""

    def wait():
        end = time.monotonic() + 120
        while not there() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def test_real_commands_go_on_after_a_real_sigterm(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for the children: small tensors are faster so
    root, said = tmp_path / "studies", []
    network = processes.small_network(tmp_path / "network")  # stands where --init would
    plan = make_plan(TINY, TINY.at("pocket", init=network), [0])
    training = root / "work" / plan.jobs[0].name
    signal_when(lambda: any(training.glob("checkpoint-*/MANIFEST.json")))
    with stop_on_signals() as flag:
        first = perform(plan, root, flag, note=said.append)
    assert first.outcome.stopped and not first.outcome.failed and "stopped" in said[-1]
    reached = max(int(path.name.partition("-")[2]) for path in training.glob("checkpoint-*"))
    assert 0 < reached < STEPS and not training.with_suffix(".json").exists()
    assert json.loads((first.folder / "table.json").read_text())["rows"][0]["cells"][0]["why"] == "not done yet"

    done = perform(plan, root, StopFlag(), note=said.append)
    assert not done.outcome.stopped and done.table["finished"], done.outcome.failed
    log = training.with_suffix(".log").read_text()
    assert f"stopped at step {reached}" in log
    steps = [json.loads(line)["step"] for line in (training / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS
    cell = done.table["rows"][0]["cells"][0]
    assert cell["space"] == "pixels" and len(cell["values"]) == 1 and cell["paper"] == 1.0
    commands = done.table["rows"][0]["commands"]
    assert [line.split()[1] for line in commands] == ["train", "evaluate"] and f"--init {training}" not in commands[0]
    assert str(training) in commands[1]

    again = perform(plan, root, StopFlag(), note=said.append)
    assert "2 of them are done already" in said[-1] and again.table == done.table


def test_the_command_stops_with_3_and_goes_on(tmp_path, fake, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_SLEEP", "60")
    call = ["study", "mmd-fig5", "--seeds", "1", "--jobs", "2"]
    signal_when(lambda: len(fake()) >= 2)
    assert main(call) == 3
    assert "run the same command again" in capsys.readouterr().err
    assert not json.loads(Path("runs/studies/pocket/mmd-fig5/table.json").read_text())["finished"]
    monkeypatch.setenv("FAKE_SLEEP", "0")
    assert main([*call, "--resume", "--json"]) == 0
    told_now = capsys.readouterr()
    assert json.loads(told_now.out)["finished"] and "[5/5]" in told_now.err


def test_a_failed_job_is_told_at_the_end_and_the_code_is_1(tmp_path, fake, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAKE_FAILS", "report")
    assert main(["study", "mmd-fig5", "--seeds", "1"]) == 1
    told_now = capsys.readouterr()
    assert "no room on the device" in told_now.err and "2 of 5 jobs failed" in told_now.err
    assert "Not finished" in told_now.out


def test_the_folder_of_another_scale_is_refused(tmp_path, fake, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "mmd-fig5", "--seeds", "1", "--out", "all"]) == 0
    assert main(["study", "mmd-fig5", "--scale", "paper", "--data", "shapes:length=8", "--out", "all"]) == 2
    assert "--scale pocket (now paper)" in capsys.readouterr().err.splitlines()[-1]


def test_a_job_in_a_few_words():
    at = studies()["mmd-table7"].at("pocket")
    assert told(_mmd.finetuned(at, 10, 2, "domain", "rbf")) == "train mmd, K 10, domain, rbf, leading, ddim, seed 2"


@pytest.mark.parametrize(("cores", "pocket"), [("1", 1), ("2", 2), ("64", 2)])
def test_the_usual_number_of_jobs(cores, pocket, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert (usual("pocket"), usual("paper")) == (pocket, 3)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whole_pocket_studies_cut_down(tmp_path, monkeypatch):
    """The real recipes, the real encoder that is trained in; pixels stand for the other space. Three studies, one folder."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = {}
    for name in ("mmd-table5", "mmd-fig4", "mmd-fig5"):
        study = studies()[name]
        at = study.at("pocket", data="shapes:labels=shape,length=128", size=8, held_out="shapes:labels=shape,length=64,seed=1")
        sizes = replace(
            at.sizes, pretrain="--steps 6 --batch 4 --checkpoint-every 3", finetune="--steps 2 --batch 8 --micro-batch 4 --lr 1e-4",
            num=64, judge="--metrics fid,pr --space pixels",
        )  # fmt: skip
        said = []
        done[name] = perform(make_plan(study, replace(at, sizes=sizes), [0]), tmp_path / "s", StopFlag(), 1, note=said.append)
        assert done[name].table["finished"], done[name].outcome.failed
        assert ("done already" in said[0]) == (name != "mmd-table5"), "what table 5 left is taken up"
    rows = {row["label"]: row["cells"] for row in done["mmd-table5"].table["rows"]}
    assert [cell["contaminated"] for cell in rows["MMD-DDM, domain (paper: Inception)"]] == [True, True, False, False]
    assert not any(cell["contaminated"] for cell in rows["DDIM"])
    assert all(len(cell["values"]) == 1 for cells in rows.values() for cell in cells)
    assert not any(cell["best"] for cells in rows.values() for cell in cells if cell["contaminated"])
    assert all(cell["mean"] is not None for row in done["mmd-fig4"].table["rows"] for cell in row["cells"])
    for name in ("mmd-fig4", "mmd-fig5"):
        page = (done[name].folder / "table.html").read_text()
        assert page.count("data:image/webp") == 2 and "Not there" not in page

"""R8, R10: two ranks are one process: gradients, logs, weights and files; uneven shares; signals; a rank that does not come or dies."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from processes import free_port, lines, names
from safetensors.torch import load_file

from percepta.recipes import recipes

HERE = Path(__file__).parent
STEPS = [
    *recipes(),
    "duel",
    "ddpm/micro",
    "ddpm/channels_last",
    "sadm/critic",
    "sadm/critic, own times",
    "ladiffgan/cyclegan",
    "ladiffgan/unit",
    "ladiffgan/munit",
    "latent",
    "gaussian",
    "gaussian/own",
]


@pytest.fixture(scope="module")
def results(zygote, tiny, tmp_path_factory):
    """What one process and each of two ranks found."""
    out = tmp_path_factory.mktemp("ranks")
    assert Path(tiny.vae).is_dir()  # made here: the ranks would do it at once
    code = f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport ranks\nranks.main({str(out)!r}, {tiny.network!r}, {STEPS!r})"
    for process in [zygote.start(code), *zygote.ranks(2, code, free_port())]:
        assert process.wait(200) == 0, process.err.read_text()
    return {name: load_file(out / f"{name}.safetensors") for name in ("1-0", "2-0", "2-1")}


def part(tensors, name, case):
    return {k.split("|")[2]: v for k, v in tensors.items() if k.startswith(f"{name}|{case}|")}


def gap(a, b):
    """The largest difference in units of the player's largest gradient."""
    assert a.keys() == b.keys()
    params = [k for k in a if not k.startswith("log/")]
    most = {}
    for k in params:
        player = k.split("/")[0]
        most[player] = max(most.get(player, 0.0), float(a[k].abs().max()))
    return max(float((a[k] - b[k]).abs().max()) / most[k.split("/")[0]] for k in params)


@pytest.mark.parametrize("case", ["even", "uneven"])
@pytest.mark.parametrize("name", [name for name in STEPS if name != "gaussian/own"])
def test_two_ranks_give_the_gradient_of_one_process(results, name, case):
    one = part(results["1-0"], name, case)
    assert len(one) > 10
    for rank in ("2-0", "2-1"):
        two = part(results[rank], name, case)
        # an autoencoder's latents and images are float32 whatever its weights are
        assert gap(one, two) <= {"autoencoder": 1e-6, "prior": 1e-5, "latent": 1e-5}.get(name, 1e-12)
        logs = {k: float(v) for k, v in one.items() if k.startswith("log/")}
        rel = 1e-5 if name == "latent" else 1e-6
        assert {k: float(v) for k, v in two.items() if k.startswith("log/")} == pytest.approx(logs, rel=rel)


@pytest.mark.parametrize("case", ["even", "uneven"])
def test_averaging_the_ranks_own_discrepancies_is_something_else(results, case):
    assert gap(part(results["1-0"], "gaussian", case), part(results["2-0"], "gaussian/own", case)) > 0.05


def test_rows_are_gathered_in_rank_order_with_gradient(results):
    expected = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    total = float(expected.prod(1).sum())
    for found in results.values():
        small = part(found, "small", "")
        assert torch.equal(small["gathered"], expected)
        assert torch.allclose(small["gradient"], 2 * total * expected.flip(1), rtol=1e-14)
        assert small["from one rank"].shape == (2, 4)


def test_gradients_that_some_or_no_rank_has(results):
    for found in results.values():
        small = part(found, "small", "")
        assert small["ours"].tolist() == [1.0, 1.0]
        assert bool(small["nobody's"])
        assert bool(small["layout"])
    assert part(results["2-1"], "small", "")["summed"].tolist() == [2.0, 1.0]
    assert part(results["1-0"], "small", "")["summed"].tolist() == [1.0, 0.0]


def test_a_time_that_is_one_for_a_step_is_so_on_all_ranks(results):
    one, first, second = (part(results[name], "time", "") for name in ("1-0", "2-0", "2-1"))
    assert len(set(one["t"][:, 0].tolist())) == 3
    for found in (one, first, second):
        assert torch.equal(found["t"], one["t"]) and not found["spread"].any()


def test_two_ranks_find_the_weights_of_one(results):
    """5 images are 3 and 2: sums over the ranks, not means of what each found."""
    one = part(results["1-0"], "calibrated", "")
    assert set(one) == {"share", "variance", "levels"} and len({float(found[0]) for found in one.values()}) == 3
    assert all(float(found[0]) == pytest.approx(2 * float(found[1])) for found in one.values())  # the term has a scale of 2
    first, second = (part(results[rank], "calibrated", "") for rank in ("2-0", "2-1"))
    for name, found in one.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], found, rtol=1e-9)


def command(args, before=""):
    return f"{before}\nfrom percepta.cli import main\nraise SystemExit(main({[str(a) for a in args]!r}))"


@pytest.mark.parametrize(
    "name", ["ddpm", "autoencoder", pytest.param("edm", marks=pytest.mark.slow), pytest.param("flow", marks=pytest.mark.slow)]
)
def test_a_run_of_two_ranks_is_a_run_of_one(zygote, tiny, tmp_path, name):
    """The same flags: --batch counts all ranks. 5 images on 2 ranks are 3 and 2."""
    extra = ["--perceptual", "none"] if name == "autoencoder" else []
    runs = {}
    for size in (1, 2):
        run = tmp_path / str(size)
        changed = {"batch": 5, "steps": 2, "checkpoint_every": 1, "sample_every": 2, "clip": "None"}
        if name == "autoencoder":
            changed["network"] = None
        args = ["train", name, *tiny.flags(run, **changed), *extra]
        for process in [zygote.command(args)] if size == 1 else zygote.ranks(2, command(args), free_port()):
            assert process.wait(200) == 0, process.err.read_text()
        runs[size] = run
    assert names(runs[1]) == names(runs[2])  # rank 1 wrote nothing
    first = [load_file(runs[size] / "checkpoint-1" / "optimizer-model.safetensors") for size in (1, 2)]
    moments = [k for k in first[0] if k.endswith("exp_avg")]
    most = max(float(first[0][k].abs().max()) for k in moments)
    assert max(float((first[0][k] - first[1][k]).abs().max()) for k in moments) <= 1e-5 * most
    for a, b in zip(lines(runs[1]), lines(runs[2]), strict=True):
        assert a.keys() == b.keys()
        assert [b[k] for k in a] == pytest.approx([a[k] for k in a], rel=1e-4)
    assert json.loads((runs[2] / "config.json").read_text())["resolved"]["processes"] == 2


HOLD = """
import importlib, os, time
from pathlib import Path
owner = importlib.import_module({module!r})
for one in {owner!r}:
    owner = getattr(owner, one)
real, calls = getattr(owner, {name!r}), 0

def held(*args, **options):
    global calls
    calls += 1
    if calls == {call} and os.environ["RANK"] == {rank!r}:
        Path({here!r}).touch()
        while not Path({go!r}).exists():
            time.sleep(0.005)
    return real(*args, **options)

setattr(owner, {name!r}, held)
"""
STEP = {"module": "percepta.training.loop", "owner": (), "name": "take_step", "call": 3}
GRID = {"module": "percepta.networks.adapter", "owner": ("Network",), "name": "forward", "call": 5}


def held(zygote, tiny, folder, rank, place, **changed):
    """Two ranks, one of which waits at a place."""
    here, go = folder / "here", folder / "go"
    before = HOLD.format(**place, rank=str(rank), here=str(here), go=str(go))
    given = {"checkpoint_every": 3, "sample_every": 4, "sampler": "ddpm", "dist_timeout": 60, **changed}
    ranks = zygote.ranks(2, command(["train", "ddpm", *tiny.flags(folder / "run", **given)], before), free_port())
    ranks[rank].until(here.exists)
    return ranks, go.touch, given


@pytest.mark.parametrize(("place", "rank", "step"), [(STEP, 1, 3), (GRID, 0, 4)], ids=["in a step of rank 1", "in rank 0's grid"])
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(zygote, tiny, tmp_path, place, rank, step):
    ranks, go_on, given = held(zygote, tiny, tmp_path, rank, place)
    ranks[rank].kill(signal.SIGTERM)
    go_on()
    assert [process.wait(100) for process in ranks] == [3, 3], ranks[0].err.read_text() + ranks[1].err.read_text()
    assert (tmp_path / "run" / f"checkpoint-{step}" / "MANIFEST.json").is_file()
    args = ["train", "ddpm", *tiny.flags(tmp_path / "run", **given), "--resume"]
    for process in zygote.ranks(2, command(args), free_port()):
        assert process.wait(100) == 0, process.err.read_text()
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_rank_that_dies_is_an_error_that_names_a_rank_and_the_run_resumes_on_one(zygote, tiny, tmp_path):
    ranks, _, given = held(zygote, tiny, tmp_path, 1, {**STEP, "call": 5})
    ranks[1].kill(signal.SIGKILL)
    assert ranks[0].wait(100) == 1
    assert ranks[1].wait(100) == -signal.SIGKILL
    assert "rank 0 of 2 failed in a collective" in ranks[0].err.read_text()
    process = zygote.command(["train", "ddpm", *tiny.flags(tmp_path / "run", **given), "--resume"])  # another world size
    assert process.wait(100) == 0, process.err.read_text()
    assert "(step 3)" in process.err.read_text()


def test_a_rank_that_hangs_is_an_error_after_the_timeout(zygote, tiny, tmp_path):
    ranks, _, _ = held(zygote, tiny, tmp_path, 1, STEP, dist_timeout=3)
    assert ranks[0].wait(60) == 1
    ranks[1].kill(signal.SIGKILL)
    assert ranks[1].wait(60) == -signal.SIGKILL
    assert "rank 0 of 2 failed in a collective: another rank stopped or is too slow (--dist-timeout)" in ranks[0].err.read_text()


def test_a_rank_that_never_comes_is_an_error_after_the_timeout(zygote, tiny, tmp_path):
    args = ["train", "ddpm", *tiny.flags(tmp_path / "run", dist_timeout=3)]
    env = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = zygote.start(command(args), **env)
    assert process.wait(60) == 1
    assert "rank 0 of 2: the processes did not all meet within 3 s (--dist-timeout)" in process.err.read_text()


def test_fewer_images_than_ranks_are_refused_on_every_rank(zygote, tiny, tmp_path):
    args = ["train", "ddpm", *tiny.flags(tmp_path / "run", batch=1)]
    for process in zygote.ranks(2, command(args), free_port()):
        assert process.wait(100) == 2
        assert "--batch 1 is smaller than the number of processes, 2" in process.err.read_text()


@pytest.mark.slow
def test_torchrun_restarts_after_a_rank_was_killed(tiny, tmp_path):
    """An elastic restart: rank 1 kills itself once; torchrun starts both again, and they go on."""
    import subprocess

    once = tmp_path / "once"
    script = tmp_path / "job.py"
    before = HOLD.format(**{**STEP, "call": 5}, rank="1", here=str(tmp_path / "here"), go=str(once))
    suicide = f"Path({str(once)!r}).exists() or (Path({str(once)!r}).touch(), os.kill(os.getpid(), 9))"
    die = before.replace("        while not", f"        {suicide}\n        while not")
    script.write_text(command(["train", "ddpm", *tiny.flags(tmp_path / "run"), "--resume"], die))
    args = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "1",
        "--master-port",
        str(free_port()),
        str(script),
    ]
    ran = subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[:6000]
    assert "going on from" in ran.stderr
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]

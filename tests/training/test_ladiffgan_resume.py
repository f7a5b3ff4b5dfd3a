"""One command for all phases: stopped in any of them by a signal, the same command goes on, and ends where an undisturbed run does."""

import json
import subprocess
import sys

import pytest
import torch
from processes import digest, free_port, lines
from safetensors.torch import load_file
from translators import ALONE, made, settings

from percepta.training.job import train

FLAGS = {
    "source": "shapes:length=6", "generator": "cyclegan", "channels": 8, "blocks": 1, "size": 16, "batch": 2, "steps": 3, "autoencoder-steps": 2,
    "prior-steps": 2, "perceptual": "none", "sample-every": 3, "sample-num": 6, "checkpoint-every": 1, "log-every": 1, "device": "cpu",
}  # fmt: skip
HALF = """
import os
from percepta.networks.autoencoders import Autoencoder

def half(self, folder):
    self.model.save_config(folder)
    os.kill(os.getpid(), 9)

Autoencoder.save_pretrained = half
"""
HOLD = """
import os, torch
import percepta.training.loop as loop
torch.set_num_threads(1)
real, calls = loop.take_step, 0

def held(*args, **options):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), {number})
    return real(*args, **options)

loop.take_step = held
"""


def words(folder, *more):
    flags = {**FLAGS, "out": folder / "run", "cache": folder / "cache"}
    return ["train", "ladiffgan", *(str(word) for k, v in flags.items() for word in (f"--{k}", v)), *more]


@pytest.mark.slow
def test_a_run_goes_on_exactly_from_inside_each_phase(zygote, tmp_path):
    """A signal in the first step of an autoencoder, of a prior (after 1 + 2 steps of autoencoders), and of the GAN (after 1 + 2 of priors)."""

    def start(name, call=0):
        process = zygote.command(words(tmp_path / name, "--resume"), HOLD.format(call=call or -1, number=15))
        return process.wait(200), process.err.read_text()

    code, said = start("a")
    assert code == 0, said
    for call, left in ((1, "autoencoder"), (4, "prior"), (4, None)):
        code, said = start("b", call)
        assert code == 3 and ("the same command goes on" if left else "--resume") in said, said
        unfinished = [
            folder.name.split("-")[0] for folder in (tmp_path / "b/cache/phases").glob("[ap]*-*") if not (folder / "model").is_dir()
        ]
        assert unfinished == ([] if left is None else [left])
        assert (tmp_path / "b/run/checkpoint-1").is_dir() == (left is None)
    code, said = start("b")
    assert code == 0, said
    assert "autoencoder of A: found in" not in said  # the run that goes on names its phases
    for part in ("run", "cache/phases"):
        straight, again = digest(tmp_path / "a" / part), digest(tmp_path / "b" / part)
        assert straight.items() <= again.items() and len(straight) > 10
        assert {name.split("/")[1] for name in again.keys() - straight.keys()} <= {"checkpoint-1"}  # of where the signal came
    assert {"weights-adversarial.a", "weights-latent-gan.b"} <= {path.stem for path in (tmp_path / "b/run/checkpoint-3").iterdir()}
    config = json.loads((tmp_path / "b/run/config.json").read_text())
    assert all(config["knobs"][f"{what}_{d}"] for what in ("autoencoder", "prior") for d in "ab")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_exactly(zygote, tmp_path):
    """In the middle of an autoencoder's export, in the first step of a prior and of the features that option B compares, and in the GAN's second."""

    def start(name, before=""):
        process = zygote.command(
            words(tmp_path / name, "--resume", "--latent-gan", "B"), f"import torch\ntorch.set_num_threads(1)\n{before}"
        )
        return process.wait(200), process.err.read_text()

    code, said = start("a")
    assert code == 0, said
    kills = [(HALF, "autoencoder")] + [
        (HOLD.format(call=call, number=9), left) for call, left in ((3, "prior"), (3, "ddpm"), (8, None))
    ]
    for before, left in kills:
        assert start("b", before)[0] == -9
        unfinished = [
            folder.name.split("-")[0]
            for folder in (tmp_path / "b/cache/phases").glob("[adp]*-*")
            if not (folder / "model").is_dir()
        ]
        assert unfinished == ([] if left is None else [left])
    assert (tmp_path / "b/run/checkpoint-1").is_dir() and not (tmp_path / "b/run/checkpoint-2").is_dir()
    code, said = start("b")
    assert code == 0 and "(step 1)" in said, said
    for part in ("run", "cache/phases"):
        straight, again = digest(tmp_path / "a" / part), digest(tmp_path / "b" / part)
        assert straight == again and len(straight) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generator", "more"), [("ugatit", {"diffusion_gan": True}), ("unit", {}), ("munit", {"diffusion_gan": True})]
)
def test_every_generator_goes_on_exactly(generator, more, tmp_path):
    """Its noise and styles, the spectral norms of its critics, and Diffusion-GAN's count of what these saw."""

    def run(name, *ends):
        for k, end in enumerate(ends):
            given = settings(tmp_path / name, steps=end, lr_schedule="constant", checkpoint_every=1, sample_every=0, resume=k > 0)
            train(made(generator=generator, **ALONE, **more), given, quiet=True)
        return digest(tmp_path / name / f"checkpoint-{ends[-1]}")

    assert run("straight", 3) == run("stopped", 1, 3)


@pytest.mark.slow
def test_phases_and_gan_under_torchrun_are_those_of_one_process(zygote, tmp_path):
    process = zygote.command(words(tmp_path / "1"))
    assert process.wait(200) == 0, process.err.read_text()
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), "-m", "percepta"]
    ran = subprocess.run(
        [sys.executable, *launch, *words(tmp_path / "2")], capture_output=True, text=True, timeout=500, check=False
    )
    assert ran.returncode == 0, ran.stderr[-6000:]
    names = [sorted(folder.name for folder in (tmp_path / size / "cache/phases").glob("[ap]*-*")) for size in "12"]
    coders = [[name for name in found if name.startswith("autoencoder")] for found in names]
    assert coders[0] == coders[1] and len(names[1]) == 4
    one, two = (
        load_file(tmp_path / size / "cache/phases" / coders[0][0] / "checkpoint-2/weights-model.safetensors") for size in "12"
    )
    assert all(torch.allclose(one[k], two[k], rtol=1e-3, atol=1e-4) for k in one)
    for a, b in zip(lines(tmp_path / "1/run"), lines(tmp_path / "2/run"), strict=True):
        assert a.keys() == b.keys()
        steady = [k for k in a if "denoising" not in k and "latent" not in k]
        assert [b[k] for k in steady] == pytest.approx([a[k] for k in steady], rel=2e-2)
    assert json.loads((tmp_path / "2/run/config.json").read_text())["resolved"]["processes"] == 2

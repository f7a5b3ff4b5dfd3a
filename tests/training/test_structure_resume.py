"""sadm is resumed inside a round, after a signal and after a death: model, critics, optimizers and log are those of a straight run."""

import json

import torch
from processes import digest, lines
from safetensors.torch import load_file

HOLD = """
import os, signal, torch
from torch import nn
import percepta.training.loop as loop
from percepta.spaces import Space
exec({small!r})
import percepta.recipes.sadm as sadm
sadm.open_space = lambda name, domain=None: Small(name, len(name))
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
SMALL = """
class Small(Space):
    def __init__(self, name="alex", seed=4):
        super().__init__()
        self.name = name
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer, self.norm = nn.Conv2d(3, 12, 3, stride=2), nn.BatchNorm2d(12)
            nn.init.uniform_(self.norm.running_var, 0.1, 0.3)
        self.freeze()
    def forward(self, x):
        return (self.norm(self.layer(x)).relu().mean((2, 3)),)
"""


CHANGED = {"space": "alex,squeeze:0.5", "sg_steps": 2, "sat_steps": 3, "rounds": 2, "steps": None, "critic_lr": 1e-3, "checkpoint_every": 1,
           "keep": 20, "micro_batch": 2, "data": "shapes:length=8"}  # fmt: skip


def test_a_run_goes_on_exactly_from_inside_a_round(zygote, tiny, tmp_path):
    """A signal in the second adversarial step, and death in the third: model, critics, optimizers and log are those of a straight run."""
    flags = {name: tiny.flags(tmp_path / name, **CHANGED) for name in ("a", "b")}

    def start(name, *more, call=0, number=0):
        process = zygote.command(["train", "sadm", *flags[name], *more], HOLD.format(small=SMALL, call=call or -1, number=number))
        return process.wait(), process.err.read_text()

    code, said = start("a")
    assert code == 0, said
    assert start("b", call=4, number=15)[0] == 3
    assert (tmp_path / "b" / "checkpoint-4").is_dir() and not (tmp_path / "b" / "checkpoint-5").exists()
    assert start("b", "--resume", call=1, number=9)[0] == -9
    code, said = start("b", "--resume")
    assert code == 0, said
    straight, again = digest(tmp_path / "a"), digest(tmp_path / "b")
    assert straight == again
    assert {"checkpoint-10/weights-structure.alex.safetensors", "checkpoint-10/weights-structure.squeeze.safetensors"} <= set(
        straight
    )
    found = lines(tmp_path / "a")
    assert [("critic/structure/alex" in line, "critic/structure/squeeze" in line) for line in found] == [(False,) * 2] * 2 + [
        (True,) * 2
    ] * 3 + [(False,) * 2] * 2 + [(True,) * 2] * 3
    assert found[0]["structure/alex/drift"] == 0 < found[3]["structure/alex/drift"]
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["knobs"]["sg_steps"] == 2 and config["settings"]["steps"] == 10
    assert {entry["space"] for entry in config["resolved"]["trained_against"]} == {"alex", "squeeze"}
    first, last = (load_file(tmp_path / "a" / f"checkpoint-{k}" / "weights-structure.alex.safetensors") for k in (2, 10))
    assert {k for k in first if not torch.equal(first[k], last[k])} == {"layer.weight", "layer.bias", "norm.weight", "norm.bias"}

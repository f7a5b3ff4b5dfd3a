"""What rank 0 does alone, and what each rank decides: a signal to rank 0 sends all home, and a choice by memory is one choice."""

from pathlib import Path

import pytest
from processes import free_port

HERE = Path(__file__).parent
STOPPED = """
import importlib, os, signal

room = importlib.import_module({module!r})
real = getattr(room, {name!r})

def stopped(*args, **options):
    assert os.environ["RANK"] == "0", "another rank does the work of the first"
    if os.environ["STOP"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return real(*args, **options)

setattr(room, {name!r}, stopped)
"""
SHORT = """
from percepta.spaces import domain
domain.Recipe.__init__.__defaults__ = tuple(2 if v == 300 else v for v in domain.Recipe.__init__.__defaults__)
"""


def command(words, before):
    return f"{before}\nfrom percepta.cli import main\nraise SystemExit(main({[str(word) for word in words]!r}))"


def domain(tiny, tmp_path):
    flags = tiny.flags(
        tmp_path / "run", init=tiny.pipeline, network=None, steps=1, data="shapes:length=40", cache=tmp_path / "cache"
    )
    return ["train", "mmd", *flags, "--space", "domain", "--sampler-steps", "2"], ("percepta.spaces.domain", "fit")


def latents(tiny, tmp_path):
    import torch

    from percepta.networks import build_autoencoder

    with torch.random.fork_rng(devices=[]):
        build_autoencoder("ae-pocket", size=16).save_pretrained(tmp_path / "vae")
    flags = tiny.flags(tmp_path / "run", network="unet-pocket", size=16, vae=tmp_path / "vae", steps=1, cache=tmp_path / "cache")
    return ["train", "ddpm", *flags], ("percepta.data.latents", "_encode_rows")


@pytest.mark.parametrize("work", [domain, latents])
def test_a_signal_to_the_first_rank_while_it_works_alone_sends_all_home(zygote, tiny, tmp_path, work):
    words, (module, name) = work(tiny, tmp_path)
    code = command(words, SHORT + STOPPED.format(module=module, name=name))
    for stop, expected in (("1", 3), ("0", 0)):
        for process in zygote.ranks(2, code, free_port(), STOP=stop):
            assert process.wait(60) == expected, process.err.read_text()
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


CHOICE = """
import os, sys
sys.path.insert(0, {here!r})
import ranks, torch
from dataclasses import replace
from percepta import distributed, rollout
from percepta.estimate import Batch
from percepta.rng import Rng

rollout.free_memory = lambda device: float(os.environ["FREE"].split()[int(os.environ["RANK"])])
with distributed.joined("cpu", 60) as world:
    made = replace(ranks.method_of("mmd", {network!r}, object).estimate, backprop="auto")
    est = made(Batch(torch.zeros(2, 3, 8, 8, dtype=torch.float64)), Rng(0, (2 * world.rank, 2 * world.rank + 1)))
print("replay" if est.onward is not None else "full")
"""


@pytest.mark.parametrize(("free", "expected"), [("1e12 1e12", "full"), ("1e12 1", "replay"), ("1 1e12", "replay")])
def test_the_rank_with_the_least_memory_decides_for_all(zygote, tiny, free, expected):
    """Ranks that went different ways would sum other gradients, or wait for each other."""
    processes = zygote.ranks(2, CHOICE.format(here=str(HERE), network=tiny.network), free_port(), FREE=free)
    for process in processes:
        assert process.wait(60) == 0, process.err.read_text()
    assert [process.out.read_text().strip() for process in processes] == [expected] * 2

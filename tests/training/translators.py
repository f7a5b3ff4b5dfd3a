"""LaDiffGAN at its smallest, for tests: its recipe and settings, the phases of all options, and the method of a run that finds them."""

import json
from dataclasses import replace

import torch

from percepta.estimate import Batch
from percepta.networks.cyclegan import CycleganPair
from percepta.networks.munit import MunitPair
from percepta.networks.ugatit import UgatitPair
from percepta.networks.unit import UnitPair
from percepta.objectives.term import TrainsCritic
from percepta.recipes.ladiffgan import TrainLadiffgan
from percepta.training.job import train
from percepta.training.phases import identity
from percepta.training.recipe import Context
from percepta.training.state import make_state

KINDS = {"ugatit": UgatitPair, "cyclegan": CycleganPair, "unit": UnitPair, "munit": MunitPair}
ALONE = {"latent_gan": "none", "denoising": "none"}
CPU = torch.device("cpu")


def made(**knobs):
    small = {
        "source": "shapes:length=4",
        "channels": 8,
        "blocks": 1,
        "autoencoder_steps": 1,
        "prior_steps": 1,
        "perceptual": "none",
    }
    return TrainLadiffgan(**{**small, **knobs})


def settings(out, **changed):
    own = {"size": 16, "batch": 2, "steps": 2, "sample_num": 6, "sample_every": 2, "log_every": 1, "device": "cpu", "out": out}
    return replace(TrainLadiffgan.default_settings(), **{**own, **changed})


def stub(folder, kind):
    """A model's folder, as far as it is looked at before anything is trained."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": kind}))
    return folder


def train_phases(root):
    """A run with all that options need trained, one step each, and its cache."""
    given = settings(root / "run", cache=root / "cache", steps=1, sample_every=0)
    assert train(made(generator="cyclegan", latent_gan="B"), given, quiet=True).finished
    return root


def built(phases, **knobs):
    """The method of a run that finds its phases, its state, and a batch."""
    given, found = settings(phases / "no", cache=phases / "cache"), []
    recipe, given = made(**knobs).settled(given)

    def trained(name, phase, its):
        folder = phases / "cache" / "phases" / f"{phase.name}-{identity(phase, its)}"
        assert (folder / "model").is_dir(), f"{name} would be trained again"
        found.append(name)
        return folder

    recipe = recipe.prepared(given, trained)
    a, b = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in (1, 2))
    torch.manual_seed(0)
    method = recipe.build(Context(3, 16, examples=lambda: b, source_examples=lambda: a))
    for player in method.players.values():
        player.train()
    return method, make_state(method, given, CPU), given, Batch(b, source=a), found


def judges(method):
    """What is frozen behind the terms."""
    critics = {id(term.objective.critic) for term in method.terms if isinstance(term.objective, TrainsCritic)}
    return [
        part
        for term in method.terms
        for part in vars(term.objective).values()
        if isinstance(part, torch.nn.Module) and id(part) not in critics
    ]

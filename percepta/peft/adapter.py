"""Adapter: a model with a few weights to train, and the base that these belong to.

The base is known by a hash of its parameters as they were read, before anything is inserted: weights that were trained on one base mean
nothing on another, and a base that changed on the disk under a run shows.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from percepta.networks import Network


@dataclass(frozen=True)
class Base:
    """Where the model came from, as the user named it, the sha256 of its parameters, and how many they are."""

    name: str
    sha256: str
    parameters: int


class AbstractPeft(ABC):
    """A way to train a few weights. It holds what was asked, never weights: what it inserted it finds again in the model."""

    name: ClassVar[str]

    @abstractmethod
    def insert(self, model: nn.Module) -> None:
        """Freeze the model and give it the weights to train. The model computes what it did before, to the bit."""

    @abstractmethod
    def merged(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the model is one of its plain class that computes what it does with the adapter; afterwards it is as before,
        to the bit, however the block ends."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path, base: Base) -> None:
        """The trained weights alone, with what is needed to put them on the base again, into an empty folder."""

    @abstractmethod
    def facts(self, model: nn.Module) -> dict[str, Any]:
        """What config.json says of it."""


@dataclass(frozen=True)
class Adapter:
    """A method at work on a network."""

    peft: AbstractPeft
    network: Network
    base: Base

    @contextmanager
    def merged(self) -> Iterator[None]:
        with self.peft.merged(self.network.model):
            yield

    def save(self, folder: Path) -> None:
        self.peft.save(self.network.model, folder, self.base)

    def facts(self) -> dict[str, Any]:
        return {"method": self.peft.name, **self.peft.facts(self.network.model), "trained": self.trained, "base": asdict(self.base)}

    @property
    def trained(self) -> int:
        """How many weights are trained."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    def told(self) -> str:
        """ "1.08 M weights of lora for 35.75 M parameters"."""
        return f"{self.trained / 1e6:.2f} M weights of {self.peft.name} for {self.base.parameters / 1e6:.2f} M parameters"


def attach(peft: AbstractPeft, network: Network, base: str, seed: int) -> Adapter:
    """Insert into the network. What is drawn for fresh weights follows from the seed alone."""
    count = sum(p.numel() for p in network.model.parameters())
    made = Adapter(peft, network, Base(base, digest(network.model), count))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.insert(network.model)
    return made


def digest(model: nn.Module) -> str:
    """sha256 of all parameters, by name. Buffers are left out: they are computed, or they move."""
    found = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()

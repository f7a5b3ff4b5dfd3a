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
from torch import Tensor, nn

from percepta.networks import Network
from percepta.networks.classes import class_table
from percepta.networks.shared import copied, share


@dataclass(frozen=True)
class Base:
    """Where the model came from, as the user named it, the sha256 of its parameters, and how many the network has: what its blocks share
    counts once."""

    name: str
    sha256: str
    parameters: int


class AbstractPeft(ABC):
    """A way to train a few weights. It holds what was asked, never weights: what it inserted it finds again in the model.

    `folds` says whether ordinary weights can hold what was trained; `names_table` whether its paper trains the class table with it.
    """

    folds: ClassVar[bool] = True
    names_table: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    def insert(self, model: nn.Module) -> None:
        """Freeze the model and give it the weights to train. The model computes what it did before, to the bit or to rounding; prompts cannot."""

    @abstractmethod
    def merged(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, the model is one of its plain class that computes what it does with the adapter; afterwards it is as before,
        to the bit, however the block ends."""

    @abstractmethod
    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that are saved, under the names that the file has; the model's own tensors, not copies."""

    @abstractmethod
    def save(self, adapter: "Adapter", folder: Path) -> None:
        """The trained weights alone, with what is needed to put them on the base again, into an empty folder."""

    @abstractmethod
    def facts(self, model: nn.Module) -> dict[str, Any]:
        """What config.json says of it."""


@dataclass(frozen=True)
class Adapter:
    """A method at work on a network. `table` names the weights of the class table, where it trains beside; `renewed` says that it is a new one."""

    peft: AbstractPeft
    network: Network
    base: Base
    table: tuple[str, ...] = ()
    renewed: bool = False

    @contextmanager
    def merged(self) -> Iterator[None]:
        with self.peft.merged(self.network.model), copied(self.network.model):
            yield

    def save(self, folder: Path) -> None:
        self.peft.save(self, folder)

    def tensors(self) -> dict[str, Tensor]:
        """All that is trained, by the names in the adapter's files."""
        return self.peft.tensors(self.network.model) | self.table_tensors()

    def table_tensors(self) -> dict[str, Tensor]:
        every = {plain_name(name): p for name, p in self.network.model.named_parameters()}
        return {name: every[name].detach() for name in self.table}

    def record(self) -> dict[str, Any]:
        """What `percepta.peft.load_adapter` reads: all but the weights."""
        classes = self.network.num_classes if self.renewed else None
        return {"method": self.peft.name, "options": asdict(self.peft), "base": asdict(self.base), "new_classes": classes,  # pyright: ignore[reportArgumentType]
                "class_table": bool(self.table), "size": self.network.sample_size}  # fmt: skip

    def facts(self) -> dict[str, Any]:
        table = "new" if self.renewed else "trained" if self.table else "kept"
        return {"method": self.peft.name, **self.peft.facts(self.network.model), "class_table": table, "trained": self.trained,
                "fraction": self.fraction, "base": asdict(self.base)}  # fmt: skip

    @property
    def trained(self) -> int:
        """How many weights are trained."""
        return sum(p.numel() for p in self.network.parameters() if p.requires_grad)

    @property
    def fraction(self) -> float:
        return self.trained / self.base.parameters

    def told(self) -> str:
        """ "1.08 M weights of lora for 35.75 M parameters (3.01 %)"."""
        of = f"{self.base.parameters / 1e6:.2f} M parameters ({100 * self.fraction:.2g} %)"
        return f"{self.trained / 1e6:.2f} M weights of {self.peft.name} for {of}"


def attach(peft: AbstractPeft, network: Network, base: str, seed: int, *, table: bool = False, renewed: bool = False,
           sha256: str | None = None) -> Adapter:  # fmt: skip
    """Insert into the network. What is drawn for fresh weights follows from the seed alone.

    With `table` the class table trains as well. `renewed` says that it is not the base's, and `sha256` then what the base was before.
    """
    model = network.model
    found = sha256 or digest(model)
    share(model)
    rows = class_table(model) if table else {}
    count = sum(p.numel() for p in model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.insert(model)
    for p in rows.values():
        p.requires_grad_(True)
    return Adapter(peft, network, Base(base, found, count), tuple(rows), renewed)


def unfoldable(name: str) -> ValueError:
    return ValueError(
        f"what {name} adds cannot be folded into ordinary weights, so there is no plain pipeline of it: take the adapter alone "
        "(percepta export RUN OUT --adapter); percepta sample and percepta evaluate read the run as it is"
    )


def plain_name(name: str) -> str:
    """The name of a weight in the model without what was put around its layers."""
    return ".".join(word for word in name.split(".") if word not in ("base", "base_layer", "block"))


def digest(model: nn.Module) -> str:
    """sha256 of all parameters, by name. Buffers are left out: they are computed, or they move."""
    found = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()

"""A few weights trained in place of all of a network's, on a base that stays as it is.

A method is one class in a file of its own (`AbstractPeft`): it freezes a model, gives it the weights to train, merges them for an export, and
saves them alone. LoRA and DoRA go through the peft library. `percepta.training.adapting` makes them from the flags of a run.
"""

from percepta.peft.adapter import AbstractPeft, Adapter, Base, attach, digest
from percepta.peft.beside import AdaptFormer, Vpt
from percepta.peft.files import is_adapter, read_record
from percepta.peft.inplace import BitFit, DiffFit
from percepta.peft.loading import load_adapter
from percepta.peft.lora import Lora

__all__ = [
    "AbstractPeft",
    "AdaptFormer",
    "Adapter",
    "Base",
    "BitFit",
    "DiffFit",
    "Lora",
    "Vpt",
    "attach",
    "digest",
    "is_adapter",
    "load_adapter",
    "read_record",
]

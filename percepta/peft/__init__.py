"""A few weights trained in place of all of a network's, on a base that stays as it is.

A method is one class in a file of its own (`AbstractPeft`): it freezes a model, gives it the weights to train, merges them for an export, and
saves them alone. LoRA goes through the peft library. `percepta.training.adapting` makes them from the flags of a run.
"""

from percepta.peft.adapter import AbstractPeft, Adapter, Base, attach, digest
from percepta.peft.lora import Lora

__all__ = ["AbstractPeft", "Adapter", "Base", "Lora", "attach", "digest"]

"""Percepta: train, finetune, translate with and judge image generators in the spaces where people see."""

from percepta._version import __version__

__all__ = ["__version__"]

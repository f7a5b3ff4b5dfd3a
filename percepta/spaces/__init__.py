"""Frozen maps from samples to features: the spaces where an estimate is judged."""

from percepta.spaces.space import Features, Pixels, Space

__all__ = ["Features", "Pixels", "Space"]

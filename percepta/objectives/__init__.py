"""What judges an estimate: Terms, each an objective with its scale, weight and gate."""

from percepta.objectives.denoising import Denoising
from percepta.objectives.metric import Metric
from percepta.objectives.mmd import Mmd
from percepta.objectives.perceptual import PyramidL1
from percepta.objectives.reconstruction import L1, Kl
from percepta.objectives.term import AbstractObjective, AbstractPerBatch, AbstractPerSample, Term, TrainsCritic
from percepta.objectives.weights import WEIGHTS, Weight, weight_named

__all__ = [
    "L1",
    "WEIGHTS",
    "AbstractObjective",
    "AbstractPerBatch",
    "AbstractPerSample",
    "Denoising",
    "Kl",
    "Metric",
    "Mmd",
    "PyramidL1",
    "Term",
    "TrainsCritic",
    "Weight",
    "weight_named",
]

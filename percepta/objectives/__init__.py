"""What judges an estimate: Terms, each an objective with its scale, weight and gate."""

from percepta.objectives.denoising import Denoising
from percepta.objectives.latent_perceptual import LatentPerceptual
from percepta.objectives.metric import Metric
from percepta.objectives.mmd import Mmd
from percepta.objectives.perceptual import PyramidL1
from percepta.objectives.reconstruction import L1, Kl
from percepta.objectives.self_perceptual import SelfPerceptual, frozen_copy
from percepta.objectives.structure import AdversarialStructure, Rounds, Structure, Structures
from percepta.objectives.term import AbstractObjective, AbstractPerBatch, AbstractPerSample, Calibrated, Term, TrainsCritic
from percepta.objectives.weights import WEIGHTS, Weight, weight_named

__all__ = [
    "L1",
    "WEIGHTS",
    "AbstractObjective",
    "AbstractPerBatch",
    "AbstractPerSample",
    "AdversarialStructure",
    "Calibrated",
    "Denoising",
    "Kl",
    "LatentPerceptual",
    "Metric",
    "Mmd",
    "PyramidL1",
    "Rounds",
    "SelfPerceptual",
    "Structure",
    "Structures",
    "Term",
    "TrainsCritic",
    "Weight",
    "frozen_copy",
    "weight_named",
]

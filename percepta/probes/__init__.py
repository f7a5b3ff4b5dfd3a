"""What an autoencoder does to its latents, looked at directly, and what a training step with LPL costs: LPL's figures 11 to 13 and table 8.

    interpolation    latents are scaled like images: how far from the latents of scaled images, and what do they decode to (figure 11)
    perturbation     noise in one patch of the latent: how far beyond the patch does the image change (figure 12)
    outliers         feature maps of the decoder, and how much of them the outlier mask drops (figure 13)
    affinity         images noised and denoised: how alike they are to each other then (SADM, figure 5); it takes a denoiser
    flops            arithmetic of a step with LPL and without, by torch's counter on shapes alone (table 8)

A probe takes an autoencoder and images, and gives back numbers and pictures; files are the caller's business.
"""

from percepta.probes.affinity import Denoised, affinities, labelled_groups
from percepta.probes.flops import SCHEDULES, VAES, StepCost, share_below, step_cost
from percepta.probes.interpolation import interpolation
from percepta.probes.look import Found, Look, first_images
from percepta.probes.outliers import outliers
from percepta.probes.perturbation import perturbation

PROBES = {"interpolation": interpolation, "perturbation": perturbation, "outliers": outliers}

__all__ = [
    "PROBES",
    "SCHEDULES",
    "VAES",
    "Denoised",
    "Found",
    "Look",
    "StepCost",
    "affinities",
    "first_images",
    "interpolation",
    "labelled_groups",
    "outliers",
    "perturbation",
    "share_below",
    "step_cost",
]

"""Dual Diffusion (Benny and Wolf 2022): one network for the noise, the image and the share of each; what Cas-DM is compared with.

The losses are those of Cas-DM, but a metric on x0' reaches the trunk that the noise estimate comes from: that is the comparison.
"""

from dataclasses import dataclass

from percepta.networks import CascadeSpec
from percepta.recipes.casdm import Mixing


@dataclass(frozen=True, kw_only=True)
class Dual(Mixing):
    """Train one network that estimates the noise, the image and how to mix them."""

    name = "dual"
    summary = "Dual Diffusion: one network for noise, image and their mixture; the baseline of Cas-DM"
    example = "percepta train dual --data ./images --size 32 --steps 5000"

    def spec(self, network: str) -> CascadeSpec:
        return CascadeSpec("dual", network, clamp=self.clamp_x0, ratio=self.ratio)

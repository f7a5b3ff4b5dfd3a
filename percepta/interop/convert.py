"""Foreign checkpoints as a network and a formulation.

    network, formulation = convert("64x64_diffusion.pt", "guided-diffusion", Foreign(size=64, num_head_channels=64, schedule="cosine"))

The files are read as tensors only (percepta.weights); the network's configuration comes from their names and shapes, the rest from `Foreign`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from percepta.formulation import Formulation
from percepta.interop.dit_weights import convert_dit
from percepta.interop.unet_weights import convert_unet
from percepta.networks import Network, adapt
from percepta.networks.facts import facts_of, remember
from percepta.path import AbstractPath, Cosine, LinearBeta
from percepta.weights import read_weights

FAMILIES = ("improved-diffusion", "guided-diffusion", "dit")


@dataclass(frozen=True)
class Foreign:
    """What a state dict does not say: the flags its training script was called with.

    `schedule` and `steps` are the training schedule, `output` what the network predicts (noise, or clean for predict_xstart).
    `rescale_timesteps` None is each script's default: on in improved-diffusion, off in guided-diffusion.
    """

    size: int | None = None
    num_heads: int | None = None
    num_head_channels: int | None = None
    new_attention_order: bool = False
    schedule: str = "linear"
    steps: int = 1000
    output: str = "noise"
    rescale_timesteps: bool | None = None

    def path(self) -> AbstractPath:
        """The scripts' "linear" keeps the total noise whatever the number of steps: betas scale with 1000/T."""
        if self.schedule == "cosine":
            return Cosine(self.steps)
        if self.schedule == "linear":
            return LinearBeta(self.steps, 1e-4 * 1000 / self.steps, 0.02 * 1000 / self.steps)
        raise ValueError(f"unknown schedule {self.schedule!r}; known: linear, cosine")


def convert(source: str | Path | dict[str, Tensor], family: str, told: Foreign | None = None) -> tuple[Network, Formulation]:
    """The network of a foreign checkpoint, adapted, and what its output means. `family` is one of FAMILIES."""
    told = Foreign() if told is None else told
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}; known: {', '.join(FAMILIES)}")
    if told.output not in ("noise", "clean"):
        raise ValueError(f"these networks predict noise or clean, got output={told.output!r}")
    formulation = Formulation(told.path(), told.output)
    weights = source if isinstance(source, dict) else read_weights(source)
    if family == "dit":
        dit = convert_dit(weights, told.num_heads)
        remember(dit, replace(facts_of(dit), frequency_shift=0.0))
        return adapt(dit), formulation
    if told.size is None:
        raise ValueError("weights of a U-Net do not tell the image size: give Foreign(size=...)")
    unet, heads = convert_unet(weights, told.size, told.num_heads, told.num_head_channels, told.new_attention_order)
    rescale = family == "improved-diffusion" if told.rescale_timesteps is None else told.rescale_timesteps
    return adapt(unet, time_factor=1000 / told.steps if rescale else 1.0, num_heads=heads), formulation

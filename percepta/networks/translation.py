"""Pair: translation between two domains, both ways, as one module: what every unpaired method trains and exports.

A and B are the domains. What a method computes in training, its losses read by name, as `taps`:

    real_a, fake_b, cycle_a, same_a      images of A; A translated to B; and back; G_b2a given A, which should leave it
    recon_a                              A through its own autoencoder (UNIT, MUNIT)
    cam_a2b_real, cam_a2b_same           logits [b, 2] of whether G_a2b was given A (label 1) or B (label 0) (U-GAT-IT)
    heat_a2b                             where it looks [b, 1, h, w], without gradient
    mu_a, mu_cycle_a, content_ab, ...    latents, as each method says

and the same with a and b exchanged.
"""

from abc import abstractmethod
from typing import Literal

import torch
from diffusers import ConfigMixin, ModelMixin
from jaxtyping import Float
from torch import Tensor

from percepta.rng import Rng

Direction = Literal["a2b", "b2a"]
DIRECTIONS: tuple[Direction, Direction] = ("a2b", "b2a")
SIZE_FILE = "translation.json"  # beside a saved pair: at which size it was trained, which not every config.json says


class Pair(ModelMixin, ConfigMixin):
    """Two generators. A subclass registers its constructor's arguments (`register_to_config`), so that a folder of it can be read back."""

    config_name = "config.json"
    multiple = 4  # of which the sides of an image are multiples

    @abstractmethod
    def taps(self, a: Float[Tensor, "b 3 h w"], b: Float[Tensor, "b 3 h w"], rng: Rng) -> dict[str, Tensor]:
        """What the losses read, a row per sample. Random numbers come from `rng`, by name."""

    @abstractmethod
    def translate(self, x: Float[Tensor, "b 3 h w"], direction: Direction, seed: int = 0) -> Float[Tensor, "b 3 h w"]:
        """Images of the other domain; the same for the same seed."""

    def settle(self) -> None:
        """After each step of the optimizer: what is bounded goes back into its bounds."""

    def forward(self, x: Float[Tensor, "b 3 h w"], direction: Direction = "a2b", seed: int = 0) -> Float[Tensor, "b 3 h w"]:
        return self.translate(x, direction, seed)


def other(direction: Direction) -> Direction:
    return "b2a" if direction == "a2b" else "a2b"


def flipped(taps: dict[str, Tensor]) -> dict[str, Tensor]:
    """Taps of the pair with its domains exchanged: for whoever writes one direction and wants both."""
    swap = {"a": "b", "b": "a", "a2b": "b2a", "b2a": "a2b", "ab": "ba", "ba": "ab"}
    return {"_".join(swap.get(part, part) for part in name.split("_")): value for name, value in taps.items()}


@torch.no_grad()
def checked(x: Tensor, multiple: int) -> Tensor:
    """The images, where their sides fit."""
    if x.shape[-1] % multiple or x.shape[-2] % multiple:
        raise ValueError(
            f"images of {x.shape[-1]} x {x.shape[-2]} px: their sides are to be multiples of {multiple}; resize, tile or pad them first"
        )
    return x

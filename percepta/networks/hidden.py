"""Hidden features of a network: the layers that losses read, and a forward pass that ends there.

    with stopped_after(layer) as found:
        network(x, time, cond)
    found[0]                                # what the layer put out

A U-Net is read at its mid block, a transformer after one of its blocks, counted from 1: of MMDiT's two streams, the image's tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from percepta.networks.adapter import Network
from percepta.networks.ddpmpp import DDPMPP


class Reached(Exception):
    """Ends a forward pass: nothing behind the layer is wanted."""


@contextmanager
def stopped_after(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within, a forward pass ends after `layer`, and its output is the one item of the list; the network is as before afterwards."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        found.append(out if isinstance(out, Tensor) else out[-1])  # MMDiT's blocks give (text, image)
        raise Reached

    hook = layer.register_forward_hook(keep)
    try:
        with suppress(Reached):
            yield found
    finally:
        hook.remove()


def hidden_layer(network: Network, depth: int | None = None) -> nn.Module:
    """The layer whose output is read: a U-Net's mid block (no `depth`), or a transformer's block number `depth`, 1 the first."""
    model: Any = network.model
    if isinstance(model, DiTTransformer2DModel | SD3Transformer2DModel):
        blocks = model.transformer_blocks
        if depth is None or not 1 <= depth <= len(blocks):
            raise ValueError(
                f"this {network.family.name} is read after one of its blocks, 1 to {len(blocks)}: give the depth, got {depth}"
            )
        return blocks[depth - 1]
    if isinstance(model, UNet2DModel | UNet2DConditionModel | DDPMPP):
        if depth is not None:
            raise ValueError(f"a {network.family.name} is read at its mid block, got the depth {depth}: leave it out")
        layer = model.mid_blocks[-1] if isinstance(model, DDPMPP) else model.mid_block
        if layer is None:
            raise ValueError(f"this {network.family.name} was built without a mid block, so there is nothing to read in it")
        return layer
    raise ValueError(f"no hidden layer of {network.family.name} is known here; known: U-Nets, DiT, MMDiT")

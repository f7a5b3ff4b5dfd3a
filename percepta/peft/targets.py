"""Which layers an adapter is put on.

By default, for a network with transformer blocks: the projections of attention and the layers of the MLPs (Dettmers et al. 2023, arXiv
2305.14314: attention alone was not enough to match full finetuning, all linear layers of the blocks were). For a convolutional U-Net: the
projections of attention and the convolutions of the residual blocks, for such a network has attention at one or two resolutions only, and
what moves an image is in its convolutions. Embeddings of time and class, norms, and the first and last layer stay.
"""

import difflib

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from percepta.networks.ddpmpp import Block, SelfAttention

LAYERS = (nn.Linear, nn.Conv2d)
WHOLE = (Attention, SelfAttention, FeedForward)  # all layers in these
RESIDUAL = (ResnetBlock2D, Block)  # the convolutions in these, where there is no FeedForward


def chosen_layers(model: nn.Module, asked: tuple[str, ...] = ()) -> list[str]:
    """The names of the layers to adapt, in the model's order.

    What is asked is a layer by the end of its name (`to_q`, `attn1.to_q`), or a block by its name (`mid_block`, `attentions`), whose
    layers are all taken.
    """
    layers = [name for name, module in model.named_modules() if type(module) in LAYERS]
    if asked:
        return _asked(model, layers, asked)
    found = set(_within(model, WHOLE, LAYERS))
    if not any(isinstance(module, FeedForward) for module in model.modules()):
        found |= set(_within(model, RESIDUAL, (nn.Conv2d,)))
    if not found:
        raise ValueError(
            f"a {type(model).__name__} has neither attention nor residual blocks that are known here: say with --lora-targets which of "
            f"its layers are adapted, for example {', '.join(layers[:3])}"
        )
    return [name for name in layers if name in found]


def _within(model: nn.Module, blocks: tuple[type, ...], kinds: tuple[type, ...]) -> list[str]:
    return [
        f"{outer}.{inner}" if outer else inner
        for outer, block in model.named_modules()
        if isinstance(block, blocks)
        for inner, layer in block.named_modules()
        if type(layer) in kinds
    ]


def _asked(model: nn.Module, layers: list[str], asked: tuple[str, ...]) -> list[str]:
    found: set[str] = set()
    for target in asked:
        hits = [name for name in layers if f".{target}." in f".{name}."]
        if not hits:
            parts = dict.fromkeys(part for name in layers for part in (*name.split("."), name) if not part.isdigit())
            near = difflib.get_close_matches(target, parts, n=3) or list(parts)[:3]
            raise ValueError(
                f"--lora-targets {target}: no linear or convolutional layer of this {type(model).__name__} has that name; near are "
                f"{', '.join(near)}"
            )
        found.update(hits)
    return [name for name in layers if name in found]

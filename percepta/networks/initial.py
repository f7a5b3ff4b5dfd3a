"""First weights, as the papers set them; the libraries' classes start from PyTorch's defaults instead.

Every residual branch starts at zero, and so does the output: Ho et al. 2020 and Dhariwal and Nichol 2021 for U-Nets (the last layer
of each residual block and attention, and the last convolution), Peebles and Xie 2023 for transformers (adaLN-zero).
"""

from collections.abc import Callable
from typing import Any

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


def zero(layer: Any) -> None:
    for p in layer.parameters(recurse=False):
        nn.init.zeros_(p)


def _normal(layer: Any, std: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def unet(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            zero(module.conv2)
        elif isinstance(module, Attention):
            projection: Any = module.to_out
            zero(projection[0])
    zero(model.conv_out)


def _xavier(model: Any, patch: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(patch.weight.view(len(patch.weight), -1))
    if patch.bias is not None:
        nn.init.zeros_(patch.bias)


def dit(model: Any) -> None:
    _xavier(model, model.pos_embed.proj)
    for block in model.transformer_blocks:
        emb = block.norm1.emb
        for layer in (emb.class_embedder.embedding_table, emb.timestep_embedder.linear_1, emb.timestep_embedder.linear_2):
            _normal(layer, 0.02)
        zero(block.norm1.linear)
    zero(model.proj_out_1)
    zero(model.proj_out_2)


def mmdit(model: Any) -> None:
    """As DiT's. The class token enters by layers that read a one-hot vector: their columns are embeddings, of DiT's std 0.02."""
    _xavier(model, model.pos_embed.proj)
    emb = model.time_text_embed
    for layer in (
        emb.timestep_embedder.linear_1,
        emb.timestep_embedder.linear_2,
        model.context_embedder,
        emb.text_embedder.linear_2,
    ):
        _normal(layer, 0.02)
    _normal(emb.text_embedder.linear_1, 0.2)  # one input is on: the pooled vector comes out of linear_2 at about 0.02 too
    for block in model.transformer_blocks:
        zero(block.norm1.linear)
        zero(block.norm1_context.linear)
    zero(model.norm_out.linear)
    zero(model.proj_out)


def as_built(model: nn.Module) -> None:
    """Classes that set their own first weights."""


Initializer = Callable[..., None]

"""What the blocks of a DiT share. The published network has one embedding of time and class for all of its blocks; diffusers' class writes it into
every block. Where only a few weights are trained, 28 copies that drift apart would be another method, with 28 times the class table: blocks
that hold the same values get one embedding again, and a copy each where the model is saved.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn


def _blocks(model: nn.Module) -> list[Any]:
    return list(model.transformer_blocks) if isinstance(model, DiTTransformer2DModel) else []


def _same(one: nn.Module, other: nn.Module) -> bool:
    """On the meta device there are no values: a model there stands for the published one."""
    pairs = list(zip(one.parameters(), other.parameters(), strict=True))
    return all(a is b or a.is_meta or torch.equal(a, b) for a, b in pairs)


def share(model: nn.Module) -> None:
    """One embedding of time and class for all blocks of a DiT, where it is the same in all of them."""
    blocks = _blocks(model)
    if all(_same(blocks[0].norm1.emb, block.norm1.emb) for block in blocks[1:]):
        for block in blocks[1:]:
            block.norm1.emb = blocks[0].norm1.emb


@contextmanager
def copied(model: nn.Module) -> Iterator[None]:
    """Inside, every block has an embedding of its own again, as the class saves them."""
    first, *rest = _blocks(model) or [None]
    shared = [block for block in rest if first is not None and block.norm1.emb is first.norm1.emb]
    try:
        for block in shared:
            block.norm1.emb = copy.deepcopy(first.norm1.emb)  # pyright: ignore[reportOptionalMemberAccess]
        yield
    finally:
        for block in shared:
            block.norm1.emb = first.norm1.emb  # pyright: ignore[reportOptionalMemberAccess]

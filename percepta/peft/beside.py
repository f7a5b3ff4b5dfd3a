"""Deep VPT and AdaptFormer: new weights in every transformer block, which ordinary weights cannot hold.

    VPT          a block reads [P, x] and its answers at P are thrown away; P is the block's own   (Jia et al. 2022, deep)
    AdaptFormer  MLP(x)  becomes  MLP(x) + 0.1 U relu(D x),  U = 0 at the start                    (Chen et al. 2022)

Prompts take part in the attention of every other token, whatever they are: no start leaves the network as it was. They start small,
uniform as the published prompts do. Of MMDiT's two streams the image's is prompted.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from percepta.peft.adapter import unfoldable
from percepta.peft.files import AbstractOwn
from percepta.peft.places import mlps, transformer_blocks

SCALE = 0.1  # AdaptFormer's s


class Prompted(nn.Module):
    """A transformer block with prompts before its tokens."""

    def __init__(self, block: Any, tokens: int) -> None:
        super().__init__()
        self.block = block
        attention: nn.Linear = (block.attn1 if isinstance(block, BasicTransformerBlock) else block.attn).to_q
        width, like = attention.in_features, attention.weight
        bound = math.sqrt(6 / (2 * width))  # Xavier's, as the published code has it up to the size of a patch
        self.prompts = nn.Parameter(torch.empty(tokens, width, device=like.device, dtype=like.dtype).uniform_(-bound, bound))

    @property
    def norm1(self) -> Any:
        """DiT's last layer reads the embedding of its first block."""
        return self.block.norm1

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        prompts = self.prompts.to(hidden_states.dtype).expand(len(hidden_states), -1, -1)
        found = self.block(torch.cat([prompts, hidden_states], 1), *args, **kwargs)
        if isinstance(found, Tensor):
            return found[:, prompts.shape[1] :]
        text, image = found  # MMDiT's
        return text, image[:, prompts.shape[1] :]


class Parallel(nn.Module):
    """An MLP with a bottleneck beside it."""

    def __init__(self, base: Any, width: int) -> None:
        super().__init__()
        self.base = base
        first = next(m for m in base.modules() if isinstance(m, nn.Linear))
        kind = {"device": first.weight.device, "dtype": first.weight.dtype}
        self.down = nn.Linear(first.in_features, width, **kind)
        self.up = nn.Linear(width, base.net[2].out_features, **kind)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for p in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(p)

    def forward(self, hidden_states: Tensor, *args: Any) -> Tensor:
        return self.base(hidden_states, *args) + SCALE * self.up(torch.relu(self.down(hidden_states)))


@dataclass(frozen=True)
class Vpt(AbstractOwn):
    """`tokens` prompts for each transformer block."""

    tokens: int = 50  # among Jia et al.'s choices
    folds: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "vpt"

    def insert(self, model: nn.Module) -> None:
        names = transformer_blocks(model, self.name)
        model.requires_grad_(False)
        for name in names:
            model.set_submodule(name, Prompted(model.get_submodule(name), self.tokens))

    @contextmanager
    def merged(self, model: nn.Module) -> Iterator[None]:
        raise unfoldable(self.name)
        yield

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {"tokens": self.tokens, "blocks": sum(isinstance(m, Prompted) for m in model.modules())}


@dataclass(frozen=True)
class AdaptFormer(AbstractOwn):
    """A bottleneck of `width` channels beside each MLP."""

    width: int = 64
    folds: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "adaptformer"

    def insert(self, model: nn.Module) -> None:
        names = mlps(model, self.name)
        model.requires_grad_(False)
        for name in names:
            model.set_submodule(name, Parallel(model.get_submodule(name), self.width))

    @contextmanager
    def merged(self, model: nn.Module) -> Iterator[None]:
        raise unfoldable(self.name)
        yield

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {"width": self.width, "mlps": sum(isinstance(m, Parallel) for m in model.modules())}

"""BitFit and DiffFit: the network's own small weights train, and for DiffFit a scale behind each attention and each MLP.

    BitFit    all biases                                                   (Zaken et al. 2022)
    DiffFit   all biases, the affine weights of norms, and   y -> gamma y  per channel, gamma = 1 at the start   (Xie et al. 2023)

Both train the class table as well (Adapter.table). The layer norms of DiT and MMDiT have no weights: what shifts and scales there is adaLN, whose
biases are among the biases. gamma folds into the layer in front of it:   gamma (W x + b) = (gamma W) x + gamma b.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from percepta.peft.files import AbstractOwn, trained
from percepta.peft.places import output_layers

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RMSNorm)


class Scaled(nn.Module):
    """A linear or convolutional layer with gamma on its output."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.gamma = nn.Parameter(torch.ones_like(base.weight.flatten(1)[:, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self._broadcast(x.ndim)

    def _broadcast(self, ndim: int) -> Tensor:
        return self.gamma if isinstance(self.base, nn.Linear) else self.gamma.reshape(-1, *[1] * (ndim - 2))

    def folded(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """Weight and bias of the plain layer that computes the same."""
        rows = self.gamma.reshape(-1, *[1] * (self.base.weight.ndim - 1))
        bias = None if self.base.bias is None else nn.Parameter(self.gamma * self.base.bias, requires_grad=False)
        return nn.Parameter(rows * self.base.weight, requires_grad=False), bias


def _biases(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if name.rpartition(".")[2] == "bias"]


@dataclass(frozen=True)
class BitFit(AbstractOwn):
    """All biases."""

    @property
    def name(self) -> str:
        return "bitfit"

    def insert(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        for p in _biases(model):
            p.requires_grad_(True)

    @contextmanager
    def merged(self, model: nn.Module) -> Iterator[None]:
        """It is a plain model all the time."""
        yield

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {"tensors": len(trained(model))}


@dataclass(frozen=True)
class DiffFit(AbstractOwn):
    """Biases, norms, and gammas behind the last layers of attention and MLPs."""

    @property
    def name(self) -> str:
        return "diffit"

    def insert(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        norms = [p for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)]
        for p in (*_biases(model), *norms):
            p.requires_grad_(True)
        for name in output_layers(model):
            model.set_submodule(name, Scaled(model.get_submodule(name)))

    @contextmanager
    def merged(self, model: nn.Module) -> Iterator[None]:
        """The weights of the layers are set aside, not changed and changed back: that would leave rounding behind."""
        kept: list[tuple[str, Scaled, nn.Parameter, nn.Parameter | None]] = []
        try:
            for name, scaled in _scaled(model).items():
                plain = scaled.base
                kept.append((name, scaled, plain.weight, plain.bias))
                with torch.no_grad():
                    plain.weight, plain.bias = scaled.folded()
                model.set_submodule(name, plain)
            yield
        finally:
            for name, scaled, weight, bias in kept:
                scaled.base.weight, scaled.base.bias = weight, bias
                model.set_submodule(name, scaled)

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {"tensors": len(trained(model)), "gammas": list(_scaled(model))}


def _scaled(model: nn.Module) -> dict[str, Scaled]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Scaled)}

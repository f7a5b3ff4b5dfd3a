"""LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024) through the peft library, A of rank r, B = 0 at the start:

    LoRA   W x  becomes  V x,   V = W + (alpha / r) B A
    DoRA   W x  becomes  m V / |V| x,   row by row, m = |W| at the start and trained

A convolution's A has its kernel and r outputs, its B is 1 x 1. B = 0 makes the network what it was, to the bit; with DoRA, to rounding.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from percepta.networks import facts_of
from percepta.networks.families import family_of
from percepta.peft.adapter import AbstractPeft, Adapter
from percepta.peft.cards import card_of
from percepta.peft.files import CONFIG, TABLE, WEIGHTS, metadata, write_weights
from percepta.peft.targets import chosen_layers

NAME = "default"  # peft's name of the only adapter
PREFIX = "base_model.model."  # what a PeftModel puts before the names of the model that it wraps


@dataclass(frozen=True)
class Lora(AbstractPeft):
    """`alpha` is the rank unless given: the adapter then counts once. `targets` are as in `chosen_layers`."""

    rank: int = 8
    alpha: int | None = None
    targets: tuple[str, ...] = ()
    dora: bool = False
    names_table: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "dora" if self.dora else "lora"

    def _config(self, layers: list[str], base: str | None = None) -> LoraConfig:
        return LoraConfig(r=self.rank, lora_alpha=self.alpha or self.rank, target_modules=layers, use_dora=self.dora,
                          base_model_name_or_path=base, inference_mode=base is not None)  # fmt: skip

    def insert(self, model: nn.Module) -> None:
        names = chosen_layers(model, self.targets)
        inject_adapter_in_model(self._config(names), model, NAME)  # it freezes all other weights
        inserted = list(_layers(model))
        assert inserted == names, f"asked for adapters on {names}, peft put them on {inserted}"

    @contextmanager
    def merged(self, model: nn.Module) -> Iterator[None]:
        """The base's own weights are set aside, not changed and changed back: that would leave rounding behind."""
        kept: list[tuple[str, Any, nn.Parameter]] = []
        try:
            for name, layer in _layers(model).items():
                plain: Any = layer.get_base_layer()
                kept.append((name, layer, plain.weight))
                with torch.no_grad():
                    weight = _folded(layer, plain.weight)
                plain.weight = nn.Parameter(weight, requires_grad=False)
                model.set_submodule(name, plain)
            yield
        finally:
            for name, layer, weight in kept:
                layer.get_base_layer().weight = weight
                model.set_submodule(name, layer)

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        found = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
        return {f"{PREFIX}{name}": value.detach() for name, value in found.items()}

    def save(self, adapter: Adapter, folder: Path) -> None:
        """As `PeftModel.save_pretrained` does it, so that `PeftModel.from_pretrained(base, folder)` reads it. The class table is no part of
        what peft reads: it lies beside."""
        model, base = adapter.network.model, adapter.base
        tensors = self.tensors(model)
        write_weights(tensors, folder / WEIGHTS, metadata(adapter.record()))
        if adapter.table:
            write_weights(adapter.table_tensors(), folder / TABLE)
        config = self._config(list(_layers(model)), base.name)
        kind = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
        config.save_pretrained(str(folder), auto_mapping_dict=kind)
        _in_order(folder / CONFIG)
        told = _for_pipelines(model, tensors, config, folder)
        (folder / "README.md").write_text(card_of(adapter, told))

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.alpha or self.rank, "layers": list(_layers(model))}


def _folded(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    moved = weight + layer.get_delta_weight(NAME).to(weight.dtype)
    if NAME not in layer.lora_magnitude_vector:
        return moved
    rows = layer.lora_magnitude_vector[NAME].weight.flatten() / moved.flatten(1).norm(dim=1)
    return rows.reshape(-1, *[1] * (moved.ndim - 1)) * moved


def _layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by their names in the plain model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _for_pipelines(model: nn.Module, tensors: Mapping[str, torch.Tensor], config: LoraConfig, folder: Path) -> bool:
    """The same weights once more as `pipe.load_lora_weights` wants them, for networks of Stable Diffusion's pipelines."""
    part = {UNet2DConditionModel: "unet", SD3Transformer2DModel: "transformer"}.get(type(model))
    if part is None or not family_of(model).reads(model, facts_of(model)).needed:
        return False
    facts = {f"{part}.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    named = {f"{part}.{name.removeprefix(PREFIX)}": value for name, value in tensors.items()}
    about = {"lora_adapter_metadata": json.dumps(facts, sort_keys=True, default=str)}
    write_weights(named, folder / "pytorch_lora_weights.safetensors", about)
    return True


def _in_order(config: Path) -> None:
    """peft writes sets, in an order that changes from process to process: the same adapter would give other bytes."""
    values = json.loads(config.read_text())
    ordered = {key: sorted(value) if key == "target_modules" else value for key, value in values.items()}
    config.write_text(json.dumps(ordered, indent=2, sort_keys=True) + "\n")

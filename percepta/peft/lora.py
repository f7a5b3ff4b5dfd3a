"""LoRA (Hu et al. 2021) through the peft library:   W x  becomes  W x + (alpha / r) B A x,   A of rank r, B = 0 at the start.

A convolution's A has its kernel and r outputs, its B is 1 x 1. B = 0 makes the network what it was, to the bit.
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
from safetensors.torch import save_file
from torch import nn

from percepta.networks import facts_of
from percepta.networks.families import family_of
from percepta.networks.positions import rewritten
from percepta.peft.adapter import AbstractPeft, Base
from percepta.peft.targets import chosen_layers

TABLE = """

It was trained at another size than the base, with positions that its own table does not have. They are no part of an adapter: take them from the merged
pipeline too, `pipe.transformer.pos_embed = DiffusionPipeline.from_pretrained("RUN/model").transformer.pos_embed`, and say `height` and `width`."""
NAME = "default"  # peft's name of the only adapter
PREFIX = "base_model.model."  # what a PeftModel puts before the names of the model that it wraps


@dataclass(frozen=True)
class Lora(AbstractPeft):
    """`alpha` is the rank unless given: the adapter then counts once. `targets` are as in `chosen_layers`."""

    rank: int = 8
    alpha: int | None = None
    targets: tuple[str, ...] = ()
    name: ClassVar[str] = "lora"

    def insert(self, model: nn.Module) -> None:
        names = chosen_layers(model, self.targets)
        # peft freezes all other weights
        inject_adapter_in_model(LoraConfig(r=self.rank, lora_alpha=self.alpha or self.rank, target_modules=names), model, NAME)
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
                    weight = plain.weight + layer.get_delta_weight(NAME).to(plain.weight.dtype)
                plain.weight = nn.Parameter(weight, requires_grad=False)
                model.set_submodule(name, plain)
            yield
        finally:
            for name, layer, weight in kept:
                layer.get_base_layer().weight = weight
                model.set_submodule(name, layer)

    def save(self, model: nn.Module, folder: Path, base: Base) -> None:
        """As `PeftModel.save_pretrained` does it, so that `PeftModel.from_pretrained(base, folder)` reads it."""
        tensors = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
        named = {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha or self.rank, target_modules=list(_layers(model)),
                            base_model_name_or_path=base.name, inference_mode=True)  # fmt: skip
        kind = {"base_model_class": type(model).__name__, "parent_library": type(model).__module__}
        config.save_pretrained(str(folder), auto_mapping_dict=kind)
        _in_order(folder / "adapter_config.json")
        told = _for_pipelines(model, tensors, config, folder)
        (folder / "README.md").write_text(_readme(type(model).__name__, self, base, told, rewritten(model)))

    def facts(self, model: nn.Module) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.alpha or self.rank, "layers": list(_layers(model))}


def _layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by their names in the plain model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _for_pipelines(model: nn.Module, tensors: Mapping[str, torch.Tensor], config: LoraConfig, folder: Path) -> bool:
    """The same weights once more as `pipe.load_lora_weights` wants them, for networks of Stable Diffusion's pipelines."""
    part = {UNet2DConditionModel: "unet", SD3Transformer2DModel: "transformer"}.get(type(model))
    if part is None or not family_of(model).reads(model, facts_of(model)).needed:
        return False
    facts = {f"{part}.{key}": sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    named = {f"{part}.{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = {"format": "pt", "lora_adapter_metadata": json.dumps(facts, sort_keys=True, default=str)}
    save_file(named, folder / "pytorch_lora_weights.safetensors", metadata=about)
    return True


def _in_order(config: Path) -> None:
    """peft writes sets, in an order that changes from process to process: the same adapter would give other bytes."""
    values = json.loads(config.read_text())
    ordered = {key: sorted(value) if key == "target_modules" else value for key, value in values.items()}
    config.write_text(json.dumps(ordered, indent=2, sort_keys=True) + "\n")


def _readme(kind: str, lora: Lora, base: Base, told: bool, moved: bool) -> str:
    pipelines = '\n`pipe.load_lora_weights("FOLDER")` reads it too, where the base is a pipeline.\n' if told else ""
    return f"""---
library_name: peft
---

# LoRA of rank {lora.rank} for {base.name}

An adapter for the `{kind}` of `{base.name}`, and for no other weights: those it was trained on have the sha256 `{base.sha256}`
(over names, types, shapes and bytes of their parameters, in the order of the names).

```python
{_example(kind, base)}
```

{pipelines}
It needs peft and diffusers (`pip install peft diffusers`). Put it on the base, not on a pipeline that it is merged into already. Then sample as the
card of the base says. If the training changed how the pipeline samples (Percepta's recipe mmd does), take its scheduler from the merged pipeline, the
`model` folder of the run: `pipe.scheduler = DiffusionPipeline.from_pretrained("RUN/model").scheduler`.{TABLE if moved else ""}
"""


def _example(kind: str, base: Base) -> str:
    """Code that puts the adapter on its base: on a part of a pipeline, or on a model that lies alone."""
    folder = Path(base.name)
    folder = folder / "model" if (folder / "model" / "model_index.json").is_file() else folder
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        return f"""from diffusers import {kind}
from peft import PeftModel

model = {kind}.from_pretrained("{folder}")
PeftModel.from_pretrained(model, "FOLDER")  # this folder; changes the model in place"""
    part = "transformer" if "transformer" in kind.lower() else "unet"
    index = folder / "model_index.json"
    own = index.is_file() and isinstance(json.loads(index.read_text()).get("_class_name"), list)
    trust = ", trust_remote_code=True" if own else ""  # a pipeline whose class lies in its folder
    return f"""from diffusers import DiffusionPipeline
from peft import PeftModel

pipe = DiffusionPipeline.from_pretrained("{folder}"{trust})
PeftModel.from_pretrained(pipe.{part}, "FOLDER")  # this folder; changes pipe.{part} in place"""

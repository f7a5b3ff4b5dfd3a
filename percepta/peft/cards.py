"""README.md of a LoRA or DoRA: how to put it on its base, in code that runs without Percepta."""

import json
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel

from percepta.networks.positions import rewritten
from percepta.peft.adapter import Adapter, Base

TABLE = """

It was trained at another size than the base, with positions that its own table does not have. They are no part of an adapter: take them from the merged
pipeline too, `pipe.transformer.pos_embed = DiffusionPipeline.from_pretrained("RUN/model").transformer.pos_embed`, and say `height` and `width`."""


def card_of(adapter: Adapter, told: bool) -> str:
    """`told`: whether the weights lie there once more for Stable Diffusion's pipelines."""
    base, peft, model = adapter.base, adapter.peft, adapter.network.model
    kind, options = type(model).__name__, adapter.record()["options"]
    pipelines = '\n`pipe.load_lora_weights("FOLDER")` reads it too, where the base is a pipeline.\n' if told else ""
    return f"""---
library_name: peft
---

# {"DoRA" if peft.name == "dora" else "LoRA"} of rank {options["rank"]} for {base.name}

An adapter for the `{kind}` of `{base.name}`, and for no other weights: those it was trained on have the sha256 `{base.sha256}`
(over names, types, shapes and bytes of their parameters, in the order of the names).

```python
{_code(adapter, kind)}
```

{pipelines}
It needs peft and diffusers (`pip install peft diffusers`). Put it on the base, not on a pipeline that it is merged into already. Then sample as the
card of the base says. If the training changed how the pipeline samples (Percepta's recipe mmd does), take its scheduler from the merged pipeline, the
`model` folder of the run: `pipe.scheduler = DiffusionPipeline.from_pretrained("RUN/model").scheduler`.{TABLE if rewritten(model) else ""}
"""


def _code(adapter: Adapter, kind: str) -> str:
    """Without Percepta wherever that can be: a class of ours travels in a pipeline, not alone, nor with other classes than its folder says."""
    if not hasattr(diffusers, kind) and (adapter.renewed or _alone(adapter.base)):
        folder = _folder(adapter.base)
        return f"""from percepta.networks import adapt, load_model
from percepta.peft import load_adapter

network = adapt(load_model("{folder if _alone(adapter.base) else folder / part_of(kind)}"))
load_adapter(network, "FOLDER")  # this folder; changes network in place. {kind} is a class of Percepta's"""
    return _renewed(adapter, kind) if adapter.renewed else _example(kind, adapter.base) + _table(adapter, kind)


def _folder(base: Base) -> Path:
    folder = Path(base.name)
    return folder / "model" if (folder / "model" / "model_index.json").is_file() else folder


def _alone(base: Base) -> bool:
    """Whether the base is a model without a pipeline."""
    folder = _folder(base)
    return (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()


def _table(adapter: Adapter, kind: str) -> str:
    """Code that loads the class table, which lies in a file beside what peft reads."""
    if not adapter.table:
        return ""
    bare = _alone(adapter.base)
    return f"""

from safetensors.torch import load_file

{_filled(adapter, "model" if bare else f"pipe.{part_of(kind)}")}"""


def _filled(adapter: Adapter, model: str) -> str:
    blocks = getattr(adapter.network.model, "transformer_blocks", [])
    if isinstance(adapter.network.model, DiTTransformer2DModel) and len(adapter.table) < len(blocks):
        return f"""(rows,) = load_file("FOLDER/class_table.safetensors").values()
for block in {model}.transformer_blocks:  # one table for all of them
    block.norm1.emb.class_embedder.embedding_table.weight.data.copy_(rows)"""
    return f'{model}.load_state_dict(load_file("FOLDER/class_table.safetensors"), strict=False)'


def _renewed(adapter: Adapter, kind: str) -> str:
    """The class table has other rows than the base's: the model is built for them, and all that fits is the base's."""
    classes, model = adapter.network.num_classes or 0, adapter.network.model
    rows: dict[type, str] = {DiTTransformer2DModel: f"num_embeds_ada_norm={classes}",
                             SD3Transformer2DModel: f"joint_attention_dim={classes + 1}, pooled_projection_dim={classes + 1}"}  # fmt: skip
    said: Any = rows.get(type(model), f"num_class_embeds={classes + 1}")
    folder = _folder(adapter.base)
    where = f'"{folder}"' if (folder / "config.json").is_file() else f'"{folder}", subfolder="{part_of(kind)}"'
    return f"""from diffusers import {kind}
from peft import PeftModel
from safetensors.torch import load_file

# {classes} classes, and {classes} for none
model = {kind}.from_pretrained({where}, {said}, ignore_mismatched_sizes=True, low_cpu_mem_usage=False)
{_filled(adapter, "model")}
PeftModel.from_pretrained(model, "FOLDER")  # this folder; changes the model in place"""


def part_of(kind: str) -> str:
    return "transformer" if "transformer" in kind.lower() else "unet"


def _example(kind: str, base: Base) -> str:
    """Code that puts the adapter on its base: on a part of a pipeline, or on a model that lies alone."""
    folder = _folder(base)
    if _alone(base):
        return f"""from diffusers import {kind}
from peft import PeftModel

model = {kind}.from_pretrained("{folder}")
PeftModel.from_pretrained(model, "FOLDER")  # this folder; changes the model in place"""
    part = part_of(kind)
    index = folder / "model_index.json"
    own = index.is_file() and isinstance(json.loads(index.read_text()).get("_class_name"), list)
    trust = ", trust_remote_code=True" if own else ""  # a pipeline whose class lies in its folder
    return f"""from diffusers import DiffusionPipeline
from peft import PeftModel

pipe = DiffusionPipeline.from_pretrained("{folder}"{trust})
PeftModel.from_pretrained(pipe.{part}, "FOLDER")  # this folder; changes pipe.{part} in place"""

"""The files of adapters: adapter_config.json, and weights in safetensors that say in their metadata which method they are of, and for which base."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from percepta.peft.adapter import AbstractPeft, Adapter, plain_name

CONFIG, WEIGHTS, TABLE = "adapter_config.json", "adapter_model.safetensors", "class_table.safetensors"
KEY = "percepta"  # of the metadata


class AbstractOwn(AbstractPeft):
    """A method that is not of the peft library: its file holds whatever trains, under the names of the plain model."""

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return trained(model)

    def save(self, adapter: Adapter, folder: Path) -> None:
        record = adapter.record()
        write_weights(adapter.tensors(), folder / WEIGHTS, metadata(record))
        (folder / CONFIG).write_text(
            json.dumps({"peft_type": f"PERCEPTA_{self.name.upper()}", **record}, indent=2, sort_keys=True) + "\n"
        )
        (folder / "README.md").write_text(_readme(adapter))


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {plain_name(name): p.detach() for name, p in model.named_parameters() if p.requires_grad}


def write_weights(tensors: dict[str, Tensor], file: Path, about: Mapping[str, str] | None = None) -> None:
    """safetensors whose bytes follow from what they say: the library writes several entries of metadata in any order."""
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
        file,
        metadata={"format": "pt", **(about or {})},
    )
    whole = file.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = ordered.ljust(len(ordered) + -len(ordered) % 8)
    file.write_bytes(len(padded).to_bytes(8, "little") + padded + whole[end:])


def metadata(record: Mapping[str, Any]) -> dict[str, str]:
    return {KEY: json.dumps(record, sort_keys=True)}


def is_adapter(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """Which method an adapter is of, with what options, and on which base."""
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            record = json.loads((file.metadata() or {})[KEY])
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no adapter that can be read: {error}") from error
    except KeyError:
        raise ValueError(
            f"{folder / WEIGHTS} does not say which base it is for, as adapters written here do: put it on its base with peft, and give that model"
        ) from None
    return record


def read_tensors(folder: Path) -> dict[str, Tensor]:
    more = load_file(folder / TABLE) if (folder / TABLE).is_file() else {}
    return load_file(folder / WEIGHTS) | more


@torch.no_grad()
def fill(adapter: Adapter, folder: Path) -> None:
    """Give an adapter the weights that the folder has."""
    found, own = read_tensors(folder), adapter.tensors()
    odd = sorted(found.keys() ^ own.keys()) or [name for name in own if own[name].shape != found[name].shape]
    if odd:
        raise ValueError(f"the adapter in {folder} does not fit this network: {odd[:3]} are missing, unknown or of another shape")
    for name, value in own.items():
        value.copy_(found[name])


def _readme(adapter: Adapter) -> str:
    name, base = adapter.peft.name, adapter.base
    cls = type(adapter.network.model).__name__
    plain = "\n`percepta export RUN OUT` folds it into ordinary weights, which load in plain diffusers.\n" if adapter.peft.folds else (
        "\nOrdinary weights cannot hold it, so that there is no plain pipeline of it.\n")  # fmt: skip
    return f"""# {name} for {base.name}

An adapter for the `{cls}` of `{base.name}`, and for no other weights: those it was trained on have the sha256 `{base.sha256}`
(over names, types, shapes and bytes of their parameters, in the order of the names). It holds {adapter.trained} weights.

```python
from percepta.interop import load_pipeline

network = load_pipeline("FOLDER").denoiser.network  # this folder: the base that it names, with the adapter on it
```

`percepta sample FOLDER` draws with it.
{plain}"""

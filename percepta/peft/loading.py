"""An adapter from its folder, back on the base."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from percepta.networks import Network
from percepta.networks.classes import new_classes
from percepta.peft.adapter import AbstractPeft, Adapter, attach, digest
from percepta.peft.beside import AdaptFormer, Vpt
from percepta.peft.files import fill, read_record
from percepta.peft.inplace import BitFit, DiffFit
from percepta.peft.lora import Lora

METHODS: Mapping[str, Callable[..., AbstractPeft]] = {
    "bitfit": BitFit, "diffit": DiffFit, "lora": Lora, "dora": Lora, "vpt": Vpt, "adaptformer": AdaptFormer,
}  # fmt: skip


def load_adapter(network: Network, folder: str | Path) -> Adapter:
    """Put the adapter in a folder on the network that it was trained on; another one is refused."""
    folder = Path(folder)
    record = read_record(folder)
    base, sha256 = record["base"], digest(network.model)
    if sha256 != base["sha256"]:
        raise ValueError(
            f"{folder} is an adapter for {base['name']} with the sha256 {base['sha256'][:12]}..., and this network's weights have "
            f"{sha256[:12]}...: give the base that it was trained on"
        )
    if record["method"] not in METHODS:
        raise ValueError(
            f"{folder} is of the method {record['method']!r}; known are {', '.join(METHODS)}: was it made by a newer Percepta?"
        )
    if record["new_classes"] is not None:
        new_classes(network, record["new_classes"], 0)
    if record["size"] not in (None, network.sample_size):
        network.resize(record["size"])
    adapter = attach(
        METHODS[record["method"]](**_options(record["options"])), network, base["name"], 0, table=record["class_table"],
        renewed=record["new_classes"] is not None, sha256=sha256,
    )  # fmt: skip
    fill(adapter, folder)
    return adapter


def _options(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}

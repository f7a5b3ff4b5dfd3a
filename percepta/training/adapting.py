"""A run that trains a few weights in place of all (--peft): chosen by the settings, put on the method's network, exported. And the class table of
a network that goes on with other classes, whatever trains.
"""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from percepta.interop.export import replace_folder
from percepta.networks import Network
from percepta.networks.classes import new_classes
from percepta.peft import AbstractPeft, AdaptFormer, BitFit, DiffFit, Lora, Vpt, attach, digest
from percepta.rng import mix
from percepta.training.method import Method
from percepta.training.settings import Settings

CONFIG = "adapter_config.json"  # what tells an earlier export of an adapter from a folder of something else


def _lora(settings: Settings) -> AbstractPeft:
    targets = tuple(part for text in (settings.lora_targets or "").split(",") if (part := text.strip()))
    return Lora(settings.lora_rank, settings.lora_alpha, targets, settings.peft == "dora")


METHODS: Mapping[str, Callable[[Settings], AbstractPeft]] = {  # by the name that --peft knows
    "bitfit": lambda settings: BitFit(),
    "diffit": lambda settings: DiffFit(),
    "lora": _lora,
    "dora": _lora,
    "vpt": lambda settings: Vpt(settings.prompt_tokens),
    "adaptformer": lambda settings: AdaptFormer(settings.bottleneck),
}


@dataclass(frozen=True)
class Started:
    """What --init was before anything was done to it: the hash of its weights; and whether its class table was made anew."""

    sha256: str | None = None
    renewed: bool = False


def check_table(settings: Settings) -> None:
    """No check of the settings alone: a preset may ask for a new table, before it is said of which model."""
    if settings.class_table != "auto" and settings.init is None:
        raise ValueError(f"--class-table {settings.class_table} is about the model of --init: say which")


def start_from(network: Network, settings: Settings, num_classes: int | None) -> Started:
    """Make the network of --init one of the data's classes, where a new table is asked for, or an adapter meets other classes than the base's."""
    sha256 = None if settings.peft == "full" else digest(network.model)
    asked = settings.class_table
    if asked == "new" and num_classes is None:
        raise ValueError(
            "--class-table new makes a row for each class of the data, which has none here: leave it out, or give data with labels"
        )
    other = network.num_classes not in (None, num_classes) and asked == "auto" and settings.peft != "full"
    if num_classes is None or not (asked == "new" or other):
        return Started(sha256)
    new_classes(network, num_classes, mix(settings.seed, "classes"))
    return Started(sha256, True)


def adapt_method(method: Method, settings: Settings, started: Started = Started()) -> None:
    """Freeze the network of --init and put an adapter on it, where --peft asks for one. Critics and the like train as they are."""
    if settings.peft == "full":
        return
    networks = [module for module in method.model.modules() if isinstance(module, Network)]
    if settings.init is None or len(networks) != 1:
        raise ValueError(
            f"--peft {settings.peft} adapts the one denoising network of --init, and this recipe trains {len(networks) or 'none'}"
        )
    peft, asked = METHODS[settings.peft](settings), settings.class_table
    table = started.renewed or asked == "train" or (asked == "auto" and peft.names_table)
    method.adapter = attach(
        peft, networks[0], settings.init, mix(settings.seed, "peft"), table=table, renewed=started.renewed, sha256=started.sha256
    )


def export_model(method: Method, out: Path, about: Mapping[str, Any]) -> None:
    """The method's product as a folder of its own, an adapter merged into it. The method goes on as it was."""
    if method.adapter is None:
        method.product.export(out, about)
        return
    with method.adapter.merged():
        method.product.export(out, about)


def export_adapter(method: Method, out: Path) -> None:
    """The adapter alone, in one piece: a folder beside `out` is filled first and then renamed."""
    if method.adapter is None:
        raise ValueError("this run trained all weights (--peft full): there is no adapter to export")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / CONFIG).is_file())):
        raise ValueError(f"{out} exists and is no earlier adapter; give a new folder, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        method.adapter.save(work)
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)

"""A run that trains a few weights in place of all (--peft): chosen by the settings, put on the method's network, exported."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from percepta.interop.export import replace_folder
from percepta.networks import Network
from percepta.peft import AbstractPeft, Lora, attach
from percepta.rng import mix
from percepta.training.method import Method
from percepta.training.settings import Settings

CONFIG = "adapter_config.json"  # what tells an earlier export of an adapter from a folder of something else


def _lora(settings: Settings) -> AbstractPeft:
    targets = tuple(part for text in (settings.lora_targets or "").split(",") if (part := text.strip()))
    return Lora(settings.lora_rank, settings.lora_alpha, targets)


METHODS: Mapping[str, Callable[[Settings], AbstractPeft]] = {"lora": _lora}  # by the name that --peft knows


def adapt_method(method: Method, settings: Settings) -> None:
    """Freeze the network of --init and put an adapter on it, where --peft asks for one. Critics and the like train as they are."""
    if settings.peft == "full":
        return
    networks = [module for module in method.model.modules() if isinstance(module, Network)]
    if settings.init is None or len(networks) != 1:
        raise ValueError(
            f"--peft {settings.peft} adapts the one denoising network of --init, and this recipe trains {len(networks) or 'none'}"
        )
    method.adapter = attach(METHODS[settings.peft](settings), networks[0], settings.init, mix(settings.seed, "peft"))


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

"""Sample grids of a run in progress: same seeds at every step, so that pictures of different steps can be laid over each other."""

from pathlib import Path

import torch

from percepta.images import grid, save_png
from percepta.training.folder import write_json
from percepta.training.product import Check, Product
from percepta.training.settings import Settings


def save_preview(product: Product, path: Path, settings: Settings, device: torch.device, check: Check, step: int) -> None:
    """One PNG, and beside it how it was made."""
    images, protocol = product.preview(settings, device, check)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), {"step": step, **protocol})
    columns = len(protocol["columns"]) if "columns" in protocol else None
    save_png(path, grid(images, columns, together=protocol.get("together", 1)))

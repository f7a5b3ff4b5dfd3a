"""percepta doctor: what this machine can do, what is missing, and how to get it; with --data, the state of a set of images."""

import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from percepta.cli.parse import parse, to_stdout

PACKAGES = ("torch", "torchvision", "diffusers", "peft", "timm", "torch-fidelity", "safetensors", "numpy", "pillow", "tyro", "rich")
OPTIONAL = {
    "datasets": ("Hugging Face datasets", "percepta[data]"),
    "webdataset": ("writing tar shards", "percepta[data]"),
    "transformers": ("CLIP and text conditions", "percepta[clip]"),
    "tensorboard": ("--report-to tensorboard", "percepta[track]"),
    "trackio": ("--report-to trackio", "percepta[track]"),
    "wandb": ("--report-to wandb", "percepta[track]"),
    "torchdiffeq": ("the adaptive sampler", "percepta[ode]"),
    "onnxscript": ("translators as ONNX files", "percepta[onnx]"),
    "onnxruntime": ("the check of ONNX files", "percepta[onnx]"),
}


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, precision support, optional parts and weights, and how to get what is missing.

    Example: percepta doctor --data ./images

    With --data the whole set is read first: corrupt, truncated, wrong-mode, too small and oversized files are listed by name.
    """

    data: str | None = None
    """A set of images to check: a folder, .npz, tar shards, hf:NAME, shapes."""
    size: int | None = None
    """With --data: files with a shorter side than this are reported as too small."""
    json: bool = False
    """Print one JSON object."""


def run(args: Sequence[str]) -> int:
    command = parse(Doctor, args, "percepta doctor")
    if command.data is not None:
        return check_data(command)
    facts = examine()
    to_stdout(json.dumps(facts, indent=2) if command.json else told(facts))
    return 0


def check_data(command: Doctor) -> int:
    from percepta.data import open_source
    from percepta.data.check import check_source

    assert command.data is not None
    report = check_source(open_source(command.data), command.size)
    if command.json:
        to_stdout(json.dumps(report.to_json(), indent=2))
    else:
        from rich.console import Console

        Console(width=None if os.isatty(1) else 120, highlight=False).print(report.table())
    return 0 if report.ok else 2


def examine() -> dict[str, Any]:
    """Everything doctor tells, as plain values."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in ("percepta", *PACKAGES)},
        "optional": {name: _version(name) for name in OPTIONAL},
        "devices": devices(),
        "compile": compilers(),
        "weights": weights(),
        "spaces": spaces(),
        "metrics": metrics(),
        "presets": presets(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> list[dict[str, Any]]:
    import torch

    found: list[dict[str, Any]] = [
        {"device": "cpu", "cores": os.cpu_count(), "threads": torch.get_num_threads(), "bf16": True, "fp16": False}
    ]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found.append({"device": f"cuda:{index}", "name": card.name, "memory_gib": round(card.total_memory / 2**30, 1),
                      "bf16": torch.cuda.is_bf16_supported(), "fp16": True})  # fmt: skip
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "bf16": True, "fp16": False})
    return found


def compilers() -> str:
    import torch

    from percepta.training.precision import missing_compiler, pick_device

    missing = missing_compiler(pick_device("auto"))
    return f"torch {torch.__version__}: " + (f"off, {missing}" if missing else "works")


def weights() -> dict[str, dict[str, Any]]:
    from percepta.weights import TABLE, has_weights

    return {
        row.name: {"here": has_weights(row.name), "purpose": row.purpose, "file": row.file, "url": row.url, "licence": row.licence}
        for row in TABLE
    }


def spaces() -> dict[str, dict[str, Any]]:
    """Each family of spaces: whether it can be used now, the file that serves or is missing, and the folder for it."""
    from percepta.spaces.extractor import PARTIAL, known_extractors, weights_behind
    from percepta.weights import has_weights, known_weights, weight_folders

    out: dict[str, dict[str, Any]] = {}
    for family, about in known_extractors().items():
        names = weights_behind(family)
        found = next((name for name in names if has_weights(name)), None)
        out[family] = {
            "here": found is not None or not names,
            "about": about,
            "file": known_weights(found or names[0]).file if names else None,
            "folder": str(weight_folders()[0]) if names and found is None else None,
            "limit": "up to 768 features only" if found == PARTIAL else None,
        }
    return out


def metrics() -> dict[str, dict[str, Any]]:
    """Each metric function: whether it can be trained against now, and the files that are missing."""
    from percepta.spaces.metrics import METRICS, known_metrics
    from percepta.weights import has_weights, known_weights

    out: dict[str, dict[str, Any]] = {}
    for name, about in known_metrics().items():
        groups = METRICS[name].weights if name in METRICS else ()
        missing = [known_weights(group[0]).file for group in groups if not any(has_weights(one) for one in group)]
        out[name] = {"here": not missing, "about": about, "missing": missing}
    return out


def presets() -> list[dict[str, Any]]:
    from percepta.networks import preset_table

    return [{"name": row[0], "parameters": row[1]} for row in preset_table()]


def told(facts: dict[str, Any]) -> str:
    """The facts as a page of plain text."""
    lines = [f"Python {facts['python']} on {facts['system']}", "", "Packages"]
    lines += [f"  {name:<16} {version or 'MISSING: pip install percepta'}" for name, version in facts["packages"].items()]
    lines += ["", "Optional parts"]
    for name, version in facts["optional"].items():
        purpose, extra = OPTIONAL[name]
        lines.append(f"  {name:<16} {version or '-':<12} {purpose}" + ("" if version else f": pip install '{extra}'"))
    lines += ["", "Devices"]
    for device in facts["devices"]:
        what = device.get("name") or (f"{device['cores']} cores, {device['threads']} threads" if "cores" in device else "")
        precision = "fp32" + ", bf16" * device["bf16"] + ", fp16" * device["fp16"]
        lines.append(f"  {device['device']:<16} {what}  {precision}")
    lines += [
        f"  compile          {facts['compile']}",
        "",
        "Weights (looked for in PERCEPTA_WEIGHTS, then torch's and Hugging Face's caches)",
    ]
    for name, row in facts["weights"].items():
        lines.append(f"  {name:<28} {'here' if row['here'] else 'not here':<9} {row['purpose']}")
        if not row["here"]:
            lines.append(f"  {'':<28} get {row['file']} from {row['url']} ({row['licence']})")
    lines += ["", "Spaces to judge in (--space, --eval-space)"]
    for name, row in facts["spaces"].items():
        limit = f"; {row['limit']}" if row["limit"] else ""
        lines.append(f"  {name:<10} {'here' if row['here'] else 'not here':<9} {row['about']}"
                     + (limit if row["here"] else f": put {row['file']} into {row['folder']}"))  # fmt: skip
    lines += ["", "Metric functions to train with (--metric)"]
    for name, row in facts["metrics"].items():
        lines.append(f"  {name:<14} {'here' if row['here'] else 'not here':<9} {row['about']}"
                     + (f"; missing: {', '.join(row['missing'])}" if row["missing"] else ""))  # fmt: skip
    lines += ["", "Network presets (--network)"]
    lines += [f"  {row['name']:<16} {row['parameters'] / 1e6:>8.1f} M parameters" for row in facts["presets"]]
    return "\n".join(lines)

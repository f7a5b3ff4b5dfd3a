"""Pipelines of diffusers, and what Percepta exports, as a denoiser: the schedule and the meaning of the output are read, not asked.

No code from the folder is ever run: components are built from diffusers' classes and Percepta's, from JSON and safetensors; a `.bin` is
read in a process of its own, as tensors only (percepta.weights).
"""

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from percepta.formulation import Denoiser, Formulation, formulation_from_config
from percepta.interop.export import RECORD
from percepta.interop.folders import NETWORKS, TEXT, VAES, TextParts, find_folder, read_json
from percepta.interop.schedules import SamplerDefaults, UnknownMeaning, defaults_of, formulation_of, scheduler_for
from percepta.networks import Network, adapt, cascade_formulation, load_model
from percepta.path import AbstractDiscretePath
from percepta.peft import is_adapter, load_adapter, read_record
from percepta.weights import read_weights

FLAGS = (
    "say what the network puts out and how it was noised: --predict eps|x0|v|flow|edm, and for eps, x0, v --schedule linear|cosine"
)


@dataclass(frozen=True)
class Pipeline:
    """What a folder held. `vae` is diffusers' model; `parts` are text encoders and tokenizers by name, loaded when they are asked for; `sampler` is
    how it sampled.

    `origin` tells where it came from (path, pipeline, scheduler, network class), for a run's config and for reports.
    """

    denoiser: Denoiser
    vae: nn.Module | None = None
    class_names: tuple[str, ...] | None = None
    sampler: SamplerDefaults = field(default_factory=SamplerDefaults)
    origin: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, Any] = field(default_factory=dict)


def load_pipeline(path: str | Path, formulation: Formulation | None = None) -> Pipeline:
    """The pipeline in a folder, a run's folder, a bare model folder, or under a name that diffusers has cached.

    `formulation` is needed only where no scheduler_config.json lies in or beside a bare model folder; given, it overrides what is found.
    """
    folder = find_folder(path)
    if (folder / "model" / "model_index.json").is_file():  # a run
        folder = folder / "model"
    elif is_adapter(folder / "adapter"):  # a run whose adapter does not fold
        folder = folder / "adapter"
    if is_adapter(folder):
        return _from_adapter(folder, formulation)
    if (folder / "model_index.json").is_file():
        return _from_index(folder, formulation)
    if (folder / "config.json").is_file():
        return _from_model(folder, formulation)
    raise ValueError(f"{folder} is neither a pipeline (no model_index.json), nor a run (no model/), nor a model (no config.json)")


def _from_adapter(folder: Path, formulation: Formulation | None) -> Pipeline:
    """The base that an adapter names, with the adapter in it: folded where it folds."""
    name = read_record(folder)["base"]["name"]
    try:
        base = load_pipeline(name, formulation)
    except UnknownMeaning:
        raise
    except ValueError as error:
        raise ValueError(f"{folder} is an adapter for {name}, which cannot be read from here: {error}") from error
    assert isinstance(base.denoiser.network, Network)
    adapter = load_adapter(base.denoiser.network, folder)
    if adapter.peft.folds:
        with adapter.merged():
            plain = copy.deepcopy(adapter.network.model)
        adapter.network.model = plain
    names = _run_classes(folder) if adapter.renewed else base.class_names
    held = {} if adapter.peft.folds else {"adapter": adapter.peft.name}
    adapter.network.requires_grad_(False).eval()
    return replace(base, class_names=names, origin={**base.origin, **held})


def _run_classes(folder: Path) -> tuple[str, ...] | None:
    """The names of the classes that an adapter was trained on, from the run that it lies in."""
    config = folder.parent / "config.json"
    names = read_json(config).get("resolved", {}).get("class_names") if config.is_file() else None
    return None if names is None else tuple(names)


def _from_index(folder: Path, formulation: Formulation | None) -> Pipeline:
    index = read_json(folder / "model_index.json")
    present = {
        name: value
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[1] and not name.startswith("_")
    }
    networks = [name for name in NETWORKS if name in present]
    if len(networks) != 1:
        raise ValueError(
            f"{folder} holds {', '.join(present) or 'no components'}: one of {', '.join(NETWORKS[:2])} is needed, got {len(networks)}"
        )
    pipeline = index.get("_class_name")
    pipeline = str(pipeline[-1] if isinstance(pipeline, list) else pipeline)
    scheduler = (
        read_json(folder / "scheduler" / "scheduler_config.json")
        if (folder / "scheduler" / "scheduler_config.json").is_file()
        else None
    )
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    meaning, sampler = _meaning(folder, formulation, scheduler, record)
    network = adapt(load_component(folder / networks[0]), num_classes=None)
    _check_variance(network, scheduler)
    _check_cascade(network, meaning)
    vaes = [name for name in VAES if name in present]
    vae = load_component(folder / vaes[0]).requires_grad_(False) if vaes else None
    parts = TextParts(folder, {name: present[name] for name in TEXT if name in present})
    origin = {"path": str(folder), "pipeline": pipeline, "network": type(network.model).__name__,
              "scheduler": str((scheduler or {}).get("_class_name", "none"))}  # fmt: skip
    return Pipeline(Denoiser(network, meaning), vae, _class_names(index, record, network), sampler, origin, parts)


def _from_model(folder: Path, formulation: Formulation | None) -> Pipeline:
    """A bare `unet/` folder: its scheduler lies in it, or beside it as in a pipeline. A cascade says itself what it means."""
    beside = (
        folder / "scheduler_config.json",
        folder.parent / "scheduler" / "scheduler_config.json",
        folder.parent / "scheduler_config.json",
    )
    found = next((path for path in beside if path.is_file()), None)
    network = adapt(load_component(folder))
    if found is None and formulation is None:
        formulation = cascade_formulation(network.model)
    if found is None and formulation is None:
        raise UnknownMeaning(
            f"{folder} is a model without a scheduler_config.json in it or beside it, so nothing tells how it was trained: {FLAGS}"
        )
    scheduler = None if found is None else read_json(found)
    record = folder.parent / RECORD if found is not None and found.parent.parent == folder.parent else None
    meaning, sampler = _meaning(
        folder, formulation, scheduler, read_json(record) if record is not None and record.is_file() else None
    )
    _check_variance(network, scheduler)
    _check_cascade(network, meaning)
    origin = {
        "path": str(folder),
        "pipeline": "none",
        "network": type(network.model).__name__,
        "scheduler": str((scheduler or {}).get("_class_name", "none")),
    }
    return Pipeline(Denoiser(network, meaning), sampler=sampler, origin=origin)


def _meaning(
    folder: Path, given: Formulation | None, scheduler: dict[str, Any] | None, record: dict[str, Any] | None
) -> tuple[Formulation, SamplerDefaults]:
    """The formulation: given, or as the export recorded it, or as the scheduler says."""
    if given is not None:  # the scheduler may belong to another path
        return given, SamplerDefaults()
    if scheduler is None:
        raise UnknownMeaning(f"{folder} has no scheduler/scheduler_config.json: {FLAGS}")
    if record is None:
        return formulation_of(scheduler), defaults_of(scheduler)
    recorded, defaults = formulation_from_config(record["formulation"]), SamplerDefaults(**record["sampler"])
    as_written = dict(scheduler_for(recorded, defaults).config)  # pyright: ignore[reportAttributeAccessIssue]
    if formulation_of(scheduler) != formulation_of({**as_written, "_class_name": type(scheduler_for(recorded, defaults)).__name__}):
        raise ValueError(
            f"{folder}: scheduler_config.json and {RECORD} disagree about how the network was trained; remove {RECORD} to go by the "
            "scheduler, or restore the scheduler"
        )
    return recorded, defaults


def _check_variance(network: Network, scheduler: dict[str, Any] | None) -> None:
    """A scheduler that reads a variance needs a network that puts one out."""
    variance = str((scheduler or {}).get("variance_type", ""))
    if variance.startswith("learned") and network.out_channels != 2 * network.in_channels:
        raise ValueError(
            f"the scheduler reads a learned variance (variance_type {variance!r}), but the network puts out {network.out_channels} channels "
            f"for {network.in_channels}; set variance_type to 'fixed_small' in scheduler_config.json, or use the network's own scheduler"
        )


def _check_cascade(network: Network, meaning: Formulation) -> None:
    """A cascade computes with a schedule of its own, which must be the one that it is sampled and trained by."""
    own = cascade_formulation(network.model)
    if own is None:
        return
    assert isinstance(own.path, AbstractDiscretePath)
    path = meaning.path
    if not (
        meaning.output == "clean"
        and isinstance(path, AbstractDiscretePath)
        and path.num_steps == own.path.num_steps
        and torch.allclose(path.abar, own.path.abar, rtol=1e-5, atol=1e-12)
    ):
        raise ValueError(
            f"this cascade holds its own schedule, {type(own.path).__name__} of {own.path.num_steps} steps, and puts out x0; asked was "
            f"{meaning.output!r} on {type(path).__name__}: leave the formulation (--predict, --schedule) out"
        )


def _class_names(index: dict[str, Any], record: dict[str, Any] | None, network: Network) -> tuple[str, ...] | None:
    names = (record or {}).get("class_names")
    if names is None and isinstance(index.get("id2label"), dict) and network.num_classes is not None:
        table = {int(k): str(v) for k, v in index["id2label"].items()}
        names = [table.get(i, str(i)) for i in range(network.num_classes)]
    return None if names is None else tuple(names)


def load_component(folder: Path) -> Any:
    """A model of diffusers or Percepta from its folder. A lone `.bin` is turned into safetensors in a temporary folder first."""
    if not folder.is_dir():
        raise ValueError(f"model_index.json names {folder.name}, but there is no folder {folder}")
    old = next((folder / name for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin") if (folder / name).is_file()), None)
    if old is None or list(folder.glob("*.safetensors")):
        return load_model(folder)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text((folder / "config.json").read_text())
        save_file(read_weights(old), Path(scratch) / "diffusion_pytorch_model.safetensors")
        return load_model(scratch)

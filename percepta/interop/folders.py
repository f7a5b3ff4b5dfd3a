"""Folders of pipelines: where they are, what their JSON says, and the parts of them that read text."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from percepta.absent import absent

WANTED = "the folder of a pipeline, a run or a model"
NETWORKS = ("unet", "transformer", "model", "prior")
VAES = ("vae", "vqvae", "movq")
TEXT = (
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "image_encoder",
    "feature_extractor",
)


def find_folder(path: str | Path) -> Path:
    """A local folder, or the cached copy of a Hugging Face repository; nothing is downloaded."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{path} is a file; give a pipeline's folder, a run's, or a cached repository as OWNER/NAME")
    name = str(path)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ValueError(absent(path, f"{WANTED}, or a cached repository as OWNER/NAME,"))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        if folder.parent.is_dir():  # runs/misspelt
            raise ValueError(absent(path, WANTED)) from None
        raise ValueError(
            f"{name} is neither a folder nor in the Hugging Face cache, and nothing is downloaded here: "
            f"run 'hf download {name}' first, or give a local folder"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


class TextParts(Mapping[str, Any]):
    """Tokenizers and text encoders by name. Each is loaded anew whenever it is asked for: a big one takes no room before, or afterwards."""

    def __init__(self, folder: Path, classes: Mapping[str, list[str]]) -> None:
        self.folder, self.classes = folder, dict(classes)
        for name, where in self.classes.items():
            if where[0] != "transformers":
                raise ValueError(f"{name} is {where[0]}.{where[1]}, no part of transformers: its code is not run")
            if not (folder / name).is_dir():
                raise ValueError(f"model_index.json names {name}, but there is no folder {folder / name}")

    def __getitem__(self, name: str) -> Any:
        return text_part(self.folder / name, self.classes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)


def text_part(folder: Path, where: list[str], dtype: torch.dtype | None = None) -> Any:
    """A tokenizer or text encoder of transformers, in the precision it is stored in unless one is given."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{folder.name} is a part of transformers, which is missing: pip install 'percepta[clip]'") from error
    cls = getattr(transformers, where[1], None)
    if where[0] != "transformers" or cls is None:
        raise ValueError(f"{folder.name} is {where[0]}.{where[1]}, which transformers {transformers.__version__} does not have")
    try:
        if not issubclass(cls, transformers.PreTrainedModel):
            return cls.from_pretrained(folder, local_files_only=True)
        model = cls.from_pretrained(folder, local_files_only=True, use_safetensors=True, dtype=dtype or "auto")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot be read as {where[1]}, from safetensors: {str(error).splitlines()[0]}") from error
    return model.requires_grad_(False).eval()

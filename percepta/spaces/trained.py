"""The folder of a network that was trained here: its weights as safetensors, and beside them a JSON file that says how it was made.

A folder is whole or not there: it is written beside and renamed. The JSON holds the sha256 of the weights, which is checked when they are read.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from percepta.weights import hash_of_file, read_weights


@dataclass(frozen=True)
class Kind:
    """`what` the folder holds, in words; the names of its two files; and the function that makes one."""

    what: str
    weights: str
    facts: str
    maker: str

    def facts_in(self, folder: Path) -> dict[str, Any]:
        """What stands beside the weights; ValueError where there is nothing of this kind."""
        file = folder / self.facts
        if not file.is_file():
            raise ValueError(f"{folder} holds no {self.what} ({self.facts} is missing): {self.maker} makes one")
        try:
            return json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} is damaged: remove {folder} and train it again ({error})") from error

    def tensors_in(self, folder: Path) -> dict[str, Tensor]:
        """The weights, if they are those that the facts describe."""
        file = folder / self.weights
        if hash_of_file(file) != self.facts_in(folder)["weights"]:
            raise ValueError(f"{file} is not the one that {self.facts} beside it describes: remove {folder} and train it again")
        return read_weights(file)

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], target: Path) -> None:
        """Whole or not at all. Where another process was faster, its folder stays."""
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".making-"))
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, scratch / self.weights)
            whole = dict(facts) | {"weights": hash_of_file(scratch / self.weights)}
            (scratch / self.facts).write_text(json.dumps(whole, indent=1) + "\n")
            if target.is_dir() and not (target / self.facts).is_file():
                shutil.rmtree(target)  # a part of one, which nothing could ever be read from
            if not target.is_dir():
                os.replace(scratch, target)
        except OSError as error:
            if not (target / self.facts).is_file():
                raise ValueError(f"the {self.what} cannot be saved in {target}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

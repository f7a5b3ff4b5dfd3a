"""The `domain` space: features of an encoder that is trained on the user's own images, for data about which ImageNet says nothing.

    folder = train_domain(source, cache, seed=0)     # about a minute on two cores; at once where it was done before
    rows = Domain(folder)(images)[0]

It knows its own data only. A number in it compares models of that data with each other, under one and the same encoder, and with nothing
that is published; `Domain.about` says so wherever the number is shown.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from percepta.spaces.domain_fit import DIMS, Encoder, fit
from percepta.spaces.pretext import Recipe
from percepta.spaces.space import Features, Reads, Space
from percepta.spaces.trained import Kind

WEIGHTS, FACTS = "encoder.safetensors", "domain.json"
KIND = Kind("domain encoder", WEIGHTS, FACTS, "train_domain")
LEAST = 16  # images
PER_CLASS = 8  # images on average: of fewer, a network learns its examples by heart, and its features say little of any other
BLOCK = 256  # images that are decoded before they are made small


@runtime_checkable
class Images(Protocol):
    """What is trained on: a Source or an ImageSet. `read_many` gives items with `image` (uint8 [h, w, 3]) and `label`, or an error each."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def read_many(self, indices: Sequence[int]) -> Sequence[Any]: ...


class Domain(Space):
    """Images in [-1, 1] of any size to 352 features: averages of all stages of the encoder. `folder` is what `train_domain` gave."""

    reads, resizes = Reads("images", 3, 1), True

    def __init__(self, folder: str | Path, on: Space | None = None) -> None:
        super().__init__(on)
        self.facts = read_facts(Path(folder))
        tensors = KIND.tensors_in(Path(folder))
        self.weights = str(self.facts["weights"])
        self.name = f"domain:{self.weights[:12]}"
        self.size, self.dims = int(self.facts["size"]), DIMS
        with torch.random.fork_rng(devices=[]):
            self.encoder = Encoder(self.size)
        self.encoder.load_state_dict(tensors)
        self.freeze()

    @property
    def about(self) -> str:
        """What it is, for a protocol."""
        f = self.facts
        how = (
            f"supervised on {f['classes']} classes, accuracy {f['reached']:.3f} on {f['held']:,} held-out images"
            if f["method"] == "supervised"
            else f"contrastive (SimCLR), loss {f['reached']:.3f}"
        )
        return (
            f"encoder trained on {f['images']:,} of {f['of']:,} images of the set {f['fingerprint'][:12]}, {how}, "
            f"{f['recipe']['steps']} steps, seed {f['seed']}: for comparisons within this encoder only"
        )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Features:
        return (self.encoder(small(x, self.size)).float(),)


def small(x: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 s s"]:
    """To size x size, bilinear, antialiased; what has the size passes unchanged."""
    if x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)


def train_domain(
    source: Images,
    folder: str | Path,
    seed: int = 0,
    recipe: Recipe | None = None,
    note: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
    seen_as: str = "",
) -> Path:
    """The folder of the encoder for these images, below `folder`; trained if it is not there yet.

    Found again by the images' fingerprint, `seen_as` (what that leaves out: how they are cut, and their labels), the recipe and the seed. Classes
    are used where the source has at least two, and enough images of them. `check` is called often, and may raise to leave.
    """
    recipe = recipe or Recipe()
    if len(source) < LEAST:
        raise ValueError(f"a domain encoder needs at least {LEAST} images to be trained on, got {len(source)}")
    classes = len(source.class_names)
    used = min(len(source), recipe.max_images)
    labelled = classes > 1 and used >= PER_CLASS * classes
    method = "supervised" if labelled else "contrastive"
    # the number of images is in the fingerprint; len() is of the readable ones, once it is known which these are
    parts = (source.fingerprint, *source.class_names, method, json.dumps(asdict(recipe), sort_keys=True), seed, seen_as)
    target = Path(folder) / sha256("\t".join(map(str, parts)).encode()).hexdigest()[:24]
    if (target / FACTS).is_file():
        note(f"domain encoder: found in {target}")
        return target
    note(f"domain encoder: training on {used:,} images, {method}, about a minute")
    indices = np.linspace(0, len(source) - 1, used).astype(int).tolist()
    images, labels = _read(source, indices, labelled, check)
    if len(images) < LEAST:
        raise ValueError(
            f"a domain encoder needs at least {LEAST} images to be trained on, only {len(images)} of {len(indices)} can be read"
        )
    made = fit(images, labels, recipe, seed, note, check)
    facts = {
        "method": method, "classes": classes if labelled else 0, "images": len(images), "of": len(source), "seed": seed,
        "fingerprint": source.fingerprint, "size": images.shape[-1], "reached": made.reached, "held": made.held, "recipe": asdict(recipe),
    }  # fmt: skip
    KIND.save(made.encoder.state_dict(), facts, target)
    note(f"domain encoder: {Domain(target).about}")
    return target


def read_facts(folder: Path) -> dict[str, Any]:
    """What stands beside the weights; ValueError where there is no encoder."""
    return KIND.facts_in(folder)


def _read(source: Images, indices: list[int], labelled: bool, check: Callable[[], None]) -> tuple[Tensor, Tensor | None]:
    """All images that can be read, made small, uint8 [n, 3, s, s], and their labels. s = 32 where the first is no larger, else 64."""
    parts: list[Tensor] = []
    labels: list[int] = []
    size = 0
    for start in range(0, len(indices), BLOCK):
        check()
        for item in source.read_many(indices[start : start + BLOCK]):
            if isinstance(item, Exception):
                continue
            size = size or (32 if min(item.image.shape[:2]) <= 32 else 64)
            parts.append(_shrunk(item.image, size))
            labels += [item.label] if labelled else []
    if not parts:
        raise ValueError("no image of the set can be read, so no domain encoder can be trained")
    return torch.stack(parts), torch.tensor(labels, dtype=torch.int64) if labelled else None


def _shrunk(pixels: np.ndarray, size: int) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    return small(x.float(), size).round().to(torch.uint8)[0]

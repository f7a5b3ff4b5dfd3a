"""TranslationPipeline: a trained translator as diffusers' pipelines are used: from_pretrained, to(device), call it with pictures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from percepta._version import __version__
from percepta.data.image import alpha_of, rgb_of
from percepta.evaluation.contamination import CARD, trained_against
from percepta.images import to_uint8
from percepta.interop import find_folder
from percepta.interop.export import RECORD
from percepta.networks.loading import class_of, load_model
from percepta.networks.translation import DIRECTIONS, SIZE_FILE, Direction, Pair
from percepta.translating.fitting import Fit, Fitting, translate_all

TOGETHER = 64  # megapixels of pictures that a call holds as floats at a time
Picture = Image.Image | np.ndarray | Tensor


@dataclass(frozen=True)
class Translations:
    """`images`: as they were given, pictures for pictures, arrays for arrays, tensors for tensors; one stack for a stack."""

    images: Any


class TranslationPipeline:
    """`pipe(images, direction="a2b")` gives images of the other domain, in the size of the given ones.

    Images are PIL pictures, uint8 arrays [h, w, 3], or float tensors [3, h, w] in [-1, 1]; one, a list, or a stack with one dimension more.
    Pictures are turned upright, grey becomes RGB, and what was transparent is white to the model and transparent again afterwards.
    """

    def __init__(self, pair: Pair, size: int | None = None) -> None:
        self.pair = pair.eval().requires_grad_(False)
        self.fixed = pair.config.get("light") is False  # a full U-GAT-IT
        if self.fixed and size not in (None, pair.config["sample_size"]):
            raise ValueError(f"this model translates images of {pair.config['sample_size']} px only, got size {size}")
        self.size = size or pair.config.get("sample_size")
        self.trained_against: tuple[str, ...] = ()  # spaces: metrics in them say nothing of this model

    @classmethod
    def from_pretrained(cls, folder: str | Path, size: int | None = None) -> "TranslationPipeline":
        """A run of a recipe that translates, its model/, or what `save_pretrained` wrote. `size`: what images are resized to, or windows of;
        by default that of the training."""
        given = find_folder(folder)
        model = given / "model" if (given / "model").is_dir() else given
        if model != given and not (model / "config.json").is_file():
            raise ValueError(f"{given} draws images and does not translate any: use percepta sample")
        recipe = recipe_of(model)
        if recipe is not None:
            raise ValueError(
                f"{given} is a run of the recipe {recipe} and has no model yet: go on with percepta train {recipe} --out {given} --resume"
            )
        found = class_of(model)
        if not issubclass(found, Pair):
            raise ValueError(f"{model} holds a {found.__name__}, which translates nothing: give a run of the recipe ladiffgan")
        pair = load_model(model)
        assert isinstance(pair, Pair)
        pipe = cls(pair, size or size_of(model))
        pipe.trained_against = trained_against(given)
        return pipe

    def save_pretrained(self, folder: str | Path) -> None:
        """The model as safetensors with its config.json; beside it the size, and what it was trained against."""
        self.pair.save_pretrained(folder)
        (Path(folder) / SIZE_FILE).write_text(json.dumps({"size": self.size}) + "\n")
        card = {"protocol": {CARD: ", ".join(self.trained_against)}}
        (Path(folder) / RECORD).write_text(json.dumps({"percepta": __version__, "card": card}, indent=2) + "\n")

    def to(self, device: str | torch.device) -> "TranslationPipeline":
        self.pair.to(torch.device(device))  # pyright: ignore[reportArgumentType]
        return self

    @property
    def device(self) -> torch.device:
        return next(self.pair.parameters()).device

    def fitting(self, fit: Fit) -> Fitting:
        return Fitting(fit, self.size, self.fixed, self.pair.multiple)

    def __call__(
        self,
        images: Picture | Sequence[Picture],
        direction: Direction = "a2b",
        fit: Fit = "resize",
        seed: int = 0,
        batch_size: int = 16,
    ) -> Translations:
        """`seed` chooses the style where a model has one. Each image comes out the same whatever is beside it, and at any batch size."""
        single, given = _listed(images)
        if not given:
            return Translations(images)
        done: list[Picture] = []
        room = max(1, TOGETHER * 2**20 // max(_pixels(image) for image in given))
        for first in range(0, len(given), room):
            some = given[first : first + room]
            out = self.translate([as_tensor(image) for image in some], direction, fit, seed, batch_size)
            done += [_as_given(image, translation) for image, translation in zip(some, out, strict=True)]
        if isinstance(images, Tensor):
            return Translations(done[0] if single else torch.stack([d for d in done if isinstance(d, Tensor)]))
        if isinstance(images, np.ndarray):
            return Translations(done[0] if single else np.stack([d for d in done if isinstance(d, np.ndarray)]))
        return Translations(done)

    @torch.no_grad()
    def translate(
        self,
        images: Sequence[Tensor],
        direction: Direction,
        fit: Fit,
        seed: int,
        batch: int,
        check: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:
        """Tensors [3, h, w] in [-1, 1], of any sizes."""
        if direction not in DIRECTIONS:
            raise ValueError(f"the direction is {' or '.join(DIRECTIONS)}, got {direction!r}")
        if batch < 1:
            raise ValueError(f"the batch is to be at least 1, got {batch}")
        device = self.device
        return translate_all(lambda x: self.pair.translate(x.to(device), direction, seed), images, self.fitting(fit), batch, check)


def recipe_of(folder: Path) -> str | None:
    """The recipe, where the folder is a run's and not a model's."""
    file = folder / "config.json"
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:  # class_of says what is wrong with it
        return None
    return found.get("recipe") if isinstance(found, dict) else None


def size_of(model: Path) -> int | None:
    """At which size the model was trained, as its run or its folder says."""
    run = model.parent / "config.json"
    if model.name == "model" and run.is_file():
        size = json.loads(run.read_text()).get("settings", {}).get("size")
        if size:
            return int(size)
    file = model / SIZE_FILE
    return json.loads(file.read_text())["size"] if file.is_file() else None


def _listed(images: Any) -> tuple[bool, list[Picture]]:
    """Whether it is one image, and all of them."""
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray | Tensor) and images.ndim == 3):
        return True, [images]
    given: list[Any] = list(images) if isinstance(images, list | tuple | np.ndarray | Tensor) else [images]
    for image in given:
        if not isinstance(image, Image.Image | np.ndarray | Tensor):
            raise ValueError(
                f"images are PIL pictures, arrays or tensors, got {type(image).__name__}: open files by PIL.Image.open first"
            )
    return False, given


def _pixels(image: Picture) -> int:
    if isinstance(image, Image.Image):
        return image.width * image.height
    return max(1, int(np.prod(image.shape)) // 3)


def as_tensor(image: Picture) -> Float[Tensor, "3 h w"]:
    """One image in [-1, 1], on the CPU."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point() or not image.numel():
            raise ValueError(f"a tensor is to be float [3, h, w] in [-1, 1], got {image.dtype} {list(image.shape)}")
        x = image.detach().float().cpu()
        low, high = float(x.min()), float(x.max())
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(f"a tensor is to be in [-1, 1], got values from {low:g} to {high:g}: scale it first")
        return x.clamp(-1, 1)
    if isinstance(image, np.ndarray) and (image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size):
        raise ValueError(f"an array is to be uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
    pixels = rgb_of(image) if isinstance(image, Image.Image) else image
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 127.5 - 1


def _as_given(image: Picture, translation: Tensor) -> Picture:
    if isinstance(image, Tensor):
        return translation.to(image.device, image.dtype)
    pixels = to_uint8(translation[None])[0]
    return pixels if isinstance(image, np.ndarray) else picture_of(pixels, alpha_of(image))


def picture_of(pixels: np.ndarray, alpha: np.ndarray | None) -> Image.Image:
    """RGB, or RGBA where there is an alpha to be put back."""
    return Image.fromarray(pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], -1))

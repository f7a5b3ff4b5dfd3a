"""Extractor: a space as evaluation reads it: uint8 images in, rows of float32 out, and what a protocol has to say about it.

    extractor = open_extractor("inception")
    rows = extractor(images, ["2048"])["2048"]

`identity` is the key under which rows are cached: it changes with whatever could change a number.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from percepta.spaces.clip import KINDS as CLIPS
from percepta.spaces.clip import Clip
from percepta.spaces.dino import KINDS as DINOS
from percepta.spaces.dino import SIZE as DINO_SIZE
from percepta.spaces.dino import Dino
from percepta.spaces.domain import Domain
from percepta.spaces.inception import FULL, PARTIAL, TAPS, Inception
from percepta.spaces.lpips import CHANNELS, Pooled
from percepta.spaces.resizing import known_dialect
from percepta.spaces.space import Space
from percepta.spaces.trunks import TRUNKS
from percepta.spaces.vit import fitted_by_pillow, square
from percepta.weights import find_weights, has_weights, hash_of_file

VERSION = 1  # of what an extractor computes: raise it when a number changes
PARTIAL_TAPS = ("64", "192", "768", "spatial")  # what the partial Inception weights reach
EMBEDDING = "embedding"  # the only layer of every family but Inception
Read = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]

FAMILIES = {
    "inception": "the FID network of 2015 (layers 64, 192, 768, 2048, logits, spatial)",
    "clip": "CLIP ViT-B/32, 512 features (CLIP-FD)",
    "clip-l": "CLIP ViT-L/14 at 336 px, 768 features of length 1 (CMMD)",
    "dinov2": "DINOv2 ViT-L/14, 1024 features (FD-DINOv2)",
    "dinov2-b": "DINOv2 ViT-B/14, 768 features",
    "dinov2-s": "DINOv2 ViT-S/14, 384 features",
    "domain": "an encoder trained on the reference images themselves, 352 features of all its stages",
    "pixels": "the pixels in [-1, 1], as they are",
    "alex": "the layers of AlexNet that LPIPS reads, averaged over places, 1152 features",
    "squeeze": "the layers of SqueezeNet that LPIPS reads, averaged over places, 2496 features",
    "vgg16": "the layers of VGG16 that LPIPS reads, averaged over places, 1472 features",
}


@dataclass(frozen=True, eq=False)
class Extractor:
    """Called with images, it gives the rows of the layers asked for, on the CPU and without gradients.

    `layers`: what can be read with the weights that are here, and its dimension (None: it depends on the image). `weights` is the sha256 of
    the file, or "random", which nobody may report. `about` says what a hash does not: how a domain encoder was trained.
    """

    name: str
    layers: Mapping[str, int | None]
    default: str
    resize: str
    weights: str
    read: Read
    precision: str = "fp32"
    device: str = "cpu"
    about: str = ""

    @property
    def identity(self) -> str:
        parts = (self.name, self.resize, self.weights, self.precision, f"v{VERSION}")
        return hashlib.sha256("\t".join(parts).encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "b 3 h w"], layers: Sequence[str]) -> dict[str, Float32[Tensor, "b _"]]:
        unknown = [layer for layer in layers if layer not in self.layers]
        if unknown or not layers:
            raise ValueError(f"the space {self.name} has the layers {', '.join(self.layers)}; got {', '.join(unknown) or 'none'}")
        rows = self.read(images, layers)
        return {layer: rows[layer].float().cpu() for layer in layers}


def known_extractors() -> dict[str, str]:
    """Every family and what it is."""
    return dict(FAMILIES)


def weights_behind(family: str) -> tuple[str, ...]:
    """The weights (percepta/weights) of which one is enough for a family, the whole ones first; none where it needs no download."""
    if family not in FAMILIES:
        raise ValueError(f"unknown space {family!r}; known: {', '.join(FAMILIES)}")
    if family == "inception":
        return (*FULL, PARTIAL)
    if family in CLIPS:
        return (CLIPS[family].weights,)
    if family in DINOS:
        return (DINOS[family][1],)
    return TRUNKS[family].weights if family in CHANNELS else ()


def split_name(spec: str) -> tuple[str, str | None]:
    """(family, layer): "inception-768" is ("inception", "768"), "clip-l" is ("clip-l", None). "lpips-alex" is another name of "alex"."""
    plain = spec.removeprefix("lpips-")
    for family in sorted(FAMILIES, key=len, reverse=True):
        if plain == family:
            return family, None
        layer = plain.removeprefix(f"{family}-")
        if layer != plain and layer in (TAPS if family == "inception" else (EMBEDDING,)):
            return family, layer
    near = difflib.get_close_matches(plain, [*FAMILIES, *(f"inception-{tap}" for tap in TAPS)], 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(
        f"unknown space {spec!r}{hint}; known: {', '.join(FAMILIES)}, each with its layer behind a dash if another than the usual one is meant "
        f"(inception-{', inception-'.join(TAPS)})"
    )


def open_extractor(
    family: str,
    dialect: str = "torch-fidelity",
    precision: str = "fp32",
    device: str = "cpu",
    domain: Path | None = None,
    layers: Sequence[str] = (),
    weights: str = "pretrained",
) -> Extractor:
    """The extractor of a family. ValueError in one line where the weights for `layers` (the default one, if none is named) are missing.

    `dialect` matters to Inception only; `domain` is the folder that `train_domain` gave; `weights="random"` is for tests.
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision is fp32 or bf16, got {precision!r}")
    name = family.removeprefix("lpips-")
    if name not in FAMILIES:
        raise ValueError(f"unknown space {family!r}; known: {', '.join(FAMILIES)}")
    if name == "inception":
        made = _inception(dialect, precision, device, tuple(layers), weights)
    elif name in CLIPS:
        made = _clip(name, precision, device, weights)
    elif name in DINOS:
        made = _dino(name, precision, device, weights)
    elif name == "domain":
        made = _domain(domain, precision, device)
    elif name == "pixels":
        made = Extractor(name, {EMBEDDING: None}, EMBEDDING, "none", "none", _pixels)
    else:
        made = _pooled(name, precision, device, weights)
    missing = [layer for layer in layers if layer not in made.layers]
    if missing:
        raise ValueError(f"the space {name} has the layers {', '.join(made.layers)}; got {', '.join(missing)}")
    return replace(made, precision="fp32" if name == "pixels" else precision, device=device)


class _InceptionReader:
    """Builds the network at the first call, as deep as its layers need, and anew when a deeper one is asked for."""

    def __init__(self, dialect: str, precision: str, device: str, weights: str) -> None:
        self.dialect, self.precision, self.device, self.weights = dialect, precision, device, weights
        self.network: Inception | None = None

    def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        network = self.network
        if network is None or not set(layers) <= set(network.taps):
            taps = tuple(tap for tap in TAPS if tap in layers or (network is not None and tap in network.taps))
            network = Inception(taps, self.weights, self.dialect, self.precision)
            self.network = network.to(self.device)
        return dict(zip(network.taps, network.of_bytes(images.to(self.device)), strict=True))


def _inception(dialect: str, precision: str, device: str, layers: tuple[str, ...], weights: str) -> Extractor:
    resize = known_dialect(dialect)
    taps, digest = tuple(TAPS), "random"
    if weights != "random":
        shallow = set(layers or ("2048",)) <= set(PARTIAL_TAPS)
        here = next((name for name in (*FULL, *((PARTIAL,) if shallow else ())) if has_weights(name)), FULL[0])
        digest = hash_of_file(find_weights(here))
        taps = PARTIAL_TAPS if here == PARTIAL else taps
    text = f"{resize.resize} to 299, (pixels - {resize.shift:g}) / {resize.scale:g}"
    read = _InceptionReader(dialect, precision, device, weights)
    return Extractor("inception", {tap: TAPS[tap] for tap in taps}, "2048" if "2048" in taps else "768", text, digest, read)


def _clip(name: str, precision: str, device: str, weights: str) -> Extractor:
    space = Clip(name, weights).to(device)
    size, crop = space.kind.size, space.kind.crop
    if name == "clip":
        return Extractor(
            name, {EMBEDDING: space.kind.dims}, EMBEDDING, f"Pillow bicubic, shorter side to {size}, centre crop", space.weights,
            _one(space, precision, device, lambda images: fitted_by_pillow(images, size, crop)),
        )  # fmt: skip
    read = _one(space, precision, device, lambda images: fitted_by_pillow(square(images), size, crop))
    text = f"the middle square, Pillow bicubic to {size} x {size}"
    return Extractor(name, {EMBEDDING: space.kind.dims}, EMBEDDING, text, space.weights, read)


def _dino(name: str, precision: str, device: str, weights: str) -> Extractor:
    space = Dino(name, weights).to(device)
    read = _one(space, precision, device, lambda images: fitted_by_pillow(images, DINO_SIZE, crop=False))
    text = f"Pillow bicubic to {DINO_SIZE} x {DINO_SIZE}"
    return Extractor(name, {EMBEDDING: space.dims}, EMBEDDING, text, space.weights, read)


def _pooled(name: str, precision: str, device: str, weights: str) -> Extractor:
    space = Pooled(name, weights).to(device)
    return Extractor(name, {EMBEDDING: sum(CHANNELS[name])}, EMBEDDING, "none", space.weights, _one(space, precision, device))


def _domain(folder: Path | None, precision: str, device: str) -> Extractor:
    if folder is None:
        raise ValueError(
            "the space domain is trained on your own images first: train_domain(source, folder) gives the folder it needs"
        )
    space = Domain(folder).to(device)
    text = f"antialiased bilinear to {space.size} x {space.size}"
    return Extractor(
        "domain", {EMBEDDING: space.dims}, EMBEDDING, text, space.weights, _one(space, precision, device), about=space.about
    )


def _one(space: Space, precision: str, device: str, prepare: Callable[[Tensor], Tensor] | None = None) -> Read:
    """A space of one feature as what an Extractor reads with. bf16 is autocast: resizing and normalising stay in float32."""

    def read(images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        x = (images if prepare is None else prepare(images)).to(device).float() / 127.5 - 1
        space.reads.check(x, f"the space {space.name}")
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return {EMBEDDING: space(x)[0]}

    return read


def _pixels(images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    return {EMBEDDING: images.flatten(1).float() / 127.5 - 1}

"""The pass of a translator over a test set: its translations as bytes, and its errors against the source, the way back and the truth."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from percepta import distributed
from percepta.data import BadImage
from percepta.evaluation.imageset import ImageSet
from percepta.evaluation.sets import by_class
from percepta.images import to_uint8
from percepta.spaces.lpips import Lpips

TOGETHER = 16  # images through the translator at a time
SHOWN = 8  # rows to look at
EQUAL = 1 / 12  # mean square error of rounding to whole numbers: what equal bytes can differ by before they were bytes
Translate = Callable[[Tensor, Any], Tensor]
Row = Sequence[UInt8[np.ndarray, "h w 3"]]


@dataclass
class Errors:
    """Of one direction. `numbers`: the source's own of each image; the lists have a value per image, `psnr` and `to_truth` one per pair."""

    images: UInt8[np.ndarray, "n h w 3"]
    numbers: list[int]
    cycle: list[float] = field(default_factory=list)
    to_source: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    to_truth: list[float] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        """By their names as metrics; those that there are."""
        lists = {"lpips-to-source": self.to_source, "cycle-error": self.cycle, "psnr": self.psnr, "lpips-to-truth": self.to_truth}
        return {name: float(np.mean(values)) for name, values in lists.items() if values}


def open_lpips(images: ImageSet, device: str) -> Lpips | str:
    """LPIPS on AlexNet, as published; or why not: its weights are missing, or the images too small."""
    assert images.transform is not None, f"{images.name} is judged at the size of the translator"
    size = images.transform.size
    try:
        lpips = Lpips("alex")
        lpips.reads.check(torch.zeros(1, 3, size, size), "LPIPS")
    except ValueError as error:
        return str(error)
    return lpips.to(device)


@torch.no_grad()
def translated(
    translate: Translate, way: str, source: ImageSet, target: ImageSet, count: int, truths: Mapping[int, int], lpips: Lpips | None,
    device: str, check: Callable[[], None], progress: Callable[[str, int, int], None],
) -> tuple[Errors, list[Row]]:  # fmt: skip
    """`count` images of the source: the first, or, where it lies sorted by class, at even distances. `truths`: see TestSets.truths."""
    places = source.places()
    apart = count < len(places) and by_class(source.source, source.indices)
    places = [places[k * len(places) // count] for k in range(count)] if apart else places[:count]
    where = {number: place for place, number in enumerate(target.indices)}
    out, parts, rows = Errors(np.empty((0, 1, 1, 3), np.uint8), []), list[np.ndarray](), list[Row]()
    for first in range(0, len(places), TOGETHER):
        check()
        some = places[first : first + TOGETHER]
        given, numbers = _read(source, some)
        if not given:
            continue
        x = _floats(given).to(device)
        y = _finite(translate(x, way))
        back = _finite(translate(y, "b2a" if way == "a2b" else "a2b"))
        parts.append(to_uint8(y))
        out.numbers += numbers
        out.cycle += (x - back).abs().mean((1, 2, 3)).double().tolist()
        if lpips is not None:
            out.to_source += lpips.distance(x, y).double().tolist()
        known = [(k, where[truths[n]]) for k, n in enumerate(numbers) if n in truths and truths[n] in where]
        true = _compared(out, target, known, y, parts[-1], lpips)
        for k, image in enumerate(given[: SHOWN - len(rows)]):
            rows.append([image, parts[-1][k], to_uint8(back[k : k + 1])[0], *([true[k]] if k in true else [])])
        progress(f"{source.name}, translated", first + len(some), len(places))
    if not parts:
        raise ValueError(f"{source.name}: none of its {len(places)} images can be read")
    out.images = np.concatenate(parts)
    return out, rows


def _compared(
    out: Errors, target: ImageSet, known: Sequence[tuple[int, int]], y: Tensor, made: np.ndarray, lpips: Lpips | None
) -> dict[int, np.ndarray]:
    """The true partners of some of a batch, by their places in it; the errors against them are added."""
    found = target.load([place for _, place in known])
    true = {k: np.ascontiguousarray(one.image.transpose(1, 2, 0)) for (k, _), one in zip(known, found, strict=True)
            if not isinstance(one, BadImage)}  # fmt: skip
    if not true:
        return true
    rows = list(true)
    out.psnr += [psnr(made[k], true[k]) for k in rows]
    if lpips is not None:
        out.to_truth += lpips.distance(y[rows], _floats(list(true.values())).to(y.device)).double().tolist()
    return true


def psnr(one: UInt8[np.ndarray, "h w 3"], other: UInt8[np.ndarray, "h w 3"]) -> float:
    """In decibel, of bytes. Equal images have 58.9, that of an error that rounding hides, and never more: a mean stays finite."""
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return 10 * float(np.log10(255**2 / max(error, EQUAL)))


def passed(made: tuple[Errors, list[Row]] | None) -> tuple[Errors, list[Row]]:
    """What the first rank made, on every rank: the others, who give None, get the images and what they are of."""
    if not distributed.active():
        assert made is not None
        return made
    data = None
    if made is not None:
        packed = io.BytesIO()
        np.savez(packed, images=made[0].images, numbers=np.array(made[0].numbers, dtype=np.int64))
        data = packed.getvalue()
    sent = distributed.send_bytes(data, 0)
    if made is not None:
        return made
    with np.load(io.BytesIO(sent), allow_pickle=False) as pack:
        return Errors(pack["images"], pack["numbers"].tolist()), []


def _read(source: ImageSet, places: Sequence[int]) -> tuple[list[np.ndarray], list[int]]:
    """Images and their numbers; one that cannot be read ends it, or is left out (on_bad)."""
    images, numbers = [], []
    for place, one in zip(places, source.load(places), strict=True):
        if not isinstance(one, BadImage):
            images.append(np.ascontiguousarray(one.image.transpose(1, 2, 0)))
            numbers.append(source.indices[place])
        elif source.on_bad == "error":
            raise one
    return images, numbers


def _floats(images: Sequence[np.ndarray]) -> Float[Tensor, "n 3 h w"]:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _finite(y: Tensor) -> Tensor:
    if not torch.isfinite(y).all():
        raise ValueError("the model's translation is not finite: was it trained to the end? See its metrics.jsonl")
    return y.float().clamp(-1, 1)

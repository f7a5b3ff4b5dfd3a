"""The prompts of a run: every distinct caption embedded once by the pipeline's own text encoders, and kept on disk.

An embedding is a file named by hashes of the encoders and of the text, so another run on other data with some of the same captions finds
them there, and another encoder never does. After the embedding no text encoder is in memory.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from percepta.distributed import by_first
from percepta.estimate import Batch
from percepta.interop.text import TextSide

AT_ONCE = 16  # prompts that go through the encoders together
KEPT = 2**29  # bytes of embeddings that stay in memory

Note = Callable[[str], None]
Rows = tuple[tuple[int, ...], Batch]


def cache_root(given: Path | None = None) -> Path:
    """Where caches lie: as said, PERCEPTA_CACHE, or the user's folder."""
    return given or Path(os.environ.get("PERCEPTA_CACHE", "~/.cache/percepta")).expanduser()


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts with their embeddings in `folder`; `order` says which prompt belongs to which image of a set.

    `size` is the side of the images, which Stable Diffusion XL is told beside the text.
    """

    text: TextSide
    distinct: tuple[str, ...]
    order: tuple[int, ...]
    folder: Path
    size: int
    _kept: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def of_images(self, places: Sequence[int]) -> list[str]:
        """The prompts of the images at these places of the set, which repeats without an end."""
        return [self.distinct[self.order[place % len(self.order)]] for place in places]

    def cond(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The condition of a batch with these prompts, on the CPU."""
        parts = {text: self._read(text) for text in dict.fromkeys(prompts)}
        rows = [parts[text] for text in prompts]
        found = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        if self.text.kind == "sdxl":
            found["time_ids"] = torch.tensor([[self.size, self.size, 0, 0, self.size, self.size]]).repeat(len(rows), 1).float()
        return found

    def null(self) -> dict[str, Tensor]:
        """The condition of the empty prompt, one row."""
        return self.cond([""])

    def conditioned(self, batches: Callable[[int, int], Iterator[Rows]]) -> Callable[[int, int], Iterator[Rows]]:
        """Batches with caption numbers as batches with the captions' embeddings."""

        def each(start: int, stop: int) -> Iterator[Rows]:
            for ordinals, batch in batches(start, stop):
                assert isinstance(batch.cond, Tensor)
                cond = self.cond([self.distinct[k] for k in batch.cond.tolist()])
                yield ordinals, Batch(batch.x0, {key: value.to(batch.x0.device) for key, value in cond.items()})

        return each

    def _read(self, text: str) -> dict[str, Tensor]:
        if text in self._kept:
            return self._kept[text]
        file = self.folder / name_of(text)
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"the embedding of {text!r:.80} in {file} is damaged or gone: {error}; delete the file and start again"
            ) from error
        if (len(self._kept) + 1) * sum(value.nbytes for value in found.values()) <= KEPT:
            self._kept[text] = found
        return found


def name_of(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{digest[:2]}/{digest}.safetensors"


def embed(
    text: TextSide, prompts: Sequence[str], size: int, cache: Path | None, device: torch.device, note: Note,
    check: Callable[[], None] = lambda: None,
) -> Prompts:  # fmt: skip
    """Prompts of images, in their order, embedded, and the empty prompt; what is in the cache already is not embedded again. Rank 0 works."""
    distinct = tuple(sorted(set(prompts)))
    place = {prompt: k for k, prompt in enumerate(distinct)}
    work = partial(_fill, text, distinct, cache_root(cache) / "texts", device, note, check)
    by_first(work, "while captions were embedded")
    folder = cache_root(cache) / "texts" / text.key[:16]
    return Prompts(text, distinct, tuple(place[prompt] for prompt in prompts), folder, size)


def _fill(
    text: TextSide, prompts: Sequence[str], folder: Path, device: torch.device, note: Note, check: Callable[[], None]
) -> None:
    folder = folder / text.key[:16]
    missing = [prompt for prompt in dict.fromkeys(["", *prompts]) if not (folder / name_of(prompt)).is_file()]
    if not missing:
        note(f"text cache hit: {folder}")
        return
    encode = text.open(device)
    cut = encode.cut(missing)
    if cut:
        note(f"{len(cut)} captions are longer than the text encoder reads, their ends do not count: {cut[0]!r:.80}")
    for start in range(0, len(missing), AT_ONCE):
        check()
        part = missing[start : start + AT_ONCE]
        found = encode(part)
        for row, prompt in enumerate(part):
            values = {key: value[row].clone() for key, value in found.items()}
            if not all(bool(torch.isfinite(value).all()) for value in values.values()):
                raise ValueError(f"the embedding of {prompt!r:.80} is not finite: check the text encoder in {text.folder}")
            _write(folder / name_of(prompt), values)
    del encode
    if device.type == "cuda":
        torch.cuda.empty_cache()
    note(f"text cache: {len(missing)} captions embedded: {folder}")


def _write(file: Path, values: dict[str, Tensor]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file(values, temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)

"""A side of an evaluation: from what the user named to an ImageSet, or to a StatsFile where only statistics are given.

Images count in the canonical order: files by their sorted names (as torch-fidelity's), npz, tar and dataset rows as they are stored. `num` takes
the first ones; where a set lies sorted by class, which the first ones would not represent, it takes them at even distances.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from percepta.data import BadImage, Item, Source, Transform, open_source
from percepta.data.layouts import NPZ_BYTES, NPZ_RATIO
from percepta.data.source import Files, hash_bytes
from percepta.discrepancies.frechet import Gaussian
from percepta.evaluation.imageset import ImageSet

__all__ = ["Arrays", "ImageSet", "StatsFile", "open_side", "short_hash"]

STATS = ("mu", "sigma")
SPATIAL = ("mu_s", "sigma_s")  # of sFID's features, in ADM's files
SPATIAL_SPACE = "inception-spatial"
UNUSED = "; the statistics in the file (mu, sigma) are not used, its images are"
USED = "; fid and sfid use the statistics in the file (mu, sigma), all else its images"


class StatsFile(NamedTuple):
    """Mean and covariance of features from an npz: no images, so only Frechet distances can use it. `count` where the file tells (`n`).

    `spatial`: those of sFID's features, where the file has them apart (`mu_s`, `sigma_s`).
    """

    name: str
    fingerprint: str
    gaussian: Gaussian
    count: int | None
    spatial: Gaussian | None = None

    @property
    def dims(self) -> int:
        return len(self.gaussian.mean)

    def of(self, space: str) -> "StatsFile":
        """What the file has for this space."""
        return self if self.spatial is None or space != SPATIAL_SPACE else self._replace(gaussian=self.spatial, spatial=None)


class Arrays(Source):
    """An array in memory: uint8 [n, h, w, 3], or [n, h, w] for grey."""

    def __init__(self, images: np.ndarray) -> None:
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape:
            raise ValueError(
                f"images in an array are uint8 [n, h, w, 3] with values 0 to 255, or [n, h, w], got {images.dtype} {list(images.shape)}; "
                "scale and round floats yourself: their range cannot be guessed"
            )
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Item:
        image, changes = self.images[index], ()
        if image.ndim == 2:
            image, changes = np.repeat(image[..., None], 3, axis=2), ("grey",)
        return Item(image, None, f"array[{index}]", "", changes)

    def entries(self) -> Iterator[tuple[str, int, str, int | None]]:
        for index, image in enumerate(self.images):
            yield str(index), image.nbytes, hash_bytes(image.tobytes()), None


def open_side(
    spec: str | Path | ImageSet | StatsFile | np.ndarray | Source,
    *,
    size: int | None = None,
    crop: str = "center-crop",
    num: int | None = None,
    on_bad: str = "error",
) -> ImageSet | StatsFile:
    """One side: a folder, .npz of images or of statistics, tar shards, hf:NAME, shapes, an array, a Source, or a side that is open.

    `size` brings every image to size x size as training does (`crop`); else each is judged at its own size.
    """
    if num is not None and num < 2:
        raise ValueError(f"at least 2 images are needed, got num={num}")
    if isinstance(spec, ImageSet):
        if size is not None and (spec.transform is None or (spec.transform.size, spec.transform.crop) != (size, crop)):
            raise ValueError(
                f"{spec.name} is open already, its images' transform is {spec.transform_text}: open it with size={size}"
            )
        if num is None or num == len(spec.indices):
            return spec
        return _choose(spec.name, spec.source, spec.indices, num, spec.transform, on_bad)
    if isinstance(spec, (StatsFile, str, Path)):
        stats = spec if isinstance(spec, StatsFile) else _statistics(spec)
        if stats is not None:
            if size is not None or num is not None:
                raise ValueError(f"{stats.name} holds statistics, no images: neither a size nor a number of images can be chosen")
            return stats
    transform = None if size is None else Transform(size, crop)
    name, source = _source(spec, size)
    side = _choose(name, source, range(len(source)), num, transform, on_bad)
    if isinstance(spec, (str, Path)) and _members(Path(spec)) >= set(STATS):  # ADM's reference files have both
        side.selection += UNUSED
    return side


def stored_statistics(side: ImageSet, wanted: bool) -> StatsFile | None:
    """The statistics that lie beside the images in an npz, if they are wanted: ADM's evaluator compares with them. The side's facts say so.

    Only of a file that is taken whole and as it is: of other images they would be wrong.
    """
    if not side.selection.endswith((UNUSED, USED)):
        return None
    used = wanted and side.transform is None and len(side.indices) == len(side.source)
    side.selection = side.selection.removesuffix(UNUSED).removesuffix(USED) + (USED if used else UNUSED)
    return _read_statistics(Path(side.name)) if used else None


def short_hash(text: str) -> str:
    """Twelve letters that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _source(spec: Any, size: int | None) -> tuple[str, Source]:
    if isinstance(spec, np.ndarray):
        return f"array of {len(spec) if spec.ndim else 0}", Arrays(spec)
    if isinstance(spec, Source):
        return type(spec).__name__.lower(), _sorted(spec)
    if not str(spec).strip():
        raise ValueError("a side is a folder of images, a .npz, a .tar, hf:NAME or shapes, got an empty name")
    source = _readable(Path(spec), lambda: open_source(spec, size))
    return str(spec), _sorted(source)


def _sorted(source: Source) -> Source:
    """Files by their whole names, as peers list them. Each image counts once."""
    if not isinstance(source, Files):
        return source
    order = sorted(range(len(source)), key=lambda k: source.names[k])
    labels = None if source.labels is None else [source.labels[k] for k in order]
    texts = None if source.captions is None else [source.captions[k] for k in order]
    return Files(source.root, [source.names[k] for k in order], labels, source.class_names, texts, source.reading)


def _choose(
    name: str, source: Source, indices: Sequence[int], num: int | None, transform: Transform | None, on_bad: str
) -> ImageSet:
    count = len(indices)
    if count < 2:
        raise ValueError(f"{name}: holds {count} image{'s' * (count != 1)}; sets of at least 2 are compared")
    if num is None or num == count:
        return ImageSet(name, source, indices, transform, on_bad)
    if num > count:
        raise ValueError(f"{name}: {num:,} images were asked for, it holds {count:,}")
    if by_class(source, indices):
        places, selection = [k * count // num for k in range(num)], f"{num} of {count}, at even distances: it lies sorted by class"
    else:
        places, selection = range(num), f"the first {num} of {count}"
    return ImageSet(name, source, [indices[k] for k in places], transform, on_bad, selection)


def by_class(source: Source, indices: Sequence[int]) -> bool:
    """Whether each class lies in one piece."""
    labels = getattr(source, "labels", None)  # a tuple where a source holds them; Shapes names a kind of label
    if not isinstance(labels, tuple):
        return False
    chosen = [labels[k] for k in indices]
    changes = sum(a != b for a, b in pairwise(chosen))
    return 0 < changes == len(set(chosen)) - 1


def _readable(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives; whatever a damaged file raises is a ValueError with its name."""
    try:
        return read()
    except BadImage:
        raise
    except (
        OSError,
        zlib.error,
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        MemoryError,
        RuntimeError,
        OverflowError,
    ) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: cannot be read: {reason}") from error


def _members(path: Path) -> set[str]:
    """The names of the arrays of an npz; of anything else, none."""
    if path.suffix != ".npz" or not path.is_file():
        return set()
    with _readable(path, lambda: zipfile.ZipFile(path)) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def _statistics(spec: str | Path) -> StatsFile | None:
    """The statistics of an npz, None for anything else; where it has images too (ADM's reference files), those are used."""
    path = Path(spec)
    names = _members(path)
    if names & {"arr_0", "images"} or not names & set(STATS):
        return None
    if not names >= set(STATS):
        raise ValueError(f"{path}: statistics are mu and sigma, it holds {', '.join(sorted(names))}")
    return _read_statistics(path)


def _read_statistics(path: Path) -> StatsFile:
    for member in zipfile.ZipFile(path).infolist():
        if member.file_size > min(NPZ_BYTES, NPZ_RATIO * max(member.compress_size, 2**16)):
            raise ValueError(
                f"{path}: {member.filename} unpacks from {member.compress_size:,} to {member.file_size:,} bytes: refused"
            )
    pack = _readable(path, lambda: _arrays(path))
    count = _count(path, pack)
    spatial = _gaussian(path, pack, count, SPATIAL) if set(pack) >= set(SPATIAL) else None
    return StatsFile(str(path), _digest(path), _gaussian(path, pack, count), count, spatial)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as pack:
        try:
            return {key: pack[key] for key in (*STATS, *SPATIAL, "n") if key in pack}
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise ValueError(f"{path}: holds pickled objects, which are never executed; store plain arrays") from error
            raise ValueError(f"{path}: is damaged: {error}") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _gaussian(path: Path, pack: dict[str, np.ndarray], count: int | None, names: tuple[str, str] = STATS) -> Gaussian:
    mu, sigma = (pack[name] for name in names)
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f" or mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise ValueError(
            f"{path}: needs floats mu [d] and sigma [d, d], got {mu.dtype} {list(mu.shape)} and {sigma.dtype} {list(sigma.shape)}"
        )
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{path}: mu or sigma holds values that are not finite")
    off, largest = float(np.abs(sigma - sigma.T).max()), float(np.abs(sigma).max())
    if off > 1e-4 * largest or float(sigma.diagonal().min()) < -1e-9 * largest:
        raise ValueError(f"{path}: sigma is not a covariance: it must be symmetric, with a diagonal that is not negative")
    return Gaussian(torch.from_numpy(mu), torch.from_numpy((sigma + sigma.T) / 2), count)


def _count(path: Path, pack: dict[str, np.ndarray]) -> int | None:
    if "n" not in pack:
        return None
    n = pack["n"]
    if n.size != 1 or n.dtype.kind not in "iu" or int(n.reshape(-1)[0]) < 2:
        raise ValueError(f"{path}: n is the number of images, a whole number from 2, got {n.dtype} {n.tolist()}")
    return int(n.reshape(-1)[0])

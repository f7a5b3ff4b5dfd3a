"""Is the model copying? The nearest training images of generated ones, and how near they are compared with images it never saw.

MMD-DDM (section IV-D) shows the nearest training images of each sample in CLIP space. A picture of neighbours alone proves little: what counts is
whether samples lie nearer to the training set than held-out real images do.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from percepta.evaluation.manifold import nearest
from percepta.evaluation.passes import Rows, extract
from percepta.evaluation.sets import ImageSet
from percepta.spaces.extractor import Extractor


@dataclass(frozen=True)
class Copying:
    """Medians of the distance to the nearest training image. `nearer`: the share of samples that are nearer than 99% of held-out
    images are (about 0.01 for a model that does not copy); `same`: samples that are a training image, pixel for pixel."""

    space: str
    generated: float
    held_out: float | None
    nearer: float | None
    same: int


@dataclass(frozen=True)
class Neighbours:
    """For each query (index of a generated image) the nearest `k` training images, and all distances."""

    queries: Int[np.ndarray, " q"]
    indices: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]
    all_generated: Float[np.ndarray, " n"]
    all_held_out: Float[np.ndarray, " m"] | None
    copying: Copying

    def images(
        self, fake: ImageSet, real: ImageSet
    ) -> tuple[list[UInt8[np.ndarray, "h w 3"]], list[list[UInt8[np.ndarray, "h w 3"]]]]:
        """The pictures: queries, and the neighbours of each."""
        return list(fake.read(self.queries.tolist())), [list(real.read(row.tolist())) for row in self.indices]

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.copying), "queries": self.queries.tolist(), "neighbours": self.indices.tolist(),
            "distances": np.round(self.distances.astype(float), 6).tolist(),
        }  # fmt: skip


def find_neighbours(
    fake: ImageSet,
    train: ImageSet,
    held_out: ImageSet | None,
    extractor: Extractor,
    layer: str,
    cache: Path,
    count: int = 8,
    k: int = 4,
    note: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
) -> Neighbours:
    """`count` queries, half of them the samples that lie nearest to a training image: where copies would be."""
    if not 1 <= k <= len(train):
        raise ValueError(f"{k} neighbours were asked of {len(train)} training images")
    sides: Sequence[ImageSet] = [fake, train] if held_out is None else [fake, train, held_out]
    rows = [_rows(side, extractor, layer, cache, note, check) for side in sides]
    distances, indices = nearest(rows[0].array, rows[1].array, k)
    held = None if held_out is None else nearest(rows[2].array, rows[1].array, 1)[0][:, 0]
    queries = choose(distances[:, 0], min(count, len(fake)))
    low = None if held is None else float(np.quantile(held, 0.01))
    copying = Copying(
        f"{extractor.name}-{layer}",
        float(np.median(distances[:, 0])),
        None if held is None else float(np.median(held)),
        None if low is None else float(np.mean(distances[:, 0] < low)),
        fake.overlap(train),
    )
    return Neighbours(queries, indices[queries], distances[queries], distances[:, 0], held, copying)


def choose(distances: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " q"]:
    """The first samples, then the nearest ones among the others."""
    plain = np.arange(count - count // 2)
    nearest_first = np.argsort(distances, kind="stable")
    return np.concatenate([plain, nearest_first[~np.isin(nearest_first, plain)][: count // 2]]).astype(np.int64)


def _rows(
    side: ImageSet, extractor: Extractor, layer: str, cache: Path, note: Callable[[str], None], check: Callable[[], None]
) -> Rows:
    return extract(side, {extractor: [layer]}, cache, note=note, check=check)[extractor.name, layer]

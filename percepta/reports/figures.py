"""Figures of a run: pictures and numbers in, figures/NAME.png with its words in NAME.json out, ready for the report."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SMALLEST = 64  # pixels; smaller images are enlarged by whole pixels so that a person sees them
GAP = 4
FLAT = 1e-3  # a curve that stays within so small a part of its height is one number
INK, SOFT, LINES = "#1d1c1a", "#5c5850", ("#0b6e69", "#b4491f", "#4b4fb8", "#856900", "#9c2f6f")

Pixels = UInt8[np.ndarray, "_ _ 3"]  # sizes may differ from picture to picture


@dataclass(frozen=True)
class Words:
    """What is said about a figure: `alt` is for those who cannot see it."""

    title: str
    caption: str
    alt: str


def strip(folder: Path, name: str, rows: Sequence[Sequence[Pixels]], words: Words) -> Path:
    """Rows of images, each row one walk (interpolation, steps of a sampler)."""
    return _save(folder, name, _tiled([[_enlarged(image) for image in row] for row in rows]), words)


def neighbour_panel(
    folder: Path, name: str, queries: Sequence[Pixels], neighbours: Sequence[Sequence[Pixels]],
    distances: Float[np.ndarray, "n k"], words: Words,
) -> Path:  # fmt: skip
    """A row per sample: the sample, a gap, and its neighbours with their distances, nearest first."""
    if not len(queries) == len(neighbours) == len(distances) or any(len(n) != distances.shape[1] for n in neighbours):
        raise ValueError(f"{len(queries)} samples, {len(neighbours)} rows of neighbours and {distances.shape} distances do not fit")
    figure = _figure(distances.shape[1] + 1.3, 1.2 * len(queries) + 0.15)
    widths = [1, 0.12, *[1] * distances.shape[1]]
    grid = figure.add_gridspec(len(queries), len(widths), width_ratios=widths, wspace=0.06, hspace=0.25)
    for i, query in enumerate(queries):
        for j, image in enumerate((query, None, *neighbours[i])):
            if image is None:
                continue
            axes = figure.add_subplot(grid[i, j])
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
            if j:
                axes.set_title(f"{distances[i, j - 2]:.3g}", fontsize=10, color=SOFT, pad=3)
            elif i == 0:
                axes.set_title("sample", fontsize=10, color=INK, pad=3)
    return _save(folder, name, _drawn(figure), words)


def heat_map(
    folder: Path, name: str, matrix: Float[np.ndarray, "r c"], words: Words,
    rows: Sequence[str] = (), columns: Sequence[str] = (),
) -> Path:  # fmt: skip
    """A matrix of any finite numbers; each number is written where there are few."""
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise ValueError(f"a heat map needs a matrix of finite numbers, got shape {matrix.shape}")
    for labels, count in ((rows, matrix.shape[0]), (columns, matrix.shape[1])):
        if labels and len(labels) != count:
            raise ValueError(f"{len(labels)} labels were given for {count} rows or columns: {list(labels)}")
    figure = _figure(min(10, 2.2 + 0.5 * matrix.shape[1]), min(10, 1.2 + 0.45 * matrix.shape[0]))
    axes = figure.add_subplot()
    image = axes.imshow(matrix, cmap="cividis", aspect="auto" if max(matrix.shape) > 40 else "equal")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(image, ax=axes, fraction=0.045).outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    if matrix.size <= 150:
        middle = (matrix.min() + matrix.max()) / 2
        for (i, j), value in np.ndenumerate(matrix):
            axes.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=8, color="black" if value > middle else "white")
    return _save(folder, name, _drawn(figure), words)


def heat_maps(folder: Path, name: str, maps: Mapping[str, Float[np.ndarray, "r c"]], words: Words) -> Path:
    """Matrices of finite numbers side by side, under their names, all on one scale of colours."""
    if not maps or not all(matrix.ndim == 2 and matrix.size and np.isfinite(matrix).all() for matrix in maps.values()):
        raise ValueError(
            f"heat maps need matrices of finite numbers, got { ({title: matrix.shape for title, matrix in maps.items()}) }"
        )
    low, high = min(matrix.min() for matrix in maps.values()), max(matrix.max() for matrix in maps.values())
    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure = _figure(2.5 * columns + 0.8, 2.6 * rows)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, matrix) in zip(places, maps.items(), strict=False):
        image = axes.imshow(matrix, cmap="cividis", vmin=low, vmax=high)
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in places[len(maps) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(places), fraction=0.03).outline.set_visible(False)  # pyright: ignore
    return _save(folder, name, _drawn(figure), words)


def field_map(
    folder: Path, name: str, values: Float[np.ndarray, "h w"], box: tuple[int, int, int, int], words: Words, scale: str
) -> Path:
    """A picture-like field of finite numbers with a colour bar; `box` (left, top, width, height, in places) is outlined."""
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"a field map needs a matrix of finite numbers, got shape {values.shape}")
    from matplotlib.patches import Rectangle

    figure = _figure(4.6, 3.8)
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="cividis", interpolation="nearest")
    axes.add_patch(Rectangle((box[0] - 0.5, box[1] - 0.5), box[2], box[3], fill=False, edgecolor="white", linewidth=1.2))
    axes.set_axis_off()
    figure.colorbar(image, ax=axes, fraction=0.045, label=scale).outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return _save(folder, name, _drawn(figure), words)


def distribution_plot(folder: Path, name: str, lists: Mapping[str, Sequence[float]], words: Words, axis: str = "distance") -> Path:
    """Densities (histograms of equal area) of two or three lists of numbers on one axis, the medians marked."""
    arrays = {label: np.asarray(values, dtype=np.float64) for label, values in lists.items()}
    if not 1 <= len(arrays) <= len(LINES):
        raise ValueError(f"1 to {len(LINES)} lists can be told apart in one plot, got {len(arrays)}")
    for label, values in arrays.items():
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise ValueError(f"the list {label!r} must hold finite numbers, got shape {values.shape}")
    figure = _figure(5.2, 3.0)
    axes = figure.add_subplot()
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins=40).tolist()
    for (label, values), colour, dash in zip(arrays.items(), LINES, ("-", "--", ":", "-.", "-"), strict=False):
        axes.hist(values, edges, density=True, histtype="stepfilled", color=colour, alpha=0.14)
        axes.hist(
            values,
            edges,
            density=True,
            histtype="step",
            color=colour,
            linestyle=dash,
            linewidth=1.6,
            label=f"{label} ({len(values)})",
        )
        axes.axvline(float(np.median(values)), color=colour, linestyle=dash, linewidth=1)
    axes.set(xlabel=f"{axis} (upright lines: medians)", ylabel="density")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _save(folder, name, _drawn(figure), words)


def curve_plots(
    folder: Path, name: str, curves: Mapping[str, Mapping[float, tuple[float, float | None]]], words: Words, axis: str,
    marks: Mapping[str, Sequence[float]] | None = None,
) -> Path:  # fmt: skip
    """A small plot for each curve, x -> (y, its spread or None), over one axis; the x that are marked have a ring around their points."""
    if not curves or not all(curves.values()):
        raise ValueError(f"curves need points, got { ({title: len(curve) for title, curve in curves.items()}) }")
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = _figure(0.6 + 2.9 * columns, 0.4 + 2.1 * rows)
    for place, (title, curve) in enumerate(curves.items()):
        axes, colour = figure.add_subplot(rows, columns, place + 1), LINES[place % len(LINES)]
        x = sorted(curve)
        y, spread = np.array([curve[one][0] for one in x], np.float64), np.array([curve[one][1] or 0.0 for one in x], np.float64)
        axes.plot(x, y, color=colour, marker="o", markersize=3.5, linewidth=1.6)
        if spread.any():
            axes.fill_between(x, y - spread, y + spread, color=colour, alpha=0.14, linewidth=0)
        at = [one for one in (marks or {}).get(title, ()) if one in curve]
        if at:
            axes.plot(at, [curve[one][0] for one in at], color=INK, marker="o", markersize=9, fillstyle="none", linewidth=0)
        _level(axes, np.concatenate([y - spread, y + spread]))
        axes.set_title(title, fontsize=10, color=INK)
        axes.set_xlabel(axis if place + columns >= len(curves) else "")
        axes.spines[["top", "right"]].set_visible(False)
    return _save(folder, name, _drawn(figure), words)


def _level(axes, values: Float[np.ndarray, "n"]) -> None:
    """The values themselves on the axis, not what they differ by from a number above it; a curve that hardly moves is drawn flat."""
    axes.ticklabel_format(axis="y", useOffset=False)
    values = values[np.isfinite(values)]
    if not len(values):
        return
    middle, height = (values.max() + values.min()) / 2, values.max() - values.min()
    if height < FLAT * abs(middle):
        axes.set_ylim(middle - FLAT * abs(middle), middle + FLAT * abs(middle))


def _figure(width: float, height: float):
    """Without pyplot: no global state, no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=144, layout="constrained")


def _drawn(figure, margin: int = 12) -> Pixels:
    """A figure's pixels, its empty border cut off."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    out = np.asarray(canvas.buffer_rgba())[..., :3]
    ys, xs = np.nonzero((out != 255).any(-1))
    top, left = max(0, ys.min() - margin), max(0, xs.min() - margin)
    return out[top : ys.max() + margin, left : xs.max() + margin].copy()


def _enlarged(image: Pixels) -> Pixels:
    zoom = max(1, SMALLEST // max(image.shape[:2]))
    return image.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _tiled(rows: Sequence[Sequence[Pixels]]) -> Pixels:
    shapes = {image.shape for row in rows for image in row}
    if len(shapes) != 1:
        raise ValueError(f"a strip needs images of one size, got {sorted(shapes) or 'none'}")
    (height, width, _), columns = shapes.pop(), max(map(len, rows))
    canvas = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            y, x = i * (height + GAP), j * (width + GAP)
            canvas[y : y + height, x : x + width] = image
    return canvas


def _save(folder: Path, name: str, pixels: Pixels, words: Words) -> Path:
    """Both files, each whole or not at all; the words first, so that no picture stands without them."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(f"a figure's name is a file name without its ending, got {name!r}")
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / f"{name}.png", folder / f".{name}.{os.getpid()}.json.tmp"
    text.write_text(json.dumps(asdict(words), indent=2) + "\n", encoding="utf-8")
    os.replace(text, path.with_suffix(".json"))
    temporary = folder / f".{name}.{os.getpid()}.png.tmp"
    Image.fromarray(pixels).save(temporary, format="PNG")
    os.replace(temporary, path)
    return path

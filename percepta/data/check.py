"""The up-front check of a whole set: every image is read once, and what a run would stumble over is listed by name.

`percepta doctor --data DIR` prints it. Reading is what training does (data/image.py), so what passes here cannot stop a run later.
"""

import hashlib
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from percepta.data.image import CONVERSIONS, BadImage
from percepta.data.source import Source

CHUNK = 64
SHOWN = 5  # names per line of the table; the JSON holds them all


@dataclass
class Report:
    """What a set holds. `bad`: name -> (kind, reason), kinds as BadImage has them. `conversions`: kind -> names, never an error."""

    num_images: int
    size: int | None
    bad: dict[str, tuple[str, str]] = field(default_factory=dict)
    too_small: dict[str, str] = field(default_factory=dict)
    conversions: dict[str, list[str]] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    classes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    shorter_side: tuple[int, float, int] | None = None  # least, median, greatest

    @property
    def ok(self) -> bool:
        """Whether a run would read every image."""
        return not self.bad

    @property
    def jpeg_share(self) -> float:
        """The part of the readable images that JPEG has marked: a generator learns its blocks, and a flipped byte goes unseen."""
        return self.formats.get("JPEG", 0) / max(1, sum(self.formats.values()))

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "jpeg_share": self.jpeg_share, **asdict(self)}

    def table(self) -> Table:
        """For a terminal."""
        table = Table("what", "count", "which", title=f"{self.num_images:,} images")
        kinds: dict[str, list[str]] = defaultdict(list)
        for name, (kind, reason) in self.bad.items():
            kinds[kind].append(f"{name}: {reason}")
        for kind, lines in sorted(kinds.items()):
            table.add_row(f"[red]{kind}", str(len(lines)), _some(lines, "\n"))
        if self.too_small:
            table.add_row(
                f"[yellow]smaller than {self.size}",
                str(len(self.too_small)),
                _some([f"{n} ({s})" for n, s in self.too_small.items()]),
            )
        for kind, names in sorted(self.conversions.items()):
            table.add_row(f"{kind}: {CONVERSIONS[kind]}", str(len(names)), _some(names))
        if self.duplicates:
            count = sum(len(group) - 1 for group in self.duplicates)
            table.add_row("[yellow]duplicates", str(count), _some([" = ".join(group[:3]) for group in self.duplicates]))
        for name, count in list(self.classes.items())[:20]:
            table.add_row("class", str(count), name)
        if len(self.classes) > 20:
            table.add_row(
                "classes in all",
                str(len(self.classes)),
                f"{min(self.classes.values())} to {max(self.classes.values())} images each",
            )
        table.add_row(
            "JPEG share", f"{self.jpeg_share:.0%}", ", ".join(f"{n} {kind or 'arrays'}" for kind, n in self.formats.items())
        )
        if self.shorter_side is not None:
            table.add_row("shorter side", "", f"{self.shorter_side[0]} to {self.shorter_side[2]}, median {self.shorter_side[1]:g}")
        return table


def _some(names: list[str], separator: str = ", ") -> str:
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return separator.join([*names[:SHOWN], *more])


class _Seen(NamedTuple):
    name: str
    digest: bytes
    label: int | None
    format: str
    changes: tuple[str, ...]
    height: int
    width: int


def check_source(source: Source, size: int | None = None, threads: int | None = None) -> Report:
    """Read every image of a source. `size` is what the run will ask for: smaller files would be enlarged."""

    def look(start: int) -> list[_Seen | BadImage]:
        out: list[_Seen | BadImage] = []
        for item in source.read_many(range(start, min(start + CHUNK, len(source)))):
            if isinstance(item, BadImage):
                out.append(item)
            else:
                pixels = np.ascontiguousarray(item.image)
                digest = hashlib.blake2b(pixels.data, digest_size=16, person=b"%d" % pixels.shape[1]).digest()
                out.append(_Seen(item.name, digest, item.label, item.format, item.changes, *pixels.shape[:2]))
        return out

    report = Report(len(source), size, classes=dict.fromkeys(source.class_names, 0))
    same: dict[bytes, list[str]] = defaultdict(list)
    formats: Counter[str] = Counter()
    sides: list[int] = []
    with ThreadPoolExecutor(threads or max(1, min(8, os.cpu_count() or 1))) as pool:
        for seen in (one for chunk in pool.map(look, range(0, len(source), CHUNK)) for one in chunk):
            if isinstance(seen, BadImage):
                report.bad[seen.name] = (seen.kind, seen.reason)
                continue
            formats[seen.format] += 1
            sides.append(min(seen.height, seen.width))
            same[seen.digest].append(seen.name)
            for change in seen.changes:
                report.conversions.setdefault(change, []).append(seen.name)
            if size is not None and sides[-1] < size:
                report.too_small[seen.name] = f"{seen.width} x {seen.height}"
            if seen.label is not None:
                report.classes[source.class_names[seen.label]] += 1
    report.formats = dict(formats.most_common())
    report.duplicates = [names for names in same.values() if len(names) > 1]
    report.shorter_side = (min(sides), float(median(sides)), max(sides)) if sides else None
    return report

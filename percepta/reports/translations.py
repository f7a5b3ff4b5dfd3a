"""Translations in a page: a translator's sample grid, cut into strips by direction and kind, and laid under each other with their names.

Such a grid has a row per image and a column per kind, and the protocol beside it says which: {"columns": ["image", "translation", "back"],
"rows": {"a2b": 4, "b2a": 4}}. A grid that is no such, or does not fit what is said of it, is shown whole, like any other.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from PIL import Image

from percepta.reports.pictures import PAGE, encoded, opened
from percepta.reports.run import Grid

WAYS = {"a2b": "A → B", "b2a": "B → A"}
KINDS = {"image": "Source", "attention": "Attention", "translation": "Translation", "back": "Back again"}
PAD = 2  # white between the tiles of a grid, and around them
PER_LINE = 8  # images side by side at most; more go on below
WIDE = 5  # more images than this have the width of the page
COARSE = 128  # px: smaller images are enlarged without a blur
LATEST = 120_000  # bytes of a strip of the last step, at most


@dataclass(frozen=True)
class Cut:
    """A grid in strips, by (direction, kind). `sources`: a hash of the images that were translated, by direction."""

    step: int
    strips: Mapping[tuple[str, str], Image.Image]
    sources: Mapping[str, str]
    counts: Mapping[str, int]
    coarse: bool


def cut(grid: Grid) -> Cut | None:
    """None for grids of anything else; ValueError where the file is no picture, or not of the shape that its protocol says."""
    said = _layout(grid.protocol)
    if said is None:
        return None
    columns, rows = said
    whole = opened(grid.path)
    width, odd = divmod(whole.width - PAD, len(columns))
    height, left = divmod(whole.height - PAD, sum(rows.values()))
    if odd or left or min(width, height) <= PAD:
        raise ValueError(
            f"{grid.path} is {whole.width} x {whole.height} px, and no grid of the {sum(rows.values())} x {len(columns)} images that the file "
            "beside it tells of; it is shown whole"
        )
    strips, first = {}, 0
    for way, count in rows.items():
        for k, kind in enumerate(columns):
            corners = [(PAD + k * width, PAD + (first + row) * height) for row in range(count)]
            strips[way, kind] = _strip([whole.crop((x, y, x + width - PAD, y + height - PAD)) for x, y in corners])
        first += count
    sources = {way: blake2b(strips[way, "image"].tobytes(), digest_size=4).hexdigest() for way in rows}
    return Cut(grid.step, strips, sources, rows, width < COARSE)


def _layout(protocol: Mapping[str, Any]) -> tuple[list[str], dict[str, int]] | None:
    columns, rows = protocol.get("columns"), protocol.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, dict) or not rows:
        return None
    kinds = {str(name) for name in columns}
    if not {"image", "translation"} <= kinds <= set(KINDS) or len(kinds) < len(columns) or not set(rows) <= set(WAYS):
        return None
    if not all(type(count) is int and count > 0 for count in rows.values()):
        return None
    return columns, rows


def _strip(tiles: Sequence[Image.Image]) -> Image.Image:
    """Side by side, at most PER_LINE a line, in lines of one length."""
    wide, high = tiles[0].width + PAD, tiles[0].height + PAD
    lines = -(-len(tiles) // PER_LINE)
    each = -(-len(tiles) // lines)
    out = Image.new("RGB", (each * wide - PAD, lines * high - PAD), "white")
    for k, tile in enumerate(tiles):
        out.paste(tile, ((k % each) * wide, (k // each) * high))
    return out


def blocks(runs: Sequence[tuple[str, Sequence[Cut]]]) -> list[dict[str, Any]]:
    """A block per direction, and per set of source images where runs have not all translated the same: rows of strips, each with a picture per step.

    `runs` are (name, its grids by step). Of several runs the translations stand under each other, and `more` has the rest.
    """
    shown = [(place, name, cuts) for place, (name, cuts) in enumerate(runs) if cuts]
    budgets = _budgets([cuts for *_, cuts in shown])
    out = []
    for way in WAYS:
        groups: dict[str, list[tuple[int, str, Sequence[Cut]]]] = {}
        for place, name, cuts in shown:
            last = next((one for one in reversed(cuts) if way in one.sources), None)
            if last is not None:
                same = [one for one in cuts if one.sources.get(way) == last.sources[way]]
                groups.setdefault(last.sources[way], []).append((place, name, same))
        for group in groups.values():
            out.append(_block(way, group, len(shown) > 1, budgets) | {"apart": len(groups) > 1})
    for row in (row for block in out for row in (*block["rows"], *block["more"])):
        named = len(runs) > 1 and row["kind"] != "image"
        row |= {"beside": row["run"] if named and row["label"] != row["run"] else "", "swatch": named}
    return out


def _block(way: str, group: Sequence[tuple[int, str, Sequence[Cut]]], several: bool, budgets: tuple[int, int]) -> dict[str, Any]:
    _, _, cuts = group[0]
    count = cuts[-1].counts[way]
    kinds = [kind for kind in KINDS if any((way, kind) in one.strips for *_, cuts in group for one in cuts)]
    of = {kind: group[:1] if kind == "image" else group for kind in kinds}  # what was translated is the same for all
    rows = {kind: [row for one in of[kind] if (row := _row(way, kind, *one, several, budgets))] for kind in kinds}
    first = ("image", "translation") if several else tuple(kinds)
    return {
        "way": way, "title": WAYS[way], "wide": count > WIDE, "attention": "attention" in kinds,
        "rows": [row for kind in first for row in rows[kind]], "more": [row for kind in kinds if kind not in first for row in rows[kind]],
    }  # fmt: skip


def _row(
    way: str, kind: str, place: int, name: str, cuts: Sequence[Cut], several: bool, budgets: tuple[int, int]
) -> dict[str, Any] | None:
    """One kind of strip of a run, at all its steps; the source images once."""
    drawn = [one for one in cuts if (way, kind) in one.strips]
    if kind == "image":
        drawn = drawn[-1:]
    if not drawn:
        return None
    pictures = []
    for one in drawn:
        picture = encoded(one.strips[way, kind], budgets[0] if one is cuts[-1] else budgets[1])
        pictures.append(
            {"id": f"way-{place}-{way}-{kind}-{one.step}", "step": one.step, "picture": picture, "alt": _alt(way, kind, name, one)}
        )
    label = name if several and kind == "translation" else KINDS[kind]
    return {
        "place": place, "run": name, "kind": kind, "label": label, "coarse": drawn[-1].coarse, "sources": drawn[-1].sources[way], "of": WAYS[way], "pictures": pictures,
    }  # fmt: skip


def _alt(way: str, kind: str, name: str, one: Cut) -> str:
    images, when = f"{one.counts[way]} images side by side", f"of {name} at step {one.step:,}"
    return {
        "image": f"Source, domain {way[0].upper()}: {images}",
        "attention": f"Where the generator {when} looks in the source images",
        "translation": f"Translations {WAYS[way]} {when}, in the order of the source images",
        "back": f"The translations {when} brought back to {way[0].upper()}",
    }[kind]


def _budgets(runs: Sequence[Sequence[Cut]]) -> tuple[int, int]:
    """Bytes of a strip: of a run's last step, and of an earlier one."""
    earlier = sum(len(one.strips) for cuts in runs for one in cuts[:-1])
    latest = sum(len(cuts[-1].strips) for cuts in runs)
    return min(LATEST, PAGE // (2 * max(1, latest))), min(LATEST, PAGE // (2 * max(1, earlier)))


def comparable_strips(block: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(a run's place, its translations at a step) of a block: what can be laid over each other."""
    for row in (*block["rows"], *block["more"]):
        if row["kind"] == "translation":
            for one in row["pictures"]:
                yield row["place"], {"id": one["id"], "step": one["step"], "of": row["of"], "how": {"images": row["sources"]}}

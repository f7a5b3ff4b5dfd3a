"""What a run leaves in its folder, and how a page is read: helpers of the tests of reports."""

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

EVIL = "\"><script>alert(1)<img src=x onerror='alert(2)'>&amp;"
VOID = {"meta", "link", "img", "br", "input"}
SETTINGS = {
    "data": "shapes", "size": 16, "network": "unet-pocket", "init": None, "out": "runs/first", "steps": 40, "batch": 16, "seed": 0,
    "resume": False, "flip": False, "channels_last": True, "betas": [0.9, 0.999], "lr": 0.0001, "ema": "classic", "report_to": [],
}  # fmt: skip
PROTOCOL = {
    "generated": {"name": "runs/first", "count": 5000, "fingerprint": "a1", "drawn": {"sampler": "ddim", "steps": 50, "weights": "c3"}},
    "reference": {"name": "shapes", "count": 50000, "fingerprint": "b2"},
    "dialect": {"name": "torch-fidelity", "kid_size": 1000},
    "extractors": {"inception": {"weights": "d4", "resize": "tf1-bilinear-299"}},
}  # fmt: skip


def lines(path: Path, records: list[dict[str, Any]], tail: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


KEYS = (
    "critic/adversarial/a", "critic/adversarial/b", "critic/latent-gan/a", "critic/latent-gan/b", "adversarial/a", "adversarial/b", "cycle",
    "identity", "cam", "latent-gan/a", "latent-gan/b", "denoising/b", "denoising/a", "adversarial/a/T", "adversarial/a/fooled",
    "adversarial/b/T", "adversarial/b/fooled", "latent-gan/a/fooled", "latent-gan/b/fooled", "grad_norm/adversarial/a",
    "grad_norm/adversarial/b", "grad_norm/latent-gan/a", "grad_norm/latent-gan/b", "grad_norm/model",
)  # fmt: skip
COLUMNS = ("image", "attention", "translation", "back")


def tile_colour(way: str, row: int, kind: str, step: int) -> tuple[int, int, int]:
    """Which image of a grid this is, to be read from its pixels; the source is the same at every step."""
    return (200 if way == "a2b" else 60, 20 + 30 * row, 40 * COLUMNS.index(kind) + (0 if kind == "image" else step % 40))


def translation_grid(path: Path, step: int, rows: int, columns: Sequence[str], seed: int = 0) -> None:
    """A preview of a translator, as percepta.images.grid lays it: 2 white pixels around every image."""
    side = 64
    canvas = Image.new("RGB", (len(columns) * (side + 2) + 2, 2 * rows * (side + 2) + 2), "white")
    for j in range(2 * rows):
        way, row = ("a2b", j) if j < rows else ("b2a", j - rows)
        for k, kind in enumerate(columns):
            colour = tile_colour(way, row, kind, step)
            canvas.paste((colour[0] + seed, *colour[1:]), (2 + k * 66, 2 + j * 66, 2 + k * 66 + side, 2 + j * 66 + side))
    canvas.save(path)
    protocol = {
        "step": step,
        "shows": "rows",
        "columns": list(columns),
        "rows": {"a2b": rows, "b2a": rows},
        "num": 2 * rows * len(columns),
    }
    path.with_suffix(".json").write_text(json.dumps({**protocol, "weights": "raw"}))


def translated(fid: float = 9.0, reference: str = "rb", real: float = 1.0, **more: Any) -> dict[str, Any]:
    """What `percepta evaluate` leaves of a translator: the protocol of B -> A is inside that of A -> B where it differs."""
    metrics: dict[str, Any] = {}
    for way, times in (("a2b", 1.0), ("b2a", 2.0)):
        metrics[f"fid/{way}"] = {"value": times * fid, "space": "inception-2048"}
        metrics[f"kid/{way}"] = {"value": times * fid / 1000, "std": 0.0015, "space": "inception-2048"}
        metrics[f"shape-accuracy/{way}"] = {"value": times * 0.25, "space": "shapes"}
    protocol = {
        "generated": {"name": "A", "count": 100, "drawn": {"direction": "a2b"}}, "reference": {"name": "paintings", "fingerprint": reference},
        "dialect": {"name": "torch-fidelity"}, "pairing": "none", "real": {"shape-accuracy": real},
        "b2a": {"generated": {"name": "B", "count": 80}, "reference": {"name": "photos", "fingerprint": "ra"}, "real": {"shape-accuracy": 1.0}},
    }  # fmt: skip
    return {"metrics": metrics, "protocol": protocol, "warnings": [], "missing": {}, **more}


class Page(HTMLParser):
    """Tags with their attributes, the text of scripts and styles, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]].append(data)
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

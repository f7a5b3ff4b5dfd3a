"""Built-in data: coloured shapes, drawn by arithmetic, deterministic by index, at any size.

A scene has a shape, a colour, a texture, a place, a size, a turn and a background. Its label is shape and colour together by
default (64 classes, "red disc"): with both given, a small model soon draws what a person recognises, and a wrong colour or
shape is seen at once. Scenes are numbered without end; a source shows `length` of them.

Two domains exist for unpaired translation: `filled` (texture, background) and `outline` (a stroke of the same colour on paper).
They draw scenes from disjoint ranges, so no scene is ever seen in both; `hidden_pair` draws a scene of one as the other would
show it: the truth that training must not use and evaluation may. The scenes of `part=test` are a third range, and the same in both
domains: image k of one shows what image k of the other does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from percepta.data.order import uniform
from percepta.data.source import Item, Source, hash_of

SHAPES = ("disc", "square", "triangle", "star", "ring", "cross", "diamond", "crescent")
COLOURS = {
    "red": (222, 40, 40),
    "orange": (255, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 170, 60),
    "cyan": (50, 205, 220),
    "blue": (40, 80, 225),
    "purple": (135, 50, 190),
    "pink": (250, 110, 180),
}
TEXTURES = ("plain", "stripes", "dots", "checks")
TEXTURE_WORDS = ("", "striped ", "dotted ", "checked ")
BACKGROUNDS = ((34, 36, 44), (66, 62, 60), (214, 210, 200), (240, 242, 246))  # two dark, two light: no hue that a shape could have
PAPER = (248, 246, 240)
DOMAINS = {"filled": 0, "outline": 2**40}  # where each domain's scenes begin
TEST = 2**42  # and those of part=test, in both: as far from the others as no training set reaches
VERSION = 1  # part of the fingerprint: raise it when a drawing changes
FINE = 2  # samples per pixel and direction, on top of edges that are soft over one of them


class Attributes(NamedTuple):
    """What a scene shows; arrays when it is many. Places and radius in units of the image's side, the turn in radians."""

    shape: np.ndarray
    colour: np.ndarray
    texture: np.ndarray
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    background: np.ndarray
    gradient: np.ndarray  # difference of brightness between the two ends, 0 for a plain background
    direction: np.ndarray


@dataclass(frozen=True)
class Shapes(Source):
    """`size` in pixels, `length` images, `labels`: shape-colour, shape, colour or none; `textures`: all or plain; `backgrounds`: all, or paper, on
    which outlines are drawn: with plain textures an outline then tells all of its filled shape; `only`: some of the shapes, as in star+ring, from the
    scenes that show them; `part`: train, or test: scenes that no training set has, the same in both domains."""

    size: int = 32
    length: int = 50_000
    domain: str = "filled"
    labels: str = "shape-colour"
    textures: str = "all"
    seed: int = 0
    only: str = field(default="", repr=False)  # a set of all shapes keeps the fingerprint that it always had
    part: str = field(default="train", repr=False)  # and so does one for training
    backgrounds: str = field(default="all", repr=False)

    def __post_init__(self) -> None:
        known = {
            "domain": tuple(DOMAINS),
            "labels": ("shape-colour", "shape", "colour", "none"),
            "textures": ("all", "plain"),
            "backgrounds": ("all", "paper"),
            "part": ("train", "test"),
        }
        for option, values in known.items():
            if getattr(self, option) not in values:
                raise ValueError(f"shapes: unknown {option} {getattr(self, option)!r}; known: {', '.join(values)}")
        wrong = [name for name in filter(None, self.only.split("+")) if name not in SHAPES]
        if wrong or len(set(self.shown)) != len(self.shown):
            raise ValueError(f"shapes: only={self.only}: give some of {', '.join(SHAPES)}, each once, with + between")
        if self.size < 8:
            raise ValueError(f"shapes are drawn from 8 pixels up, got size {self.size}")
        if not 1 <= self.length <= 2**40:
            raise ValueError(f"the length of shapes lies between 1 and 2^40, got {self.length}")

    @property
    def shown(self) -> tuple[str, ...]:
        """The shapes that occur, as they were named: their order is that of the labels."""
        return tuple(filter(None, self.only.split("+"))) or SHAPES

    @property
    def class_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        names = {
            "shape": self.shown,
            "colour": tuple(COLOURS),
            "none": (),
            "shape-colour": tuple(f"{c} {s}" for s in self.shown for c in COLOURS),
        }
        return names[self.labels]

    def __len__(self) -> int:
        return self.length

    def attributes(self, indices: Sequence[int] | np.ndarray) -> Attributes:
        """What the images of these indices show."""
        scenes = np.asarray(indices, dtype=np.int64)
        if scenes.size and not (scenes.min() >= 0 and scenes.max() < self.length):
            raise IndexError(f"shapes have indices 0 to {self.length - 1}, got {scenes.min()} to {scenes.max()}")
        if self.only:
            scenes = self._scenes[scenes]
        return attributes(scenes + self.first, self.seed, self.textures, self.backgrounds)

    @property
    def first(self) -> int:
        """The number of the first scene."""
        return DOMAINS[self.domain] if self.part == "train" else TEST

    @cached_property
    def _scenes(self) -> np.ndarray:
        """The first `length` scenes that show one of the shapes."""
        wanted, found, first = [SHAPES.index(name) for name in self.shown], list[np.ndarray](), 0
        while sum(map(len, found)) < self.length:
            scenes = np.arange(first, first + max(self.length, 64))
            shapes = attributes(scenes + self.first, self.seed, self.textures).shape
            found.append(scenes[np.isin(shapes, wanted)])
            first += len(scenes)
        return np.concatenate(found)[: self.length]

    def labels_of(self, shown: Attributes) -> np.ndarray | None:
        if self.labels == "none":
            return None
        places = np.array([self.shown.index(name) if name in self.shown else -1 for name in SHAPES])
        shape = places[shown.shape]
        return {"shape": shape, "colour": shown.colour, "shape-colour": shape * len(COLOURS) + shown.colour}[self.labels]

    @cached_property
    def texts(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What each image shows, in words: a striped red disc, an outlined orange star."""
        shown, colours = self.attributes(range(self.length)), tuple(COLOURS)
        parts = zip(shown.texture, shown.colour, shown.shape, strict=True)
        how = TEXTURE_WORDS if self.domain == "filled" else ("outlined ",) * len(TEXTURES)
        said = (f"{how[t]}{colours[c]} {SHAPES[s]}" for t, c, s in parts)
        return tuple(f"{'an' if text[0] in 'aeiou' else 'a'} {text}" for text in said)

    def read(self, index: int) -> Item:
        return self.read_many([index])[0]

    def read_many(self, indices: Sequence[int] | np.ndarray) -> list[Item]:
        shown = self.attributes(indices)
        labels = self.labels_of(shown)
        images = draw(shown, self.size, self.domain)
        where = self.domain if self.part == "train" else f"{self.domain}/{self.part}"
        return [
            Item(images[k], None if labels is None else int(labels[k]), f"shapes:{where}/{int(i)}") for k, i in enumerate(indices)
        ]

    def hidden_pair(self, index: int) -> UInt8[np.ndarray, "s s 3"]:
        """The scene of this index as the other domain would show it: for evaluation only."""
        other = next(d for d in DOMAINS if d != self.domain)
        return draw(self.attributes([index]), self.size, other)[0]

    def entries(self) -> Iterator[tuple[str, int, str, int | None]]:
        part = "" if self.part == "train" else f" part {self.part}"
        part += "" if self.backgrounds == "all" else f" backgrounds {self.backgrounds}"
        yield f"{self!r}{self.only and f' only {self.only}'}{part}", self.length, hash_of(VERSION), None


def attributes(scenes: np.ndarray, seed: int, textures: str = "all", backgrounds: str = "all") -> Attributes:
    """The scenes of these numbers. Each attribute is a source of its own: plain textures, or paper behind, show the same shapes as all do."""

    def draw_one(name: str) -> np.ndarray:
        return uniform(seed, f"shapes/{name}", scenes)

    radius = (0.26 + 0.14 * draw_one("radius")).astype(np.float32)
    room = 0.98 - 2 * radius  # the shape stays inside the image
    paper = backgrounds == "paper"
    background = np.full(len(scenes), len(BACKGROUNDS)) if paper else (draw_one("background") * len(BACKGROUNDS)).astype(np.int64)
    graded = draw_one("graded") < (0 if paper else 0.5)
    texture = (draw_one("texture") * len(TEXTURES)).astype(np.int64)
    return Attributes(
        shape=(draw_one("shape") * len(SHAPES)).astype(np.int64),
        colour=(draw_one("colour") * len(COLOURS)).astype(np.int64),
        texture=texture if textures == "all" else np.zeros_like(texture),
        x=(0.01 + radius + room * draw_one("x")).astype(np.float32),
        y=(0.01 + radius + room * draw_one("y")).astype(np.float32),
        radius=radius,
        angle=((draw_one("angle") - 0.5) * 0.5).astype(np.float32),
        background=background,
        gradient=np.where(graded, 50 * (2 * draw_one("gradient") - 1), 0).astype(np.float32),
        direction=(draw_one("direction") * 2 * np.pi).astype(np.float32),
    )


def draw(shown: Attributes, size: int, domain: str) -> UInt8[np.ndarray, "b s s 3"]:
    """The images of the scenes. Worked through in blocks that stay in the cache."""
    out = np.empty((len(shown.shape), size, size, 3), dtype=np.uint8)
    block = max(1, 2**17 // (size * FINE) ** 2)
    for start in range(0, len(out), block):
        part = Attributes(*(v[start : start + block] for v in shown))
        out[start : start + block] = _draw(part, size, domain)
    return out


class Parts(NamedTuple):
    """What an image is mixed of: (1 - cover) * background + cover * colour * (1 - 0.45 * dark)."""

    cover: Float32[np.ndarray, "b s s"]
    dark: Float32[np.ndarray, "b k s s"]  # of each texture but the plain one


def parts(shown: Attributes, size: int, domain: str) -> Parts:
    """Where the scenes' shapes cover the image, and where each texture would darken them."""
    frame = _frame(shown, size)
    kinds = (np.full(len(shown.shape), kind) for kind in range(1, len(TEXTURES)))
    return Parts(_cover(shown, frame, size, domain), np.stack([_dark(kind, frame) for kind in kinds], 1))


class _Frame(NamedTuple):
    """The shape's own frame, it fills the unit disc, v points down; and how many fine samples its radius has."""

    u: Float32[np.ndarray, "b h w"]
    v: Float32[np.ndarray, "b h w"]
    sharpness: Float32[np.ndarray, "b 1 1"]


def _frame(shown: Attributes, size: int) -> _Frame:
    grid = ((np.arange(size * FINE, dtype=np.float32) + 0.5) / (size * FINE)).astype(np.float32)
    dx = (grid[None, None, :] - shown.x[:, None, None]) / shown.radius[:, None, None]
    dy = (grid[None, :, None] - shown.y[:, None, None]) / shown.radius[:, None, None]
    cos, sin = np.cos(shown.angle)[:, None, None], np.sin(shown.angle)[:, None, None]
    return _Frame(cos * dx + sin * dy, cos * dy - sin * dx, (shown.radius * size * FINE)[:, None, None])


def _cover(shown: Attributes, frame: _Frame, size: int, domain: str) -> Float32[np.ndarray, "b s s"]:
    distance = np.empty_like(frame.u)
    for kind in np.unique(shown.shape):
        rows = shown.shape == kind
        distance[rows] = _DISTANCES[kind](frame.u[rows], frame.v[rows])
    if domain == "outline":
        width = np.maximum(0.09, 0.7 / (shown.radius * size))[:, None, None]  # at least 1.4 pixels
        return _pixels(_soft(np.abs(distance + width) - width, frame.sharpness))
    return _pixels(_soft(distance, frame.sharpness))


def _dark(kind: np.ndarray, frame: _Frame) -> Float32[np.ndarray, "b s s"]:
    return _pixels(_soft(_texture(kind, frame.u, frame.v), frame.sharpness))


def _draw(shown: Attributes, size: int, domain: str) -> UInt8[np.ndarray, "b s s 3"]:
    frame = _frame(shown, size)
    cover = _cover(shown, frame, size, domain)
    ink = np.array(list(COLOURS.values()), dtype=np.float32)[shown.colour][:, None, None, :]
    if domain == "outline":
        back = np.broadcast_to(np.array(PAPER, dtype=np.float32), ink.shape)
    else:
        ink = ink * (1 - 0.45 * _dark(shown.texture, frame))[..., None]
        back = _background(shown, size)
    return np.rint(back + cover[..., None] * (ink - back)).clip(0, 255).astype(np.uint8)


def _soft(distance: Float32[np.ndarray, "b h w"], sharpness: Float32[np.ndarray, "b 1 1"]) -> Float32[np.ndarray, "b h w"]:
    """1 inside, 0 outside, a ramp one fine sample wide between."""
    return np.clip(0.5 - distance * sharpness, 0, 1)


def _pixels(fine: Float32[np.ndarray, "b h w"]) -> Float32[np.ndarray, "b s s"]:
    b, h, w = fine.shape
    return fine.reshape(b, h // FINE, FINE, w // FINE, FINE).mean(axis=(2, 4))


def _background(shown: Attributes, size: int) -> Float32[np.ndarray, "b s s 3"]:
    place = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    along = (
        np.cos(shown.direction)[:, None, None] * place[None, None, :]
        + np.sin(shown.direction)[:, None, None] * place[None, :, None]
    )
    base = np.array((*BACKGROUNDS, PAPER), dtype=np.float32)[shown.background]
    return base[:, None, None, :] + (shown.gradient[:, None, None] * along)[..., None]


def _texture(kind: np.ndarray, u: np.ndarray, v: np.ndarray) -> Float32[np.ndarray, "b h w"]:
    """Below 0 where the texture darkens the colour; +1 everywhere for plain."""
    out = np.ones_like(u)
    stripes, dots, checks = (kind == k for k in (1, 2, 3))

    def wave(x: np.ndarray, period: float) -> np.ndarray:
        """A triangle wave in units of length: distance to the nearest multiple of the period."""
        return np.abs(x - period * np.rint(x / period))

    out[stripes] = wave(v[stripes], 0.6) - 0.15
    out[dots] = np.hypot(wave(u[dots], 0.6), wave(v[dots], 0.6)) - 0.17
    a, b = wave(u[checks], 0.9) - 0.225, wave(v[checks], 0.9) - 0.225
    out[checks] = np.where((a < 0) == (b < 0), -1, 1) * np.minimum(np.abs(a), np.abs(b))
    return out


def _disc(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.92


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.78


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = v - 0.15
    return np.maximum(v - 0.5, 0.5 * np.sqrt(3).astype(np.float32) * np.abs(u) - 0.5 * v - 0.5)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points, folded into one half of one point: one straight edge is left."""
    fifth = np.float32(2 * np.pi / 5)
    turn = np.arctan2(u, -v)
    turn = np.abs(turn - fifth * np.rint(turn / fifth))
    r = np.hypot(u, v)
    x, y = r * np.sin(turn), r * np.cos(turn)  # the point of the star lies at (0, 1), the notch at half its radius
    notch = (0.46 * np.sin(np.pi / 5), 0.46 * np.cos(np.pi / 5))
    edge = np.hypot(notch[0], 1 - notch[1])
    return (((1 - notch[1]) * x + notch[0] * (y - 1)) / edge).astype(np.float32)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.71) - 0.23


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(a, b) - 0.9, np.minimum(a, b) - 0.29)


def _diamond(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.abs(u) * 1.45 + np.abs(v) - 0.98) / np.float32(1.76)


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 0.94, 0.74 - np.hypot(u - 0.46, v))


_DISTANCES = (_disc, _square, _triangle, _star, _ring, _cross, _diamond, _crescent)

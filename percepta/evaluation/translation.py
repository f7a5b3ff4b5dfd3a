"""Judging a translator: both directions, each metric of `evaluate` against the test set of the other domain, and what only a translation has.

    fid/a2b ...              translations of A's test set against B's; fid/b2a the reverse
    lpips-to-source/a2b      LPIPS of a translation and the image that it is of: how much was changed, good or bad
    cycle-error/a2b          mean |x - back|, x of A translated to B and back, in [-1, 1]
    psnr, lpips-to-truth     against the true partner, where the test sets are paired
    shape-, colour-accuracy  the share of translations that show the scene's shape and colour, where both are built-in shapes

The subsets of KID follow the smaller test set (`kid_size_for`). Images pass through the translator as training cut them, and are judged as bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from percepta import distributed
from percepta.data import Shapes, partners
from percepta.evaluation.attributes import accuracy, comparable
from percepta.evaluation.contamination import contaminated
from percepta.evaluation.diversity import DIVERSITY_SPACE
from percepta.evaluation.evaluate import Evaluation, contamination_warnings, evaluate, make_dialect
from percepta.evaluation.metrics import Value
from percepta.evaluation.sets import Arrays, ImageSet
from percepta.evaluation.translated import Errors, Row, Translate, open_lpips, passed, translated
from percepta.spaces.lpips import trunk_hash

WAYS = ("a2b", "b2a")
KEYS = ("lpips-to-source", "cycle-error", "psnr", "lpips-to-truth", "shape-accuracy", "colour-accuracy")
NEITHER = "lpips-to-source"  # little is changed: good where the content is meant, bad where nothing was translated
HIGHER = ("psnr", "shape-accuracy", "colour-accuracy")
CEILING = 100  # real images that the attributes are read of, to say how well they are read
Look = Callable[[str, Sequence[Row]], None]


@dataclass(frozen=True)
class TestSets:
    """What a translator is judged on. `pairing` is one of percepta.data.domains.PAIRINGS; `num`: so many of each are translated, all by default."""

    __test__ = False  # pytest: no tests in here

    a: ImageSet
    b: ImageSet
    pairing: str = "none"
    num: int | None = None

    def of(self, way: str) -> tuple[ImageSet, ImageSet]:
        """What is translated, and what the translations are compared with."""
        return (self.a, self.b) if way == "a2b" else (self.b, self.a)

    def count(self, way: str) -> int:
        """How many are translated."""
        source = self.of(way)[0]
        return len(source) if self.num is None else min(self.num, len(source))

    @property
    def smallest(self) -> int:
        """Of all sets that KID compares."""
        return min(*map(self.count, WAYS), len(self.a), len(self.b))

    def truths(self, way: str) -> dict[int, int]:
        """The number in the target's source of each image's true partner, by the image's own number; empty where none is known."""
        pairs = partners(self.a.source, self.b.source, self.pairing)
        if pairs is None:
            return {}
        a, b = pairs.a.tolist(), pairs.b.tolist()
        return dict(zip(a, b, strict=True) if way == "a2b" else zip(b, a, strict=True))

    @property
    def shapes(self) -> tuple[Shapes, Shapes] | None:
        """Both sources, where both are built-in shapes of the same kinds."""
        a, b = self.a.source, self.b.source
        return (a, b) if isinstance(a, Shapes) and isinstance(b, Shapes) and comparable(a, b) else None


@dataclass
class _Way:
    """One direction, while it is judged."""

    metrics: dict[str, Value]
    missing: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    protocol: dict[str, Any] = field(default_factory=dict)


def kid_size_for(sets: TestSets, dialect: str) -> int:
    """Half of the smaller set, and the dialect's at most: subsets of a whole set would all be the same, and their spread 0."""
    return max(2, min(make_dialect(dialect).kid_size, sets.smallest // 2))


def beside(sets: TestSets, device: str = "cpu") -> tuple[dict[str, bool], dict[str, str]]:
    """Which of KEYS these sets allow, each that has a better end with whether that is the lower one; and why LPIPS cannot be had, where it cannot."""
    missing: dict[str, str] = {}
    keys = ["lpips-to-source", "cycle-error"]
    if sets.truths("a2b"):
        keys += ["psnr", "lpips-to-truth"]
    if sets.shapes is not None:
        keys += ["shape-accuracy", "colour-accuracy"]
    for way in WAYS:
        reason = open_lpips(sets.of(way)[0], device)
        if isinstance(reason, str):
            missing |= {f"{key}/{way}": reason for key in keys if key.startswith("lpips")}
    lower = {f"{key}/{way}": key not in HIGHER for key in keys if key != NEITHER for way in WAYS}
    return {key: value for key, value in lower.items() if key not in missing}, missing


def judge_translations(
    translate: Translate,
    sets: TestSets,
    *,
    kid_size: int | None = None,
    drawn: Mapping[str, Any] | None = None,
    device: str = "cpu",
    look: Look = lambda way, rows: None,
    check: Callable[[], None] = lambda: None,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
    **options: Any,
) -> Evaluation:
    """`translate(images in [-1, 1], way)` in both directions. `options` are those of `evaluate`; `drawn` says what translated; `look` is given
    a few rows of image, translation, way back and truth."""
    kid_size = kid_size or kid_size_for(sets, options.get("dialect", "torch-fidelity"))
    told = {"kid_size": kid_size, "drawn": drawn or {}, "device": device, "check": check, "progress": progress, **options}
    ways = {}
    for way in WAYS:
        lpips = open_lpips(sets.of(way)[0], device)
        found, rows = _translated(translate, sets, way, lpips, device, check, progress)
        look(way, rows)
        ways[way] = _judged(sets, way, found, lpips, told)
    return _together(sets, ways)


def _translated(
    translate: Translate, sets: TestSets, way: str, lpips: Any, device: str, check, progress
) -> tuple[Errors, list[Row]]:
    """By the first rank; the others get the images, and judge their part of them."""
    source, target = sets.of(way)

    def work() -> tuple[Errors, list[Row]]:
        distance = None if isinstance(lpips, str) else lpips
        return translated(translate, way, source, target, sets.count(way), sets.truths(way), distance, device, check, progress)

    made = distributed.by_first(work, "while images were translated")
    return passed(made)


def _judged(sets: TestSets, way: str, found: Errors, lpips: Any, told: Mapping[str, Any]) -> _Way:
    source, target = sets.of(way)
    images = Arrays(found.images)
    fake = ImageSet(f"{source.name}, translated", images, range(len(images)), None, "error")
    result = evaluate(fake, target, **{**told, "drawn": {**told["drawn"], "direction": way}})
    out = _Way(dict(result.metrics), dict(result.missing), [], dict(result.protocol))
    trained = told.get("trained_against", ())
    for key, value in found.means().items():
        is_lpips = key.startswith("lpips")
        space = DIVERSITY_SPACE if is_lpips else "pixels"
        out.metrics[key] = Value(value, space, None, is_lpips and contaminated(space, trained))
    if isinstance(lpips, str):
        out.missing |= dict.fromkeys(("lpips-to-source", *(["lpips-to-truth"] if found.psnr else [])), lpips)
    else:
        out.protocol["extractors"][DIVERSITY_SPACE] = {
            "weights": trunk_hash("alex"), "resize": "none", "precision": "fp32", "layers": ["lpips"]
        }  # fmt: skip
    out.protocol["pairs"] = len(found.psnr)
    if sets.shapes is not None:
        _add_attributes(out, sets, way, found)
    general = contamination_warnings(result.metrics)
    out.warnings += [line for line in result.warnings if line not in general and line not in result.missing.values()]
    return out


def _add_attributes(out: _Way, sets: TestSets, way: str, found: Errors) -> None:
    """What the translations show; and what real images do, which says how well that is read."""
    assert sets.shapes is not None
    source, target = sets.shapes if way == "a2b" else sets.shapes[::-1]
    seen = accuracy(list(found.images), source.attributes(found.numbers), target.domain, target.shown)
    out.metrics["shape-accuracy"] = Value(seen.shape, "shapes")
    out.metrics["colour-accuracy"] = Value(seen.colour, "shapes")
    judged = sets.of(way)[1]
    places = judged.places()[:CEILING]
    real = accuracy(
        judged.read(range(len(places))), target.attributes([judged.indices[k] for k in places]), target.domain, target.shown
    )
    out.protocol["real"] = {"shape-accuracy": real.shape, "colour-accuracy": real.colour, "count": len(places)}


def _together(sets: TestSets, ways: Mapping[str, _Way]) -> Evaluation:
    """The protocol of A -> B is that of any evaluation, and has the one of B -> A in it."""
    keys = list(dict.fromkeys(key for one in ways.values() for key in one.metrics))
    metrics = {f"{key}/{way}": one.metrics[key] for key in keys for way, one in ways.items() if key in one.metrics}
    missing = {f"{key}/{way}": reason for way, one in ways.items() for key, reason in one.missing.items()}
    warnings = [line for one in ways.values() for line in one.warnings]  # those of one side say of which
    warnings += [*contamination_warnings(metrics), *missing.values()]
    there, back = (ways[way].protocol for way in WAYS)
    protocol = {**there, "pairing": sets.pairing, "b2a": {key: back[key] for key in back if back[key] != there.get(key)}}
    return Evaluation(metrics, protocol, list(dict.fromkeys(warnings)), missing)

"""Evaluations of one model at several weights of classifier-free guidance: which weights were asked for, and which is best by what.

--guidance 1:4:0.25     from:to:step, both ends included
--guidance 1,1.5,4      a list
--guidance 1.5          one weight: no sweep
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Any

from percepta.evaluation.evaluate import Evaluation
from percepta.evaluation.metrics import HIGHER, Value
from percepta.evaluation.show import text_of

MOST = 100  # weights in a sweep: each is a drawing and an evaluation of its own
FORMS = "give a number, a list such as 1,1.5,4, or from:to:step such as 1:4:0.25"


def is_sweep(text: str) -> bool:
    return ":" in text or "," in text


def weights_of(text: str) -> tuple[float, ...]:
    """The guidance weights that a flag names, ascending, each once."""
    if ":" in text:
        found = _stepped(text)
    else:
        parts = text.split(",")
        found = [_number(part, text) for part in (parts if parts[-1].strip() or len(parts) == 1 else parts[:-1])]
    weights = tuple(sorted({float(f"{value:.10g}") for value in found}))
    if len(weights) > MOST:
        raise ValueError(_many(text, len(weights)))
    return weights


def _stepped(text: str) -> list[Decimal]:
    parts = [_number(part, text) for part in text.split(":")]
    if len(parts) != 3:
        raise ValueError(f"--guidance {text} has {len(parts)} parts, from:to:step has three; {FORMS}")
    first, last, step = parts
    if step <= 0:
        raise ValueError(f"--guidance {text}: the step must be above 0, got {step}; {FORMS}")
    if last < first:
        raise ValueError(f"--guidance {text} ends below its beginning; write {last}:{first}:{step}")
    count = (last - first) / step + 1
    if count >= MOST + 1:
        raise ValueError(_many(text, int(count)))
    return [first + k * step for k in range(int(count))]


def _number(text: str, whole: str) -> Decimal:
    """Decimal, so that 1:4:0.1 counts in tenths and meets its end."""
    try:
        value = Decimal(text.strip())
    except InvalidOperation:
        value = Decimal("nan")
    if not value.is_finite() or abs(value) > 10**6:
        raise ValueError(f"--guidance {whole}: {text.strip()!r} is not a guidance weight; {FORMS}")
    return value


def _many(text: str, count: int) -> str:
    return f"--guidance {text} names {count:,} weights, up to {MOST} are drawn and judged in one sweep; take a larger step"


@dataclass(frozen=True)
class Sweep:
    """The evaluations by guidance weight, ascending, all of one model with the same seeds."""

    source: str
    points: Mapping[float, Evaluation]

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that some weight was judged by."""
        return tuple(dict.fromkeys(name for point in self.points.values() for name in point.metrics))

    def curve(self, metric: str) -> dict[float, Value]:
        return {weight: point.metrics[metric] for weight, point in self.points.items() if metric in point.metrics}

    def best(self) -> dict[str, float]:
        """Metric -> the weight of its best value. None of a space that was trained against, nor where all values are printed alike."""
        out = {}
        for metric in self.metrics:
            curve = self._honest(metric)
            if len(set(map(text_of, curve.values()))) > 1:
                out[metric] = (max if metric.partition("@")[0] in HIGHER else min)(curve, key=lambda weight: curve[weight])
        return out

    def starred(self) -> dict[str, list[float]]:
        """Metric -> the weight of its best value, and those whose values are printed as that one is."""
        return {
            metric: [w for w, value in curve.items() if text_of(value) == text_of(curve[weight])]
            for metric, weight in self.best().items()
            if (curve := self._honest(metric))
        }

    def _honest(self, metric: str) -> dict[float, float]:
        return {w: found.value for w, found in self.curve(metric).items() if not found.contaminated and isfinite(found.value)}

    def close(self) -> dict[str, list[float]]:
        """Metric -> the other weights that are as good as the best, or that its spread does not tell from it."""
        out, alike = {}, self.starred()
        for metric, weight in self.best().items():
            curve = self.curve(metric)
            best = curve[weight]
            away = {w: abs(v.value - best.value) for w, v in curve.items() if w != weight}
            near = [w for w, gap in away.items() if w in alike[metric] or gap < max(curve[w].std or 0.0, best.std or 0.0)]
            if near:
                out[metric] = near
        return out

    def summary(self) -> Evaluation:
        """What all weights have in common: protocol, warnings, and what is missing. It has no metrics."""
        points = list(self.points.values())
        protocol = shared([point.protocol for point in points])
        protocol["generated"] = {**protocol["generated"], "name": self.source}
        said = dict.fromkeys(
            text.replace(point.protocol["generated"]["name"], self.source) for point in points for text in point.warnings
        )
        missing = {name: reason for point in points for name, reason in point.missing.items()}
        return Evaluation({}, protocol, list(said), missing)

    def to_json(self) -> dict[str, Any]:
        common = self.summary().to_json()
        rows = [{"guidance": weight, "metrics": point.to_json()["metrics"]} for weight, point in self.points.items()]
        told = {key: common[key] for key in ("protocol", "warnings", "missing")}
        return {"sweep": rows, "best": self.best(), "close": self.close(), **told}


def shared(protocols: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entries that all have with one value, at any depth."""
    first, *others = protocols
    out = {}
    for key, value in first.items():
        theirs = [other.get(key) for other in others]
        if isinstance(value, Mapping) and all(isinstance(one, Mapping) for one in theirs):
            out[key] = shared([value, *theirs])  # pyright: ignore[reportArgumentType]
        elif all(one == value for one in theirs):
            out[key] = value
    return out


def decisive(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What two weights of one sweep have in common: all that decides numbers but the weight itself, and where its images lie."""
    generated = protocol["generated"]
    drawn = {key: value for key, value in generated.get("drawn", {}).items() if key not in ("guidance", "num")}
    return {**protocol, "generated": {"count": generated["count"], "transform": generated["transform"], "drawn": drawn}}


def from_json(record: Mapping[str, Any]) -> Evaluation:
    """An evaluation as `Evaluation.to_json` wrote it; KeyError or TypeError where it is none."""
    values = {name: Value(**value) for name, value in record["metrics"].items()}
    return Evaluation(values, record["protocol"], list(record["warnings"]), dict(record["missing"]))

"""A model drawn and judged at several weights of classifier-free guidance, the same seeds at each: what `percepta evaluate --guidance 1:4:0.25` does.

Each weight leaves its evaluation in a folder of its own below `out`. The same sweep again takes what lies there where the protocol of
the first weight, which is judged anew, says that it was made in the same way; images and features are found as those of any evaluation.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from percepta import distributed
from percepta.evaluation.evaluate import Evaluation, Given
from percepta.evaluation.sweep import Sweep, decisive, from_json
from percepta.judging import DRAWN, checked, evaluate, is_generator, save, told
from percepta.reports.figures import Words, curve_plots
from percepta.reports.names import spoken
from percepta.sampling import Drawing, Job
from percepta.training.folder import write_json

NAME = "sweep"  # .json, and the figure's name


def sweep(
    source: str | Path, real: Given, weights: Sequence[float], out: Path, job: Job | None = None, keep: bool = True,
    note: Callable[[str], None] = lambda text: None, check: Callable[[], None] = lambda: None, **options: Any,
) -> Sweep:  # fmt: skip
    """One evaluation for each weight; `options` are judging.evaluate's. `keep=False` takes nothing that an earlier sweep left in `out`."""
    if not is_generator(source):
        raise ValueError(f"a guidance sweep draws from a model; {source} is no run and no pipeline folder")
    job = replace(job or Job(source=Path(source), num=DRAWN), source=Path(source))
    real = checked(real, options, job)  # opened and hashed once
    job = told(job, real)
    Drawing(replace(job, guidance=next((weight for weight in weights if weight != 1), 1.0)))  # a model that cannot be guided
    found = _found(out, weights) if keep else {}
    points: dict[float, Evaluation] = {}
    for place, weight in enumerate(weights):
        if place and weight in found and _alike(found[weight], points[weights[0]]):
            note(f"guidance {weight:.10g}: judged already, in {folder_of(out, weight)}")
            points[weight] = found[weight]
            continue
        check()
        note(f"guidance {weight:.10g}, {place + 1} of {len(weights)}")
        judged = evaluate(source, real, replace(job, guidance=weight), note=note, check=check, **options)
        points[weight] = from_json(_plain(judged))
        if distributed.world().first:
            save(judged, folder_of(out, weight))
    return Sweep(str(source), points)


def folder_of(out: Path, weight: float) -> Path:
    return out / f"guidance-{weight:.10g}"


def save_sweep(found: Sweep, out: Path) -> Path:
    """sweep.json, and the curves as a figure that a report shows."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{NAME}.json", found.to_json())
    best = found.starred()
    curves = {
        _spoken(found, metric): {weight: (value.value, value.std) for weight, value in found.curve(metric).items()}
        for metric in found.metrics
    }
    told = ", ".join(
        f"{_spoken(found, metric)} {' and '.join(f'{w:g}' for w in best[metric])}" for metric in found.metrics if metric in best
    )
    drawn = found.summary().protocol["generated"].get("drawn", {})
    how = ", ".join(f"{key} {drawn[key]}" for key in ("sampler", "steps", "num", "seed") if key in drawn)
    words = Words(
        "Guidance sweep",
        f"Each metric against the weight of classifier-free guidance; 1 is none. {how}." + (f" Best at: {told}." if told else ""),
        f"{len(curves)} curves over {len(found.points)} weights: {', '.join(curves)}",
    )
    marks = {_spoken(found, metric): weights for metric, weights in best.items()}
    curve_plots(out / "figures", NAME, curves, words, "guidance", marks)
    return out / f"{NAME}.json"


def _spoken(found: Sweep, metric: str) -> str:
    """A metric's name as reports have it; no two of a sweep share one."""
    return spoken(metric, next(iter(found.curve(metric).values())).space)


def _plain(judged: Evaluation) -> dict[str, Any]:
    """As JSON gives it back, so that what was judged now and what was read are alike."""
    return json.loads(json.dumps(judged.to_json(), default=str))


def _found(out: Path, weights: Sequence[float]) -> dict[float, Evaluation]:
    """What an earlier sweep left, as rank 0 sees it: all ranks have to agree on what is done."""
    records: dict[str, Any] = {}
    if distributed.world().first:
        for weight in weights:
            try:
                records[repr(weight)] = json.loads((folder_of(out, weight) / "evaluation.json").read_text())
            except (OSError, ValueError):  # not there yet, or damaged: judged anew
                continue
    agreed = distributed.send_bytes(json.dumps(records).encode() if distributed.world().first else None, 0)
    found: dict[float, Evaluation] = {}
    for weight, record in json.loads(agreed).items():
        try:
            found[float(weight)] = from_json(record)
        except (KeyError, TypeError, AttributeError):  # something else of that name
            continue
    return found


def _alike(old: Evaluation, now: Evaluation) -> bool:
    """Whether an evaluation that lies there is what would be computed, but for its weight."""
    asked = [sorted([*one.metrics, *one.missing]) for one in (old, now)]
    try:
        return asked[0] == asked[1] and set(old.missing) == set(now.missing) and decisive(old.protocol) == decisive(now.protocol)
    except (KeyError, TypeError, AttributeError):
        return False

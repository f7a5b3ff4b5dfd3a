"""Lines of a run as charts: what is drawn in which chart, thinned so that a long run stays a small page.

A chart is a plain record that the page's own script draws: {"id", "title", "about", "unit", "log", "lines": [...]}, `log` where that axis fits; a line has x (steps),
y, and where it was thinned lo and hi, the least and greatest value of each stretch: no spike is lost. A gap (NaN, infinity) is None.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from percepta.reports.names import direction, hundredfold, parts, spoken
from percepta.reports.numbers import differences
from percepta.reports.players import NORM, SHARE, TRANSLATOR, Player, owner, players, worded
from percepta.reports.run import Judged, Run, number

POINTS = 400  # at most so many points a line, in a page of few runs
ALL_POINTS = 60_000  # and so many in all charts of a page
TERMS = 5  # colours of terms begin there, so that they are not taken for runs
NOT_TERMS = {"step", "images", "lr", "bad_steps"}
SPAN = 100  # times the least value: from there a curve is drawn on a logarithmic axis, unless the reader wants another
MEAN = "mean of the steps since the point before"

Chart = dict[str, Any]


def thin(x: Sequence[int], y: Sequence[float | None], most: int) -> dict[str, list[Any]]:
    """At most `most` points: the mean of each stretch between its least and greatest value."""
    if len(x) <= most:
        return {"x": list(x), "y": [rounded(v) for v in y]}
    out: dict[str, list[Any]] = {"x": [], "y": [], "lo": [], "hi": []}
    for k in range(most):
        part = slice(k * len(x) // most, (k + 1) * len(x) // most)
        known = [v for v in y[part] if v is not None]
        out["x"].append(x[part][-1])
        out["y"].append(rounded(sum(known) / len(known)) if known else None)
        out["lo"].append(rounded(min(known)) if known else None)
        out["hi"].append(rounded(max(known)) if known else None)
    return out


def rounded(value: float | None) -> float | None:
    """Five figures: more than a screen shows."""
    return None if value is None else float(f"{value:.5g}")


def line(run: int, name: str, records: Sequence[Mapping[str, Any]], key: str, most: int) -> dict[str, Any] | None:
    """One key of the records as a line; None where no record has a finite value of it."""
    there = [(r["step"], number(r[key]), r[key]) for r in records if key in r and isinstance(r["step"], int)]
    known = [(step, value) for step, value, _ in there if value is not None]
    if not known:
        return None
    least = min(known, key=lambda p: p[1])
    return {
        "run": run, "name": name, "gaps": len(there) - len(known), **thin([p[0] for p in there], [p[1] for p in there], most),
        "first": rounded(known[0][1]), "last": rounded(known[-1][1]), "least": rounded(least[1]), "least_at": least[0],
    }  # fmt: skip


def keys_of(runs: Sequence[Run], wanted: Callable[[str], bool]) -> list[str]:
    """Keys of all metric lines that `wanted` takes, in order of their first appearance."""
    return list(dict.fromkeys(key for run in runs for record in run.metrics for key in record if wanted(key)))


def training_charts(runs: Sequence[Run]) -> dict[str, list[Chart]]:
    """The charts of training by group: terms, what is told beside them, shares, optimizer, machine. Where a critic plays, `panels` has a group per
    player instead of terms and what is told: {"title", "about", "charts"}."""
    losses = keys_of(runs, lambda k: k not in NOT_TERMS and not k.startswith((NORM, SHARE)))
    told = [k for k in losses if k.startswith("weight/") or k.rpartition("/")[0] in losses]  # "structure/drift" beside "structure"
    terms = [k for k in losses if k not in told]
    norms, shares = keys_of(runs, lambda k: k.startswith(NORM)), keys_of(runs, lambda k: k.startswith(SHARE))
    lines = max(1, sum(len(run.metrics[-1]) if run.metrics else 1 for run in runs) + 2 * len(runs))
    most = max(40, min(POINTS, ALL_POINTS // (3 * lines)))
    cast = players(runs, losses)
    groups = {
        "panels": _panels(runs, cast, [*terms, *told, *norms], most),
        "terms": [] if cast else [_chart(runs, k, k, MEAN, "", most) for k in terms],
        "told": [] if cast else [_chart(runs, k, k, "" if k.startswith("weight/") else MEAN, "", most) for k in told],
        "shares": [_share_chart(run, shares, most) for run in runs] if shares else [],
        "optimizer": [
            *(
                []
                if cast
                else [_chart(runs, k, f"Gradient norm: {k.removeprefix(NORM)}", "before clipping", "", most) for k in norms]
            ),
            _chart(runs, "lr", "Learning rate", "", "", most),
            _chart(runs, "bad_steps", "Steps without a finite loss", "skipped so far", "", most),
        ],
        "machine": [
            _chart(runs, "images_per_s", "Throughput", "training only", "images/s", most, timing=True),
            _chart(runs, "memory_mib", "Memory", "at its highest", "MiB", most, timing=True),
        ],
    }
    return {group: [chart for chart in charts if chart.get("lines") or chart.get("charts")] for group, charts in groups.items()}


def _panels(runs: Sequence[Run], cast: Sequence[Player], keys: Sequence[str], most: int) -> list[dict[str, Any]]:
    """The charts of each player, under names that a reader knows; the note has the key of the log."""
    names, out = [player.name for player in cast], []
    for player in cast:
        charts = []
        for key in keys:
            if owner(key, names) == player.name:
                title, about = worded(key, all(run.recipe == TRANSLATOR for run in runs if any(key in one for one in run.metrics)))
                note = " ".join(part for part in (about, f"({key})" if title != key else "") if part)
                charts.append(_chart(runs, key, title, note, "", most))
        out.append({"title": player.title, "about": player.about, "charts": [chart for chart in charts if chart["lines"]]})
    return out


def _chart(runs: Sequence[Run], key: str, title: str, about: str, unit: str, most: int, timing: bool = False) -> Chart:
    drawn = [line(k, run.name, run.timing if timing else run.metrics, key, most) for k, run in enumerate(runs)]
    lines = [one for one in drawn if one]
    return {"id": key, "title": title, "about": about, "unit": unit, "log": key != "lr" and spans(lines), "lines": lines}


def spans(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a logarithmic axis fits: all is above zero, and the greatest value so many times the least."""
    values = [v for one in lines for part in ("lo", "y", "hi") for v in one.get(part, ()) if v is not None]
    return bool(values) and min(values) > 0 and max(values) > SPAN * min(values)


def _share_chart(run: Run, shares: Sequence[str], most: int) -> Chart:
    """One run's terms together: their shares add up to the whole gradient."""
    terms = [key.removeprefix(SHARE) for key in shares]
    named = {term: worded(term, run.recipe == TRANSLATOR)[0] for term in terms}
    drawn = [line(k + TERMS, named[term], run.metrics, SHARE + term, most) for k, term in enumerate(terms)]
    return {
        "id": f"share/{run.name}", "title": f"Share of the gradient: {run.name}", "about": "of each term, at the steps where it was measured",
        "unit": "share", "log": False, "lines": [one for one in drawn if one],
    }  # fmt: skip


def evaluation_charts(runs: Sequence[Run]) -> tuple[list[Chart], list[str]]:
    """A chart per metric over steps, where some run was evaluated at two or more (lo and hi are value -+ spread), and what to know of them."""
    dated, notes = [], []
    for run in runs:
        alike, others = comparable(run)
        dated.append(alike)
        if others:
            notes.append(f"{run.name}: {', '.join(others)} measured in another way, and not in these curves")
    decisive, _ = differences([alike[-1].protocol for alike in dated if alike])
    if decisive:
        notes.append(f"the runs were measured in different ways, so that their curves cannot be compared: {'; '.join(decisive)}")
    charts = []
    every = dict.fromkeys(name for alike in dated for judged in alike for name in judged.metrics)
    order = list(dict.fromkeys(parts(name)[:2] for name in every))
    for name in sorted(every, key=lambda name: (order.index(parts(name)[:2]), parts(name)[2])):  # both directions beside each other
        drawn = [one for k, run in enumerate(runs) if (one := _judged_line(k, run.name, dated[k], name))]
        if any(len(one["x"]) > 1 for one in drawn):
            spaces = {str(j.metrics[name].get("space") or "") for alike in dated for j in alike if name in j.metrics}
            space = spaces.pop() if len(spaces) == 1 else ""
            better = f"{direction(name)} is better" if direction(name) else ""
            charts.append(
                {
                    "id": f"evaluation/{name}",
                    "title": spoken(name, space),
                    "about": better,
                    "unit": "",
                    "log": spans(drawn),
                    "lines": drawn,
                }
            )
    return charts, notes


def comparable(run: Run) -> tuple[list[Judged], list[str]]:
    """Evaluations whose step is known, by step, as far as they were made like those of the training; and the names of the others."""
    dated = [j for j in (*run.judged, *run.during) if j.step is not None]
    if not dated:
        return [], []
    pattern = (run.during or dated)[-1].protocol
    alike = [j for j in dated if not differences([pattern, j.protocol])[0]]
    others = dict.fromkeys(j.label for j in dated if j not in alike)
    return [j for _, j in sorted({j.step: j for j in alike}.items())], list(others)


def _judged_line(place: int, run: str, dated: Sequence[Judged], name: str) -> dict[str, Any] | None:
    times = 100 if hundredfold(name) else 1
    found = [(j.step, number(j.metrics[name].get("value")), j.metrics[name]) for j in dated if name in j.metrics]
    points = [(step, None if value is None else times * value, told) for step, value, told in found]
    known = [(step, value) for step, value, _ in points if value is not None]
    if not known:
        return None
    spread = [number(p[2].get("std")) for p in points]
    out: dict[str, Any] = {"run": place, "name": run, "gaps": len(points) - len(known), "x": [p[0] for p in points]}
    out["y"] = [rounded(p[1]) for p in points]
    if any(s is not None for s in spread):
        for side, sign in (("lo", -1), ("hi", 1)):
            out[side] = [
                None if v is None else rounded(v + sign * times * (s or 0)) for (_, v, _), s in zip(points, spread, strict=True)
            ]
    out["marked"] = [bool(p[2].get("contaminated")) for p in points]
    least = min(known, key=lambda p: p[1])
    out |= {"first": rounded(known[0][1]), "last": rounded(known[-1][1]), "least": rounded(least[1]), "least_at": least[0]}
    return out

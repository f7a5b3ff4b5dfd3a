"""From what was asked to what is computed: which metrics in which spaces, which extractors they need, and what is missing for them."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from percepta.evaluation.metrics import DEFAULT, DIVERSITY, METRICS, NAMES, Metric
from percepta.evaluation.passes import Rows
from percepta.evaluation.sets import StatsFile
from percepta.spaces.extractor import EMBEDDING, Extractor, split_name


@dataclass(frozen=True)
class Wanted:
    """A metric in a space. `suffix` tells the same metric in several spaces apart: kid, kid@domain."""

    metric: Metric
    family: str
    layer: str
    suffix: str = ""

    @property
    def space(self) -> str:
        return space_name(self.family, self.layer)


def space_name(family: str, layer: str) -> str:
    """inception-768; clip, which has one layer."""
    return family if layer == EMBEDDING else f"{family}-{layer}"


@dataclass(frozen=True)
class Read:
    """What was read of one side, by space: rows of features, and statistics that were given instead of them."""

    rows: Mapping[str, Rows]
    statistics: Mapping[str, StatsFile]

    def of(self, want: Wanted) -> Rows | StatsFile | None:
        """None where the metric does not look at this side."""
        given = self.statistics.get(want.space) if want.metric.reads == "moments" else None
        return self.rows.get(want.space) if given is None else given


@dataclass
class Plan:
    """What will be computed. `missing`: key -> why not, a line each."""

    wanted: list[Wanted] = field(default_factory=list)
    extractors: dict[str, Extractor] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    diversity: bool = False

    def layers(self, generated: bool, known: Collection[str] = ()) -> dict[Extractor, list[str]]:
        """The layers to read of one side, by extractor. `known`: spaces of which this side's statistics are there already."""
        out: dict[Extractor, list[str]] = {}
        for want in self.wanted:
            if want.metric.reads == "moments" and want.space in known:
                continue
            if generated or want.metric.reads != "generated":
                layers = out.setdefault(self.extractors[want.family], [])
                if want.layer not in layers:
                    layers.append(want.layer)
        return out


def check_metrics(names: Sequence[str] | None) -> tuple[str, ...]:
    """The metrics by name; `all` is every one, `default` what is computed when nothing is asked."""
    if not names:
        return DEFAULT
    out: list[str] = []
    for name in names:
        group = {"all": NAMES, "default": DEFAULT}.get(name, (name,))
        for one in group:
            if one not in NAMES:
                near = difflib.get_close_matches(one, NAMES, 1)
                hint = f", did you mean {near[0]}?" if near else ""
                raise ValueError(f"there is no metric {one!r}{hint} Known: {', '.join(NAMES)}; all, default")
            if one not in out:
                out.append(one)
    return tuple(out)


def make_plan(
    metrics: Sequence[str], spaces: Sequence[str], open_family: Callable[[str, str | None], Extractor], statistics_only: bool
) -> Plan:
    """Open what is needed once per family. `open_family(family, layer)` raises ValueError, in one line, where weights are missing."""
    plan = Plan(diversity=DIVERSITY in metrics)
    failed: dict[tuple[str, str | None], str] = {}
    for name in metrics:
        if name == DIVERSITY:
            continue
        metric = METRICS[name]
        homes = list(spaces) if metric.movable and spaces else [metric.home]
        for number, spec in enumerate(homes):
            family, layer = split_name(spec)
            suffix = f"@{spec}" if number else ""
            keys = [f"{key}{suffix}" for key in metric.keys]
            if statistics_only and metric.reads not in ("moments", "generated"):
                plan.missing |= dict.fromkeys(keys, "needs images on both sides; one side holds statistics (mu, sigma) only")
                continue
            reason = _open(plan, failed, family, layer, open_family)
            if reason is not None:
                plan.missing |= dict.fromkeys(keys, reason)
                continue
            extractor = plan.extractors[family]
            plan.wanted.append(Wanted(metric, family, layer or extractor.default, suffix))
    return plan


def without_impossible(plan: Plan, fake: StatsFile | None, real: StatsFile | None) -> Plan:
    """The plan less what a side of statistics (None: it has images) cannot give; the reasons are added to what is missing."""
    kept = []
    for want in plan.wanted:
        reason = _impossible(want, plan.extractors[want.family], fake, real)
        if reason is None:
            kept.append(want)
        else:
            plan.missing |= {f"{key}{want.suffix}": reason for key in want.metric.keys}
    plan.wanted = kept
    return plan


def _impossible(want: Wanted, extractor: Extractor, fake: StatsFile | None, real: StatsFile | None) -> str | None:
    if want.metric.reads == "generated":
        return None if fake is None else f"needs images; {fake.name} holds statistics (mu, sigma) only"
    dims = extractor.layers[want.layer]
    for side in (fake, real):
        if side is not None and dims is not None and side.of(want.space).dims != dims:
            return (
                f"{side.name} holds statistics of {side.of(want.space).dims} features, {want.space} has {dims}: name the space they were "
                "made in (--space)"
            )
    return None


def _open(
    plan: Plan,
    failed: dict[tuple[str, str | None], str],
    family: str,
    layer: str | None,
    opener: Callable[[str, str | None], Extractor],
) -> str | None:
    """Why this layer cannot be had, or None: it is open now."""
    if (family, layer) in failed:
        return failed[family, layer]
    known = plan.extractors.get(family)
    if known is not None and (layer is None or layer in known.layers):
        return None
    try:
        plan.extractors[family] = opener(family, layer)
    except ValueError as error:
        failed[family, layer] = str(error)
        return str(error)
    layers: Mapping[str, int | None] = plan.extractors[family].layers
    if layer is not None and layer not in layers:
        raise ValueError(f"the space {family!r} has no layer {layer!r}; it has {', '.join(layers)}")
    return None

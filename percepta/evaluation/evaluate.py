"""evaluate(): two sets of images in, every metric out, with the protocol and the warnings that belong to them.

Features -> statistics -> value. One pass over each side feeds all extractors; rows are cached by content, so that a second evaluation, or
one that was interrupted, computes only what is not there.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from percepta import distributed
from percepta.data import Source
from percepta.evaluation.contamination import contaminated
from percepta.evaluation.diversity import DIVERSITY_SPACE, diversity_facts, lpips_diversity
from percepta.evaluation.metrics import DIALECTS, DIVERSITY, METRICS, Dialect, Value
from percepta.evaluation.passes import Rows, extract
from percepta.evaluation.plan import Plan, Read, Wanted, check_metrics, make_plan, space_name, without_impossible
from percepta.evaluation.protocol import protocol_of, warnings_of
from percepta.evaluation.sets import SPATIAL_SPACE, ImageSet, StatsFile, open_side, stored_statistics
from percepta.spaces.extractor import Extractor, open_extractor

Given = str | Path | np.ndarray | Source | ImageSet | StatsFile
Note = Callable[[str], None]
Progress = Callable[[str, int, int], None]  # what is read, images done, images in all


@dataclass(frozen=True)
class Evaluation:
    """The result. `missing`: metric -> why it could not be computed."""

    metrics: dict[str, Value]
    protocol: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        values = {name: {k: v for k, v in asdict(value).items() if v not in (None, "")} for name, value in self.metrics.items()}
        return {"metrics": values, "protocol": self.protocol, "warnings": self.warnings, "missing": self.missing}

    def __getitem__(self, name: str) -> float:
        return self.metrics[name].value


def evaluate(
    generated: Given,
    real: Given,
    *,
    metrics: Sequence[str] | None = None,
    spaces: Sequence[str] = (),
    dialect: str = "torch-fidelity",
    num: int | None = None,
    size: int | None = None,
    crop: str = "center-crop",
    on_bad: str = "error",
    precision: str = "fp32",
    device: str = "cpu",
    batch: int = 32,
    cache: Path | None = None,
    seed: int = 0,
    kid_subsets: int | None = None,
    kid_size: int | None = None,
    trained_against: Sequence[str] = (),
    drawn: Mapping[str, Any] | None = None,
    keep_rows: bool = True,
    note: Note = lambda text: None,
    check: Callable[[], None] = lambda: None,
    progress: Progress = lambda text, done, total: None,
) -> Evaluation:
    """All metrics of `generated` against `real`: folders, npz files, arrays [n, h, w, 3] of uint8, built-in sets, or opened sides.

    `spaces` moves fid, kid, pr and dc into other spaces (several: the later ones as kid@SPACE). `trained_against` names spaces that were
    training objectives: their metrics are marked, and one that is not stands beside them. `drawn` says how the images were made.
    `keep_rows=False` keeps no features of the generated side: nobody will ask for those of a moment in a training again.
    """
    how = make_dialect(dialect, kid_subsets, kid_size)
    names = check_metrics(metrics)
    fake = open_side(generated, size=size, crop=crop, num=num, on_bad=on_bad)
    reference = open_side(real, size=size, crop=crop, on_bad=on_bad)
    folder = cache or cache_folder()
    opener = Opener(how, precision, device, folder, reference, seed, note, check)
    statistics = [side if isinstance(side, StatsFile) else None for side in (fake, reference)]
    statistics_only = any(statistics)
    plan = make_plan(names, spaces or opener.usual(names), opener, statistics_only)
    _add_clean(plan, names, opener, trained_against, statistics_only)
    plan = without_impossible(plan, *statistics)
    if not plan.wanted and not plan.diversity:
        raise ValueError("no metric can be computed: " + "; ".join(dict.fromkeys(plan.missing.values())))
    how_read = Reading(folder, batch, how, note, check, progress)
    values: dict[str, Value] = {}
    with tempfile.TemporaryDirectory(prefix="percepta-") as passing:
        fake_read = how_read if keep_rows else replace(how_read, cache=Path(passing))
        read = [fake_read.side(fake, plan, True), how_read.side(reference, plan, False)]
        for want in plan.wanted:
            check()
            values |= _values(want, plan.extractors[want.family], read, how, trained_against)
        warnings = [*opener.warnings, *warnings_of(fake, reference, plan, how, read)]
    if plan.diversity:
        _add_diversity(plan, values, fake, seed, device, trained_against)
    if not values:
        raise ValueError("no metric can be computed: " + "; ".join(dict.fromkeys(plan.missing.values())))
    warnings += [*contamination_warnings(values), *plan.missing.values()]
    protocol = protocol_of(fake, reference, plan, how, drawn or {}, seed)
    if DIVERSITY in values:
        protocol["extractors"][DIVERSITY_SPACE] = diversity_facts(protocol["generated"]["count"])
    return Evaluation(values, protocol, list(dict.fromkeys(warnings)), plan.missing)


def make_dialect(name: str, kid_subsets: int | None = None, kid_size: int | None = None) -> Dialect:
    if name not in DIALECTS:
        raise ValueError(f"there is no dialect {name!r}; known: {', '.join(DIALECTS)}")
    for what, value, least in (("KID subsets", kid_subsets, 1), ("KID subset size", kid_size, 2)):
        if value is not None and value < least:
            raise ValueError(f"{what} must be at least {least}, got {value}")
    how = DIALECTS[name]
    return replace(how, kid_subsets=kid_subsets or how.kid_subsets, kid_size=kid_size or how.kid_size)


def cache_folder() -> Path:
    """PERCEPTA_CACHE, or the user's cache folder."""
    root = os.environ.get("PERCEPTA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "percepta"
    return Path(root).expanduser() / "features"


def domain_encoder(images: ImageSet, cache: Path, seed: int, note: Note, check: Callable[[], None]) -> Path:
    """The folder of the encoder of these images (the space `domain`), beside the cache of features: one and the same for who trains against it
    and who judges in it. Trained by the first rank; the others then find it, or are refused it for the same reason."""
    from percepta.spaces.domain import train_domain

    refused: list[ValueError] = []

    def train(note: Note) -> Path:
        return train_domain(images, cache.parent / "domain", seed, note=note, check=check, seen_as=images.seen_as)

    def first() -> Path | None:
        try:
            return train(note)
        except ValueError as error:  # the others are to meet it too: what needs this space is then left out on all ranks
            refused.append(error)
            return None

    made = distributed.by_first(first, "while the domain encoder was trained")
    if refused:
        raise refused[0]
    return made or train(lambda text: None)


class Opener:
    """Opens extractors for one evaluation; trains the `domain` space on the reference when it is asked for."""

    def __init__(
        self,
        how: Dialect,
        precision: str,
        device: str,
        cache: Path,
        reference: ImageSet | StatsFile,
        seed: int,
        note: Note,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.how, self.precision, self.device, self.cache = how, precision, device, cache
        self.reference, self.seed, self.note, self.check = reference, seed, note, check
        self.warnings: list[str] = []

    def __call__(self, family: str, layer: str | None) -> Extractor:
        domain = self._domain() if family == "domain" else None
        extractor = open_extractor(family, self.how.name, self.precision, self.device, domain, layers=(layer,) if layer else ())
        if extractor.weights == "random":
            raise ValueError(f"the space {family!r} has random weights, which no metric is reported in")
        return extractor

    def _domain(self) -> Path:
        if isinstance(self.reference, StatsFile):
            raise ValueError("the space 'domain' is trained on the reference images; statistics have none")
        return domain_encoder(self.reference, self.cache, self.seed, self.note, self.check)

    def usual(self, metrics: Sequence[str]) -> tuple[str, ...]:
        """The spaces when none is asked for: Inception's 2048 features, as far as its weights reach, else the user's own domain."""
        if not any(METRICS[name].movable for name in metrics if name in METRICS):
            return ()
        reasons = []
        for layer in ("2048", "768"):
            try:
                self("inception", layer)
            except ValueError as error:
                reasons.append(str(error))
                continue
            if reasons:
                self.warnings.append(f"{reasons[0]}; inception-{layer} is used instead")
            return (f"inception-{layer}",)
        self.warnings.append(f"{reasons[0]}; a space trained on the reference images (domain) is used instead")
        return ("domain",)


@dataclass(frozen=True)
class Reading:
    """How the sides are read."""

    cache: Path
    batch: int
    how: Dialect
    note: Note
    check: Callable[[], None]
    progress: Progress

    def side(self, side: ImageSet | StatsFile, plan: Plan, generated: bool) -> Read:
        """What the wanted metrics need of this side."""
        moments = [want for want in plan.wanted if want.metric.reads == "moments"]
        if isinstance(side, StatsFile):
            return Read({}, {want.space: side.of(want.space) for want in moments})
        stored = stored_statistics(side, self.how.stored)
        known = {want.space: stored.of(want.space) for want in moments if stored is not None and _fits(stored, want, plan)}

        def progress(done: int, total: int) -> None:
            self.progress(side.name, done, total)

        found = extract(side, plan.layers(generated, known), self.cache, self.batch, progress, self.note, self.check)
        return Read({space_name(family, layer): rows for (family, layer), rows in found.items()}, known)


def _fits(stored: StatsFile, want: Wanted, plan: Plan) -> bool:
    """Whether statistics that lie beside images are those of this space: ADM's files have them for FID and sFID."""
    dims = plan.extractors[want.family].layers[want.layer]
    return want.space in ("inception-2048", SPATIAL_SPACE) and stored.of(want.space).dims == dims


def _values(want: Wanted, extractor: Extractor, read: Sequence[Read], how: Dialect, trained: Sequence[str]) -> dict[str, Value]:
    fake, real = (one.of(want) for one in read)
    _check_sizes(fake, real, want, extractor)
    marked = contaminated(identified(want, extractor), trained)
    return {
        f"{key}{want.suffix}": Value(value, want.space, std, marked)
        for key, (value, std) in want.metric.compute(fake, real, how).items()
    }


def _check_sizes(fake: Any, real: Any, want: Wanted, extractor: Extractor) -> None:
    """In a space whose rows follow the image's size, both sides need the same."""
    if extractor.layers[want.layer] is not None or not (isinstance(fake, Rows) and isinstance(real, Rows)):
        return
    dims = [next(side.parts()).shape[1] for side in (fake, real)]
    if dims[0] != dims[1]:
        raise ValueError(
            f"the images of both sides differ in size, {dims[0]} and {dims[1]} features in {want.space}; bring both to one (--size)"
        )


def identified(want: Wanted, extractor: Extractor) -> str:
    """The space, and for `domain`, of which there is one per set of images, which one."""
    return f"domain:{extractor.weights[:12]}" if want.family == "domain" else want.space


def _add_clean(plan: Plan, names: Sequence[str], opener: Opener, trained: Sequence[str], statistics_only: bool) -> None:
    """Where every space was trained against, one that was not stands beside: the first whose weights are here."""
    spaces = {identified(want, plan.extractors[want.family]) for want in plan.wanted if want.metric.movable}
    if not spaces or not all(contaminated(space, trained) for space in spaces):
        return
    for spec in ("inception-2048", "dinov2", "clip", "inception-768", "domain"):
        if contaminated(spec, trained) or (spec == "domain" and statistics_only):
            continue
        beside = make_plan([name for name in names if name in METRICS and METRICS[name].movable], [spec], opener, statistics_only)
        if beside.wanted:
            plan.extractors |= beside.extractors
            plan.wanted += [replace(want, suffix=f"@{spec}") for want in beside.wanted]
            return


def _add_diversity(
    plan: Plan, values: dict[str, Value], fake: ImageSet | StatsFile, seed: int, device: str, trained: Sequence[str]
) -> None:
    if isinstance(fake, StatsFile):
        plan.missing[DIVERSITY] = "needs images; the generated side holds statistics only"
        return
    try:
        value = lpips_diversity(fake.read, len(fake), seed=seed, device=device)
    except ValueError as error:
        plan.missing[DIVERSITY] = str(error)
        return
    values[DIVERSITY] = Value(value, DIVERSITY_SPACE, None, contaminated(DIVERSITY_SPACE, trained))


def contamination_warnings(values: Mapping[str, Value]) -> list[str]:
    marked = [name for name, value in values.items() if value.contaminated]
    if not marked:
        return []
    clean = [name for name, value in values.items() if not value.contaminated]
    beside = f"; not trained against: {', '.join(clean)}" if clean else "; nothing that it was not trained against stands beside"
    return [f"trained against, and so no evidence of quality: {', '.join(marked)}{beside}"]

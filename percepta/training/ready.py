"""Whether the evaluations of a run can be made, found out before its first step and not at step N.

The networks are tried on an image of the run's size, the images are counted, and the reference is read as a whole: it is read once in any
case, and the first evaluation finds its features in the cache.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from percepta.evaluation.evaluate import Opener, Reading, make_dialect
from percepta.evaluation.metrics import DIVERSITY, Dialect
from percepta.evaluation.plan import Plan, make_plan, without_impossible
from percepta.evaluation.sets import ImageSet, StatsFile
from percepta.training.evaluating import DIALECT, untouched
from percepta.training.product import Check
from percepta.training.settings import Settings

BATCH = 32  # images through a network together, as evaluate() takes them
Side = ImageSet | StatsFile


def planned(
    real: Side, metrics: Sequence[str], spaces: tuple[str, ...], settings: Settings, device: torch.device, cache: Path,
    note: Callable[[str], None], check: Check,
) -> tuple[Plan, tuple[str, ...]]:  # fmt: skip
    """What is computed against one reference, and in which spaces: the usual ones, where none were asked for. ValueError where some cannot be."""
    opener = Opener(make_dialect(DIALECT), "fp32", str(device), cache, real, settings.seed, note, check)
    with untouched(device):  # the space `domain` may be trained here
        spaces = spaces or opener.usual(metrics)
        plan = make_plan(metrics, spaces, opener, isinstance(real, StatsFile))
    if isinstance(real, StatsFile):
        plan = without_impossible(plan, None, real)
    plan.missing |= diversity_missing(plan, settings.size)
    if plan.missing:
        raise ValueError(f"--eval-metrics {settings.eval_metrics} cannot all be computed: " + "; ".join(
            f"{name}: {why}" for name, why in plan.missing.items()))  # fmt: skip
    for warning in dict.fromkeys(opener.warnings):
        note(f"evaluation: {warning}")
    return plan, spaces


def make_sure(
    plan: Plan, real: Side, made: int, settings: Settings, cache: Path, note: Callable[[str], None], check: Check
) -> None:
    """ValueError for whatever an evaluation by this plan would stop at. `made`: images on the other side. `check` may raise to leave."""
    how = make_dialect(DIALECT)
    dims = try_networks(plan, settings.size)
    if isinstance(real, StatsFile):
        for want in plan.wanted:
            held = real.of(want.space).dims
            if want.metric.reads != "generated" and dims[want.space] != held:
                raise ValueError(
                    f"--eval-data {real.name} holds statistics of {held} features, {want.space} has {dims[want.space]}: name the space they "
                    "were made in (--eval-space)"
                )
        return
    check_counts(plan, how, made, len(real))
    Reading(cache, BATCH, how, note, check, lambda text, done, total: None).side(real, plan, False)
    check_counts(plan, how, made, len(real))  # those that can be read


def try_networks(plan: Plan, size: int) -> dict[str, int]:
    """Every space reads an image of the run's size; the dimensions it gives."""
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    found = {extractor: extractor(image, layers) for extractor, layers in plan.layers(True).items()}
    return {want.space: found[plan.extractors[want.family]][want.layer].shape[1] for want in plan.wanted}


def check_counts(plan: Plan, how: Dialect, made: int, real: int) -> None:
    """Neighbours need as many rows and one more: a row is not its own."""
    for want in plan.wanted:
        least = {"pr": how.neighbours + 1, "dc": how.close + 1}.get(want.metric.name, 2)
        if real < least and want.metric.reads != "generated":
            raise ValueError(
                f"{want.metric.name} needs at least {least} reference images, got {real}: see --eval-data, --eval-metrics"
            )
        if made < least and want.metric.name != "dc":
            raise ValueError(f"{want.metric.name} needs at least {least} generated images, got {made}: raise --eval-num")


def diversity_missing(plan: Plan, size: int) -> dict[str, str]:
    """Why the diversity cannot be computed, if it is asked for and cannot."""
    if not plan.diversity:
        return {}
    from percepta.spaces.lpips import Lpips

    try:
        Lpips("alex").reads.check(torch.zeros(1, 3, size, size), "LPIPS diversity")
    except ValueError as error:
        return {DIVERSITY: str(error)}
    return {}

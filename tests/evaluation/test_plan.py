"""From what was asked to what is computed: names, spaces, one extractor per family, and the reason for whatever cannot be had."""

import pytest
import torch

from percepta.discrepancies.frechet import Gaussian
from percepta.evaluation.metrics import DEFAULT, DIVERSITY, NAMES
from percepta.evaluation.plan import Read, check_metrics, make_plan, without_impossible
from percepta.evaluation.sets import StatsFile
from percepta.spaces.extractor import Extractor

DIMS = {"64": 64, "768": 768, "2048": 2048, "logits": 1008, "spatial": 2023}


class Opening:
    def __init__(self, gone=()):
        self.gone, self.asked = gone, []

    def __call__(self, family, layer):
        self.asked.append((family, layer))
        if layer in self.gone or family in self.gone:
            raise ValueError(f"{family} {layer} is missing")
        layers = DIMS if family == "inception" else {"embedding": None if family == "pixels" else 512}
        layers = {k: d for k, d in layers.items() if k not in self.gone}
        return Extractor(family, layers, next(iter(layers)), "none", "a" * 64, lambda images, names: {})


def keys(plan):
    return [f"{key}{want.suffix} in {want.space}" for want in plan.wanted for key in want.metric.keys]


def test_names_are_checked_and_groups_are_opened():
    assert check_metrics(None) == check_metrics(()) == check_metrics(("default",)) == DEFAULT
    assert check_metrics(("all",)) == NAMES
    assert check_metrics(("kid", "default", "kid")) == ("kid", "fid", "sfid", "is", "pr", "dc")
    with pytest.raises(ValueError, match=r"there is no metric 'FIDD'.*Known: fid, sfid"):
        check_metrics(("FIDD",))
    with pytest.raises(ValueError, match="did you mean cmmd"):
        check_metrics(("cmd",))


def test_a_family_is_opened_once_however_many_metrics_read_it():
    opening = Opening()
    plan = make_plan(NAMES, ("inception-2048",), opening, False)
    assert [family for family, _ in opening.asked] == ["inception", "clip", "dinov2", "clip-l"]
    assert plan.diversity
    assert plan.missing == {}
    assert [sorted(layers) for layers in plan.layers(True).values()] == [["2048", "logits", "spatial"], ["embedding"], ["embedding"], ["embedding"]]  # fmt: skip
    real = next(layers for extractor, layers in plan.layers(False).items() if extractor.name == "inception")
    assert sorted(real) == ["2048", "spatial"]  # the Inception Score looks at one side


def test_spaces_move_movable_metrics_only():
    plan = make_plan(("fid", "is", "clip-fd"), ("pixels", "inception-64"), Opening(), False)
    assert keys(plan) == ["fid in pixels", "fid@inception-64 in inception-64", "is in inception-logits", "clip-fd in clip"]
    assert not make_plan((DIVERSITY,), (), Opening(), False).wanted


def test_what_is_missing_has_its_reason_and_is_asked_once():
    opening = Opening(gone=("logits", "clip"))
    plan = make_plan(("fid", "pr", "is", "clip-fd"), ("clip", "inception-64"), opening, False)
    assert keys(plan) == ["fid@inception-64 in inception-64", "precision@inception-64 in inception-64", "recall@inception-64 in inception-64"]  # fmt: skip
    reasons = {"is": "inception logits is missing", "clip-fd": "clip embedding is missing"}
    assert plan.missing == dict.fromkeys(("fid", "precision", "recall"), "clip None is missing") | reasons
    assert opening.asked.count(("clip", None)) == 1


def statistics(dims, spatial=None):
    made = [None if d is None else Gaussian(torch.zeros(d).double(), torch.eye(d).double()) for d in (dims, spatial)]
    assert made[0] is not None
    return StatsFile("stats.npz", "f" * 64, made[0], None, made[1])


def planned(fake, real):
    return without_impossible(make_plan(("fid", "sfid", "is", "kid"), ("inception-2048",), Opening(), True), fake, real)


def test_statistics_leave_what_they_can_give():
    plan = planned(None, statistics(2048))
    assert keys(plan) == ["fid in inception-2048", "is in inception-logits"]
    assert sorted(plan.missing) == ["kid", "sfid"]
    assert "holds statistics of 2048 features, inception-spatial has 2023" in plan.missing["sfid"]
    assert keys(planned(None, statistics(2048, 2023))) == ["fid in inception-2048", "sfid in inception-spatial", "is in inception-logits"]  # fmt: skip
    assert keys(planned(statistics(2048, 2023), None)) == ["fid in inception-2048", "sfid in inception-spatial"]
    assert keys(planned(statistics(2048), statistics(2048, 2023))) == ["fid in inception-2048"]
    assert keys(planned(statistics(768), None)) == []


def test_given_statistics_stand_for_rows_in_frechet_distances_only():
    plan = make_plan(("fid", "kid"), ("inception-2048",), Opening(), False)
    given = statistics(2048)
    read = Read({}, {"inception-2048": given})
    assert [read.of(want) is given for want in plan.wanted] == [True, False]
    assert plan.layers(False, {"inception-2048"})  # KID needs the images all the same
    assert not make_plan(("fid",), ("inception-2048",), Opening(), False).layers(False, {"inception-2048"})

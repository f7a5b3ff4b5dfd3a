"""Plans of the studies as of a machine that has all weights: for the tests of this folder that read them."""

from pathlib import Path

import pytest

from percepta import judging
from percepta.studies import _casdm, _mmd, _probes, _sadm, sadm_table4, studies
from percepta.studies.engine.plan import make_plan
from percepta.studies.engine.store import Store

STUDIES = studies()
LPL = ["lpl-table5", "lpl-table6", "lpl-table7", "lpl-fig14-18", "lpl-fig19", "lpl-fig20"]
LOOKS = ["lpl-fig11", "lpl-fig12", "lpl-fig13"]  # at an autoencoder, which is given at the paper's scale


@pytest.fixture(autouse=True)
def all_weights(monkeypatch):
    """Plans as of a machine that has all weights, unless a test says otherwise."""
    monkeypatch.setattr(_mmd, "has_weights", lambda name: True)
    monkeypatch.setattr(_casdm, "has_weights", lambda name: True)
    monkeypatch.setattr(_probes, "has_weights", lambda name: True)
    monkeypatch.setattr(_sadm, "has_weights", lambda name: True)
    monkeypatch.setattr(
        judging, "is_translator", lambda given: "train-ladiffgan-" in given
    )  # runs that a plan names are nowhere yet


def plan_of(name, scale="pocket", seeds=2, **given):
    data = {} if scale == "pocket" else {"data": "./cifar10"}
    data |= {"init": "./vae"} if scale == "paper" and name in (*LOOKS, *LPL, "sadm-table2", "sadm-table4") else {}
    data |= (
        {"targets": tuple(f"{name}=./{name}" for name in sadm_table4.NAMES)} if scale == "paper" and name == "sadm-table4" else {}
    )
    return make_plan(STUDIES[name], STUDIES[name].at(scale, **(data | given)), range(seeds))


def words_of(name, scale="pocket"):
    store = Store(Path("DIR"))  # never opened
    return [store.words(job) for job in plan_of(name, scale).jobs]

"""The studies of SADM by their plans: as many images in every row, judges that no row was trained in, numbers as printed."""

from itertools import pairwise

import pytest
from plans import STUDIES, all_weights, plan_of, words_of  # noqa: F401  (all_weights is for all tests here)

from percepta.cli.train import read
from percepta.recipes import recipes
from percepta.studies import _common, _sadm, sadm_table4
from percepta.studies.engine.study import Job

SADM = [name for name in STUDIES if name.startswith("sadm")]


def test_the_printed_averages_of_sadm_table_4_are_those_of_their_rows():
    """So that a digit that was copied wrong is seen."""
    rows = [row for row in STUDIES["sadm-table4"].rows if row.paper]
    assert len(rows) == 8
    for row in rows:
        *eight, average = row.paper[3:]
        assert sum(eight) / 8 == pytest.approx(average, abs=0.0064), row.label


def flags_of(words, leave):
    return {k: v for k, v in pairwise(words) if str(k).startswith("--") and k not in leave}


@pytest.mark.parametrize("name", ["sadm-table2", "sadm-table3", "sadm-table5", "sadm-fig6", "sadm-ablation"])
@pytest.mark.parametrize("scale", ["pocket", "paper"])
def test_rows_of_sadm_see_as_many_images_and_differ_in_their_structure(name, scale):
    own = {"--space", "--structure-weight", "--structure-share", "--times-per", "--relation", "--distance", "--seed", "--sat-steps", "--rounds", "--critic-lr",
           "--steps", "--batch", "--conditional", "--size", "--preset"}  # fmt: skip
    trained = [job for job in plan_of(name, scale).jobs if job.words[:2] == ("train", "sadm")]
    starts = {job.words[job.words.index("--init") + 1].key for job in trained if "--init" in job.words and scale == "pocket"}
    assert len(starts) <= (2 if name == "sadm-table3" else 1)  # with labels and without
    jobs = [job for job in trained if job.key not in starts]
    assert jobs and len({tuple(flags_of(job.words, {*own, "--init"}).items()) for job in jobs}) == 1
    seen = set()
    for job in jobs:
        words = [word if isinstance(word, str) else "PATH" for word in job.words[2:]]
        recipe, settings = (lambda recipe, settings: recipe.settled(settings))(*read(recipes()["sadm"], words))
        seen.add(settings.steps * settings.batch)
        assert recipe.rounds * (recipe.sg_steps + recipe.sat_steps) == settings.steps
        assert (recipe.structure_weight != 0) == ("--space" in job.words)
    whole = max(seen)
    parts = {"sadm-fig6": (0.25, 0.5, 1)}.get(name, (1,))
    assert all(min(abs(count / whole - part) for part in parts) < 0.01 for count in seen), seen


def test_the_space_that_judges_sadm_is_none_that_it_was_trained_in():
    for name in SADM:
        for words in words_of(name):
            if words[:2] == ["train", "sadm"] and "--space" in words:
                seed, space = (words[words.index(flag) + 1] for flag in ("--seed", "--space"))
                assert space != "domain" or seed != str(_common.JUDGE)


def test_table_4_brings_one_model_to_each_target():
    plan = plan_of("sadm-table4")
    tuned = [job for job in plan.jobs if job.words[:2] == ("train", "sadm") and "--init" in job.words]
    bases = {job.words[job.words.index("--init") + 1].key for job in tuned}
    assert len(bases) == 1 and len(tuned) == 9 * 2 * 2
    data = {job.words[job.words.index("--data") + 1] for job in tuned}
    assert data == set(sadm_table4.TARGETS)
    for job in plan.jobs:  # each is judged against its own target
        if job.words[0] == "evaluate" and isinstance(job.words[1], Job):
            trained = job.words[1].words[1]
            assert job.words[2] == trained.words[trained.words.index("--data") + 1]
    one = plan_of("sadm-table4", targets=("./flowers", "cars=./cars"))
    why = {cell.column.label: cell.why for cell in one.rows[0] if not cell.readings}
    assert set(why) == {"second target", *sadm_table4.NAMES, "average"} - {"cars"}
    own = plan_of("sadm-table4", data="./mine")
    assert all("--target" in cell.why or "average" in cell.why for cell in own.rows[0])


def test_sadm_without_weights_trains_in_an_encoder_of_the_data(monkeypatch):
    monkeypatch.setattr(_sadm, "has_weights", lambda name: False)
    missing = {cell.row.label for cell in plan_of("sadm-ablation").cells if not cell.readings}
    assert missing == {"Psi: AlexNet"}
    assert all(cell.readings for cell in plan_of("sadm-table5").cells if cell.row.make is not None)
    assert not any(
        "weights of inception-logits" not in cell.why
        for cell in plan_of("sadm-table2").cells
        if cell.row.make and cell.column.place == "metrics.is" and cell.column.setting == 256
    )

"""The studies of LaDiffGAN by their plans: equal budgets, phases trained once, no pair of images where anything is trained, numbers as printed."""

import pytest

from percepta.data import open_source
from percepta.data.domains import find_domains
from percepta.studies import _ladiffgan, studies
from percepta.studies.engine.plan import make_plan
from percepta.studies.engine.running import Outcome
from percepta.studies.engine.store import Store, content
from percepta.studies.engine.study import SCALES, Job
from percepta.studies.engine.table import make_table

STUDIES = {name: study for name, study in studies().items() if name.startswith("ladiffgan")}
TABLE, ABLATION, SAMPLES = (f"ladiffgan-{name}" for name in ("table1", "ablation", "samples"))


def plan_of(name, scale="pocket", seeds=2, **given):
    data = {} if scale == "pocket" else {"data": "./selfie2anime"}
    return make_plan(STUDIES[name], STUDIES[name].at(scale, **(data | given)), range(seeds))


def words_of(plan, *begin):
    return [job.words for job in plan.jobs if job.words[: len(begin)] == begin]


def after(words, flag):
    return words[words.index(flag) + 1]


@pytest.fixture
def pair(tmp_path):
    """A folder of two domains, with test sets."""
    for part in ("trainA", "trainB", "testA", "testB"):
        folder = tmp_path / "pair" / part
        folder.mkdir(parents=True)
        for k in range(2):
            _picture(folder / f"{k}.png", hash(part) % 200 + k)
    return tmp_path / "pair"


def _picture(path, level):
    from PIL import Image

    Image.new("RGB", (8, 8), (level, 0, 0)).save(path)


def test_all_three_are_there():
    assert set(STUDIES) == {TABLE, ABLATION, SAMPLES}


@pytest.mark.parametrize(
    ("label", "numbers"),
    [
        ("U-GAT-IT", (94.5116, 2.62, 111.573, 1.57)),
        ("LaDiffGAN (U-GAT-IT)", (91.6198, 1.97, 111.457, 1.52)),
        ("UNIT", (116.813, 5.14, 137.740, 4.04)),
        ("LaDiffGAN (UNIT)", (109.164, 4.33, 137.739, 4.42)),
    ],
)
def test_numbers_as_printed(label, numbers):
    study = STUDIES[TABLE]
    printed = {row.label: row.paper for row in study.rows}[label]
    found = {(column.label, column.setting): value for column, value in zip(study.columns, printed, strict=True)}
    for (metric, way), number in zip(
        [("FID", "A→B"), ("KID x100", "A→B"), ("FID", "B→A"), ("KID x100", "B→A")], numbers, strict=True
    ):
        assert found.pop((f"{metric}, {way}", None)) == number
    assert set(found.values()) == {None}, "the paper has no truth, and one pair of domains in this table"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", [TABLE, ABLATION])
def test_rows_have_one_budget_but_for_what_they_compare(name, scale):
    trained = words_of(plan_of(name, scale), "train", "ladiffgan")
    kinds = {after(words, "--generator") for words in trained}
    assert kinds == (
        {"ugatit"} if name == ABLATION else {"ugatit", "unit"} if scale == "pocket" else {"ugatit", "unit", "munit", "cyclegan"}
    )
    shared = {
        tuple(
            after(words, flag)
            for flag in ("--source", "--size", "--steps", *(("--batch", "--lr", "--channels") if scale == "pocket" else ()))
        )
        for words in trained
    }
    assert len(shared) == 1
    assert {after(words, "--seed") for words in trained} == {"0", "1"}


def test_phases_are_trained_once_for_all_rows_seeds_and_studies():
    jobs = {job.key: job for name in STUDIES for job in plan_of(name, seeds=3).jobs}
    counted = {
        kind: [job for job in jobs.values() if job.words[:2] == ("train", kind)] for kind in ("autoencoder", "prior", "ddpm")
    }
    assert {kind: len(found) for kind, found in counted.items()} == {"autoencoder": 2, "prior": 2, "ddpm": 2}
    assert {after(job.words, "--seed") for found in counted.values() for job in found} == {"0"}
    for prior in counted["prior"]:  # its own domain's autoencoder first
        own, other = (after(prior.words, flag) for flag in ("--own", "--other"))
        assert isinstance(own, Job) and isinstance(other, Job) and own is not other
        assert after(own.words, "--data") == after(prior.words, "--data") != after(other.words, "--data")


def test_a_translator_gets_the_phases_of_its_losses_and_no_others():
    def given(label):
        (cells,) = [cells for cells in plan_of(ABLATION, seeds=1).rows if cells[0].row.label == label]
        run = next(word for word in cells[0].readings[0].job.words if isinstance(word, Job))
        return {w for w in run.words if isinstance(w, str) and w.startswith(("--autoencoder-", "--prior-", "--features-"))}

    coders, priors, features = ({f"--{what}-a", f"--{what}-b"} for what in ("autoencoder", "prior", "features"))
    assert given("no supervision") == given("Diffusion-GAN") == set()
    assert given("latent GAN alone") == coders
    assert given("denoising alone") == given("denoising C: score distillation, alone") == priors
    assert given("both: LaDiffGAN") == coders | priors
    assert given("latent GAN B: matched features, alone") == coders | features


def test_each_phase_is_handed_on_to_its_own_domain():
    for words in words_of(plan_of(ABLATION), "train", "ladiffgan"):
        sets = find_domains(after(words, "--source"))
        for what in ("autoencoder", "prior", "features"):
            for domain, data in (("a", sets.train_a), ("b", sets.train_b)):
                if f"--{what}-{domain}" in words:
                    assert after(after(words, f"--{what}-{domain}").words, "--data") == data


def test_no_training_sees_a_pair_or_a_test_image():
    plan = plan_of(TABLE)
    sets = find_domains(STUDIES[TABLE].at("pocket").data)
    assert sets.pairing == "scenes", "the truth is known to the judgement"
    for words in words_of(plan, "train"):
        assert not {sets.test_a, sets.test_b} & set(words)
    a, b = (open_source(data, 32) for data in (sets.train_a, sets.train_b))
    scenes = [{(int(s.shape[0]), float(s.x[0]), float(s.angle[0])) for s in (x.attributes([k]) for k in range(50))} for x in (a, b)]
    assert not scenes[0] & scenes[1]


def test_translations_are_judged_both_ways_at_once_and_sets_are_yardsticks():
    plan = plan_of(TABLE, seeds=1)
    rows = {
        cells[0].row.label: dict(zip([c.place for c in STUDIES[TABLE].columns if c.setting is None], cells, strict=False))
        for cells in plan.rows
    }
    own = rows["U-GAT-IT"]
    assert len({cell.readings[0].job for place, cell in own.items() if place.startswith("metrics.")}) == 1
    sets = find_domains(STUDIES[TABLE].at("pocket").data)
    still, best = rows["not translated"], rows["other images of the target"]
    for place, images, ideal, real in (
        ("metrics.fid/a2b", sets.test_a, sets.train_b, sets.test_b),
        ("metrics.kid/b2a", sets.test_b, sets.train_a, sets.test_a),
    ):
        for row, expected in ((still, images), (best, ideal)):
            (reading,) = row[place].readings
            assert reading.job.words[1:3] == (expected, real) and reading.place == place.partition("/")[0]
    assert all("nothing was" in cell.why for place, cell in still.items() if not place.startswith(("metrics.fid", "metrics.kid")))


def test_encoders_of_both_references_are_trained_before_translations_are_judged():
    sets = find_domains(STUDIES[TABLE].at("pocket").data)
    for job in plan_of(TABLE).jobs:
        if job.words[0] == "evaluate" and isinstance(job.words[1], Job):
            assert {each.words[2] for each in job.after} == {sets.test_a, sets.test_b}
            assert all(after(each.words, "--seed") == after(job.words, "--seed") for each in job.after)


def test_a_second_pair_of_domains(pair):
    without = plan_of(TABLE)
    second = [k for k, column in enumerate(STUDIES[TABLE].columns) if column.setting == _ladiffgan.SECOND]
    assert len(second) == 6 and all("--target" in cells[k].why for cells in without.rows for k in second)
    plan = plan_of(TABLE, targets=(str(pair),))
    own = {job.key for job in without.jobs}
    new = [job for job in plan.jobs if job.key not in own]
    assert own < {job.key for job in plan.jobs}
    assert {after(job.words, "--source") for job in new if job.words[:2] == ("train", "ladiffgan")} == {str(pair)}
    assert {after(job.words, "--data") for job in new if job.words[:2] == ("train", "prior")} == {
        str(pair / "trainA"),
        str(pair / "trainB"),
    }


def test_a_folder_of_two_domains_is_known_by_all_of_its_sets(pair, tmp_path):
    before = content(str(pair), 8)
    assert len(before.split()) == 4 and content(str(pair / "trainA"), 8) == before.split()[0]
    _picture(pair / "testB" / "new.png", 7)
    assert content(str(pair), 8).split()[:3] == before.split()[:3] and content(str(pair), 8) != before
    at = STUDIES[TABLE].at("pocket", data=str(pair), size=8)
    store = Store(tmp_path / "studies")
    store.open(at)
    store.close()
    _picture(pair / "trainA" / "new.png", 7)
    with pytest.raises(ValueError, match="fingerprint"):
        Store(tmp_path / "studies").open(at)


def test_what_does_not_fit_says_so(pair):
    for given, told in (({"init": "./pipeline"}, "--init"), ({"held_out": "./others"}, "--held-out")):
        plan = plan_of(TABLE, **given)
        assert not plan.jobs and all(told in cell.why for cell in plan.cells)
    (pair / "testB").rename(pair / "testC")
    plan = plan_of(TABLE, data=str(pair))
    judged = [cell for cell in plan.cells if cell.column.setting is None and cell.column.place.startswith("metrics.")]
    assert judged and all("testA/ and testB/" in cell.why or "nothing was" in cell.why for cell in judged)


def test_kid_is_told_a_hundredfold(store):
    plan = plan_of(TABLE, seeds=1)
    run = plan.rows[0][0].readings[0].job
    values = {"fid/a2b": {"value": 3.0}, "kid/a2b": {"value": 0.02}, "fid/b2a": {"value": 4.0}, "kid/b2a": {"value": 0.5}}
    table = make_table(
        plan, store, Outcome({run.key: {"seconds": 1.0, "result": {"metrics": values, "missing": {"psnr/a2b": "no pairs"}}}})
    )
    shown = {
        c["label"]: cell
        for c, cell in zip(table["columns"], table["rows"][0]["cells"], strict=True)
        if c["group"] != _ladiffgan.OTHER
    }
    assert [shown[f"{name}, A→B"]["mean"] for name in ("FID", "KID x100")] == pytest.approx([3.0, 2.0])
    assert shown["KID x100, B→A"]["mean"] == pytest.approx(50.0)
    assert shown["PSNR, A→B"]["why"] == "no pairs"


def test_yardsticks_have_as_many_images_as_are_translated_and_their_crop(pair):
    for k in range(5):
        _picture(pair / "trainB" / f"more-{k}.png", k)
    at = STUDIES[TABLE].at("paper", data=str(pair))
    sets = find_domains(str(pair))
    words = _ladiffgan.compared(at, sets.train_b, sets.test_b).words
    assert after(words, "--num") == "2" and after(words, "--crop") == "stretch"
    assert "--num" not in _ladiffgan.compared(at, sets.train_a, sets.test_a).words
    assert "--crop" not in _ladiffgan.compared(STUDIES[TABLE].at("pocket"), sets.train_b, sets.test_b).words

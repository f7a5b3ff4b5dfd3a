"""The studies by their plans: the matrix is whole, every command is one that the command line knows, the budget is the same for all rows."""

import json

import pytest
from plans import LOOKS, LPL, STUDIES, all_weights, plan_of, words_of  # noqa: F401  (all_weights is for all tests here)

from percepta.cli import main
from percepta.cli.evaluate import Evaluate
from percepta.cli.evaluate import _check as check_evaluate
from percepta.cli.parse import Usage, parse
from percepta.cli.probe import Affinity, Flops, Probe
from percepta.cli.report import Report
from percepta.cli.sample import Sample
from percepta.cli.train import read
from percepta.evaluation.plan import check_metrics
from percepta.objectives import Metric
from percepta.recipes import recipes
from percepta.spaces.extractor import split_name
from percepta.spaces.metrics import open_metric
from percepta.studies import _casdm, _common, _mmd, mmd_table5
from percepta.studies.engine.running import Outcome
from percepta.studies.engine.store import Store
from percepta.studies.engine.study import Job, Reading
from percepta.studies.engine.table import value_of

SHAPE = {  # rows at pocket scale, at the paper's, columns
    "mmd-table1": (15, 15, 4), "mmd-table5": (3, 4, 4), "mmd-table6": (3, 4, 16), "mmd-table7": (4, 4, 3), "mmd-table8": (4, 4, 3),
    "mmd-table9": (5, 5, 3), "mmd-fig4": (2, 2, 4), "mmd-fig5": (0, 0, 0),
    "casdm-table1": (9, 9, 5), "casdm-table2": (3, 3, 1), "casdm-table3": (7, 9, 2), "casdm-table4": (5, 5, 5), "casdm-table5": (3, 3, 2),
    "lpl-table5": (10, 11, 3), "lpl-table6": (4, 4, 1), "lpl-table7": (2, 2, 3), "lpl-fig14-18": (4, 4, 3), "lpl-fig19": (2, 2, 4), "lpl-fig20": (5, 5, 1),
    "sadm-table2": (7, 7, 8), "sadm-table3": (7, 7, 3), "sadm-table4": (10, 10, 12), "sadm-table5": (13, 13, 4), "sadm-fig5": (3, 3, 12),
    "sadm-fig6": (3, 3, 3), "sadm-ablation": (13, 14, 4),
    "lpl-table8": (10, 10, 4), "lpl-fig11": (3, 1, 21), "lpl-fig12": (3, 1, 4), "lpl-fig13": (3, 1, 16),
    "ladiffgan-table1": (7, 9, 20), "ladiffgan-ablation": (10, 10, 14), "ladiffgan-samples": (0, 0, 0),
}  # fmt: skip
MMD = [name for name in SHAPE if name.startswith("mmd")]
CASDM = [name for name in SHAPE if name.startswith("casdm")]


# what a place says that has no number by intention
NOT_HERE = (
    "no held-out",
    "real images have no network",
    "name an autoencoder",
    "nothing was trained",
    "this row is finetuned for 10",
    "the likelihood is not computed",
    "one size at this scale",
    "the second space",
    "no --target",
    "an average is the paper's",
    "no second pair",
    "nothing was translated",
)


def test_every_study_of_the_paper_is_there():
    assert set(STUDIES) == set(SHAPE)
    assert all(name == study.name for name, study in STUDIES.items())


@pytest.mark.parametrize("name", SHAPE)
def test_the_matrix_is_whole(name):
    pocket, paper, columns = SHAPE[name]
    for scale, rows in (("pocket", pocket), ("paper", paper)):
        plan = plan_of(name, scale)
        assert len(plan.rows) == rows and all(len(cells) == columns for cells in plan.rows)
        assert len({cells[0].row.label for cells in plan.rows}) == rows
        computed = [cell for cell in plan.cells if cell.row.make is not None and not cell.why.startswith(NOT_HERE)]
        assert all(1 <= len(cell.readings) <= 2 for cell in computed), [cell.why for cell in computed]
    for row in STUDIES[name].rows:
        assert len(row.paper) in (0, columns)


@pytest.mark.parametrize(
    ("name", "row", "numbers"),
    [
        ("mmd-table1", "DDPM", (76.3, 42.1, 31.4, 25.9)),
        ("mmd-table1", "DDIM", (32.7, 13.6, 9.31, 7.50)),
        ("mmd-table1", "MMD-DDM, Inception", (5.48, 3.80, 4.11, 3.55)),
        ("mmd-table1", "MMD-DDM, CLIP", (6.79, 4.87, 4.79, 4.52)),
        ("mmd-table1", "GENIE", (13.9, 5.97, 4.49, 3.94)),
        ("mmd-table1", "PNDM (K + 1 evaluations)", (35.9, 10.3, 6.61, 5.20)),
        ("mmd-table5", "DDIM", (32.7, 13.6, 13.7, 6.87)),
        ("mmd-table5", "MMD-DDM, Inception", (5.48, 3.80, 2.11, 2.01)),
        ("mmd-table7", "linear", (5.61, 4.69, 4.06)),
        ("mmd-table7", "rbf", (5.89, 3.88, 3.61)),
        ("mmd-table7", "cubic", (5.48, 3.80, 3.55)),
        ("mmd-table8", "MMD-DDM, quadratic", (5.19, 3.80, 3.67)),
        ("mmd-table9", "MMD-DDM through DDPM", (6.65, 5.19, 4.48)),
        ("casdm-table1", "DDPM, x0 + LPIPS", (9.34, 6.94, 8.83, None, None)),
        ("casdm-table1", "Dual Diffusion + LPIPS", (5.65, 4.89, 8.76, None, None)),
        ("casdm-table1", "Cas-DM + LPIPS", (6.40, 4.87, 8.69, None, None)),
        ("casdm-table2", "Cas-DM, with LPIPS less without", (-0.40,)),
        ("casdm-table3", "+ Swin-T", (6.98, 8.72)),
        ("casdm-table4", "phi: Fix-Res CNN, LPIPS", (6.28, None, 8.67, None, None)),
        ("casdm-table5", "Cas-DM + LPIPS", (13.75, 6.40)),
        ("lpl-table5", "squared error", (4.88, 16.6, None)),
        ("lpl-table5", "latent LPIPS, tau 3", (7.19, 15.8, None)),
        ("lpl-table5", "Self-Perceptual, block 28", (10.43, 9.2, None)),
        ("lpl-table5", "LPL", (3.79, 9.6, None)),
        ("lpl-table6", "weighed as LPL would (equation 15)", (5.43,)),
        ("lpl-table7", "LPL", (3.84, None, None)),
        ("sadm-table2", "SADM", (1.58, 298.46, 0.86, 0.66, 2.11, 251.82, 0.87, 0.63)),
        ("sadm-table3", "SADM (35)", (2.28, 1.54, 1.47)),
        ("sadm-table5", "+ structure adversarial training", (2.33, None, None, None)),
        ("lpl-table8", "plain", (63.389, None, 69.342, None)),
        ("lpl-table8", "LPL, all layers, 30.6% of samples: fits what is printed", (99.987, 1.577, 106.581, 1.537)),
    ],
)
def test_numbers_as_printed(name, row, numbers):
    found = {each.label: each.paper for each in STUDIES[name].rows}
    assert found[row] == numbers


def test_the_printed_numbers_of_table_6_stand_in_their_columns():
    study = STUDIES["mmd-table6"]
    rows = {
        row.label: dict(zip([(c.group, c.setting) for c in study.columns], row.paper, strict=True))
        for row in study.rows
        if row.paper
    }
    assert rows["DDIM"]["Inception Score", 5] == 6.95 and rows["DDIM"]["Recall", 20] == 0.52 and rows["DDIM"]["sFID", 10] == 10.73
    assert rows["MMD-DDM, Inception"]["sFID", 5] == 7.20 and rows["MMD-DDM, CLIP"]["Precision", 15] == 0.67
    better = {column.group: column.better for column in study.columns}
    assert better == {"Inception Score": "higher", "sFID": "lower", "Precision": "higher", "Recall": "higher"}


def check_command(words):
    """The very parser that would read it, and what that refuses before any work."""
    verb, *flags = words
    if verb == "train":
        recipe, settings = read(recipes()[flags[0]], flags[1:])
        assert settings.out is not None and settings.sample_every == 0
        for space in getattr(recipe, "space", "domain").split(","):
            split_name(space)
    elif verb == "evaluate":
        command = parse(Evaluate, flags, "percepta evaluate")
        check_evaluate(command)
        check_metrics(command.metrics.split(","))
        assert command.json, "what it finds is read from its JSON"
    elif verb == "sample":
        assert parse(Sample, flags, "percepta sample").num >= 2
    elif verb == "probe":
        kinds = {"flops": Flops, "affinity": Affinity}
        cls, flags = (kinds[flags[0]], flags[1:]) if flags[0] in kinds else (Probe, flags)
        assert parse(cls, flags, "percepta probe").json, "what it finds is read from its JSON"
    else:
        assert verb == "report" and parse(Report, flags, "percepta report").strips


@pytest.mark.parametrize("scale", ["pocket", "paper"])
@pytest.mark.parametrize("name", SHAPE)
def test_every_command_is_one(name, scale):
    seen = set()
    for words in words_of(name, scale):
        plain = tuple("PATH" if word.startswith("DIR/") else word for word in words)
        key = tuple(word for word in plain if not word.isdigit())
        if key not in seen:  # the same flags with other numbers parse alike
            check_command(words)
            seen.add(key)
    assert len(seen) >= (1 if name in LOOKS and scale == "paper" else 3)


def test_a_wrong_flag_would_be_seen():
    for words in (
        ["train", "mmd", "--sampler-stepz", "5"],
        ["sample", "run", "--step", "5"],
        ["evaluate", "a", "b", "--metric", "fid"],
    ):
        with pytest.raises(Usage):
            check_command(words)


@pytest.mark.parametrize("scale", ["pocket", "paper"])
@pytest.mark.parametrize("name", [name for name in MMD if name != "mmd-fig5"])
def test_the_budget_is_the_same_for_all_rows(name, scale):
    tuned, bases = set(), set()
    for words in words_of(name, scale):
        if words[:2] == ["train", "mmd"]:
            flags = {
                flag: words[words.index(flag) + 1] for flag in ("--steps", "--batch", "--micro-batch", "--lr", "--init", "--data")
            }
            tuned.add(tuple(flags.items()))
        if words[:2] == ["train", "ddpm"]:
            bases.add(tuple(words))
    assert len(tuned) == 1 and len(bases) == 1
    drawn = [words[words.index("--num") + 1] for words in words_of(name, scale) if words[0] == "sample"]
    assert len(set(drawn)) == 1


def test_studies_share_their_work():
    base = {name: {job.key for job in plan_of(name).jobs if job.words[1] == "ddpm"} for name in MMD}
    assert len(set.union(*base.values())) == 1
    tuned = {name: {job.key for job in plan_of(name).jobs if job.words[:2] == ("train", "mmd")} for name in MMD}
    assert tuned["mmd-table5"] < tuned["mmd-table1"] and tuned["mmd-table6"] < tuned["mmd-table1"]
    assert tuned["mmd-fig4"] < tuned["mmd-table5"] and tuned["mmd-fig5"] < tuned["mmd-table5"]
    for name in ("mmd-table7", "mmd-table8", "mmd-table9"):  # the cubic kernel, even distances, DDIM
        assert len(tuned[name] & tuned["mmd-table1"]) == 3 * 2
    drawn = {name: {job.key for job in plan_of(name).jobs if job.words[0] == "sample"} for name in MMD}
    assert drawn["mmd-table5"] < drawn["mmd-table1"] and drawn["mmd-table6"] < drawn["mmd-table1"]


def test_no_model_is_judged_in_the_encoder_it_was_finetuned_in():
    for name in SHAPE:
        seeds = {words[words.index("--seed") + 1] for words in words_of(name) if words[:2] == ["train", "mmd"]}
        assert str(_common.JUDGE) not in seeds
    plan = plan_of("mmd-table5")
    spaces = {cell.column.group: {r.job.words[r.job.words.index("--seed") + 1] for r in cell.readings} for cell in plan.rows[1]}
    assert spaces == {mmd_table5.TRAINED: {"0", "1"}, mmd_table5.OTHER: {str(_common.JUDGE)}}


@pytest.mark.parametrize("name", ["mmd-table1", "mmd-table5", "mmd-table6", "mmd-fig4"])
def test_without_weights_it_works_and_says_what_is_missing(name, monkeypatch):
    monkeypatch.setattr(_mmd, "has_weights", lambda name: False)
    plan = plan_of(name)
    assert any(words[:2] == ["train", "mmd"] for words in words_of(name))
    assert not [words for words in words_of(name) if "alex" in words or "clip" in words]
    missing = {cell.row.label: cell.why for cell in plan.cells if cell.row.make is not None and not cell.readings}
    assert all("weights of" in why or why.startswith(NOT_HERE) for why in missing.values())
    if name == "mmd-table1":
        assert set(missing) == {"MMD-DDM, AlexNet"}
    if name == "mmd-table6":
        assert {cell.column.group for cell in plan.cells if not cell.readings and cell.row.make} == {"Inception Score", "sFID"}


def test_half_of_inception_is_enough_for_sfid_only(monkeypatch):
    monkeypatch.setattr(_mmd, "has_weights", lambda name: name == "fid_inception_7a_1280_fp32")
    found = {cell.column.group: bool(cell.readings) for cell in plan_of("mmd-table6").rows[0]}
    assert found == {"Inception Score": False, "sFID": True, "Precision": True, "Recall": True}


def test_a_pipeline_of_the_users_is_taken_instead_of_pretraining():
    plan = plan_of("mmd-table1", init="./pipeline", data="./images", size=32)
    words = [job.words for job in plan.jobs]
    assert not any(w[:2] == ("train", "ddpm") for w in words)
    assert all(w[w.index("--init") + 1] == "./pipeline" for w in words if w[0] == "train")
    assert all(w[w.index("--size") + 1] == "32" for w in words if "--size" in w)
    floor = next(cells for cells in plan.rows if cells[0].row.label == "held-out real images")
    assert "--held-out" in floor[0].why
    fig5 = plan_of("mmd-fig5", init="./pipeline", data="./images")
    assert [figure.job is None for figure in fig5.figures] == [True, False] and "--init" in fig5.figures[0].why


def test_the_paper_scale_needs_the_papers_images():
    with pytest.raises(ValueError, match="--data"):
        STUDIES["mmd-table1"].at("paper")
    with pytest.raises(ValueError, match="pocket or paper"):
        STUDIES["mmd-table1"].at("poket")


def test_encoders_are_trained_before_what_needs_them():
    """Two jobs side by side would each train the same one."""
    for job in plan_of("mmd-table1").jobs:
        named = "--space" in job.words and "domain" in job.words[job.words.index("--space") + 1]
        if named and any(isinstance(word, Job) for word in job.words):
            assert [each.words[0] for each in job.after] == ["evaluate"]


def test_the_list_and_the_plan_on_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in SHAPE)
    assert main(["study", "mmd-fig5", "--plan", "--seeds", "1"]) == 0
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert all(line.startswith("percepta ") for line in lines) and len(lines) >= 4
    assert f"Jobs: 0 done, {len(lines)} to do" in told.err
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_a_plan_says_how_much_is_done(capsys, tmp_path):
    plan, store = plan_of("mmd-table1", seeds=1), Store(tmp_path)
    computed = [cell for cell in plan.cells if cell.readings]
    store.work.mkdir()
    finished = {job.key: job for job in computed[0].readings[0].job.chain()}
    for job in finished.values():
        store.finish(job, 1.0, {})
    assert main(["study", "mmd-table1", "--plan", "--seeds", "1", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    alike = sum(all(job.key in finished for reading in cell.readings for job in reading.jobs) for cell in computed)
    done = len(finished)
    assert f"cells: {alike} done, {len(computed) - alike} to do" in told.err and 0 < alike < len(computed)
    assert f"Jobs: {done} done, {len(plan.jobs) - done} to do" in told.err
    assert len(told.out.splitlines()) == len(plan.jobs)
    assert main(["study", "mmd-table1", "--plan", "--seeds", "1", "--out", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    record = json.loads(told.out)
    assert (record["cells_done"], record["jobs_done"], record["jobs"]) == (alike, done, len(plan.jobs)) and not told.err


@pytest.mark.parametrize("scale", ["pocket", "paper"])
def test_rows_of_casdm_have_one_budget_but_for_the_one_that_says_so(scale):
    shared = ("--batch", "--lr", "--data", "--size", "--clip", "--conditional")
    seen, lengths = set(), []
    for name in CASDM:
        for words in words_of(name, scale):
            if words[0] == "train":
                seen.add(tuple(words[words.index(flag) + 1] for flag in shared))
                lengths.append((int(words[words.index("--steps") + 1]), words[1]))
    usual = min(steps for steps, _ in lengths)
    assert len(seen) == 1 and {(2 * usual, "ddpm")} == {pair for pair in lengths if pair[0] != usual}
    assert sum(steps != usual for steps, _ in lengths) == 2  # one row, two seeds


def test_every_metric_of_casdm_reads_images_of_its_size():
    opened = set()
    for words in (words for name in CASDM for words in words_of(name)):
        if "--metric" in words and words[words.index("--metric") + 1] not in (*opened, "domain"):
            name, size = (words[words.index(flag) + 1] for flag in ("--metric", "--metric-size"))
            Metric(open_metric(name, weights="random"), int(size))
            opened.add(name)
    assert {"lpips-alex", "inception-768", "swin"} <= opened


def test_table_2_is_a_difference_of_cells_of_table_1():
    first = {cells[0].row.label: cells[0] for cells in plan_of("casdm-table1").rows}
    for cells in plan_of("casdm-table2").rows:
        method = cells[0].row.label.removesuffix(", with LPIPS less without")
        for with_, without, found in zip(
            first[f"{method} + LPIPS"].readings, first[method].readings, cells[0].readings, strict=True
        ):
            assert (found.job, found.less) == (with_.job, without)


def test_a_difference_needs_both_sides(store):
    plain, tuned = (Job(("evaluate", word, "--json")) for word in ("a", "b"))
    outcome = Outcome({tuned.key: {"result": {"fid": {"value": 3.0, "space": "domain", "contaminated": False}}}})
    reading = Reading(tuned, "fid", None, Reading(plain, "fid"))
    assert value_of(reading, store, outcome) == "not done yet"
    outcome.records[plain.key] = {"result": {"fid": {"value": 5.0, "space": "domain", "contaminated": True}}}
    assert value_of(reading, store, outcome) == {"value": -2.0, "space": "domain", "contaminated": True}


def test_casdm_without_weights_or_with_a_pipeline(monkeypatch):
    monkeypatch.setattr(_casdm, "has_weights", lambda name: False)
    missing = {cell.row.label for cell in plan_of("casdm-table3").cells if not cell.readings and cell.column.label == "FID"}
    assert missing == {row.label for row in STUDIES["casdm-table3"].rows_at("pocket")} - {"Cas-DM", "+ an encoder of the data"}
    given = plan_of("casdm-table1", init="./pipeline")
    assert all("leave --init away" in cell.why for cell in given.cells if "real" not in cell.row.label)


def test_a_log_is_read_at_its_end(store):
    job = Job(("train", "lpl", "--out", "{out}"))
    store.folder(job).mkdir(parents=True)
    (store.folder(job) / "timing.jsonl").write_text('{"images_per_s": 1.0}\n{"images_per_s": 7.0}\n')
    outcome = Outcome(records={job.key: store.finish(job, 1.0, None)})
    assert value_of(Reading(job, "images_per_s", "timing.jsonl"), store, outcome)["value"] == 7.0  # pyright: ignore[reportArgumentType, reportCallIssue]

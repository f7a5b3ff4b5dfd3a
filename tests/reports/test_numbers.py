"""The metric table: best values, contaminated values, and numbers that cannot be compared."""

import json
import shlex
from dataclasses import replace

import pytest
from run_folders import translated

from percepta.cli.evaluate import Evaluate
from percepta.cli.parse import parse
from percepta.reports import read_runs
from percepta.reports.commands import commands, spelt_out
from percepta.reports.facts import duration, fact_table, facts, lede, short
from percepta.reports.names import NAMES, direction, parts, spoken
from percepta.reports.numbers import differences, metric_table, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.41666, "8.417"), (0.00421, "0.004210"), (12345.6, "12,346"), (0.0, "0"), (-1.5, "-1.500"), (1.23e-7, "1.230e-07"),
     (float("nan"), "not finite"), (float("inf"), "not finite"), (None, "none"), (1234.5, "1234")],
)  # fmt: skip
def test_numbers_as_shown(value, text: str) -> None:
    assert shown(value) == text


def table(make_run, *evaluations: dict) -> dict:
    runs = read_runs([make_run(f"run{k}", evaluated=e) for k, e in enumerate(evaluations)])
    return metric_table(runs)


def best(found: dict, name: str) -> list[bool]:
    (row,) = (row for row in found["rows"] if row["name"] == name)
    return [bool(cell and cell["best"]) for cell in row["cells"]]


def test_best_by_the_direction_of_the_metric(make_run) -> None:
    found = table(make_run, {"fid": 3.0, "recall": 0.5, "strange": 1.0}, {"fid": 2.0, "recall": 0.4, "strange": 2.0})
    assert best(found, "FID") == [False, True]
    assert best(found, "Recall") == [True, False]
    assert best(found, "strange") == [False, False], "which way is better is not known"


def test_a_contaminated_value_is_never_best(make_run) -> None:
    dirty = {"value": 0.1, "space": "inception-2048", "contaminated": True}
    found = table(make_run, {"fid": dirty}, {"fid": 3.0}, {"fid": 2.0})
    assert best(found, "FID") == [False, False, True]
    assert found["contaminated"] and found["rows"][0]["cells"][0]["contaminated"]


def test_no_best_of_one_of_equals_or_of_different_spaces(make_run) -> None:
    assert best(table(make_run, {"fid": 3.0}, {"kid": 2.0}), "FID") == [False, False]
    equal = read_runs([make_run("x", evaluated={"recall": 0.5}), make_run("y", evaluated={"recall": 0.5})])
    assert best(metric_table(equal), "Recall") == [False, False]
    alike = read_runs([make_run("m", evaluated={"fid": 4.0001}), make_run("n", evaluated={"fid": 4.0002})])
    assert best(metric_table(alike), "FID") == [False, False], "printed alike"
    other = {"value": 2.0, "space": "clip-embedding"}
    runs = read_runs([make_run("p", evaluated={"fid": 3.0}), make_run("q", evaluated={"fid": other})])
    assert best(metric_table(runs), "FID") == [False, False]


def test_no_best_where_protocols_differ(make_run) -> None:
    a, b = make_run("a", evaluated={"fid": 3.0}), make_run("b", evaluated={"fid": 2.0})
    path = b / "evaluation" / "evaluation.json"
    record = json.loads(path.read_text())
    record["protocol"]["generated"]["count"] = 10_000
    record["protocol"]["generated"]["drawn"]["steps"] = 10
    path.write_text(json.dumps(record))
    found = metric_table(read_runs([a, b]))
    assert best(found, "FID") == [False, False]
    assert found["decisive"] == ["generated.count (5000 or 10000)"]
    assert found["drawn"] == ["generated.drawn.steps (50 or 10)"]


def test_differences_ignore_what_does_not_matter() -> None:
    a = {"generated": {"name": "a", "fingerprint": "1"}, "versions": {"torch": "1"}}
    assert differences([a, {"generated": {"name": "b", "fingerprint": "2"}, "versions": {"torch": "2"}}]) == ([], [])
    assert differences([{"dialect": {"name": "adm"}}, {}])[0] == ["dialect.name (adm or not said)"]


def test_a_warning_is_said_once(make_run) -> None:
    found = table(make_run, {"fid": 3.0}, {"fid": 2.0})
    assert found["warnings"] == [{"text": "5,000 images are few", "runs": []}, {"text": "is: no logits", "runs": []}]


@pytest.mark.parametrize(("spread", "honest"), [(0.001, [False, True]), (0.02, [False, False])])
def test_no_best_where_the_spread_hides_it(make_run, spread: float, honest: list[bool]) -> None:
    values = [{"kid": {"value": value, "std": spread, "space": "inception-2048"}} for value in (0.36, 0.35)]
    assert best(table(make_run, *values), "KID") == honest


@pytest.mark.parametrize(
    ("space", "name", "long"),
    [
        ("inception-2048", "FID", "FID"),
        ("inception-768", "FID-768", "FID-768"),
        ("pixels", "Frechet distance", "Frechet distance in pixels"),
    ],
)
def test_only_the_published_one_is_called_fid(make_run, space: str, name: str, long: str) -> None:
    found = table(make_run, {"fid": {"value": 3.0, "space": space}})
    assert (found["rows"][0]["name"], found["rows"][0]["space"], spoken("fid", space)) == (name, space, long)
    assert spoken("fid@dinov2") == "Frechet distance in dinov2" and spoken("fid@inception-64") == "FID-64"


def test_every_metric_is_explained(make_run) -> None:
    found = table(make_run, dict.fromkeys(["new", "fid", "fid@domain", *NAMES], 1.0))
    assert [name for name, _ in found["about"]] == list(NAMES.values())
    other = metric_table(read_runs([make_run("other", evaluated={"fid": {"value": 1.0, "space": "pixels"}})]))
    assert [name for name, _ in other["about"]] == ["Frechet distance"], "by the name that the table uses"


def test_a_column_says_how_many_images(make_run) -> None:
    assert [column["label"] for column in table(make_run, {"fid": 3.0})["columns"]] == ["5,000 images"]


def test_names_and_directions() -> None:
    assert (spoken("kid@dinov2"), spoken("fid"), spoken("new"), spoken("cmmd", "clip-l")) == ("KID in dinov2", "FID", "new", "CMMD")
    assert (direction("kid@dinov2"), direction("coverage"), direction("new")) == ("lower", "higher", "")


def test_facts_and_words(make_run) -> None:
    (run,) = read_runs([make_run()])
    found = dict(facts(run))
    assert (
        found["Data"] == "shapes (50,000 images, 3 × 16 × 16)" and found["Steps"] == "40 of 40" and found["Time training"] == "20 s"
    )
    assert lede(run) == "A ddpm model of 1.06 M parameters, trained on shapes. It finished all 40 steps."
    (other,) = read_runs([make_run("coder")])
    assert lede(replace(other, config={**other.config, "recipe": "autoencoder"})).startswith("An autoencoder model")
    assert (short(5), short(2.5e9), short(None)) == ("5", "2.5 G", "")
    assert [duration(s) for s in (20, 3600, 9000, 200_000)] == ["20 s", "60 min", "2 h 30 min", "2 d 7 h"]


def test_what_differs_between_runs(make_run) -> None:
    differ, same = fact_table(read_runs([make_run("a", lr=0.1), make_run("b", lr=0.2)]))
    assert ("Learning rate", ["0.1", "0.2"]) in differ and ("Method", "ddpm") in same


def test_the_command_that_repeats_an_evaluation(make_run, monkeypatch) -> None:
    here = {"space": "pixels"}
    root = make_run(
        "a b",
        evaluated={k: {"value": 1.0, **here} for k in ("fid", "precision", "recall")} | {"fid@clip": {"value": 1, "space": "clip"}},
    )
    path = root / "evaluation" / "evaluation.json"
    record = json.loads(path.read_text())
    protocol = record["protocol"]
    assert "Judge it again" not in dict(commands(read_runs([root])[0])), "how its images were resized is not known"
    protocol["reference"]["transform"] = "none: every image at its own size"
    protocol["dialect"] = {"name": "adm", "kid_size": 50, "kid_subsets": 100}
    protocol["generated"]["drawn"] |= {"num": 24, "seed": 3, "guidance": 2.0}
    path.write_text(json.dumps({**record, "step": 40}))
    assert "Judge it again" not in dict(commands(read_runs([root])[0])), "it was made while training"
    path.write_text(json.dumps(record))
    monkeypatch.chdir(root.parents[1])
    told = parse(Evaluate, shlex.split(dict(commands(read_runs([root])[0]))["Judge it again"])[2:], "percepta evaluate")
    assert (told.generated, told.real, told.metrics, told.space) == ("runs/a b", "shapes", "fid,pr", "pixels,clip")
    assert (told.num, told.sampler, told.steps, told.guidance, told.seed) == (24, "ddim", 50, "2.0", 3)
    assert (told.dialect, told.kid_size, told.kid_subsets) == ("adm", 50, None)


def test_the_command_that_repeats_a_run(make_run) -> None:
    (run,) = read_runs([make_run("a b", steps=20)])
    told = dict(commands(run))
    assert len(told) == 3 and "a b/config.json'" in next(iter(told.values())), "a path with a blank is quoted"
    assert "--resume" in told["Go on where it stopped"]
    words = spelt_out(run)
    assert "--betas 0.9 0.999" in words and "--no-flip" in words and "--channels-last" in words and "--gamma 5.0" in words
    assert "--init" not in words and "--resume" not in words and "--report-to" not in words and "--out runs/again" in words


def judged(root, **how) -> None:
    (root / "evaluation").mkdir(exist_ok=True)
    (root / "evaluation" / "evaluation.json").write_text(json.dumps(translated(**how)))


def cells(found: dict, name: str) -> list[str | None]:
    (row,) = (row for row in found["rows"] if row["name"] == name)
    return [cell and cell["value"] for cell in row["cells"]]


def test_a_translator_has_a_column_per_direction(make_translator) -> None:
    root = make_translator()
    judged(root)
    found = metric_table(read_runs([root]))
    assert [(column["run"], column["label"]) for column in found["columns"]] == [("A → B", "100 images"), ("B → A", "80 images")]
    assert cells(found, "FID") == ["9.000", "18.00"]
    assert cells(found, "KID × 100") == ["0.9000", "1.800"] and found["rows"][1]["cells"][1]["std"] == "0.15"
    assert not found["best"], "one direction is not better than the other"
    assert [one["run"] for one in found["judged"]] == ["first"], "both have one protocol"
    assert [name for name, _ in found["about"]] == ["FID", "KID × 100", "Shape right"]


def test_translators_are_compared_per_direction(make_translator) -> None:
    roots = [make_translator("a"), make_translator("b")]
    for root, fid in zip(roots, (9.0, 5.0), strict=True):
        judged(root, fid=fid)
    found = metric_table(read_runs(roots))
    heads = [(column["run"], column["label"].partition(",")[0]) for column in found["columns"]]
    assert heads == [("a", "A → B"), ("b", "A → B"), ("a", "B → A"), ("b", "B → A")]
    assert best(found, "FID") == [False, True, False, True] and best(found, "Shape right") == [False] * 4
    judged(roots[1], reference="other")
    found = metric_table(read_runs(roots))
    assert not found["best"] and "reference.fingerprint" in found["decisive"][0]


def test_a_translator_beside_another_method_has_rows_of_its_own(make_translator, make_run) -> None:
    root = make_translator("ways")
    judged(root)
    found = metric_table(read_runs([make_run("draws", evaluated={"fid": 3.0, "kid": 0.5}), root]))
    assert [(column["run"], column["label"]) for column in found["columns"]] == [
        ("draws", "5,000 images"), ("ways", "A → B, 100 images"), ("ways", "B → A, 80 images"),
    ]  # fmt: skip
    assert cells(found, "KID") == ["0.5000", None, None] and cells(found, "KID × 100") == [None, "0.9000", "1.800"]


def test_how_well_attributes_are_read_stands_beside_them(make_translator) -> None:
    root = make_translator()
    judged(root, real=0.9)
    found = metric_table(read_runs([root]))
    assert found["notes"] == [f"Read by a program that is right on {share} % of real images" for share in (90, 100)]
    assert [cell["note"] for cell in found["rows"][2]["cells"]] == [1, 2] and found["rows"][0]["cells"][0]["note"] == 0


@pytest.mark.parametrize(
    ("metric", "found", "said"),
    [
        ("kid@domain/a2b", ("kid", "domain", "a2b"), "KID × 100 in domain, A → B"), ("fid/b2a", ("fid", "", "b2a"), "FID, B → A"),
        ("kid@a/b", ("kid", "a/b", ""), "KID in a/b"), ("psnr/a2b", ("psnr", "", "a2b"), "PSNR, A → B"), ("/a2b", ("/a2b", "", ""), "/a2b"),
        ("new/a2b", ("new", "", "a2b"), "new, A → B"), ("fid@inception-64/a2b", ("fid", "inception-64", "a2b"), "FID-64, A → B"),
    ],
)  # fmt: skip
def test_parts_of_a_name(metric: str, found: tuple[str, str, str], said: str) -> None:
    assert parts(metric) == found and spoken(metric) == said


def test_what_a_translator_was(make_translator) -> None:
    runs = read_runs([make_translator("a"), make_translator("b", latent_gan="none", denoising_weight=0, diffusion_gan=True)])
    found = dict(facts(runs[0]))
    assert (found["Domain A"], found["Domain B"], found["Network"], found["Supervised by"]) == (
        "photos", "paintings", "ugatit", "latent GAN A, denoising A",
    )  # fmt: skip
    assert "Data" not in found and lede(runs[0]).startswith("A ladiffgan model, trained on photos and paintings.")
    assert ("Supervised by", ["latent GAN A, denoising A", "Diffusion-GAN"]) in fact_table(runs)[0]
    assert (
        dict(facts(read_runs([make_translator("c", latent_gan="none", denoising="none")])[0]))["Supervised by"]
        == "critics of images alone"
    )


def test_the_command_that_repeats_an_evaluation_of_a_translator(make_translator, monkeypatch) -> None:
    root = make_translator("a b")
    record = translated()
    protocol = record["protocol"]
    (root / "evaluation").mkdir()
    path = root / "evaluation" / "evaluation.json"
    path.write_text(json.dumps(record))
    assert "Judge it again" not in dict(commands(read_runs([root])[0])), "what was translated is not known"
    protocol["generated"] |= {"name": "photos/test, translated", "drawn": {"size": 32, "seed": 3}}
    protocol["reference"] |= {"name": "paintings/test", "transform": "stretch to 32 x 32, filter adm", "count": 60}
    protocol["dialect"] |= {"kid_size": 30}
    record["metrics"] |= {"psnr/a2b": {"value": 9.0, "space": "pixels"}, "kid@domain/a2b": {"value": 1.0, "space": "domain"}}
    path.write_text(json.dumps(record))
    monkeypatch.chdir(root.parents[1])

    def told() -> Evaluate:
        return parse(Evaluate, shlex.split(dict(commands(read_runs([root])[0]))["Judge it again"])[2:], "percepta evaluate")

    once = told()
    assert (once.generated, once.real, once.source, once.metrics, once.space) == (
        "runs/a b", "paintings/test", "photos/test", "fid,kid", "inception-2048,domain",
    )  # fmt: skip
    assert (once.num, once.size, once.crop, once.seed, once.kid_size) == (None, 32, "stretch", 3, None), (
        "all of 100 and 80; half of 60"
    )
    protocol["b2a"]["generated"]["count"] = 100
    protocol["dialect"]["kid_size"] = 7
    path.write_text(json.dumps(record))
    assert (told().num, told().kid_size) == (100, 7)


def test_a_space_with_a_slash_in_its_name_is_no_direction(make_translator, make_run) -> None:
    root = make_translator("ways")
    (root / "evaluation").mkdir()
    record = {"metrics": {f"kid@a/{way}": {"value": 0.5, "space": "a"} for way in ("a2b", "b2a")}, "protocol": {}}
    (root / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    found = metric_table(read_runs([make_run("draws", evaluated={"kid@a/b": 0.25}), root]))
    assert cells(found, "KID") == ["0.2500", None, None] and cells(found, "KID × 100") == [None, "50.00", "50.00"]

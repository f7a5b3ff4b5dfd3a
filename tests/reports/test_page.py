"""The page: one file that fetches nothing, runs nothing but its own script, escapes all text, stays small, and says what is absent."""

import base64
import hashlib
import io
import json
import os
import random
import re

import pytest
from PIL import Image
from run_folders import EVIL, Page

from percepta.cli import main
from percepta.reports import write_report
from percepta.reports.pictures import chosen, picture
from percepta.reports.run import Grid

FETCHING = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction", "ping"}


@pytest.fixture
def page_of(tmp_path):
    def make(*runs) -> Page:
        return Page(write_report(runs, tmp_path / "report.html").out.read_text(encoding="utf-8"))

    return make


def test_it_is_whole_and_fetches_nothing(make_run, page_of) -> None:
    page = page_of(make_run("a", evaluated={"fid": 2.0}), make_run("b", evaluated={"fid": 3.0}))
    assert page.open == []
    addresses = [(t, v or "") for t, attributes in page.tags for k, v in attributes.items() if k in FETCHING]
    assert len(addresses) >= 10
    assert all(value.startswith(("data:", "#")) for _, value in addresses)
    (style,) = page.inside["style"]
    assert not re.search(r"url\(|@import|@font-face", style)
    code = page.inside["script"][-1]
    assert not re.search(r"fetch\(|XMLHttp|import\(|WebSocket|innerHTML|eval\(", code)
    assert "http://" not in code.replace("http://www.w3.org/2000/svg", "") and "https://" not in code


def test_the_policy_forbids_all_but_its_own_script_and_style(make_run, page_of) -> None:
    page = page_of(make_run())
    (policy,) = [m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'" and rules["img-src"] == "data:"
    for kind, text in (("script-src", page.inside["script"][-1]), ("style-src", page.inside["style"][0])):
        assert rules[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert not [t for t, attributes in page.tags if "style" in attributes], "the policy would ignore it"
    assert not [k for _, attributes in page.tags for k in attributes if k.startswith("on")]


def test_every_text_of_a_run_is_escaped(make_run, page_of) -> None:
    root = make_run(EVIL.replace("/", ""), data=EVIL, evaluated={EVIL: {"value": 1.0, "space": EVIL, "note": EVIL}})
    (root / "metrics.jsonl").write_text(json.dumps({"step": 1, f"{EVIL}</script>": 1.0, f"share/{EVIL}": 1.0}) + "\n")
    grid = root / "samples" / "step-0000040.json"
    grid.write_text(json.dumps({"sampler": EVIL, "seed": EVIL, "num": EVIL, "steps": EVIL}))
    (root / "figures").mkdir()
    Image.new("RGB", (4, 4)).save(root / "figures" / "a.png")
    (root / "figures" / "a.json").write_text(json.dumps({"title": EVIL, "caption": EVIL + "</script>", "alt": EVIL}))
    page = page_of(root)
    assert [a.get("type") for a in page.all("script")] == ["application/json", None]
    assert not [a for a in page.all("img") if "onerror" in a or a.get("src") == "x"]
    assert page.text.count(EVIL) >= 8
    assert json.loads(page.inside["script"][0])["runs"][0]["name"] == EVIL


def test_it_can_be_read_with_ears_and_keys(make_run, page_of) -> None:
    page = page_of(make_run("a", evaluated={"fid": 2.0}), make_run("b"))
    assert all(a.get("alt") for a in page.all("img") if a.get("src")), "a picture without words"
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = {a["href"][1:] for a in page.all("a")} | {a["for"].split()[0] for a in page.all("label") if "for" in a}
    wanted |= {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert wanted <= set(ids)
    ranges = [a for a in page.all("input") if a.get("type") == "range"]
    assert {a["id"] for a in ranges} == {"scrub", "wipe", "smooth"}
    assert page.all("html")[0]["lang"] == "en" and len(page.all("h1")) == len(page.all("main")) == 1


def contrast(a: str, b: str) -> float:
    """WCAG 2: (lighter + 0.05) / (darker + 0.05)."""

    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrasts(theme: int, make_run, page_of) -> None:
    style = page_of(make_run()).inside["style"][0]
    named = {k: (a, b)[theme] for k, a, b in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)}
    assert len(named) == 20
    for text in ("ink", "soft", "accent", "warn"):
        for ground in ("paper", "card"):
            assert contrast(named[text], named[ground]) >= 4.5, f"{text} on {ground}"
    assert contrast(named["accent"], named["tint"]) >= 4.5
    assert contrast(named["warn"], named["warn-tint"]) >= 4.5 and contrast(named["ink"], named["warn-tint"]) >= 4.5
    for k in [*(f"c{k}" for k in range(10)), "strong"]:
        assert contrast(named[k], named["paper"]) >= 3, f"--{k}"


def test_what_is_absent_is_said(tmp_path, page_of) -> None:
    root = tmp_path / "started"
    root.mkdir()
    (root / "config.json").write_text('{"recipe": "flow", "settings": {"steps": 10}, "knobs": {}}')
    text = " ".join(page_of(root).text.split())
    for said in ("No step was logged", "No evaluation was found", "No sample grids", "Nothing to compare", "No line of metrics",
                 "no evaluations at two", "No figures were found", "percepta train flow --config"):  # fmt: skip
        assert said in text, said


def test_marks_protocol_and_warnings_are_shown(make_run, page_of) -> None:
    dirty = {"value": 1.5, "std": 0.25, "space": "inception-2048", "contaminated": True, "note": "a note"}
    page = page_of(make_run("a", evaluated={"fid": dirty, "kid": 0.1}), make_run("b", evaluated={"fid": 3.0, "kid": 0.2}))
    text = " ".join(page.text.split())
    assert "1.500 ± 0.25" in text and "trained\xa0against" in page.text and "a note" in text and "5,000 images are few" in text
    assert "0.1000 best" in text and "3.000 best" not in text
    assert "reference.fingerprint" in text and "tf1-bilinear-299" in text


SWEPT = {
    "sweep": [
        {"guidance": weight, "metrics": {"fid": {"value": fid, "space": "inception-2048"},
                                         "kid": {"value": fid / 100, "std": 0.01, "space": "domain", "contaminated": True}}}
        for weight, fid in ((1.0, 9.0), (1.5, 4.0), (2.0, 6.0))
    ],
    "best": {"fid": 1.5, "kid": 1.5},
    "warnings": ["5,000 images are few"],
}  # fmt: skip


def test_a_guidance_sweep_is_a_table_with_its_plot(make_run, page_of) -> None:
    from percepta.reports import Words, curve_plots

    root = make_run("a", evaluated={"fid": 2.0})
    (root / "evaluation" / "sweep.json").write_text(json.dumps(SWEPT))
    words = Words("Guidance sweep", "Each metric against the weight.", "2 curves")
    curve_plots(root / "evaluation" / "figures", "sweep", {"FID": {1.0: (9.0, None), 1.5: (4.0, None)}}, words, "guidance")
    page = page_of(root, make_run("b"))
    assert page.open == []
    assert "Guidance sweep: a" in page.text and "Guidance sweep: b" not in page.text
    assert "No evaluation was found" not in page.text
    table = page.text[page.text.index("Guidance sweep: a") :]
    rows = re.findall(r"\n\s*(1|1\.5|2)\s+([\d.]+)\s*(best)?\s+([\d.]+) ± ([\d.]+)\s*(best)?\s*trained", table)
    assert rows == [
        ("1", "9.000", "", "0.09000", "0.010", ""), ("1.5", "4.000", "best", "0.04000", "0.010", ""),
        ("2", "6.000", "", "0.06000", "0.010", ""),
    ]  # fmt: skip
    assert "lower is better" in table and "5,000 images are few" in table
    assert [image for image in page.all("img") if image.get("alt") == "2 curves"]


def test_weights_that_are_printed_alike_are_best_together_or_not_at_all(make_run, page_of) -> None:
    root = make_run("a")
    (root / "evaluation").mkdir(exist_ok=True)
    values = {"fid": (9.0, 4.0001, 4.0002), "kid": (0.100001, 0.100002, 0.100003)}
    rows = [{"guidance": k + 1.0, "metrics": {name: {"value": v[k], "space": "x"} for name, v in values.items()}} for k in range(3)]
    swept = {"sweep": rows, "best": {"fid": 2.0, "kid": 1.0}, "warnings": []}
    (root / "evaluation" / "sweep.json").write_text(json.dumps(swept))
    table = page_of(root).text.partition("Guidance sweep")[2]
    found = re.findall(r"\b([123])\s+(\d\.\d+)\s*(best)?\s+(\d\.\d+)\s*(best)?", table)
    assert found == [("1", "9.000", "", "0.1000", ""), ("2", "4.000", "best", "0.1000", ""), ("3", "4.000", "best", "0.1000", "")]


def test_a_run_with_a_sweep_alone_is_told_where_its_numbers_are(make_run, page_of) -> None:
    root = make_run("a")
    (root / "evaluation").mkdir(exist_ok=True)
    (root / "evaluation" / "sweep.json").write_text(json.dumps(SWEPT))
    page = page_of(root)
    assert "No evaluation was found" not in page.text and "the guidance sweep below has the numbers" in page.text


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"sweep": 3}', '{"sweep": [3, {"guidance": "x"}, {"guidance": 1}], "best": 2}'])
def test_a_damaged_sweep_is_left_out(text: str, make_run, page_of) -> None:
    root = make_run(evaluated={"fid": 2.0})
    (root / "evaluation" / "sweep.json").write_text(text)
    assert "Guidance sweep" not in page_of(root).text


def test_a_row_of_a_sweep_without_metrics_is_left_out(make_run, page_of) -> None:
    root = make_run(evaluated={"fid": 2.0})
    text = '{"sweep": [{"guidance": 2}, {"guidance": 1.25, "metrics": {"fid": 3.5}}]}'
    (root / "evaluation" / "sweep.json").write_text(text)
    (table,) = re.findall(r"Guidance sweep.*?Figures", page_of(root).text, re.S)
    assert re.search(r"1\.25\s+3\.500", table)
    assert "best" not in table


def test_a_long_run_and_ten_runs_stay_small(make_run, tmp_path) -> None:
    rng = random.Random(0)
    roots = []
    for k in range(10):
        root = make_run(f"run{k}", grids=tuple(range(2, 40, 2)))
        with (root / "metrics.jsonl").open("w") as file:
            for s in range(20_000 if k == 0 else 2000):
                file.write(f'{{"step": {s}, "images": {s * 16}, "loss": {rng.random()}, "other": {rng.random()}, "lr": 0.1}}\n')
        roots.append(root)
    assert write_report(roots[:1], tmp_path / "one.html").size < 1_000_000
    assert write_report(roots, tmp_path / "ten.html").size < 5_000_000


def test_a_grid_is_re_encoded_to_its_budget(tmp_path) -> None:
    Image.effect_noise((1500, 1200), 80).convert("RGB").save(tmp_path / "large.png")
    small = picture(tmp_path / "large.png", budget=100_000)
    assert (small.width, small.height) == (1500, 1200), "the page knows the size of the file"
    packed = base64.b64decode(small.uri.split(",")[1])
    assert len(packed) <= 100_000 < (tmp_path / "large.png").stat().st_size
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "flat.png")
    exact = Image.open(io.BytesIO(base64.b64decode(picture(tmp_path / "flat.png").uri.split(",")[1]))).convert("RGB")
    assert exact.getcolors() == [(1200, (0, 128, 128))]
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.png is not a picture"):
        picture(tmp_path / "bad.png")


@pytest.mark.filterwarnings("default::PIL.Image.DecompressionBombWarning")
def test_a_picture_too_large_to_decode_is_refused(tmp_path, monkeypatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # Pillow only warns up to twice as many
    with pytest.raises(ValueError, match=r"bomb\.png is not a picture"):
        picture(tmp_path / "bomb.png")


def test_what_is_the_same_is_not_offered_where_nothing_is(make_run, page_of, tmp_path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text('{"recipe": "flow", "settings": {"steps": 10}, "knobs": {}}')
    os.utime(bare / "config.json", (0, 0))  # or both were written in one minute
    assert "The same in all runs" not in page_of(make_run("a"), bare).text
    assert "The same in all runs" in page_of(make_run("b"), make_run("c", lr=0.1)).text


def test_pairs_of_an_autoencoder_are_named(make_run, page_of) -> None:
    root = make_run()
    (root / "samples" / "step-0000040.json").write_text('{"step": 40, "shows": "pairs: image, reconstruction", "num": 8}')
    assert "8 images; pairs: image, reconstruction" in page_of(root).text


@pytest.mark.parametrize(("count", "runs", "kept"), [(1, 1, 1), (24, 1, 24), (100, 1, 24), (100, 10, 6), (100, 60, 2)])
def test_the_first_and_the_last_grid_are_kept(count: int, runs: int, kept: int, tmp_path) -> None:
    grids = [Grid(k, tmp_path, {}) for k in range(count)]
    out = chosen(grids, runs)
    assert len(out) == kept and out[0].step == 0 and out[-1].step == count - 1


def test_an_unreadable_picture_is_left_out_and_named(make_run, tmp_path) -> None:
    root = make_run()
    (root / "samples" / "step-0000040.png").write_bytes(b"\x89PNG")
    report = write_report([root], tmp_path / "r.html")
    assert len(report.notes) == 1 and "step-0000040.png" in report.notes[0]


@pytest.mark.parametrize("out", ["report.txt", "report", "."])
def test_a_report_is_one_html_file(make_run, tmp_path, out: str) -> None:
    with pytest.raises(ValueError, match="html"):
        write_report([make_run()], tmp_path / out)


def test_the_command(make_run, tmp_path, capsys) -> None:
    root, out = make_run(tail='{"st'), tmp_path / "new" / "r.html"
    assert main(["report", str(root), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"{out}: first (") and "cut off" in told.err
    assert main(["report", str(root), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == ["first"] and found["bytes"] == out.stat().st_size and len(found["notes"]) == 1
    assert [p.name for p in out.parent.iterdir()] == ["r.html"], "nothing half written is left"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("report nowhere", "nowhere"),
        ("report", "RUNS is missing"),
        ("report . --strips -1", "--strips"),
        ("report . --otu x", "--out"),
        ("report . --out x.txt", ".html"),
        ("report .", "not a run folder"),
    ],
)
def test_wrong_use_is_one_line(line: str, said: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.strip().splitlines()) == 1 and said in told.err


def test_a_small_budget_is_met_by_less_precision_before_less_size(tmp_path) -> None:
    Image.effect_noise((128, 128), 60).convert("RGB").save(tmp_path / "noise.png")
    whole, tight = picture(tmp_path / "noise.png"), picture(tmp_path / "noise.png", 12_000)
    sizes = [Image.open(io.BytesIO(base64.b64decode(one.uri.split(",")[1]))).size for one in (whole, tight)]
    lengths = [len(base64.b64decode(one.uri.split(",")[1])) for one in (whole, tight)]
    assert sizes == [(128, 128), (128, 128)] and lengths[1] <= 12_000 < lengths[0]

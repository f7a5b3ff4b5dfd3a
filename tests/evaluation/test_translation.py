"""Judging a translator: known answers of known translators, subsets of KID that fit, pairs by scenes and by names, and what is missing."""

import io
import json
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from percepta.data.domains import pairing_of
from percepta.evaluation.sets import open_side
from percepta.evaluation.show_translation import show_translations
from percepta.evaluation.translated import psnr, translated
from percepta.evaluation.translation import WAYS, TestSets, beside, judge_translations, kid_size_for

torch.set_num_threads(1)
A, B = "shapes:length={},domain=outline,part=test", "shapes:length={},domain=filled,part=test"
LPIPS = ("lpips-to-source",) if os.environ.get("PERCEPTA_WEIGHTS") else ()
real = pytest.mark.skipif(not LPIPS, reason="PERCEPTA_WEIGHTS names no folder of real weights")
EQUAL = 10 * math.log10(255**2 * 12)


def side(text, size=32, **options):
    return open_side(text, size=size, **options)


def shapes(count=24, size=32, num=None):
    return TestSets(side(A.format(count), size), side(B.format(count), size), "scenes", num)


def judged(translate, sets, tmp_path, **options):
    asked = {"metrics": ("fid", "kid"), "spaces": ("pixels",), "cache": tmp_path / "features", **options}
    return judge_translations(translate, sets, **asked)


def same(x, way):
    return x


def knowing(sets):
    """A translator that knows the truth, by heart."""
    images = {way: [tuple(side.read(range(len(side)))) for side in sets.of(way)] for way in WAYS}
    known = {way: {a.tobytes(): b for a, b in zip(*images[way], strict=True)} for way in WAYS}

    def translate(x, way):
        pixels = ((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        found = np.stack([known[way][one.tobytes()] for one in pixels])
        return torch.from_numpy(found).permute(0, 3, 1, 2).float() / 127.5 - 1

    return translate


def values(result, key):
    return [result[f"{key}/{way}"] for way in WAYS]


def test_leaving_equal_sets_alone_is_no_error_at_all(tmp_path):
    sets = TestSets(side(A.format(12)), side(A.format(12)))
    result = judged(same, sets, tmp_path)
    for key in ("fid", "cycle-error", *LPIPS):
        assert values(result, key) == pytest.approx([0, 0], abs=1e-4)
    assert values(result, "shape-accuracy") == [1, 1]
    assert not any(key.startswith(("psnr", "lpips-to-truth")) for key in result.metrics)  # no pairs are known
    assert any("pixel for pixel" in line for line in result.warnings)


def test_the_truth_as_answer_has_no_error_and_the_wrong_truth_what_its_scenes_differ_by(tmp_path):
    sets = shapes()
    result = judged(knowing(sets), sets, tmp_path)
    known = {"fid": 0, "cycle-error": 0, "psnr": EQUAL, "shape-accuracy": 1, "colour-accuracy": 1}
    for key, value in {**known, **({"lpips-to-truth": 0} if LPIPS else {})}.items():
        assert values(result, key) == pytest.approx([value] * 2, abs=1e-4), key
    assert result.protocol["real"] == result.protocol["b2a"].get("real", result.protocol["real"])
    assert result.protocol["real"] == {"shape-accuracy": 1, "colour-accuracy": 1, "count": 24}
    assert all(min(values(result, key)) > 0.1 for key in LPIPS)
    right = knowing(sets)
    result = judged(lambda x, way: right(x, way).roll(1, 0), sets, tmp_path)  # each has its neighbour's truth, in batches of 16
    scenes = sets.a.source.attributes(range(24))
    place = np.concatenate([np.roll(np.arange(16), 1), 16 + np.roll(np.arange(8), 1)])
    assert values(result, "colour-accuracy") != [1, 1]
    shape = (scenes.shape[place] == scenes.shape).mean()
    assert values(result, "shape-accuracy") == pytest.approx([shape] * 2, abs=0.2)  # another shape's place may look like it
    assert max(values(result, "psnr")) < 25 and values(result, "fid") == pytest.approx([0, 0], abs=1e-4)


def test_errors_are_what_they_say(tmp_path):
    sets = shapes(6)
    result = judged(
        lambda x, way: (x + (0.5 if way == "a2b" else 0)).clamp(-1, 1) * 0 + (0.25 if way == "a2b" else -0.5), sets, tmp_path
    )
    a = torch.from_numpy(np.stack(sets.a.read(range(6)))).double() / 127.5 - 1
    assert result["cycle-error/a2b"] == pytest.approx(float((a + 0.5).abs().mean()), abs=1e-5)
    b = np.stack(sets.b.read(range(6))).astype(float)
    each = 10 * np.log10(255**2 / ((b - round(1.25 * 127.5)) ** 2).mean((1, 2, 3)))
    assert result["psnr/a2b"] == pytest.approx(each.mean(), abs=1e-5)


def test_psnr_by_hand_and_never_infinite():
    image = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    assert psnr(image, image + 1) == pytest.approx(20 * math.log10(255))
    assert psnr(image, image) == pytest.approx(EQUAL) and EQUAL < 58.93


def pictures(count, seed):
    return side(np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8), 8)


def test_kids_subsets_fit_the_test_set(tmp_path):
    sets = TestSets(pictures(100, 0), pictures(100, 1))
    result = judged(same, sets, tmp_path, metrics=("kid",))
    assert result.protocol["dialect"]["kid_size"] == 50
    assert all(result.metrics[f"kid/{way}"].std > 0 for way in WAYS)
    assert not any("KID" in line for line in result.warnings)
    asked = judged(same, sets, tmp_path, metrics=("kid",), kid_size=20)
    assert asked.protocol["dialect"]["kid_size"] == 20 and asked["kid/a2b"] != result["kid/a2b"]
    few = TestSets(pictures(9, 0), pictures(40, 1))
    assert judged(same, few, tmp_path, metrics=("kid",)).protocol["dialect"]["kid_size"] == 4


def test_subsets_as_large_as_anywhere_where_they_fit():
    assert kid_size_for(shapes(5000, 8), "torch-fidelity") == 1000
    assert kid_size_for(shapes(5000, 8, num=30), "torch-fidelity") == 15
    assert kid_size_for(shapes(2, 8), "torch-fidelity") == 2


@pytest.fixture
def folders(tmp_path):
    """testA and testB with names that belong together, in another order in each; one of A has no partner, one of B is damaged."""
    known = {name: np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8) for k, name in enumerate("abcdef")}
    for folder, names in (("testA", "abcde"), ("testB", "fedcb")):
        (tmp_path / folder).mkdir()
        for name in names:
            image = known[name] if folder == "testA" else 255 - known[name]
            Image.fromarray(image).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "testB" / "g.png").write_bytes(b"no image")
    (tmp_path / "domains.json").write_text('{"pairing": "names"}')
    return tmp_path


def test_pairs_by_names(folders):
    a, b = (str(folders / name) for name in ("testA", "testB"))
    sets = TestSets(side(a, 16), side(b, 16, on_bad="skip"), pairing_of(a, b))
    assert sets.pairing == "names"
    result = judged(lambda x, way: -x, sets, folders)
    assert result["psnr/a2b"] == pytest.approx(EQUAL) and result["psnr/b2a"] == pytest.approx(EQUAL)
    assert result.protocol["pairs"] == 4 and result.protocol["reference"]["count"] == 5
    assert result.protocol["b2a"]["generated"]["count"] == 5  # the damaged one is left out of both
    assert values(result, "cycle-error") == pytest.approx([0, 0], abs=1e-6)
    assert not any("accuracy" in key for key in result.metrics)
    with pytest.raises(ValueError, match=r"g\.png"):
        judged(same, TestSets(side(a, 16), side(b, 16)), folders)
    seen = []
    with pytest.raises(ValueError, match=r"g\.png"):  # before any of them is translated
        judged(lambda x, way: (seen.append(way), x)[1], TestSets(side(b, 16), side(a, 16)), folders)
    assert not seen


def test_training_sets_are_no_pairs(folders):
    for name in ("A", "B"):
        (folders / f"test{name}").rename(folders / f"train{name}")
    assert pairing_of(str(folders / "trainA"), str(folders / "trainB")) == "none"
    assert pairing_of(str(folders / "trainA"), None) == "none"


def test_without_the_weights_of_lpips_it_is_missing_and_all_else_there(tmp_path, monkeypatch):
    for name in ("PERCEPTA_WEIGHTS", "TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    sets = shapes(6)
    result = judged(same, sets, tmp_path)
    gone = {f"{key}/{way}" for key in ("lpips-to-source", "lpips-to-truth") for way in WAYS}
    assert set(result.missing) == gone and all("put" in reason for reason in result.missing.values())
    assert not gone & set(result.metrics) and {"psnr/a2b", "cycle-error/b2a", "fid/b2a"} <= set(result.metrics)
    lower, missing = beside(sets)
    assert set(missing) == gone and set(lower) == {key for key in result.metrics if not key.startswith(("fid", "kid"))}
    assert "not computed" in told(result)


@real
def test_images_too_small_for_lpips(tmp_path):
    result = judged(same, shapes(6, 16), tmp_path)
    assert "at least 31 x 31, got 16 x 16" in result.missing["lpips-to-source/a2b"]


def test_twice_the_same_and_the_features_of_a_domain_read_once(tmp_path):
    notes = []
    sets = shapes(8)
    first = judged(same, sets, tmp_path, note=notes.append)
    assert sum("cache miss" in note for note in notes) == 4  # two domains, and two sets of translations
    again = judged(same, shapes(8), tmp_path, note=notes.append)
    assert sum("cache miss" in note for note in notes) == 4
    assert json.dumps(first.to_json()) == json.dumps(again.to_json())


def test_so_many_of_each_and_the_rows_that_are_shown(tmp_path):
    rows, done = {}, []
    sets = shapes(20, num=18)
    result = judged(same, sets, tmp_path, look=rows.__setitem__, progress=lambda *told: done.append(told))
    assert result.protocol["generated"]["count"] == 18 and result.protocol["reference"]["count"] == 20
    assert result.protocol["pairs"] == 18
    assert [len(rows[way]) for way in WAYS] == [8, 8] and all(len(row) == 4 for row in rows["a2b"])
    assert np.array_equal(rows["a2b"][3][3], sets.b.read([3])[0]) and np.array_equal(rows["b2a"][3][0], sets.b.read([3])[0])
    assert (f"{sets.a.name}, translated", 18, 18) in done


@real
def test_what_was_trained_against_is_marked(tmp_path):
    result = judged(same, shapes(6), tmp_path, trained_against=("lpips-alex",))
    assert result.metrics["lpips-to-source/b2a"].contaminated and not result.metrics["psnr/a2b"].contaminated
    assert any(line.startswith("trained against") and "lpips-to-truth/a2b" in line for line in result.warnings)
    assert "trained against" in told(result)


def test_a_signal_ends_it_between_batches(tmp_path):
    class Stop(Exception): ...

    calls = []

    def check():
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    seen = []
    with pytest.raises(Stop):
        judged(lambda x, way: (seen.append(len(x)), x)[1], shapes(40, 8), tmp_path, check=check)
    assert seen == [16, 16]  # there and back, once


def test_a_translation_that_is_not_finite(tmp_path):
    with pytest.raises(ValueError, match="translation is not finite"):
        judged(lambda x, way: x / 0, shapes(4, 8), tmp_path)


def told(result):
    console = Console(width=100, record=True, file=io.StringIO())
    show_translations(result, console)
    return console.export_text()


@real
def test_a_person_reads_a_row_per_metric_and_a_column_per_direction(tmp_path):
    result = judged(
        same, shapes(12), tmp_path, spaces=("pixels", "alex"), drawn={"source": "runs/x", "model": "CycleganPair", "size": 32}
    )
    text = told(result)
    lines = text.splitlines()
    assert "runs/x  CycleganPair, 32 px" in lines[0]
    (head,) = [line for line in lines if line.startswith("metric")]
    assert head.split() == ["metric", "A", "->", "B", "B", "->", "A", "better", "space"]
    kids = [line for line in lines if line.startswith("KID x100")]
    assert len(kids) == 2 and f"{100 * result['kid/a2b']:.3f}"[:6] in kids[0]
    (row,) = [line for line in lines if line.startswith("LPIPS to source")]
    assert "lower" not in row and "higher" not in row
    assert "by scenes: 12 pairs" in text and "100 subsets of 6, times 100" in text and "shape 100.0%" in text


def test_a_set_against_itself_is_told_too(tmp_path):
    same_sets = TestSets(side(A.format(6), 16), side(A.format(6), 16))
    assert "A  6 images" in told(judged(same, same_sets, tmp_path))


def test_of_a_set_sorted_by_class_images_of_every_class_are_translated(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "sets" / name).mkdir(parents=True)
        for k in range(5):
            Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(tmp_path / "sets" / name / f"{k}.png")
    sets = TestSets(side(tmp_path / "sets", 8), side(tmp_path / "sets", 8), num=6)
    seen = []

    def watched(x, way):
        seen.append(len(x))
        return x

    found, _ = translated(watched, "a2b", *sets.of("a2b"), 6, {}, None, "cpu", lambda: None, lambda *_: None)
    assert sum(number < 5 for number in found.numbers) == sum(number >= 5 for number in found.numbers) == 3 and seen


def test_how_much_is_changed_has_no_best():
    assert not [name for name in beside(shapes(4))[0] if name.startswith("lpips-to-source")]

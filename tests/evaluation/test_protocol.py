"""The protocol is complete, and every warning is given when it should be, and not otherwise."""

import json
import re
from importlib.metadata import version

import front
import numpy as np
import pytest
import torch
from front import folder, picture
from PIL import Image

from percepta import __version__
from percepta.discrepancies.frechet import Gaussian
from percepta.evaluation.evaluate import evaluate
from percepta.evaluation.imageset import Told
from percepta.evaluation.metrics import DIALECTS
from percepta.evaluation.plan import Read, make_plan
from percepta.evaluation.protocol import warnings_of
from percepta.evaluation.sets import StatsFile, open_side
from percepta.spaces.extractor import Extractor


def warnings(fake, real, tmp_path, **options):
    options = {"metrics": ("fid",), "kid_size": 10, **options}
    return evaluate(fake, real, cache=tmp_path / "cache", **options).warnings


def has(words, lines):
    return sum(re.search(words, line) is not None for line in lines)


@pytest.fixture
def sides(inception, tmp_path):
    return folder(tmp_path / "fake", 24), folder(tmp_path / "real", 30, first=100)


def test_the_protocol_says_how_the_numbers_were_made(inception, sides, tmp_path):
    made = {"source": "runs/a", "solver": "ddim", "steps": 50, "guidance": 1.5, "seed": 3, "ema": "classic"}
    result = evaluate(*sides, cache=tmp_path / "cache", kid_size=10, kid_subsets=7, drawn=made, seed=5, size=8, num=20)
    protocol = json.loads(json.dumps(result.to_json()))["protocol"]
    reference = open_side(sides[1], size=8)
    assert protocol["reference"]["fingerprint"] == reference.fingerprint
    assert protocol["reference"]["count"] == 30
    assert (protocol["generated"]["count"], protocol["generated"]["selection"]) == (20, "the first 20 of 24")
    assert protocol["generated"]["drawn"] == made
    assert "drawn" not in protocol["reference"]
    assert protocol["generated"]["transform"].startswith("center-crop to 8 x 8")
    assert protocol["generated"]["sizes"] == {"12 x 12": 20}
    assert protocol["generated"]["formats"] == {"PNG": 20}
    assert protocol["extractors"] == {
        "inception": {
            "weights": inception("inception").weights, "resize": "tf1", "precision": "fp32", "layers": ["2048", "logits", "spatial"],
        }
    }  # fmt: skip
    assert protocol["dialect"]["name"] == "torch-fidelity"
    assert (protocol["dialect"]["kid_subsets"], protocol["dialect"]["kid_size"]) == (7, 10)
    assert protocol["seed"] == 5
    assert protocol["versions"]["percepta"] == __version__
    assert {k: protocol["versions"][k] for k in ("torch", "numpy", "pillow")} == {
        "torch": torch.__version__, "numpy": np.__version__, "pillow": version("pillow"),
    }  # fmt: skip


def test_an_extractor_that_computed_nothing_is_not_in_it(inception, sides, tmp_path):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(432), sigma=np.eye(432))
    result = evaluate(sides[0], tmp_path / "stats.npz", metrics=("fid", "sfid"), spaces=("pixels",), cache=tmp_path / "cache")
    assert set(result.missing) == {"sfid"}
    assert set(result.protocol["extractors"]) == {"pixels"}


def test_clean_sets_have_only_the_warnings_of_their_count(sides, tmp_path):
    lines = warnings(*sides, tmp_path)
    assert len(lines) == 1
    assert "24 generated images: published FIDs use 50,000 (some 10,000)" in lines[0]


def test_no_frechet_distance_no_warning_of_the_count(sides, tmp_path):
    assert warnings(*sides, tmp_path, metrics=("kid", "pr", "dc")) == []


def settled(count):
    side = open_side(np.zeros((count, 1, 1, 3), np.uint8))
    side.settle([Told("PNG", (), (8, 8), (8, 8), f"{k}-{count}") for k in range(count)])
    return side


@pytest.mark.parametrize(("count", "words"), [(50_000, None), (10_000, "do not set this beside an FID of 50,000"), (9_999, "9,999 generated images")])  # fmt: skip
def test_the_counts_of_papers(count, words):
    read = Read({}, {})
    opened = Extractor("inception", front.LAYERS, "2048", "tf1", "a" * 64, lambda images, layers: {})
    plan = make_plan(("fid",), ("inception-2048",), lambda family, layer: opened, False)
    lines = warnings_of(settled(count), settled(49_000), plan, DIALECTS["torch-fidelity"], [read, read])
    assert len(lines) == (words is not None)
    assert words is None or words in lines[0]


@pytest.mark.parametrize(("count", "fires"), [(7, True), (8, False)])
def test_fewer_images_than_features(count, fires, sides, tmp_path):
    """The small network has 7 features: a covariance of 7 images is singular, of 8 it is not."""
    small = folder(tmp_path / "small", count, first=500)
    lines = warnings(small, sides[1], tmp_path)
    assert has("too few for the 7 features of inception-2048: its covariance is singular", lines) == fires
    assert has("too few", warnings(sides[0], small, tmp_path)) == fires
    assert has("too few", warnings(small, sides[1], tmp_path, metrics=("kid",), kid_size=5)) == 0


def test_every_space_with_too_few_images_is_named_even_where_its_size_follows_the_images(sides, tmp_path):
    lines = warnings(*sides, tmp_path, spaces=("inception-64", "pixels"))
    assert has(r"too few for the 432 features of pixels", lines) == 2
    assert has("inception-64", lines) == 0


def test_statistics_of_too_few_images_are_told_where_they_say_their_count(sides):
    opened = Extractor("inception", front.LAYERS, "2048", "tf1", "a" * 64, lambda images, layers: {})
    plan = make_plan(("fid",), ("inception-2048",), lambda family, layer: opened, True)

    def found(count):
        side = StatsFile("s.npz", "f", Gaussian(torch.zeros(7).double(), torch.eye(7).double(), count), count)
        return has("too few", warnings_of(side, side, plan, DIALECTS["adm"], [Read({}, {"inception-2048": side}), Read({}, {})]))

    assert [found(count) for count in (None, 7, 8)] == [0, 1, 0]


def test_splits_that_overlap(sides, tmp_path):
    assert has("splits overlap", warnings(*sides, tmp_path)) == 0
    for k in (3, 4):  # the same pixels in another file
        Image.fromarray(picture(100 + k)).save(sides[0] / f"{k:03d}.png", compress_level=0)
    assert has(r"^2 images of .*fake are in .*real as well, pixel for pixel", warnings(*sides, tmp_path)) == 1


def test_jpeg_on_one_side(sides, tmp_path):
    jpeg = folder(tmp_path / "jpeg", 24, first=900, suffix="jpg")
    words = r"only .*jpeg is JPEG-compressed \(100%\)"
    assert has(words, warnings(jpeg, sides[1], tmp_path)) == 1
    assert has(words, warnings(sides[0], jpeg, tmp_path)) == 1
    assert has("JPEG", warnings(folder(tmp_path / "other", 24, first=950, suffix="jpg"), jpeg, tmp_path)) == 0


def test_sizes_that_differ(sides, tmp_path):
    large = folder(tmp_path / "large", 24, first=700, size=(10, 16))
    assert has(r"sizes differ: .*large 16 x 10 against .*real 12 x 12; use --size", warnings(large, sides[1], tmp_path)) == 1
    assert has("sizes differ", warnings(large, sides[1], tmp_path, size=8)) == 0


def test_subsets_of_kid_that_exceed_a_set_are_made_smaller_and_it_is_said(sides, tmp_path):
    result = evaluate(*sides, metrics=("kid",), cache=tmp_path / "cache")
    (told,) = result.warnings
    assert told.startswith("KID's subsets of 1000 exceed a set of 24: subsets of 24 were used") and "--kid-size" in told
    assert result["kid"] == evaluate(*sides, metrics=("kid",), kid_size=24, cache=tmp_path / "cache")["kid"]
    assert warnings(*sides, tmp_path, metrics=("kid",), kid_size=24) == []


def test_fid_768_is_not_fid(inception, sides, tmp_path):
    assert has("call it FID-768", warnings(*sides, tmp_path, spaces=("inception-768",))) == 1

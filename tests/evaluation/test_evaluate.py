"""evaluate(): values do not depend on batches, names or order; what is cached is not done again; what cannot be had is said."""

import math
import shutil

import front
import numpy as np
import pytest
import torch
from front import folder, picture
from PIL import Image

from percepta.discrepancies.frechet import frechet_of_rows
from percepta.discrepancies.mmd import mmd2
from percepta.evaluation.evaluate import evaluate
from percepta.spaces.extractor import Extractor

ALL = ("fid", "sfid", "is", "kid", "pr", "dc")
KEYS = {"fid", "sfid", "is", "kid", "precision", "recall", "density", "coverage"}


@pytest.fixture
def sides(tmp_path):
    return folder(tmp_path / "fake", 24), folder(tmp_path / "real", 30, first=100)


def rows(opening, root, layer):
    images = np.stack([np.asarray(Image.open(file)) for file in sorted(root.iterdir())])
    with torch.no_grad():
        return opening.read(torch.from_numpy(images).permute(0, 3, 1, 2), [layer])[layer]


def values(result):
    return {name: value.value for name, value in result.metrics.items()}


def test_every_usual_metric_comes_from_one_pass_over_each_side(inception, sides, tmp_path):
    result = evaluate(*sides, cache=tmp_path / "cache", kid_size=10)
    assert set(result.metrics) == KEYS
    assert inception.images == 54
    assert result.missing == {}
    assert result["fid"] == pytest.approx(frechet_of_rows(*(rows(inception, side, "2048") for side in sides)), rel=1e-6)
    assert result["sfid"] == pytest.approx(frechet_of_rows(*(rows(inception, side, "spatial") for side in sides)), rel=1e-6)
    assert all(math.isfinite(value) for value in values(result).values())


def test_batches_do_not_change_a_value(inception, sides, tmp_path):
    found = [values(evaluate(*sides, batch=batch, cache=tmp_path / str(batch), kid_size=10)) for batch in (1, 7, 64)]
    assert max(inception.batches) == 30
    for other in found[1:]:
        assert other.pop("kid") == pytest.approx(found[0]["kid"], abs=1e-7)  # a small difference of kernels of about 1, in float32
        assert other == pytest.approx({k: v for k, v in found[0].items() if k != "kid"}, rel=1e-6)


def test_names_and_order_do_not_change_what_is_independent_of_subsets(inception, sides, tmp_path):
    before = values(evaluate(*sides, cache=tmp_path / "a", kid_size=24, kid_subsets=1))
    for side in sides:
        (side / "a").mkdir()
        (side / "b").mkdir()
        files = sorted(side.glob("*.png"))
        for place, k in enumerate(np.random.default_rng(1).permutation(len(files))):
            files[k].rename(side / ("ab"[place % 2]) / f"x{place}.png")
    after = values(evaluate(*sides, cache=tmp_path / "b", kid_size=24, kid_subsets=1))
    same = ("fid", "sfid", "precision", "recall", "density", "coverage")
    assert {k: after[k] for k in same} == pytest.approx({k: before[k] for k in same}, rel=1e-6)
    assert after["is"] != before["is"]  # its parts are drawn by place: the images did change places


def test_kid_of_one_whole_subset_is_the_training_mmd(inception, tmp_path):
    sides = folder(tmp_path / "fake", 20), folder(tmp_path / "real", 20, first=50)
    found = evaluate(*sides, metrics=("kid",), cache=tmp_path / "cache", kid_size=20, kid_subsets=1)
    real, fake = (rows(inception, side, "2048").double() for side in reversed(sides))
    assert found["kid"] == pytest.approx(mmd2(real, fake).item(), rel=1e-4)
    assert abs(found["kid"]) > 1e-3
    assert found.metrics["kid"].std == 0


def test_a_second_evaluation_computes_nothing_and_a_changed_image_is_computed_again(inception, sides, tmp_path):
    lines: list[str] = []
    first = evaluate(*sides, cache=tmp_path / "cache", kid_size=10, note=lines.append)
    assert [line.split(":")[0] for line in lines] == ["cache miss", "cache miss"]
    done = inception.images
    lines.clear()
    assert values(evaluate(*sides, cache=tmp_path / "cache", kid_size=10, note=lines.append)) == values(first)
    assert [line.split(":")[0] for line in lines] == ["cache hit", "cache hit"]
    assert inception.images == done
    Image.fromarray(picture(999)).save(sides[0] / "003.png")
    lines.clear()
    changed = evaluate(*sides, cache=tmp_path / "cache", kid_size=10, note=lines.append)
    assert [line.split(":")[0] for line in lines] == ["cache miss", "cache hit"]
    assert inception.images == done + 24
    assert changed["fid"] != first["fid"]


def test_the_cache_knows_content_extractor_and_resize(inception, sides, tmp_path, monkeypatch):
    def computed(**options):
        before = inception.images
        evaluate(*sides, metrics=("fid",), cache=tmp_path / "cache", **options)
        return inception.images - before

    assert computed() == 54
    shutil.copytree(sides[0], tmp_path / "copy")
    assert evaluate(tmp_path / "copy", sides[1], metrics=("fid",), cache=tmp_path / "cache").protocol["generated"]["count"] == 24
    assert inception.images == 54  # the same content elsewhere
    assert computed(dialect="adm") == 0  # the same resize
    assert computed(dialect="pytorch-fid") == 54
    assert computed(size=8) == 54
    assert computed(precision="bf16") == 54
    inception.weights = "other"
    assert computed() == 54


def test_random_weights_are_refused(inception, sides, tmp_path):
    inception.weights = "random"
    with pytest.raises(ValueError, match="the space 'inception' has random weights, which no metric is reported in"):
        evaluate(*sides, metrics=("fid",), spaces=("inception-2048",), cache=tmp_path / "cache")
    assert inception.images == 0
    found = evaluate(*sides, metrics=("fid", "is"), spaces=("pixels",), cache=tmp_path / "cache")
    assert set(found.metrics) == {"fid"}
    assert "random weights" in found.missing["is"]


def test_missing_weights_are_one_line_and_the_rest_is_computed(sides, tmp_path, monkeypatch):
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path / "none"))
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    result = evaluate(*sides, metrics=("all",), spaces=("pixels",), kid_size=10, cache=tmp_path / "cache")
    assert set(result.metrics) == {"fid", "kid", "precision", "recall", "density", "coverage"}
    assert set(result.missing) == {"sfid", "is", "clip-fd", "fd-dinov2", "cmmd", "lpips-diversity"}
    for reason in result.missing.values():
        assert "\n" not in reason
        assert "sha256" in reason
        assert "https://" in reason
        assert str(tmp_path / "none") in reason
    assert "weights-inception-2015-12-05-6726825d.pth" in result.missing["is"]
    assert "lpips_alex" in result.missing["lpips-diversity"]
    assert set(result.missing.values()) <= set(result.warnings)


def test_without_the_last_block_fid_768_stands_in_and_says_so(inception, sides, tmp_path):
    inception.without = ("2048", "logits")
    result = evaluate(*sides, metrics=("fid", "is"), cache=tmp_path / "cache")
    assert result.metrics["fid"].space == "inception-768"
    assert any("weights of 2048 are missing; inception-768 is used instead" in line for line in result.warnings)
    assert any("call it FID-768" in line for line in result.warnings)
    assert result.missing == {"is": "weights of logits are missing"}


def test_nothing_left_to_compute_is_an_error(inception, sides, tmp_path):
    inception.without = tuple(front.LAYERS)
    with pytest.raises(ValueError, match="no metric can be computed: weights of logits are missing"):
        evaluate(*sides, metrics=("is",), cache=tmp_path / "cache")


# ---- several spaces


def test_several_spaces_stand_beside_each_other(inception, sides, tmp_path):
    result = evaluate(*sides, metrics=("fid", "pr"), spaces=("inception-64", "pixels", "inception-2048"), cache=tmp_path / "cache")
    assert set(result.metrics) == {f"{k}{s}" for k in ("fid", "precision", "recall") for s in ("", "@pixels", "@inception-2048")}
    assert [result.metrics[k].space for k in ("fid", "fid@pixels", "fid@inception-2048")] == ["inception-64", "pixels", "inception-2048"]  # fmt: skip
    assert result["fid@inception-2048"] == evaluate(*sides, metrics=("fid",), cache=tmp_path / "cache")["fid"]


# ---- statistics


def stats(path, found, **more):
    found = found.double().numpy()
    np.savez(path, mu=found.mean(0), sigma=np.cov(found, rowvar=False), **more)
    return path


def test_statistics_give_the_same_frechet_distance_and_nothing_else(inception, sides, tmp_path):
    whole = evaluate(*sides, metrics=("fid", "is"), cache=tmp_path / "cache")
    real = stats(tmp_path / "real.npz", rows(inception, sides[1], "2048"))
    result = evaluate(sides[0], real, cache=tmp_path / "cache")
    assert set(result.metrics) == {"fid", "is"}
    assert values(result) == pytest.approx(values(whole), rel=1e-6)
    assert set(result.missing) == {"sfid", "kid", "precision", "recall", "density", "coverage"}
    assert "needs images on both sides" in result.missing["kid"]
    assert "holds statistics of 7 features, inception-spatial has 8" in result.missing["sfid"]
    assert result.protocol["reference"]["statistics"] is True
    fake = stats(tmp_path / "fake.npz", rows(inception, sides[0], "2048"))
    both = evaluate(fake, real, cache=tmp_path / "cache")
    assert set(both.metrics) == {"fid"}
    assert both["fid"] == pytest.approx(whole["fid"], rel=1e-6)
    assert "needs images" in both.missing["is"]


def test_statistics_of_another_space_name_their_dimension(inception, sides, tmp_path):
    real = stats(tmp_path / "real.npz", rows(inception, sides[1], "64"))
    with pytest.raises(ValueError, match=r"holds statistics of 5 features, inception-2048 has 7: name the space"):
        evaluate(sides[0], real, metrics=("fid",), cache=tmp_path / "cache")
    assert evaluate(sides[0], real, metrics=("fid",), spaces=("inception-64",), cache=tmp_path / "cache")["fid"] > 0


def adm_file(path, opening, root, shift=0.0):
    """As ADM's reference files: images, and statistics, here shifted ones that the images do not have."""
    images = np.stack([np.asarray(Image.open(file)) for file in sorted(root.iterdir())])
    pool, spatial = (rows(opening, root, layer).double().numpy() + shift for layer in ("2048", "spatial"))
    np.savez(path, arr_0=images, mu=pool.mean(0), sigma=np.cov(pool, rowvar=False),
             mu_s=spatial.mean(0), sigma_s=np.cov(spatial, rowvar=False))  # fmt: skip
    return path


def test_a_reference_file_of_adm_gives_its_statistics_under_its_dialect_only(inception, sides, tmp_path):
    file = adm_file(tmp_path / "adm.npz", inception, sides[1], shift=1.0)
    images = evaluate(*sides, cache=tmp_path / "cache", kid_size=10)
    plain = evaluate(sides[0], file, cache=tmp_path / "cache", kid_size=10)
    assert values(plain) == pytest.approx(values(images), rel=1e-6)
    assert "(mu, sigma) are not used" in plain.protocol["reference"]["selection"]
    adm = evaluate(sides[0], file, dialect="adm", cache=tmp_path / "cache", kid_size=10)
    assert set(adm.metrics) == KEYS
    assert adm["precision"] == images["precision"]
    delta = [rows(inception, sides[k], "2048").double().mean(0) for k in (0, 1)]
    moved = (delta[0] - delta[1] - 1).square().sum() - (delta[0] - delta[1]).square().sum()
    assert adm["fid"] == pytest.approx(images["fid"] + moved.item(), rel=1e-6)
    assert adm["sfid"] > images["sfid"] + 1
    assert (
        adm.protocol["reference"]["selection"]
        == "all; fid and sfid use the statistics in the file (mu, sigma), all else its images"
    )
    sized = evaluate(sides[0], file, dialect="adm", size=8, cache=tmp_path / "cache", metrics=("fid",))
    assert "are not used" in sized.protocol["reference"]["selection"]


def test_statistics_only_files_of_adm_have_sfid_too(inception, sides, tmp_path):
    with np.load(adm_file(tmp_path / "adm.npz", inception, sides[1])) as pack:
        np.savez(tmp_path / "stats.npz", **{k: pack[k] for k in ("mu", "sigma", "mu_s", "sigma_s")})
    images = evaluate(*sides, metrics=("fid", "sfid"), cache=tmp_path / "cache")
    assert values(evaluate(sides[0], tmp_path / "stats.npz", metrics=("fid", "sfid"), cache=tmp_path / "cache")) == pytest.approx(
        values(images), rel=1e-6
    )


@pytest.mark.parametrize("keys", [("arr_0",), ("mu", "sigma")])
def test_pickled_objects_are_refused_on_either_side(keys, sides, tmp_path):
    np.savez(tmp_path / "bad.npz", **{key: np.array([{"a": 1}] * 4, dtype=object) for key in keys})
    for pair in ((sides[0], tmp_path / "bad.npz"), (tmp_path / "bad.npz", sides[0])):
        with pytest.raises(ValueError, match="pickled objects, which are never executed"):
            evaluate(*pair, metrics=("fid",), spaces=("pixels",), cache=tmp_path / "cache")


# ---- contamination


def test_a_space_that_was_trained_against_is_marked_and_a_clean_one_stands_beside(inception, sides, tmp_path):
    result = evaluate(*sides, metrics=("fid", "pr"), spaces=("pixels",), trained_against=("pixels",), cache=tmp_path / "cache")
    marked = {name: value["contaminated"] for name, value in result.to_json()["metrics"].items()}
    assert marked == {
        "fid": True, "precision": True, "recall": True, "fid@inception-2048": False, "precision@inception-2048": False,
        "recall@inception-2048": False,
    }  # fmt: skip
    line = next(line for line in result.warnings if line.startswith("trained against"))
    assert line.endswith("not trained against: fid@inception-2048, precision@inception-2048, recall@inception-2048")


def test_any_layer_of_a_network_that_was_trained_against_is_marked(inception, sides, tmp_path):
    result = evaluate(*sides, metrics=("fid", "is"), spaces=("inception-64", "pixels"), trained_against=("inception-768",), cache=tmp_path / "c")  # fmt: skip
    assert {name: value.contaminated for name, value in result.metrics.items()} == {"fid": True, "fid@pixels": False, "is": True}
    plain = evaluate(*sides, metrics=("fid", "is"), trained_against=("clip", "domain:aa"), cache=tmp_path / "c")
    assert not any(value.contaminated for value in plain.metrics.values())
    assert not any("trained against" in line for line in plain.warnings)


def test_a_clean_metric_is_not_promised_where_there_is_none(inception, sides, tmp_path):
    result = evaluate(*sides, metrics=("is",), trained_against=("inception",), cache=tmp_path / "c")
    assert any(line == "trained against, and so no evidence of quality: is; nothing that it was not trained against stands beside" for line in result.warnings)  # fmt: skip


# ---- asking for nonsense


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"metrics": ("fdi",)}, "did you mean fid"),
        ({"spaces": ("inceptoin",)}, "unknown space 'inceptoin'"),
        ({"dialect": "adn"}, "there is no dialect 'adn'; known: torch-fidelity"),
        ({"kid_size": 1}, "KID subset size must be at least 2, got 1"),
        ({"kid_subsets": 0}, "KID subsets must be at least 1, got 0"),
        ({"batch": 0}, "the batch must be at least 1"),
        ({"num": 25}, "25 images were asked for, it holds 24"),
        ({"num": 1}, "at least 2 images"),
    ],
)
def test_nonsense_is_a_clear_error(options, words, inception, sides, tmp_path):
    with pytest.raises(ValueError, match=words):
        evaluate(*sides, cache=tmp_path / "cache", **options)
    assert inception.images == 0


def test_a_failure_in_the_middle_keeps_whole_chunks(inception, sides, tmp_path, monkeypatch):
    monkeypatch.setattr("percepta.evaluation.passes.CHUNK", 8)
    seen = 0

    def check():
        nonlocal seen
        seen += 1
        if seen > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*sides, metrics=("fid",), batch=4, check=check, cache=tmp_path / "cache")
    before, lines = inception.images, list[str]()
    assert 0 < before < 54
    result = evaluate(*sides, metrics=("fid",), batch=4, cache=tmp_path / "cache", note=lines.append)
    assert inception.images < before + 54
    assert any(line.startswith("cache partial hit") for line in lines)
    assert result["fid"] == evaluate(*sides, metrics=("fid",), cache=tmp_path / "fresh")["fid"]


def test_the_extractor_of_the_test_is_a_real_one(inception):
    assert isinstance(inception("inception"), Extractor)

"""The table of spaces that evaluation reads: names, layers, identities, and what each refuses."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from percepta.spaces import clip
from percepta.spaces.clip import Clip
from percepta.spaces.dino import Dino
from percepta.spaces.extractor import PARTIAL_TAPS, Extractor, known_extractors, open_extractor, split_name
from percepta.spaces.inception import PARTIAL, TAPS, Inception
from percepta.spaces.lpips import Pooled
from percepta.spaces.vit import fitted_by_pillow

torch.set_num_threads(1)
REAL = os.environ.get("PERCEPTA_WEIGHTS")
real = pytest.mark.skipif(not REAL, reason="PERCEPTA_WEIGHTS names no folder of real weights")
HEAVY = ("clip-l", "dinov2", "dinov2-b")  # a gigabyte each with random weights; their siblings run the same code


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch, tmp_path):
    """No weights anywhere, whatever the machine holds."""
    for name in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "PERCEPTA_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    small = replace(clip.KINDS["clip"], width=32, layers=2, heads=2, dims=16)
    monkeypatch.setitem(clip.KINDS, "clip", small)


def images(count: int = 3, height: int = 40, width: int = 33) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def floats(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 127.5 - 1


@pytest.mark.parametrize("family", [name for name in known_extractors() if name not in ("domain", *HEAVY)])
def test_every_family_gives_rows_of_the_dimension_it_names(family):
    extractor = open_extractor(family, weights="random")
    assert extractor.default in extractor.layers
    assert extractor.weights == ("none" if family == "pixels" else "random")
    x = images()
    rows = extractor(x, [extractor.default])[extractor.default]
    assert rows.shape == (3, extractor.layers[extractor.default] or 3 * 40 * 33)
    assert rows.dtype == torch.float32 and rows.isfinite().all() and not rows.requires_grad
    one = torch.cat([extractor(x[k : k + 1], [extractor.default])[extractor.default] for k in range(3)])
    torch.testing.assert_close(one, rows, rtol=1e-4, atol=1e-4 * rows.abs().max().item())
    assert (rows[0] - rows[1]).abs().max() > 0


def test_an_extractor_reads_what_its_space_reads():
    x = images()
    with torch.no_grad():
        pooled = Pooled("squeeze", weights="random")
        made = open_extractor("squeeze", weights="random")
        assert made(x, ["embedding"])["embedding"].shape == pooled(floats(x))[0].shape
        eight_bit = floats(fitted_by_pillow(x, 224, True))
        torch.testing.assert_close(
            open_extractor("clip", weights="random")(x, ["embedding"])["embedding"], Clip("clip", "random")(eight_bit)[0]
        )
        eight_bit = floats(fitted_by_pillow(x[:1], 224, False))
        dino = open_extractor("dinov2-s", weights="random")(x[:1], ["embedding"])["embedding"]
        torch.testing.assert_close(dino, Dino("dinov2-s", "random")(eight_bit)[0])
        inception = open_extractor("inception", "pytorch-fid", weights="random")
        expected = Inception(("64", "192"), "random", "pytorch-fid").of_bytes(x)
        found = inception(x, ["192", "64"])
    torch.testing.assert_close((found["64"], found["192"]), expected)
    assert list(found) == ["192", "64"]
    assert torch.equal(open_extractor("pixels")(x, ["embedding"])["embedding"], floats(x).flatten(1))


def test_inception_grows_with_what_is_asked():
    extractor = open_extractor("inception", weights="random")
    assert dict(extractor.layers) == TAPS
    x = images(1)
    shallow = extractor(x, ["64"])["64"]
    both = extractor(x, ["64", "192"])
    assert torch.equal(both["64"], shallow) and both["192"].shape == (1, 192)
    assert torch.equal(extractor(x, ["64"])["64"], shallow)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("inception", ("inception", None)),
        ("inception-768", ("inception", "768")),
        ("inception-logits", ("inception", "logits")),
        ("clip", ("clip", None)),
        ("clip-l", ("clip-l", None)),
        ("clip-l-embedding", ("clip-l", "embedding")),
        ("dinov2-s", ("dinov2-s", None)),
        ("dinov2-embedding", ("dinov2", "embedding")),
        ("lpips-alex", ("alex", None)),
        ("domain", ("domain", None)),
    ],
)
def test_names_are_split(spec, expected):
    assert split_name(spec) == expected


@pytest.mark.parametrize("spec", ["", "incepton", "inception-", "inception-1000", "clip-xl", "dinov2-768", "pixels-64"])
def test_wrong_names_are_refused(spec):
    with pytest.raises(ValueError, match="[kK]nown: inception, clip"):
        split_name(spec)


def test_identity_changes_with_whatever_changes_a_number():
    base = Extractor("a", {"embedding": 1}, "embedding", "none", "w", lambda x, layers: {})
    assert base.identity == replace(base, device="cuda", about="x").identity
    changed = [replace(base, **{field: "other"}) for field in ("name", "resize", "weights", "precision")]
    assert len({base.identity, *(e.identity for e in changed)}) == 5
    dialects = {
        name: open_extractor("inception", name, weights="random") for name in ("torch-fidelity", "pytorch-fid", "clean", "adm")
    }
    assert dialects["torch-fidelity"].identity == dialects["adm"].identity  # the same resize of the same network
    assert len({e.identity for e in dialects.values()}) == 3
    assert open_extractor("inception", precision="bf16", weights="random").identity != dialects["adm"].identity
    assert len({base: 1, replace(base): 2}) == 2, "extractors are keys by themselves"


def test_bf16_is_near_and_not_equal():
    x = images(2)
    for family in ("clip", "squeeze"):
        full, half = (open_extractor(family, precision=p, weights="random") for p in ("fp32", "bf16"))
        assert (full.precision, half.precision) == ("fp32", "bf16")
    torch.manual_seed(0)
    a, b = (open_extractor("clip", precision=p, weights="random")(x, ["embedding"])["embedding"] for p in ("fp32", "bf16"))
    assert not torch.equal(a, b)
    assert (a - b).abs().max() < 0.05 * a.abs().max()
    assert open_extractor("pixels", precision="bf16").precision == "fp32"


@pytest.mark.parametrize("family", [name for name in known_extractors() if name not in ("domain", "pixels")])
def test_missing_weights_are_one_line(family):
    with pytest.raises(ValueError) as error:
        open_extractor(family)
    text = str(error.value)
    assert "\n" not in text and "https://" in text and "sha256" in text and "put " in text


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match="unknown space 'vgg'"):
        open_extractor("vgg")
    with pytest.raises(ValueError, match="fp32 or bf16"):
        open_extractor("pixels", precision="fp16")
    with pytest.raises(ValueError, match="has the layers embedding; got 768"):
        open_extractor("pixels", layers=("768",))
    with pytest.raises(ValueError, match="has the layers embedding; got 5"):
        open_extractor("pixels")(images(), ["5"])
    with pytest.raises(ValueError, match="got none"):
        open_extractor("pixels")(images(), [])
    with pytest.raises(ValueError, match="at least 31 x 31, got 16 x 40"):
        open_extractor("alex", weights="random")(images(1, 16, 40), ["embedding"])


@real
def test_the_partial_inception_says_how_far_it_reaches(monkeypatch, tmp_path):
    (tmp_path / "only").mkdir()
    file = f"{PARTIAL}.safetensors"
    shutil.copy(Path(str(REAL)) / file, tmp_path / "only" / file)
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path / "only"))
    with pytest.raises(ValueError, match="weights-inception-2015-12-05"):
        open_extractor("inception")
    with pytest.raises(ValueError, match="weights-inception-2015-12-05"):
        open_extractor("inception", layers=("logits",))
    extractor = open_extractor("inception", layers=("768",))
    assert tuple(extractor.layers) == PARTIAL_TAPS and extractor.default == "768" and len(extractor.weights) == 64
    assert extractor(images(1), ["768"])["768"].shape == (1, 768)


@real
def test_real_trunks_are_found(monkeypatch):
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(REAL))
    for family in ("lpips-alex", "squeeze"):
        extractor = open_extractor(family)
        assert len(extractor.weights) == 64 and extractor.name == family.removeprefix("lpips-")
        assert extractor(images(1), ["embedding"])["embedding"].shape == (1, extractor.layers["embedding"])

"""TranslationPipeline: what it is given is what it gives back, and folders of every kind are read or refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from percepta import TranslationPipeline
from percepta.evaluation.contamination import trained_against
from percepta.networks.munit import MunitPair
from percepta.networks.ugatit import UgatitPair
from percepta.networks.unit import UnitPair
from percepta.training.translated import Translated


def pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_kinds_of_images_agree(run: Path) -> None:
    pipe = TranslationPipeline.from_pretrained(run)
    array = pixels(32, 48)
    from_array = pipe(array).images
    assert from_array.dtype == np.uint8 and from_array.shape == array.shape
    (from_picture,) = pipe(Image.fromarray(array)).images
    assert np.array_equal(np.asarray(from_picture), from_array)
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 127.5 - 1
    from_tensor = pipe(tensor).images
    assert np.array_equal(((from_tensor + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), from_array)
    assert torch.equal(from_tensor, pipe.pair.translate(tensor[None], "a2b")[0].detach().clamp(-1, 1))
    assert not torch.equal(from_tensor, pipe(tensor, direction="b2a").images)


def test_stacks_stay_stacks_and_lists_may_mix(run: Path) -> None:
    pipe = TranslationPipeline.from_pretrained(run)
    arrays = np.stack([pixels(32, 32, k) for k in range(3)])
    out = pipe(arrays, batch_size=2).images
    assert out.shape == arrays.shape
    np.testing.assert_allclose(out[1].astype(int), pipe(arrays[1]).images.astype(int), atol=1)
    tensors = torch.zeros(2, 3, 36, 32, dtype=torch.float64)
    assert pipe(tensors).images.shape == tensors.shape and pipe(tensors).images.dtype == torch.float64
    mixed = pipe([Image.fromarray(arrays[0]), arrays[1], tensors[0]]).images
    assert [type(m) for m in mixed] == [Image.Image, np.ndarray, torch.Tensor]
    assert pipe([]).images == []


def test_pictures_keep_alpha_and_stand_upright(run: Path) -> None:
    pipe = TranslationPipeline.from_pretrained(run)
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8))
    turned = Image.fromarray(pixels(20, 30))
    turned.getexif()[0x0112] = 6
    deep = Image.fromarray(np.full((20, 30), 40000, np.uint16))
    out = pipe([rgba, turned, Image.fromarray(pixels(20, 30)).convert("L"), deep, rgba.convert("LA"), rgba.convert("P")]).images
    assert [o.mode for o in out] == ["RGBA", "RGB", "RGB", "RGB", "RGBA", "RGB"]
    assert [o.size for o in out] == [(30, 20), (20, 30), (30, 20), (30, 20), (30, 20), (30, 20)]
    assert np.array_equal(np.asarray(out[0])[..., 3], np.asarray(rgba)[..., 3])


def test_saved_and_read_again_with_its_size(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    UnitPair(channels=4, blocks=1).save_pretrained(tmp_path / "unit")
    bare = TranslationPipeline.from_pretrained(tmp_path / "unit")
    assert bare.size is None  # its config.json knows no size
    image = pixels(20, 24)
    with pytest.raises(ValueError, match="give the size"):
        bare(image)
    TranslationPipeline.from_pretrained(tmp_path / "unit", size=32).save_pretrained(tmp_path / "saved")
    saved = TranslationPipeline.from_pretrained(tmp_path / "saved")
    assert saved.size == 32
    assert np.array_equal(saved(image).images, TranslationPipeline.from_pretrained(tmp_path / "unit", size=32)(image).images)
    assert bare(image, fit="pad").images.shape == image.shape


def test_a_run_knows_its_size_and_so_does_its_model_folder(run: Path) -> None:
    assert TranslationPipeline.from_pretrained(run).size == 32
    assert TranslationPipeline.from_pretrained(run / "model").size == 32
    assert TranslationPipeline.from_pretrained(str(run), size=64).size == 64


def test_a_full_ugatit_is_translated_at_its_size_only(tmp_path: Path) -> None:
    UgatitPair(sample_size=16, channels=4, blocks=1, light=False).save_pretrained(tmp_path / "full")
    pipe = TranslationPipeline.from_pretrained(tmp_path / "full")
    for fit in ("resize", "tile"):
        assert pipe(pixels(20, 41), fit=fit).images.shape == (20, 41, 3)
    with pytest.raises(ValueError, match="16 px only"):
        pipe(pixels(20, 41), fit="pad")
    with pytest.raises(ValueError, match="16 px only"):
        TranslationPipeline.from_pretrained(tmp_path / "full", size=32)


def test_the_seed_chooses_the_style(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pipe = TranslationPipeline(MunitPair(channels=4, blocks=1, style_dim=4, hidden=8), size=32)
    first, again, other = (pipe(pixels(32, 32), seed=seed).images for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_to_gives_the_pipeline_and_leaves_no_gradient(run: Path) -> None:
    pipe = TranslationPipeline.from_pretrained(run).to("cpu")
    assert isinstance(pipe, TranslationPipeline) and pipe.device.type == "cpu"
    assert not pipe(torch.zeros(3, 32, 32)).images.requires_grad and not any(p.requires_grad for p in pipe.pair.parameters())


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((8, 8), np.uint8), "uint8 .h, w, 3"), (np.zeros((8, 8, 3), np.float32), "uint8"), (torch.zeros(1, 8, 8), "3, h, w"),
        (torch.full((3, 8, 8), 200.0), "scale it"), (torch.full((3, 8, 8), float("nan")), "scale it"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "float"), (torch.zeros(3, 0, 8), "3, h, w"), (Image.new("F", (8, 8)), "32-bit"),
    ],
)  # fmt: skip
def test_wrong_images_are_named(image, said: str, run: Path) -> None:
    with pytest.raises(ValueError, match=said):
        TranslationPipeline.from_pretrained(run)([image])


def test_folders_that_translate_nothing_are_refused(run: Path, tmp_path: Path) -> None:
    from percepta.networks.ddpmpp import DDPMPP

    drawn = tmp_path / "ddpm"
    (drawn / "model" / "unet").mkdir(parents=True)
    (drawn / "config.json").write_text(json.dumps({"recipe": "ddpm"}))
    with pytest.raises(ValueError, match="percepta sample"):
        TranslationPipeline.from_pretrained(drawn)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    shutil.rmtree(unfinished / "model")
    with pytest.raises(ValueError, match="has no model yet"):
        TranslationPipeline.from_pretrained(unfinished)
    with pytest.raises(ValueError, match="does not exist"):
        TranslationPipeline.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps({"_class_name": DDPMPP.__name__}))
    with pytest.raises(ValueError, match="translates nothing"):
        TranslationPipeline.from_pretrained(tmp_path / "net")


def test_what_a_run_exports_knows_its_size(tmp_path: Path) -> None:
    """A UNIT's config.json does not."""
    Translated(UnitPair(channels=4, blocks=1), torch.zeros(0, 3, 32, 32), torch.zeros(0, 3, 32, 32)).export(tmp_path / "out", {})
    assert TranslationPipeline.from_pretrained(tmp_path / "out").size == 32


def test_what_is_saved_says_what_it_was_trained_against(run, tmp_path):
    own = shutil.copytree(run, tmp_path / "run")
    config = {"recipe": "ladiffgan", "settings": {"size": 32}, "resolved": {"trained_against": [{"space": "alex"}]}}
    (own / "config.json").write_text(json.dumps(config))
    TranslationPipeline.from_pretrained(own).save_pretrained(tmp_path / "saved")
    assert trained_against(tmp_path / "saved") == ("alex",)
    TranslationPipeline.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")
    assert trained_against(tmp_path / "again") == ("alex",)

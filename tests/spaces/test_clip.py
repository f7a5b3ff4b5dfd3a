"""CLIP as a space: the architecture of the published files, the preprocessing of the tools it stands for, gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from percepta.spaces import clip
from percepta.spaces.clip import KINDS, MEAN, STD, Clip
from percepta.spaces.extractor import open_extractor
from percepta.spaces.vit import fitted, fitted_by_pillow, square
from percepta.weights.table import BY_NAME

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
SMALL = replace(KINDS["clip"], width=32, layers=2, heads=2, dims=16)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(clip.KINDS, "clip", SMALL)
    monkeypatch.setitem(clip.KINDS, "clip-l", replace(SMALL, crop=False, unit=True))


@pytest.mark.parametrize(("kind", "parameters"), [("clip", 87_849_216), ("clip-l", 304_293_888)])
def test_the_published_sizes(kind, parameters):
    network = clip._network(KINDS[kind])
    assert sum(p.numel() for p in network.parameters()) == parameters
    names = network.state_dict().keys()
    assert {"vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight", "visual_projection.weight"} <= set(names)
    assert not any("position_ids" in name for name in names)


def test_gradients_and_shapes(small):
    space = Clip("clip", weights="random")
    x = torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).requires_grad_()
    (embedding,) = space.features(x, {})
    assert embedding.shape == (2, 16) and embedding.dtype == torch.float32
    embedding.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).any()
    assert all(not p.requires_grad for p in space.parameters())
    (unit,) = Clip("clip-l", weights="random")(x.detach())
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2))
    assert (embedding.norm(dim=1) - 1).abs().max() > 1e-3


def test_random_weights_leave_the_random_numbers_alone(small):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, second = Clip("clip", weights="random"), Clip("clip", weights="random")
    assert torch.equal(torch.rand(4), expected)
    x = torch.zeros(1, 3, 8, 8)
    assert torch.equal(first(x)[0], second(x)[0])
    assert first.weights == "random"


def test_the_text_half_is_ignored_and_wrong_files_are_refused(small, monkeypatch, tmp_path):
    """A whole CLIP file, saved by transformers: our image half gives what theirs gives."""
    vision = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 32}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = transformers.CLIPModel(config).eval()
    save_file(whole.state_dict(), tmp_path / "clip.safetensors")
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(BY_NAME, SMALL.weights, replace(BY_NAME[SMALL.weights], file="clip.safetensors"))
    space = Clip("clip")
    assert len(space.weights) == 64
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        features = whole.vision_model(pixel_values=((x + 1) / 2 - mean) / std).pooler_output
        torch.testing.assert_close(space(x)[0], whole.visual_projection(features))
    save_file({"visual_projection.weight": torch.zeros(16, 32)}, tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match="not the weights of CLIP"):
        Clip("clip")


@pytest.mark.reference
@pytest.mark.parametrize("size", [(32, 32), (300, 260), (231, 400), (224, 224), (61, 224)])
def test_preprocessing_is_that_of_the_tools(size):
    """clean-fid's: torchvision's Resize and CenterCrop of a PIL image, to the bit; the float way differs by the rounding of noise."""
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    tool = transforms.Compose(
        [transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
    )
    expected = np.asarray(tool(Image.fromarray(pixels)))
    ours = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    assert np.array_equal(fitted_by_pillow(ours, 224, True)[0].permute(1, 2, 0).numpy(), expected)
    smooth = torch.nn.functional.interpolate(ours.float()[..., :4, :4], size=size, mode="bilinear").round()
    tool_smooth = torch.from_numpy(np.array(tool(Image.fromarray(smooth[0].permute(1, 2, 0).numpy().astype(np.uint8))))).permute(
        2, 0, 1
    )
    assert (fitted(smooth, 224, True)[0] - tool_smooth).abs().max() < 1.6


@pytest.mark.parametrize(("height", "width"), [(40, 40), (61, 40), (40, 63)])
def test_cmmd_cuts_the_middle_square_and_scales_that(small, height, width):
    """Pillow's own crop and resize of the image, then the network: the steps of the authors' reader, one after the other."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    tool = Image.fromarray(pixels).crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    ours = fitted_by_pillow(square(images), 224, crop=False)
    assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.asarray(tool))
    extractor = open_extractor("clip-l", weights="random")
    space = Clip("clip-l", weights="random")
    expected = space(torch.from_numpy(np.array(tool)).permute(2, 0, 1)[None].float() / 127.5 - 1)[0]
    torch.testing.assert_close(extractor(images, ["embedding"])["embedding"], expected)
    smooth = (
        torch.nn.functional.interpolate(images.float()[..., :3, :3], size=(height, width), mode="bicubic").clamp(0, 255).round()
    )
    gap = space(smooth / 127.5 - 1)[0] - extractor(smooth.to(torch.uint8), ["embedding"])["embedding"]
    assert gap.abs().max() < 0.05  # with gradients: the same but for rounding to 8 bits
    assert "middle square" in extractor.resize


@pytest.mark.reference
def test_normalisation_is_that_of_transformers(small):
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=224)
    pixels = np.random.default_rng(0).integers(0, 256, (250, 300, 3), dtype=np.uint8)
    theirs = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    space = Clip("clip", weights="random")
    ours = fitted_by_pillow(torch.from_numpy(pixels).permute(2, 0, 1)[None], 224, True).float() / 127.5 - 1
    ours = ((ours + 1) / 2 - space.mean) / space.std
    assert (ours - theirs).abs().max() < 2 / 255 / min(
        STD
    ) + 1e-5  # their resize may run in torch: one level of 255 beside Pillow's


def test_mistakes_are_explained(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="known: clip, clip-l"):
        Clip("vit")
    with pytest.raises(ValueError, match="'random'"):
        Clip("clip", weights="imagenet")
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"clip_vit_b_32.*https://huggingface.co/openai") as error:
        Clip("clip")
    assert "\n" not in str(error.value)

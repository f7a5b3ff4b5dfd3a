"""DINOv2 as a space: the published files' names and shapes, the publishers' positions, the network of another implementation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from percepta.spaces import dino
from percepta.spaces.dino import KINDS, SIZE, Dino, positions
from percepta.spaces.trunks import MEAN, STD
from percepta.spaces.vit import fitted_by_pillow
from percepta.weights.table import BY_NAME

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def small():
    return Dino("dinov2-s", weights="random")


@pytest.mark.parametrize(("kind", "parameters"), [("dinov2", 304_368_640), ("dinov2-b", 86_580_480), ("dinov2-s", 22_056_576)])
def test_the_published_sizes(kind, parameters):
    """The counts of the published files, which have 37 x 37 positions and a mask token that is not used."""
    architecture, _, dims = KINDS[kind]
    network = dino._network(architecture)
    missing = (37 * 37 - 16 * 16) * dims + dims
    assert sum(p.numel() for p in network.parameters()) + missing == parameters
    assert {"cls_token", "pos_embed", "blocks.0.ls1.gamma", "blocks.11.mlp.fc2.bias", "norm.weight"} <= set(network.state_dict())


def cubic(d):
    """The kernel of bicubic interpolation with a = -3/4."""
    d, a = np.abs(d), -0.75
    return np.where(d <= 1, (a + 2) * d**3 - (a + 3) * d**2 + 1, np.where(d < 2, a * (d**3 - 5 * d**2 + 8 * d - 4), 0.0))


def test_positions_are_read_where_the_publishers_read_them():
    """Written out in float64: patch i of 16 reads the table at (i + 1/2) * 37 / 16.1 - 1/2, places outside repeat the edge."""
    table = torch.randn(1, 1 + 37 * 37, 3, generator=torch.Generator().manual_seed(0))
    places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    weights = np.zeros((16, 37))
    for i, place in enumerate(places):
        for k in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[i, min(max(k, 0), 36)] += cubic(place - k)
    expected = np.einsum("ia,jb,abd->ijd", weights, weights, table[0, 1:].double().numpy().reshape(37, 37, 3))
    out = positions(table, 16)
    assert out.shape == (1, 257, 3)
    assert torch.equal(out[:, 0], table[:, 0])
    assert np.abs(out[0, 1:].numpy().reshape(16, 16, 3) - expected).max() < 1e-4
    assert torch.equal(positions(out, 16), out)


def test_gradients_and_shapes(small):
    x = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).requires_grad_()
    (embedding,) = small.features(x, {})
    assert embedding.shape == (1, 384)
    embedding.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).any()
    assert small.weights == "random"


def test_a_published_file_is_read(small, monkeypatch, tmp_path):
    """37 x 37 positions and a mask token, as in the publishers' file; the wrong network's file is refused."""
    tensors = {name: value.clone() for name, value in small.network.state_dict().items()}
    table = torch.randn(1, 1370, 384, generator=torch.Generator().manual_seed(1))
    tensors |= {"pos_embed": table, "mask_token": torch.zeros(1, 384)}
    save_file(tensors, tmp_path / "dino.safetensors")
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    for name in ("dinov2_vits14", "dinov2_vitb14"):
        monkeypatch.setitem(BY_NAME, name, replace(BY_NAME[name], file="dino.safetensors"))
    space = Dino("dinov2-s")
    assert torch.equal(space.network.pos_embed, positions(table, 16))
    assert len(space.weights) == 64
    with pytest.raises(ValueError, match="not the weights of dinov2_vitb14"):
        Dino("dinov2-b")


@pytest.mark.reference
def test_transformers_gives_the_same_token(small):
    """The same weights in transformers' DINOv2, which is another implementation."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=SIZE, patch_size=14)
    with torch.device("meta"):
        peer = transformers.Dinov2Model(config)
    own, theirs = small.network.state_dict(), {}
    names = {
        "norm1.weight": "norm1.weight", "norm1.bias": "norm1.bias", "norm2.weight": "norm2.weight", "norm2.bias": "norm2.bias",
        "attention.o_proj.weight": "attn.proj.weight", "attention.o_proj.bias": "attn.proj.bias",
        "layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma",
        "mlp.fc1.weight": "mlp.fc1.weight", "mlp.fc1.bias": "mlp.fc1.bias", "mlp.fc2.weight": "mlp.fc2.weight", "mlp.fc2.bias": "mlp.fc2.bias",
    }  # fmt: skip
    for k in range(12):
        for name, ours in names.items():
            theirs[f"encoder.layer.{k}.{name}"] = own[f"blocks.{k}.{ours}"]
        for part in ("weight", "bias"):
            for kind, value in zip(("q_proj", "k_proj", "v_proj"), own[f"blocks.{k}.attn.qkv.{part}"].chunk(3), strict=True):
                theirs[f"encoder.layer.{k}.attention.{kind}.{part}"] = value
    theirs |= {"embeddings.cls_token": own["cls_token"], "embeddings.position_embeddings": own["pos_embed"]}
    theirs |= {"embeddings.mask_token": torch.zeros(1, 384)}
    theirs |= {f"embeddings.patch_embeddings.projection.{p}": own[f"patch_embed.proj.{p}"] for p in ("weight", "bias")}
    theirs |= {f"layernorm.{p}": own[f"norm.{p}"] for p in ("weight", "bias")}
    if "encoder.layer.0.attention.attention.query.weight" in peer.state_dict():  # transformers 4
        old = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}
        for new, name in old.items():
            theirs = {key.replace(f".{new}.", f".{name}."): value for key, value in theirs.items()}
    assert set(theirs) == set(peer.state_dict())
    peer.load_state_dict(theirs, assign=True)
    x = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    with torch.no_grad():
        expected = peer.eval()(((x + 1) / 2 - mean) / std).last_hidden_state[:, 0]
        torch.testing.assert_close(small(x)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.reference
def test_preprocessing_is_that_of_the_paper():
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    tool = transforms.Resize((SIZE, SIZE), transforms.InterpolationMode.BICUBIC)
    ours = fitted_by_pillow(torch.from_numpy(pixels).permute(2, 0, 1)[None], SIZE, crop=False)
    assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), np.asarray(tool(Image.fromarray(pixels))))


def test_mistakes_are_explained(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="known: dinov2, dinov2-b, dinov2-s"):
        Dino("dino")
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"dinov2_vitl14_pretrain.pth from https://dl.fbaipublicfiles.com"):
        Dino("dinov2")

"""Metric functions by name: architectures against torchvision's own forward pass, against peers, and what is said where weights are missing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from percepta.estimate import Estimate
from percepta.objectives import Metric
from percepta.spaces import clip
from percepta.spaces.backbones import BACKBONES, InceptionBlocks, Stages
from percepta.spaces.clip import Clip
from percepta.spaces.dists import Dists
from percepta.spaces.inception import Inception
from percepta.spaces.lpips import Lpips
from percepta.spaces.metrics import METRICS, known_metrics, open_metric
from percepta.spaces.opening import weighted
from percepta.spaces.tokens import Tokens, _quarters
from percepta.spaces.trunks import L2Pooling, Trunk
from percepta.weights import hash_of_file
from percepta.weights.table import BY_NAME, known_weights

torch.set_num_threads(1)
TAPS = {
    "resnet": ("layer1", "layer2", "layer3", "layer4"),
    "swin": ("features.1", "features.3", "features.5", "features.7"),
    "convnext": ("features.1", "features.3", "features.5", "features.7"),
}
SHAPES = {
    "resnet": [(256, 16), (512, 8), (1024, 4), (2048, 2)],
    "swin": [(96, 16), (192, 8), (384, 4), (768, 2)],
    "convnext": [(96, 16), (192, 8), (384, 4), (768, 2)],
}


def images(count: int = 2, size: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def shaken(name: str) -> nn.Module:
    """A whole network of torchvision whose norms and small scales are not those of a fresh one."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = getattr(torchvision.models, BACKBONES[name].builder)(weights=None).eval()
        for key, value in network.state_dict().items():
            if key.endswith("running_mean"):
                value.uniform_(-0.3, 0.3)
            elif key.endswith(("running_var", "layer_scale")):
                value.uniform_(0.5, 1.5)
    return network


@pytest.mark.parametrize("name", BACKBONES)
def test_the_published_file_gives_torchvisions_features(name, monkeypatch, tmp_path):
    """Read from a file as torchvision's, classifier included, and compared with its forward pass on ImageNet's normalisation."""
    network = shaken(name)
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "file.safetensors")
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    weights = BACKBONES[name].weights
    monkeypatch.setitem(BY_NAME, weights, replace(BY_NAME[weights], file="file.safetensors", sha256=""))
    x = images()
    normalise = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        found = open_metric(name)(x)
        truth = create_feature_extractor(network, list(TAPS[name]))(normalise((x + 1) / 2))
    assert [(one.shape[1], one.shape[2]) for one in found] == SHAPES[name]
    for one, tap in zip(found, TAPS[name], strict=True):
        other = truth[tap].permute(0, 3, 1, 2) if name == "swin" else truth[tap]
        assert one.std((0, 2, 3)).median() > 0.1 * one.abs().median(), "nothing comes through"
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-3)


def test_another_networks_file_is_refused(monkeypatch, tmp_path):
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "file.safetensors")
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(BY_NAME, "resnet50", replace(BY_NAME["resnet50"], file="file.safetensors", sha256=""))
    with pytest.raises(ValueError, match="not the weights of resnet50: bn1.weight is missing"):
        open_metric("resnet")


def test_random_weights_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    first = Stages("resnet", "random")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.stages[0][0][0].weight, Stages("resnet", "random").stages[0][0][0].weight)  # pyright: ignore


def test_inceptions_blocks_are_those_whose_means_evaluation_reads():
    """At 299 pixels nothing is resized: the mean of Mixed_6e is FID-768's feature, that of Mixed_7c is FID's."""
    space, whole = InceptionBlocks(weights="random"), Inception(("768", "2048"), "random")
    space.network.stages.load_state_dict(whole.stages.state_dict())
    x = images(1, 299)
    with torch.no_grad():
        first, second, third = space(x)
        rows = whole(x)
    assert [tuple(one.shape[1:]) for one in (first, second, third)] == [(288, 35, 35), (768, 17, 17), (2048, 8, 8)]
    torch.testing.assert_close(second.mean((2, 3)), rows[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(third.mean((2, 3)), rows[1], atol=1e-4, rtol=1e-4)
    assert len(open_metric("inception-768", weights="random")(images(1, 80))) == 2


def test_average_pooling_stands_where_the_maximum_was():
    plain, mean = Trunk("vgg16", weights="random"), Trunk("vgg16", weights="random", pooling="average")
    mean.layers.load_state_dict(plain.layers.state_dict())
    assert sum(isinstance(layer, nn.AvgPool2d) for layer in mean.layers) == 4
    assert not any(isinstance(layer, nn.MaxPool2d) for layer in mean.layers)
    x = images(1, 32)
    with torch.no_grad():
        a, b = plain(x), mean(x)
        torch.testing.assert_close(a[0], b[0])
        y = nn.functional.avg_pool2d(a[0], 2)
        for layer in plain.layers[5:9]:
            y = layer(y)
    torch.testing.assert_close(b[1], y)
    assert not torch.allclose(a[1], b[1])
    lpips = open_metric("lpips", weights="random")
    assert isinstance(lpips, Lpips) and any(isinstance(layer, nn.AvgPool2d) for layer in lpips.trunk.layers)


def test_l2_pooling_written_out():
    x = torch.rand(2, 4, 7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = L2Pooling().double()(x)
    assert found.shape == (2, 4, 4, 3)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    window = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    for i in range(4):
        for j in range(3):
            part = padded[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] ** 2
            expected = ((part * window[:, None] * window / 16).sum((2, 3)) + 1e-12).sqrt()
            torch.testing.assert_close(found[:, :, i, j], expected)


@pytest.fixture
def small_clip(monkeypatch):
    kind = replace(clip.KINDS["clip"], width=32, layers=4, heads=2, dims=16)
    monkeypatch.setitem(clip.KINDS, "clip", kind)


def test_tokens_of_clip_are_the_outputs_of_its_blocks(small_clip):
    space, x = Tokens("clip", "random"), images(1, 40)
    assert isinstance(space.vit, Clip)
    seen: list[Tensor] = []
    for block in space.vit.network.vision_model.encoder.layers:
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        found = space(x)
    assert len(found) == len(seen) == 4 and found[0].shape == (1, 49, 32)
    for one, block in zip(found, seen, strict=True):
        torch.testing.assert_close(one, nn.functional.layer_norm(block[:, 1:], (32,)))
    assert not torch.allclose(found[0], found[3])


def test_tokens_of_dino_are_the_outputs_of_its_blocks():
    space, x = Tokens("dinov2-s", "random"), images(1, 40)
    seen: list[Tensor] = []
    for k in (2, 5, 8, 11):
        space.vit.network.blocks[k].register_forward_hook(lambda _, __, out: seen.append(out))  # pyright: ignore
    with torch.no_grad():
        found = space(x)
    assert [tuple(one.shape) for one in found] == [(1, 256, 384)] * 4
    for one, block in zip(found, seen, strict=True):
        torch.testing.assert_close(one, nn.functional.layer_norm(block[:, 1:], (384,)))
    assert _quarters(24) == [6, 12, 18, 24] and _quarters(2) == [1, 1, 2, 2]


NAMES = [name for name in METRICS if not name.startswith(("dinov2", "clip-l"))]  # slow; they are read as clip is


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_pulls_an_image_to_its_target(name, small_clip):
    """By its gradient, at a size below the network's: what is nearer is less far, and equal images are 0 apart."""
    objective, target = Metric(open_metric(name, weights="random"), 96), images(1, 16)
    x = images(1, 16, seed=1).requires_grad_()
    value = objective(Estimate(x, target))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.9
    with torch.no_grad():
        step = 0.02 * gradient / gradient.norm()
        assert float(objective(Estimate(x - step, target))) < float(value)
        assert float(objective(Estimate(target.clone(), target))) == pytest.approx(0, abs=1e-6)


def test_a_domain_is_opened_by_its_folder():
    with pytest.raises(ValueError, match="say which folder train_domain gave"):
        open_metric("domain")
    with pytest.raises(ValueError, match="holds no domain encoder"):
        open_metric("domain", Path("nowhere"))


def test_names():
    assert {"lpips", "lpips-vgg16", "lpips-alex", "lpips-squeeze", "resnet", "inception", "swin", "convnext", "dinov2", "clip", "dists",
            "domain"} <= set(known_metrics())  # fmt: skip
    with pytest.raises(ValueError, match="unknown metric 'lpip' .did you mean lpips"):
        open_metric("lpip")
    assert weighted("lpips:0.1, swin", "--metric") == {"lpips": 0.1, "swin": 1.0}
    for text, said in (
        ("lpips:x", "--metric lpips:x: after the colon"),
        (",", "--metric names no metric"),
        ("swin,swin:2", "swin twice"),
    ):
        with pytest.raises(ValueError, match=said):
            weighted(text, "--metric")


@pytest.mark.parametrize("name", METRICS)
def test_missing_weights_are_one_line(name, monkeypatch, tmp_path):
    for variable in ("TORCH_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "PERCEPTA_WEIGHTS"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    first = known_weights(METRICS[name].weights[0][0])
    with pytest.raises(ValueError, match="are missing: put") as error:
        open_metric(name)
    assert first.file in str(error.value) and "\n" not in str(error.value)


@pytest.mark.reference
def test_dists_is_that_of_torchmetrics(monkeypatch, tmp_path):
    """Its own calibrated weights, and one VGG16 of random weights in both."""
    module = pytest.importorskip("torchmetrics.functional.image.dists")
    file = Path(module.__file__).parent / "dists_models" / "weights.pt"
    assert hash_of_file(file) == known_weights("dists_weights").sha256
    save_file(torch.load(file, weights_only=True), tmp_path / "dists_weights.safetensors")
    trunk = Trunk("vgg16", weights="random").layers
    save_file({f"features.{name}": value for name, value in trunk.state_dict().items()}, tmp_path / "vgg16.safetensors")
    for name in ("vgg16", "dists_weights"):
        monkeypatch.setitem(BY_NAME, name, replace(BY_NAME[name], file=f"{name}.safetensors", sha256=""))
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(module, "vgg16", lambda weights: SimpleNamespace(features=trunk))
    ours, peer = open_metric("dists"), module.DISTSNetwork()
    assert isinstance(ours, Dists)
    x, y = images(3, 48), images(3, 48, seed=1)
    y = 0.6 * x + 0.4 * y
    with torch.no_grad():
        truth = peer((x + 1) / 2, (y + 1) / 2)
        torch.testing.assert_close(ours.between(ours(x), ours(y)), truth, atol=1e-5, rtol=1e-4)
    assert (truth > 1e-3).all()

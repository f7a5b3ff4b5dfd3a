"""Laws in the default tier, where each block is compared with the plain order of operations; `reference` compares with two peers.

Peers are built without their weights files: random tensors under the names of the published file are loaded into both sides.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percepta.spaces.inception import TAPS, Inception
from percepta.spaces.inception_layers import EPS, Block, Convolutions, block_a, block_b, block_c, block_d, block_e
from percepta.weights import ENV, find_weights, has_weights
from percepta.weights.table import BY_NAME

ALL = tuple(TAPS)
PARTIAL = "fid_inception_7a_1280_fp32"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count: int = 2, size: int = 40, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def floats(x: Tensor) -> Tensor:
    return x.float() / 127.5 - 1


def apart(found: Tensor, truth: Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


def published(layers: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random convolutions with batch norm of these shapes, under the names of the published file."""
    generator, out = torch.Generator().manual_seed(3), {}
    for name, shape in layers.items():
        one = {"weight": (0.5, 1.5), "bias": (-0.3, 0.3), "running_mean": (-0.3, 0.3), "running_var": (0.5, 1.5)}
        fan = shape[1] * shape[2] * shape[3]
        out[f"{name}.conv.weight"] = (torch.randn(shape, generator=generator) * (2 / fan) ** 0.5).to(dtype)
        for part, (low, high) in one.items():
            out[f"{name}.bn.{part}"] = (torch.rand(shape[0], generator=generator) * (high - low) + low).to(dtype)
    return out


def shapes_of(stages: nn.ModuleDict) -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {}
    for name, stage in stages.items():
        for layer in stage.modules():
            if isinstance(layer, Convolutions):
                prefix = f"{name}." if isinstance(stage, Block) else ""
                out |= {prefix + source: (channels, *layer.weight.shape[1:]) for source, channels in layer.sources.items()}
    return out


class Plain:
    """Convolution, batch norm, ReLU, one after another, as the paper has them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __call__(self, x: Tensor, *names: str, stride: int = 1) -> Tensor:
        for k, name in enumerate(names):
            weight = self.tensors[f"b.{name}.conv.weight"]
            last = stride if k == len(names) - 1 else 1
            padding = (weight.shape[2] // 2, weight.shape[3] // 2) if last == 1 else 0
            x = F.conv2d(x, weight, stride=last, padding=padding)
            mean, var, scale, shift = (self.tensors[f"b.{name}.bn.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
            x = F.batch_norm(x, mean, var, scale, shift, eps=EPS).relu()
        return x


def average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def plain_block(kind: str, conv: Plain, x: Tensor) -> Tensor:
    if kind == "a":
        fives, threes = conv(x, "branch5x5_1", "branch5x5_2"), conv(x, *(f"branch3x3dbl_{k}" for k in (1, 2, 3)))
        parts = [conv(x, "branch1x1"), fives, threes, conv(average(x), "branch_pool")]
    elif kind == "b":
        parts = [conv(x, "branch3x3", stride=2), conv(x, *(f"branch3x3dbl_{k}" for k in (1, 2, 3)), stride=2)]
        parts += [F.max_pool2d(x, 3, 2)]
    elif kind == "c":
        once, twice = (f"branch7x7_{k}" for k in range(1, 4)), (f"branch7x7dbl_{k}" for k in range(1, 6))
        parts = [conv(x, "branch1x1"), conv(x, *once), conv(x, *twice), conv(average(x), "branch_pool")]
    elif kind == "d":
        parts = [conv(x, "branch3x3_1", "branch3x3_2", stride=2), conv(x, *(f"branch7x7x3_{k}" for k in range(1, 5)), stride=2)]
        parts += [F.max_pool2d(x, 3, 2)]
    else:
        once, twice = conv(x, "branch3x3_1"), conv(x, "branch3x3dbl_1", "branch3x3dbl_2")
        pooled = average(x) if kind == "e" else F.max_pool2d(x, 3, 1, 1)
        parts = [conv(x, "branch1x1"), conv(once, "branch3x3_2a"), conv(once, "branch3x3_2b")]
        parts += [conv(twice, "branch3x3dbl_3a"), conv(twice, "branch3x3dbl_3b"), conv(pooled, "branch_pool")]
    return torch.cat(parts, 1)


BLOCKS: dict[str, Any] = {
    "a": lambda: block_a(24, 32),
    "b": lambda: block_b(24),
    "c": lambda: block_c(24, 20),
    "d": lambda: block_d(24),
    "e": lambda: block_e(24, "avg"),
    "e-max": lambda: block_e(24, "max"),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_fused_block_is_the_plain_one(kind: str) -> None:
    block = BLOCKS[kind]().double()
    tensors = published(shapes_of(nn.ModuleDict({"b": block})), torch.float64)
    for layer in block.modules():
        if isinstance(layer, Convolutions):
            layer.load(tensors, "b.")
    x = torch.randn(2, 24, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).relu()
    out, first = block(x.contiguous(memory_format=torch.channels_last), 7)
    truth = plain_block(kind, Plain(tensors), x)
    assert out.shape == truth.shape == (2, block.width, *truth.shape[2:])
    assert apart(out, truth) < 1e-12
    if block.direct:
        assert torch.equal(first, out[:, :7])


@pytest.fixture(scope="module")
def network() -> Inception:
    return Inception(ALL, weights="random")


def test_shapes_order_and_independence_of_the_batch(network: Inception) -> None:
    x = images(3)
    together = dict(zip(ALL, network.of_bytes(x), strict=True))
    assert {tap: tuple(rows.shape) for tap, rows in together.items()} == {tap: (3, width) for tap, width in TAPS.items()}
    assert all(rows.dtype == torch.float32 and rows.isfinite().all() for rows in together.values())
    alone = dict(zip(ALL, network.of_bytes(x[1:2]), strict=True))
    assert all(apart(alone[tap], together[tap][1:2]) < 1e-5 for tap in ALL)
    assert all(apart(alone[tap], together[tap][:1]) > 1e-3 for tap in ALL), "other images have other features"
    assert network.weights == "random"


def test_floats_are_the_same_images_and_gradients_reach_them(network: Inception) -> None:
    x = images(1)
    whole = floats(x).requires_grad_()
    found = network(whole)
    assert all(apart(a.detach(), b) < 1e-5 for a, b in zip(found, network.of_bytes(x), strict=True))
    for rows in found:
        (grad,) = torch.autograd.grad(rows.square().sum(), whole, retain_graph=True)
        assert grad.isfinite().all() and (grad != 0).float().mean() > 0.9
    assert not any(p.requires_grad for p in network.parameters()) and not network.train().training


def test_a_gradient_is_the_slope() -> None:
    space = Inception(("192",), weights="random").double()
    x = floats(images(1)).double().requires_grad_()
    direction = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (grad,) = torch.autograd.grad(space(x)[0].sum(), x)
    up, down = (space(x.detach() + step * direction)[0].sum() for step in (1e-6, -1e-6))
    assert ((up - down) / 2e-6).item() == pytest.approx((grad * direction).sum().item(), rel=1e-3)  # kinks on the way


@pytest.mark.parametrize(
    ("tap", "last"), [("64", "Conv2d_2b_3x3"), ("192", "Conv2d_4a_3x3"), ("spatial", "Mixed_6d"), ("768", "Mixed_6e")]
)
def test_the_network_ends_at_the_deepest_tap(network: Inception, tap: str, last: str) -> None:
    short = Inception((tap,), weights="random")
    assert list(short.stages)[-1] == last
    (rows,) = short.of_bytes(images(1))
    assert torch.equal(rows, network.of_bytes(images(1))[ALL.index(tap)])


def test_dialects_feed_the_network_differently() -> None:
    rows = {
        name: Inception(("64",), weights="random", dialect=name).of_bytes(images())[0]
        for name in ("torch-fidelity", "pytorch-fid", "adm", "clean")
    }
    assert torch.equal(rows["torch-fidelity"], rows["adm"])
    assert apart(rows["pytorch-fid"], rows["adm"]) > 1e-3 and apart(rows["clean"], rows["pytorch-fid"]) > 1e-3


def test_bf16_is_close_and_its_features_are_float32(network: Inception) -> None:
    """Measured: 1e-3 to 5e-3 of the norm on random weights; on the real ones 4e-3 at 64, 1e-2 at 768, 3e-2 at spatial."""
    x = images(2)
    rough = Inception(ALL, weights="random", precision="bf16").of_bytes(x)
    errors = {tap: apart(a, b) for tap, a, b in zip(ALL, rough, network.of_bytes(x), strict=True)}
    assert all(rows.dtype == torch.float32 for rows in rough)
    assert all(1e-5 < error < 1e-2 for error in errors.values()), errors


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match=r"taps are 64, 192, 768, 2048, logits, spatial; got 1280"):
        Inception(("768", "1280"), weights="random")
    with pytest.raises(ValueError, match="got none"):
        Inception((), weights="random")
    with pytest.raises(ValueError, match="fp32 or bf16, got 'fp16'"):
        Inception(weights="random", precision="fp16")
    with pytest.raises(ValueError, match="got 'imagenet'"):
        Inception(weights="imagenet")
    with pytest.raises(ValueError, match=r"not the weights of the FID Inception network: Conv2d_1a_3x3.conv.weight is missing"):
        Inception(("64",), weights={})


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(ENV, str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize("tap", ["768", "2048"])
def test_missing_weights_are_named_in_one_line(no_weights: Path, tap: str) -> None:
    with pytest.raises(
        ValueError, match=r"put weights-inception-2015-12-05-6726825d.pth from https.*sha256 6726825d\) into "
    ) as found:
        Inception((tap,))
    assert len(str(found.value).splitlines()) == 1


def test_the_partial_file_does_not_reach_2048(no_weights: Path) -> None:
    (no_weights / BY_NAME[PARTIAL].file).touch()
    with pytest.raises(ValueError, match=r"weights 'fid_inception_full'"):
        Inception(("768", "2048"))
    with pytest.raises(ValueError, match=rf"{PARTIAL}.safetensors is not the FID Inception of 2015 up to Mixed_7a"):
        Inception(("768",))  # is taken, and found to be empty


@pytest.mark.parametrize("name", ["fid_inception_full", "fid_inception_full_pt"])
def test_the_published_file_is_read_from_torch_hubs_cache(no_weights: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tensors = published(shapes_of(Inception(("64",), weights="random").stages))
    path = no_weights / "torch" / "hub" / "checkpoints" / BY_NAME[name].file
    path.parent.mkdir(parents=True)
    torch.save(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(BY_NAME, name, replace(BY_NAME[name], sha256=digest[:8]))
    space = Inception(("64",))
    assert space.weights == digest
    assert torch.equal(space.of_bytes(images())[0], Inception(("64",), weights=tensors).of_bytes(images())[0])


def peer_network(features: tuple[str, ...]) -> nn.Module:
    """torch-fidelity's network, its tensors still to be loaded."""
    pytest.importorskip("torch_fidelity", reason="pip install torch-fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Empty(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *given: Any, **options: Any) -> Any:
            return super().load_state_dict(*given, **options) if given[0] else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *given, **options: {})
        return Empty("peer", list(features))


@pytest.fixture(scope="module")
def everything() -> dict[str, Tensor]:
    """A whole random file, the last layer with the bias that nobody reads."""
    tensors = published(shapes_of(Inception(ALL, weights="random").stages))
    generator = torch.Generator().manual_seed(4)
    return tensors | {
        "fc.weight": torch.randn(1008, 2048, generator=generator) / 45,
        "fc.bias": torch.randn(1008, generator=generator),
    }


@pytest.mark.reference
@pytest.mark.parametrize("size", [32, 299, 320])
def test_equal_to_torch_fidelity(everything: dict[str, Tensor], size: int) -> None:
    peer = peer_network(("64", "192", "768", "2048", "logits_unbiased"))
    peer.load_state_dict(everything, strict=False)  # strict but for the batch norms' counters
    seen: list[Tensor] = []
    peer.get_submodule("Mixed_6d.branch1x1").register_forward_hook(lambda module, given, out: seen.append(out))
    x = images(2, size)
    truth = [*peer(x), seen[0][:, :7].permute(0, 2, 3, 1).flatten(1)]
    for tap, found, expected in zip(ALL, Inception(ALL, weights=everything).of_bytes(x), truth, strict=True):
        assert apart(found, expected) < 1e-5, tap


@pytest.mark.reference
def test_equal_to_pytorch_fid(everything: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("pytorch_fid.inception", reason="pip install pytorch-fid")
    counted = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in everything if "running_mean" in name
    }
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *given, **options: everything | counted)
    peer = module.InceptionV3([0, 1, 2, 3]).eval()
    x = images(2, 48)
    with torch.no_grad():
        truth = [out.mean((2, 3)) for out in peer(x.float() / 255)]
    found = Inception(ALL[:4], weights=everything, dialect="pytorch-fid").of_bytes(x)
    assert max(apart(a, b) for a, b in zip(found, truth, strict=True)) < 1e-5


@pytest.mark.reference
def test_the_partial_weights_equal_torch_fidelity() -> None:
    if not has_weights(PARTIAL):
        pytest.skip(f"set {ENV} to a folder that holds {BY_NAME[PARTIAL].file}")
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(find_weights(PARTIAL)).items():
        if name.endswith("conv.weight"):
            norm, ones = name.replace("conv.weight", "bn"), torch.ones(len(tensor))
            tensors |= {name: tensor, f"{norm}.running_mean": 0 * ones, f"{norm}.running_var": ones - EPS, f"{norm}.weight": ones}
        else:
            tensors[name.replace("conv.bias", "bn.bias")] = tensor
    peer = peer_network(("64", "192", "768"))
    peer.load_state_dict(tensors, strict=False)
    seen: list[Tensor] = []
    peer.get_submodule("Mixed_6d.branch1x1").register_forward_hook(lambda module, given, out: seen.append(out))
    smooth = F.interpolate(images(2, 6).float(), size=64, mode="bicubic").clamp(0, 255).byte()
    truth = [*peer(smooth), seen[0][:, :7].permute(0, 2, 3, 1).flatten(1)]
    space = Inception(("64", "192", "768", "spatial"))
    assert space.weights == BY_NAME[PARTIAL].sha256 or has_weights("fid_inception_full")
    for tap, found, expected in zip(space.taps, space.of_bytes(smooth), truth, strict=True):
        assert apart(found, expected) < 1e-5, tap
    rough = Inception(("768",), precision="bf16").of_bytes(smooth)[0]
    assert apart(rough, truth[2]) < 2e-2

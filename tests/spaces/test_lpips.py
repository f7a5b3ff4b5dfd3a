"""LPIPS: the distance of the published package, its laws, and the pooled trunks."""

import os
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from percepta.discrepancies.lpips import lpips, unit_channels
from percepta.evaluation.diversity import draw_pairs, lpips_diversity
from percepta.spaces.lpips import CHANNELS, Lpips, Pooled, _heads
from percepta.spaces.trunks import TRUNKS, Trunk

torch.set_num_threads(1)
real = pytest.mark.skipif(not os.environ.get("PERCEPTA_WEIGHTS"), reason="PERCEPTA_WEIGHTS names no folder of real weights")


def images(count: int, size: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def alex():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Lpips("alex", weights="random")


def test_the_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    x = [torch.rand(2, c, 3, 4, generator=generator, dtype=torch.float64) for c in (5, 7)]
    y = [torch.rand(2, c, 3, 4, generator=generator, dtype=torch.float64) for c in (5, 7)]
    w = [torch.rand(c, generator=generator, dtype=torch.float64) for c in (5, 7)]
    expected = torch.zeros(2, dtype=torch.float64)
    for a, b, head in zip(x, y, w, strict=True):
        for k in range(2):
            for i in range(3):
                for j in range(4):
                    u, v = a[k, :, i, j], b[k, :, i, j]
                    expected[k] += (head * (u / u.norm() - v / v.norm()) ** 2).sum() / 12
    torch.testing.assert_close(lpips(x, y, w), expected)


def test_laws(alex):
    x, y = images(3), images(3, seed=1)
    d = alex.distance(x, y)
    assert d.shape == (3,) and (d > 0).all()
    assert torch.equal(alex.distance(x, x), torch.zeros(3))
    torch.testing.assert_close(alex.distance(y, x), d)
    torch.testing.assert_close(alex.distance(x[1:2], y[1:2]), d[1:2])
    scaled = [7 * f for f in alex(x)]
    torch.testing.assert_close(alex.between(tuple(scaled), alex(y)), d)
    assert (alex.distance(x, 0.9 * x + 0.1 * y) < d).all()


def test_gradients_are_finite_at_equal_images_and_at_dead_places(alex):
    x = images(1).requires_grad_()
    alex.distance(x, images(1)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    dead = torch.zeros(1, 4, 2, 2, requires_grad=True)
    lpips([dead], [torch.zeros(1, 4, 2, 2)], [torch.ones(4)]).sum().backward()
    assert dead.grad is not None and dead.grad.isfinite().all()
    assert torch.equal(unit_channels(dead), torch.zeros(1, 4, 2, 2))
    other = images(1, seed=1)
    x.grad = None
    alex.distance(x, other).sum().backward()
    assert (x.grad != 0).any() and x.grad.isfinite().all()


def test_16_bits_change_little(alex):
    """Random weights are the same in every network: they come from a seed of their own."""
    x, y = images(3), images(3, seed=1)
    rounded = Lpips("alex", weights="random", precision="bf16")
    assert [f.dtype for f in rounded(x)] == [torch.bfloat16] * 5
    found, exact = rounded.distance(x, y), alex.distance(x, y)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.03, atol=0)
    for option in ({"precision": "fp16"}, {"pooling": "mean"}):
        with pytest.raises(ValueError, match="fp32 or bf16|max, average, l2"):
            Lpips("alex", weights="random", **option)


def test_a_tap_is_left_as_it_is_by_the_layers_after_it():
    before, after = Trunk("alex", taps=(0, 1), weights="random")(images(1))
    assert (before < 0).any()
    assert torch.equal(before.relu(), after)


@pytest.mark.parametrize("trunk", CHANNELS)
def test_pooled_trunks_have_the_width_they_say(trunk):
    space = Pooled(trunk, weights="random")
    assert space.dims == sum(CHANNELS[trunk])
    assert space(images(2, 32))[0].shape == (2, space.dims)
    assert len(CHANNELS[trunk]) == len(TRUNKS[trunk].taps)
    assert space.weights == "random"


def test_mistakes_are_explained(alex):
    with pytest.raises(ValueError, match="calibrated for alex, squeeze, vgg16"):
        Lpips("vgg19", weights="random")
    with pytest.raises(ValueError, match="one size"):
        alex.distance(images(1, 40), images(1, 41))
    with pytest.raises(ValueError, match="at least 31 x 31"):
        alex.distance(images(1, 16), images(1, 16))
    with pytest.raises(ValueError, match="2 heads"):
        lpips([torch.zeros(1, 2, 1, 1)], [torch.zeros(1, 2, 1, 1)], [torch.ones(2)] * 2)


def test_pairs_are_distinct_and_fixed_by_the_seed():
    every = draw_pairs(7, 1000, 0)
    assert sorted(map(tuple, every)) == [(i, j) for i in range(7) for j in range(i + 1, 7)]
    some = draw_pairs(200, 300, 5)
    assert len({tuple(pair) for pair in some}) == 300
    assert (some[:, 0] < some[:, 1]).all() and some.min() >= 0 and some.max() < 200
    assert np.array_equal(some, draw_pairs(200, 300, 5)) and not np.array_equal(some, draw_pairs(200, 300, 6))
    with pytest.raises(ValueError, match="at least 2 images"):
        draw_pairs(1, 10, 0)


def test_diversity_is_the_mean_over_pairs_at_any_batch(alex):
    stored = ((images(6) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def read(indices):
        return [stored[i] for i in indices]

    x = torch.from_numpy(stored).permute(0, 3, 1, 2).float() / 127.5 - 1
    pairs = draw_pairs(6, 1000, 0)
    expected = alex.distance(x[pairs[:, 0]], x[pairs[:, 1]]).mean().item()
    for batch in (1, 4, 100):
        assert lpips_diversity(read, 6, batch=batch, space=alex) == pytest.approx(expected, rel=1e-5)
    assert lpips_diversity(lambda indices: [stored[0] for _ in indices], 6, space=alex) == 0
    with pytest.raises(ValueError, match="one size"):
        lpips_diversity(lambda indices: [stored[i, : 32 + i] for i in indices], 6, space=alex)


class Bare:
    """torchvision's network without its classifier, and without the seconds that its first weights take."""

    def __init__(self, builder, **options):
        with torch.device("meta"):
            self.features = builder(weights=None).features
        self.features.to_empty(device="cpu")


def agrees(ours, trunk, monkeypatch):
    """The published package and torchmetrics with our trunk's weights and their own heads."""
    for builder in ("alexnet", "squeezenet1_1", "vgg16"):
        monkeypatch.setattr(torchvision.models, builder, partial(Bare, getattr(torchvision.models, builder)))
    package, metrics = pytest.importorskip("lpips"), pytest.importorskip("torchmetrics.functional.image.lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they ask torchvision in an old way
        peers = [package.LPIPS(net=trunk.removesuffix("16"), pnet_rand=True, verbose=False)]
        peers.append(metrics._LPIPS(net=trunk.removesuffix("16"), pnet_rand=True))
    x, y = images(4, 64), images(4, 64, seed=1)
    y = 0.7 * x + 0.3 * y
    for peer in peers:
        for name, part in peer.net.named_children():
            slices = part.children() if name == "slices" else [part] if name.startswith("slice") else ()
            for modules in slices:
                for index, module in modules.named_children():
                    module.load_state_dict(ours.trunk.layers[int(index)].state_dict())
        for layer, head in enumerate(ours.calibration):
            assert torch.equal(peer.lins[layer].model[-1].weight.flatten(), head)
        found, truth = [], []
        for out, distance in ((found, ours.distance), (truth, peer)):
            fake = x.clone().requires_grad_()
            value = distance(fake, y).flatten()
            out += [value.detach(), *torch.autograd.grad(value.sum(), fake)]
        torch.testing.assert_close(found[0], truth[0], atol=1e-6, rtol=1e-5)
        assert float((found[1] - truth[1]).norm() / truth[1].norm()) < 1e-2  # a sum in another order may turn a ReLU or a maximum


@real
@pytest.mark.reference
@pytest.mark.parametrize("trunk", ["alex", "squeeze"])
def test_the_published_package_gives_the_same_distance(trunk, monkeypatch):
    agrees(Lpips(trunk), trunk, monkeypatch)


@pytest.mark.reference
def test_the_published_heads_of_vgg_are_read(monkeypatch, tmp_path):
    """The package brings its heads along; a trunk without weights is enough to compare the rest."""
    package = pytest.importorskip("lpips")
    shutil.copy(Path(package.__file__).parent / "weights" / "v0.1" / "vgg.pth", tmp_path / "lpips_vgg.pth")
    monkeypatch.setenv("PERCEPTA_WEIGHTS", str(tmp_path))
    ours = Lpips("vgg16", weights="random")
    ours.calibration = torch.nn.ParameterList(_heads("vgg16")).requires_grad_(False)
    agrees(ours, "vgg16", monkeypatch)


@real
def test_real_heads_are_no_less_than_zero():
    for trunk in ("alex", "squeeze"):
        assert all((head >= 0).all() for head in Lpips(trunk).calibration)

import pytest
import torch
from torch import nn

from percepta.networks.cyclegan import CycleganPair, Generator, blocks_for
from percepta.rng import rng_for


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_size_is_the_published_one():
    """11,378,179 in the authors' PyTorch code with 9 blocks (what it prints, in issue 169 of junyanz/pytorch-CycleGAN-and-pix2pix); a
    block has two convolutions of 256 channels."""
    with torch.device("meta"):
        large, small = CycleganPair(sample_size=256), CycleganPair(sample_size=128)
    assert count(large.a2b) == count(large.b2a) == 11_378_179
    assert count(small.a2b) == 11_378_179 - 3 * 2 * (256 * 256 * 9 + 256)
    assert [blocks_for(size) for size in (32, 128, 255, 256, 512)] == [6, 6, 6, 9, 9]


def test_a_given_number_of_blocks_goes_before_the_size():
    with torch.device("meta"):
        assert count(CycleganPair(sample_size=256, blocks=6)) == count(CycleganPair(sample_size=128))


def test_taps_are_the_two_generators():
    torch.manual_seed(0)
    pair = CycleganPair(channels=4, blocks=1)
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        taps = pair.taps(a, b, rng_for(0, 0, 2))
        to_b, to_a = pair.a2b, pair.b2a
        expected = {
            "real_a": a,
            "real_b": b,
            "fake_b": to_b(a),
            "fake_a": to_a(b),
            "cycle_a": to_a(to_b(a)),
            "cycle_b": to_b(to_a(b)),
            "same_a": to_a(a),
            "same_b": to_b(b),
        }
        assert torch.equal(pair.translate(a, "a2b"), to_b(a)) and torch.equal(pair.translate(b, "b2a"), to_a(b))
    assert set(taps) == set(expected)
    for name, value in expected.items():
        assert torch.equal(taps[name], value), name


def test_first_weights_are_normal_of_standard_deviation_002():
    torch.manual_seed(0)
    convolutions = [m for m in CycleganPair(channels=16, blocks=1).modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 2 * (1 + 2 + 2 + 2 + 1)
    for conv in convolutions:
        n = conv.weight.numel()
        assert float(conv.weight.detach().std()) == pytest.approx(0.02, rel=4 / (2 * n) ** 0.5)
        assert not conv.bias.any()


def test_the_two_generators_start_apart_and_stay_apart():
    pair = CycleganPair(channels=4, blocks=1)
    assert not torch.equal(pair.a2b[0].weight, pair.b2a[0].weight)
    pair.translate(torch.zeros(1, 3, 16, 16), "a2b").sum().backward()
    assert all(p.grad is None for p in pair.b2a.parameters())
    assert all(p.grad is not None for p in pair.a2b.parameters())


def test_instance_norm_stands_after_every_convolution_but_the_last():
    kinds = [type(layer).__name__ for layer in Generator(4, 2)]
    settled = ["InstanceNorm2d", "ReLU"]
    assert kinds == [
        *("Conv2d", *settled) * 3,
        "Sequential",
        *("ConvTranspose2d", *settled) * 2,
        *("Conv2d", "Tanh"),
    ]

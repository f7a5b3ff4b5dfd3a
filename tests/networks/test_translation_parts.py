"""Laws that hold for CycleGAN, UNIT and MUNIT alike; what is one's own is in the file of its name."""

import copy

import pytest
import torch
from torch import nn

from percepta.networks import load_model
from percepta.networks.cyclegan import CycleganPair
from percepta.networks.munit import MunitPair
from percepta.networks.translation import Pair, flipped
from percepta.networks.translation_parts import Residual, ascent, layer_norm, reflected
from percepta.networks.unit import UnitPair
from percepta.rng import rng_for

PAIRS = {
    "cyclegan": lambda: CycleganPair(channels=4, blocks=1),
    "unit": lambda: UnitPair(channels=4, blocks=2),
    "munit": lambda: MunitPair(channels=4, blocks=2, hidden=16),
}
NAMES = {"real_a", "real_b", "fake_a", "fake_b", "cycle_a", "cycle_b"}


@pytest.fixture(params=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    return PAIRS[request.param]()


def images(seed: int, height: int = 32, width: int = 32, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 36), (32, 32), (64, 64), (100, 72)])
def test_an_image_of_any_size_keeps_it(pair, height, width):
    a, b = images(0, height, width), images(1, height, width)
    with torch.no_grad():
        taps = pair.taps(a, b, rng_for(0, 0, 2))
        out = pair.translate(a, "a2b")
    assert set(taps) >= NAMES
    assert set(flipped(taps)) == set(taps), "each tap has its counterpart of the other domain"
    assert out.shape == a.shape and float(out.abs().max()) <= 1
    for name, value in taps.items():
        assert len(value) == 2 and torch.isfinite(value).all(), name
        if name.startswith(("real", "fake", "cycle", "same", "recon")):
            assert value.shape == a.shape and float(value.abs().max()) <= 1, name
    assert taps["real_a"] is a and taps["real_b"] is b


def test_sizes_and_directions_that_do_not_fit_are_refused(pair):
    rng = rng_for(0, 0, 2)
    with pytest.raises(ValueError, match="30 x 32 px: their sides are to be multiples of 4"):
        pair.translate(images(0, 32, 30), "a2b")
    with pytest.raises(ValueError, match="32 x 12 px: their sides are to be at least 16 px"):
        pair.taps(images(0, 12, 32), images(1, 12, 32), rng)
    with pytest.raises(Exception, match=r"a2b"):
        pair.translate(images(0), "a")


def test_taps_repeat_with_the_rng_and_leave_torch_alone(pair):
    a, b = images(0), images(1)
    before = torch.get_rng_state()
    with torch.no_grad():
        once, again, moved = (pair.taps(a, b, rng_for(3, first, 2)) for first in (8, 8, 10))
    assert torch.equal(torch.get_rng_state(), before), "numbers come from the rng alone"
    assert all(torch.equal(once[name], again[name]) for name in once)
    differ = {name for name in once if not torch.equal(once[name], moved[name])}
    if isinstance(pair, CycleganPair):
        assert not differ
    else:
        assert {"fake_a", "fake_b", "cycle_a", "cycle_b"} <= differ
        assert not differ & {"real_a", "mu_a", "content_a"}


def test_rows_know_nothing_of_each_other(pair):
    a, b, rng = images(0, count=4), images(1, count=4), rng_for(0, 6, 4)
    with torch.no_grad():
        whole = pair.taps(a, b, rng)
        for rows in ([2], [3, 0]):
            part = pair.taps(a[rows], b[rows], rng.select(rows))
            for name in whole:
                torch.testing.assert_close(part[name], whole[name][rows], rtol=1e-4, atol=1e-4)
        one = pair.translate(a[2:3], "b2a", seed=5)
        torch.testing.assert_close(one, pair.translate(a, "b2a", seed=5)[2:3], rtol=1e-4, atol=1e-4)


def test_translation_is_the_same_each_time(pair):
    a = images(0)
    with torch.no_grad():
        for direction in ("a2b", "b2a"):
            out = pair.translate(a, direction, seed=7)
            assert torch.equal(out, pair.translate(a, direction, seed=7))
            assert torch.equal(out, pair(a, direction, 7))
            assert torch.equal(out, pair.translate(a, direction, seed=8)) is not isinstance(pair, MunitPair)
        assert not torch.allclose(pair.translate(a, "a2b"), pair.translate(a, "b2a"))


def test_nothing_remembers_the_images_seen(pair):
    assert not list(pair.buffers()), "no running statistics"
    a, b, rng = images(0), images(1), rng_for(0, 0, 2)
    with torch.no_grad():
        training = pair.train().taps(a, b, rng)
        evaluated = pair.eval().taps(a, b, rng)
    assert all(torch.equal(training[name], evaluated[name]) for name in training)


def test_every_weight_gets_a_gradient(pair):
    taps = pair.taps(images(0), images(1), rng_for(0, 0, 2))
    torch.stack([(value * torch.randn_like(value)).sum() for value in taps.values()]).sum().backward()
    for name, p in pair.named_parameters():
        assert p.grad is not None, name
        if p.dim() > 1:  # a bias before an instance norm comes to nothing
            assert float(p.grad.abs().max()) > 1e-3, name


def test_gradients_of_every_tap_are_whole(pair):
    """Against differences, in double precision: a part that is detached on the way, as of the image between there and back, is missed."""
    pair, rng, h = pair.double(), rng_for(0, 0, 2), 1e-6
    a, b, step = (images(seed, 16, 16).double() for seed in range(3))
    with torch.no_grad():
        after, before = pair.taps(a + h * step, b + h * step, rng), pair.taps(a - h * step, b - h * step, rng)
    a.requires_grad_(), b.requires_grad_()
    taps = pair.taps(a, b, rng)
    for name, value in taps.items():
        if value.requires_grad:
            weight = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(4))
            grads = torch.autograd.grad((value * weight).sum(), (a, b), retain_graph=True, allow_unused=True)
            along = sum((g * step).sum() for g in grads if g is not None)
            differences = ((after[name] - before[name]) * weight).sum() / (2 * h)
            torch.testing.assert_close(along, differences, rtol=1e-4, atol=1e-5, msg=name)
        else:
            assert name.startswith("style_draw"), name


def test_a_folder_holds_the_pair(pair, tmp_path):
    pair.save_pretrained(tmp_path / "pair")
    back = load_model(tmp_path / "pair")
    assert type(back) is type(pair)
    assert all(back.config[name] == value for name, value in pair.config.items() if not name.startswith("_"))
    weights = back.state_dict()
    assert all(torch.equal(value, weights.pop(name)) for name, value in pair.state_dict().items()) and not weights
    with torch.no_grad():
        torch.testing.assert_close(back.translate(images(0), "b2a", 3), pair.translate(images(0), "b2a", 3))


def test_a_copy_is_its_own(pair):
    twin = copy.deepcopy(pair)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(2)
    assert all(not torch.equal(p, q) for p, q in zip(pair.parameters(), twin.parameters(), strict=True) if p.abs().max() > 0)
    assert {p.data_ptr() for p in pair.parameters()}.isdisjoint(p.data_ptr() for p in twin.parameters())


def test_half_precision_runs(pair):
    a, b = images(0), images(1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        taps = pair.taps(a, b, rng_for(0, 0, 2))
    with torch.no_grad():
        exact = pair.taps(a, b, rng_for(0, 0, 2))
    for name in ("fake_a", "fake_b"):
        assert torch.nn.functional.cosine_similarity(taps[name].float().flatten(), exact[name].flatten(), 0) > 0.99


def test_counts_below_one_are_refused():
    for cls in (CycleganPair, UnitPair, MunitPair):
        with pytest.raises(ValueError, match="channels is to be at least 1, got 0"):
            cls(channels=0)
    with pytest.raises(ValueError, match="blocks is to be at least 1, got 0"):
        CycleganPair(channels=4, blocks=0)


def test_borders_are_reflected():
    """A convolution that takes the left neighbour finds, at the border, the one on the right."""
    conv, x = reflected(1, 1, 3), torch.arange(16.0).reshape(1, 1, 4, 4)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, 1, 0] = 1
        conv.bias.zero_()
        out = conv(x)
    assert torch.equal(out[..., 1:], x[..., :-1])
    assert torch.equal(out[..., 0], x[..., 1])


def test_a_residual_block_against_plain_sums():
    block = Residual(3)
    x = torch.randn(2, 3, 6, 5)
    nn.init.normal_(block.conv1.weight)

    def norm(y: torch.Tensor) -> torch.Tensor:
        mean = y.mean((2, 3), keepdim=True)
        return (y - mean) / (((y - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5).sqrt()

    expected = x + norm(block.conv2(norm(block.conv1(x)).clamp(min=0)))
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_is_over_the_whole_image():
    torch.manual_seed(0)
    norm, x = layer_norm(64), torch.randn(2, 64, 5, 4) * 3 + 2
    gains = norm.weight.detach()
    assert float(gains.min()) >= 0 and 0.3 < float(gains.mean()) < 0.7 and float(gains.max()) <= 1
    with torch.no_grad():
        norm.bias.normal_()
    flat = x.flatten(1)
    normal = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = normal.view_as(x) * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_channel_passes_the_way_up():
    """Which an instance norm would forbid: contents that differ by a constant in a channel give different images."""
    up, x = ascent(4), torch.randn(1, 16, 4, 4)
    moved = x.clone()
    moved[:, 3] += 2
    with torch.no_grad():
        assert float((up(x) - up(moved)).abs().max()) > 1e-3

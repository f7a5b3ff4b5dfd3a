"""LPL's distance and its outlier mask: laws, the printed algorithm written out, and its measured behaviour."""

from math import ceil

import pytest
import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from percepta.discrepancies.lpl import keep_mask, layer_weights, lpl, suspects

torch.set_num_threads(1)

NORMS = ("predicted", "separate", "target", "pixel", "pixel-target")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pair(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    shapes = ((3, 6, 4, 4), (3, 5, 8, 8), (3, 4, 16, 16))
    return [draw(*s, seed=seed + k) for k, s in enumerate(shapes)], [draw(*s, seed=seed + 10 + k) for k, s in enumerate(shapes)]


def test_the_printed_formula_written_out():
    real, fake = pair()
    weights = (1.0, 0.5, 0.25)
    found = lpl(real, fake, weights)
    for b in range(3):
        expected = 0.0
        for x, y, w in zip(real, fake, weights, strict=True):
            for c in range(x.shape[1]):
                mean, std = y[b, c].double().mean(), y[b, c].double().std(correction=0)
                error = ((x[b, c].double() - mean) / std - (y[b, c].double() - mean) / std) ** 2
                expected += w * float(error.mean()) / x.shape[1]
        assert float(found[b]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("outliers", ["none", "target", "union"])
def test_zero_at_the_truth_and_with_a_finite_gradient(norm: str, outliers: str):
    real, _ = pair()
    fake = [x.clone().requires_grad_() for x in real]
    loss = lpl(real, fake, (1, 0.5, 0.25), norm, outliers, (4, 2, 1))
    assert float(loss.detach().abs().max()) < 1e-12
    loss.sum().backward()
    assert all(f.grad is not None and bool(f.grad.isfinite().all()) for f in fake)


@pytest.mark.parametrize("norm", NORMS)
def test_a_channel_without_variance_is_finite(norm: str):
    real, fake = [torch.ones(1, 2, 8, 8)], [torch.zeros(1, 2, 8, 8).requires_grad_()]
    loss = lpl(real, fake, (1.0,), norm, "union", (1,))
    loss.sum().backward()
    assert bool(loss.isfinite().all()) and fake[0].grad is not None and bool(fake[0].grad.isfinite().all())


def test_the_statistics_of_the_prediction_are_in_the_graph():
    real, fake = pair()
    with_graph = [y.clone().requires_grad_() for y in fake]
    lpl(real, with_graph, (1, 1, 1)).sum().backward()
    for y, x in zip(with_graph, real, strict=True):
        constant = (x - y.detach().clone().requires_grad_()).square()
        held = y.detach().clone().requires_grad_()
        ((x - held).square() / held.detach().var((2, 3), keepdim=True, correction=0)).mean((2, 3)).mean(1).sum().backward()
        assert y.grad is not None and held.grad is not None and constant.requires_grad
        assert not torch.allclose(y.grad, held.grad, rtol=0.01)
    double = [y.double().requires_grad_() for y in fake]
    assert torch.autograd.gradcheck(lambda *f: lpl([x.double() for x in real], f, (1, 0.5, 0.25)), double)


def test_invariant_to_scale_and_shift_of_both():
    real, fake = pair()
    moved = [3 * x + 2 for x in real], [3 * y + 2 for y in fake]
    for norm in ("predicted", "separate", "target"):
        assert torch.allclose(lpl(*moved, (1, 1, 1), norm), lpl(real, fake, (1, 1, 1), norm), rtol=1e-4)


def test_a_dead_channel_does_not_speak_for_all():
    real, fake = draw(2, 16, 8, 8), draw(2, 16, 8, 8, seed=1)
    usual = lpl([real], [fake], (1.0,))
    fake[:, 3] = 0.5
    for norm in ("predicted", "separate", "target"):
        assert bool((lpl([real], [fake], (1.0,), norm) < 100 * usual).all())
    with pytest.raises(ValueError, match="larger latents or windows"):
        lpl([real[:, :, :1, :1]], [fake[:, :, :1, :1]], (1.0,))


def test_layer_weights():
    assert layer_weights((1, 2, 4, 8, 8)) == (1, 1 / 2, 1 / 4, 1 / 8, 1 / 8)
    assert layer_weights((1, 2, 4, 8, 8), "halving") == (1 / 2, 1 / 4, 1 / 16, 1 / 256, 1 / 256)
    assert layer_weights((2, 4), "halving") == (1 / 4, 1 / 16)  # whichever layers are read
    assert layer_weights((1, 2), "equal") == (1, 1)


def printed(feature: Tensor, pixels: int) -> Tensor:
    """Alg. 1 as printed, mended: every channel sorted, and one that is constant kept, of which the printed comparison would leave nothing."""
    b, c, h, w = feature.shape
    flat = feature.flatten(2)
    n = h * w
    k1, k2 = max(1, int(n * 0.02)), max(1, int(n * 0.98))
    q1, q2 = flat.kthvalue(k1, 2, keepdim=True).values, flat.kthvalue(k2, 2, keepdim=True).values
    m = 2 * flat.std(-1, keepdim=True)
    keep = ((q1 - m < flat) & (flat < q2 + m) | (m == 0)).view(b, c, h, w).float()
    opening, closing = ceil(5 / pixels), ceil(3 / pixels)
    opening, closing = 3 if opening == 2 else opening, 1 if closing == 2 else closing
    keep = max_pool2d(keep, closing, 1, closing // 2)
    return -max_pool2d(-keep, opening, 1, opening // 2) > 0.5


@pytest.mark.parametrize("pixels", [1, 2, 4, 8])
def test_counting_gives_the_printed_mask_to_the_bit(pixels: int):
    feature = draw(4, 16, 32, 32, seed=3)
    feature[0, 0, 4:9, 4:9] += 40
    feature[1, 2, 20:23, 20:23] -= 40
    feature[2, 5] = 7.0
    feature[3, 1, :20, :20] += 40
    feature[3, 2, 3, 3] += 4  # at the edge of what counts
    feature[3, 3] *= 1e-20
    found = keep_mask(feature, pixels)
    assert torch.equal(found, printed(feature, pixels))
    assert not bool(found.all())
    assert torch.equal(keep_mask(feature.bfloat16(), pixels), printed(feature.bfloat16().float(), pixels))
    heavy = draw(2, 64, 16, 16, seed=4) ** 5  # tails as random decoders have
    assert torch.equal(keep_mask(heavy, pixels), printed(heavy, pixels))


KINDS = {
    "normal": lambda x: x, "heavy": lambda x: x**3, "one-sided": torch.exp, "half zero": lambda x: x.clamp_min(0), "steps": torch.round,
    "bounded": torch.sin, "far from zero": lambda x: x * 1e-3 + 1000, "smooth": lambda x: max_pool2d(x, 3, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_channel_is_taken_for_clean_that_is_not(kind: str):
    """Most channels are never sorted, whatever their distribution; patches at corners and edges, maps of all shapes."""
    sorted_ones = []
    for k, (height, width) in enumerate([(1, 9), (2, 2), (5, 31), (16, 16), (24, 20), (33, 47)]):
        feature = KINDS[kind](draw(2, 6, height, width, seed=k))
        feature[0, 0, :2, :2] += 30
        feature[0, 1, -2:, -3:] -= 30
        feature[1, 2, height // 2 : height // 2 + 4, width // 2 : width // 2 + 4] += 9
        for pixels in (1, 2, 4):
            assert torch.equal(keep_mask(feature, pixels), printed(feature, pixels)), (kind, height, width, pixels)
        sorted_ones.append(len(suspects(feature.flatten(2).flatten(0, 1), feature.shape[2:], 1)))
    assert kind == "far from zero" or sorted_ones[-1] <= 8, sorted_ones


@pytest.mark.parametrize(("patch", "side", "masked"), [(1, 64, 0), (2, 64, 0), (3, 64, 25), (5, 64, 49), (9, 64, 121), (3, 16, 0), (5, 32, 0), (20, 64, 0)])  # fmt: skip
def test_the_measured_behaviour_of_the_mask(patch: int, side: int, masked: int):
    """Specks are never masked, patches are with a border, and nothing is where outliers are more than 2% of the map."""
    feature = draw(1, 1, side, side, seed=5)
    feature[0, 0, 6 : 6 + patch, 6 : 6 + patch] = 100
    assert int((~keep_mask(feature)).sum()) == (masked if patch * patch <= 0.02 * side * side else 0)


@pytest.mark.parametrize("side", [1, 2, 4, 7])
def test_small_maps_do_not_fail(side: int):
    assert keep_mask(draw(2, 3, side, side)).shape == (2, 3, side, side)


def test_outliers_of_either_side_do_not_count():
    real, fake = draw(1, 2, 64, 64, seed=6), draw(1, 2, 64, 64, seed=7)
    plain = float(lpl([real], [fake], (1.0,), outliers="union", pixels=(1,))[0])
    real[0, 0, 10:15, 10:15] = 80.0
    fake[0, 1, 30:35, 30:35] = 80.0
    values = {how: float(lpl([real], [fake], (1.0,), "target", how, (1,))[0]) for how in ("none", "target", "prediction", "union")}
    assert values["union"] < values["target"] < values["none"] and values["union"] < values["prediction"] < values["none"]
    assert values["union"] < 2 * plain
    coarse = lpl([real], [fake], (1.0,), outliers="union", pixels=(4,))  # not looked for in coarse layers
    assert torch.equal(coarse, lpl([real], [fake], (1.0,)))


def test_wrong_use_is_refused():
    real, fake = pair()
    for call, said in (
        (lambda: lpl(real, fake, (1, 1)), "as many weights"),
        (lambda: lpl(real, fake[::-1], (1, 1, 1)), "one shape"),
        (lambda: lpl(real, fake, (1, 1, 1), "batch"), "norm is"),
        (lambda: lpl(real, fake, (1, 1, 1), outliers="target"), "at a scale"),
        (lambda: lpl(real, fake, (1, 1, 1), outliers="both", pixels=(1, 1, 1)), "outliers are"),
        (lambda: layer_weights((1, 2), "double"), "layer weights"),
    ):
        with pytest.raises(ValueError, match=said):
            call()

import pytest
import torch
from torch import nn

from percepta.networks.munit import MunitPair, StyledResidual, adain
from percepta.rng import rng_for


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small() -> MunitPair:
    torch.manual_seed(0)
    return MunitPair(channels=4, blocks=2, style_dim=3, hidden=16)


def plain_adain(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> torch.Tensor:
    """One number at a time."""
    out = torch.empty_like(x)
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = [x[i, c, y, z] for y in range(x.shape[2]) for z in range(x.shape[3])]
            mean = sum(values) / len(values)
            var = sum((v - mean) ** 2 for v in values) / len(values)
            for y in range(x.shape[2]):
                for z in range(x.shape[3]):
                    out[i, c, y, z] = gamma[i, c] * (x[i, c, y, z] - mean) / (var + eps) ** 0.5 + beta[i, c]
    return out


def test_adain_against_plain_loops_and_its_gradients():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 3, dtype=torch.float64) * 2 + 1
    gamma, beta, weight = (torch.randn(shape, dtype=torch.float64) for shape in ((2, 3), (2, 3), x.shape))
    results = []
    for layer in (adain, plain_adain):
        leaves = [t.clone().requires_grad_() for t in (x, gamma, beta)]
        out = layer(*leaves, 1e-3)
        results.append((out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)


def test_adain_sets_mean_and_scale():
    x, gamma, beta = torch.randn(2, 3, 32, 32) * 5 - 1, torch.rand(2, 3) + 1, torch.randn(2, 3)
    out = adain(x, gamma, beta)
    torch.testing.assert_close(out.mean((2, 3)), beta, rtol=0, atol=1e-4)
    torch.testing.assert_close(out.std((2, 3), correction=0), gamma, rtol=1e-4, atol=0)


def test_a_styled_block_is_residual_with_two_adains():
    torch.manual_seed(0)
    block, x = StyledResidual(3), torch.randn(2, 3, 6, 5)
    g1, b1, g2, b2 = (torch.randn(2, 3) for _ in range(4))
    inner = plain_adain(block.conv1(x).detach(), g1, b1, 1e-5).clamp(min=0)
    expected = x + plain_adain(block.conv2(inner).detach(), g2, b2, 1e-5)
    torch.testing.assert_close(block(x, torch.cat([g1, b1, g2, b2], 1)).detach(), expected, rtol=1e-4, atol=1e-5)


def test_the_size_follows_from_the_published_settings():
    """Layer by layer: 64 channels, contents of two halvings and 4 blocks, styles of 8 numbers after four halvings, an MLP of 256."""

    def conv(c_in: int, c_out: int, kernel: int) -> int:
        return c_in * c_out * kernel**2 + c_out

    block = 2 * conv(256, 256, 3)
    halved = conv(3, 64, 7) + conv(64, 128, 4) + conv(128, 256, 4)
    style = halved + 2 * conv(256, 256, 4) + conv(256, 8, 1)
    up = conv(256, 128, 5) + 2 * 128 + conv(128, 64, 5) + 2 * 64 + conv(64, 3, 7)
    mlp = conv(8, 256, 1) + conv(256, 256, 1) + conv(256, 4 * 2 * 2 * 256, 1)
    with torch.device("meta"):
        pair = MunitPair()
    assert count(pair.a.content) == halved + 4 * block
    assert (count(pair.a.style), count(pair.a.affine)) == (style, mlp)
    assert count(pair) == 2 * (halved + 8 * block + style + up + mlp) == 30_052_374


def test_taps_are_the_formulas():
    pair, rng = small(), rng_for(5, 3, 2)
    a, b = torch.rand(2, 2, 3, 16, 20) * 2 - 1
    A, B = pair.a, pair.b
    with torch.no_grad():
        taps = pair.taps(a, b, rng)
        s_a, s_b = rng.normal("style_a", (3,)), rng.normal("style_b", (3,))
        fake_b, fake_a = B.decode(A.content(a), s_b), A.decode(B.content(b), s_a)
        expected = {
            "real_a": a,
            "real_b": b,
            "recon_a": A.decode(A.content(a), A.style(a)),
            "recon_b": B.decode(B.content(b), B.style(b)),
            "fake_a": fake_a,
            "fake_b": fake_b,
            "content_a": A.content(a),
            "content_b": B.content(b),
            "content_ab": B.content(fake_b),
            "content_ba": A.content(fake_a),
            "style_draw_a": s_a,
            "style_draw_b": s_b,
            "style_ab": B.style(fake_b),
            "style_ba": A.style(fake_a),
            "cycle_a": A.decode(B.content(fake_b), A.style(a)),
            "cycle_b": B.decode(A.content(fake_a), B.style(b)),
        }
    assert not torch.equal(s_a, s_b) and not torch.equal(s_a[0], s_a[1]), "each domain and row has a style of its own"
    assert set(taps) == set(expected)
    for name, value in expected.items():
        assert torch.equal(taps[name], value), name


def test_decoding_splits_the_styles_over_the_blocks():
    pair = small()
    content, style = torch.randn(2, 16, 4, 5), torch.randn(2, 3)
    A = pair.a
    with torch.no_grad():
        numbers = A.affine(style)
        x = A.blocks[1](A.blocks[0](content, numbers[:, :64]), numbers[:, 64:])
        assert torch.equal(A.decode(content, style), A.ascent(x))


def test_translation_draws_one_style_from_the_seed():
    pair, x = small(), torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        out = pair.translate(torch.cat([x, x]), "b2a", seed=4)
        torch.testing.assert_close(out[0], out[1], rtol=1e-5, atol=1e-6)
        style = pair.style_of(4)
        assert torch.equal(pair.translate(x, "b2a", seed=4), pair.a.decode(pair.b.content(x), style))
        assert torch.equal(pair.translate(x, "a2b", seed=4), pair.restyle(x, "a2b", style))
    drawn = torch.cat([pair.style_of(seed) for seed in range(400)])
    assert abs(float(drawn.mean())) < 0.1 and float(drawn.std()) == pytest.approx(1, abs=0.1)


def test_an_example_lends_its_style():
    pair = small()
    x, example = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        out = pair.restyle(x, "a2b", pair.b.style(example))
        assert torch.equal(out, pair.b.decode(pair.a.content(x), pair.b.style(example)))
        assert not torch.allclose(out, pair.restyle(x, "a2b", pair.b.style(example.flip(0))))


def test_content_does_not_see_contrast_and_style_does():
    """Instance norm takes the scale of a channel from the content; the style encoder, which has none, keeps it."""
    pair = small()
    first = pair.a.content[0][0]
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert not first.bias.any()
        torch.testing.assert_close(pair.a.content(3 * x), pair.a.content(x), rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(pair.a.style(3 * x), 3 * pair.a.style(x), rtol=1e-3, atol=1e-4)


def test_first_weights_are_kaiming_normal():
    torch.manual_seed(0)
    layers = [m for m in MunitPair(channels=16, blocks=1, hidden=64).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 2 * ((3 + 2) + (5 + 1) + 3 + 2 + 3)
    for layer in layers:
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=4 / (2 * layer.weight.numel()) ** 0.5)
        assert not layer.bias.any()

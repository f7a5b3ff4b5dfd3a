"""U-GAT-IT: its normalisation against plain loops, its network against the published steps one by one, its sizes and bounds."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from percepta.networks import load_model
from percepta.networks.critics import UgatitCritic
from percepta.networks.ugatit import LIN, AdaLIN, UgatitPair, layer_instance
from percepta.rng import rng_for

DOUBLE = torch.float64


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def pair(**options) -> UgatitPair:
    """Small, in float64, with weights large enough that every part shows in the output; rho anywhere in [0, 1]."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = UgatitPair(**{"sample_size": 16, "channels": 4, "blocks": 1, "std": 0.3} | options).to(DOUBLE)
        for name, p in made.named_parameters():
            if name.endswith("rho"):
                nn.init.uniform_(p)
            elif p.ndim == 4 and p.shape[0] == 1:  # gamma and beta of LIN
                nn.init.normal_(p)
            elif p.ndim == 1:
                nn.init.normal_(p, std=0.3)
    return made


def by_loops(x, rho, gamma, beta):
    """The formula of AdaLIN, element after element."""
    rows, channels, height, width = x.shape
    out = []
    for b in range(rows):
        every = [x[b, c, i, j] for c in range(channels) for i in range(height) for j in range(width)]
        mean_l = sum(every) / len(every)
        sigma_l = (sum((e - mean_l) ** 2 for e in every) / len(every) + 1e-5).sqrt()
        for c in range(channels):
            own = [x[b, c, i, j] for i in range(height) for j in range(width)]
            mean_i = sum(own) / len(own)
            sigma_i = (sum((e - mean_i) ** 2 for e in own) / len(own) + 1e-5).sqrt()
            for e in own:
                mixed = rho[c] * (e - mean_i) / sigma_i + (1 - rho[c]) * (e - mean_l) / sigma_l
                out.append(gamma[b, c] * mixed + beta[b, c])
    return torch.stack(out).reshape(x.shape)


@pytest.mark.parametrize("kind", ["AdaLIN", "LIN"])
def test_normalisation_and_gradients_are_those_of_plain_loops(kind):
    x, rho = (numbers(2, 3, 4, 5) * 2 + 1).requires_grad_(), torch.tensor([0.0, 0.3, 1.0], dtype=DOUBLE, requires_grad=True)
    gamma, beta = numbers(2, 3, seed=1), numbers(2, 3, seed=2)
    layer = (AdaLIN(3) if kind == "AdaLIN" else LIN(3)).to(DOUBLE)
    if kind == "LIN":
        gamma, beta = gamma[:1].expand(2, 3), beta[:1].expand(2, 3)
    gamma, beta = gamma.requires_grad_(), beta.requires_grad_()
    expected = by_loops(x, rho, gamma, beta)
    weight = numbers(2, 3, 4, 5, seed=3)
    wanted = torch.autograd.grad((expected * weight).sum(), (x, rho, gamma, beta))
    with torch.no_grad():
        layer.rho.copy_(rho[None, :, None, None])
        if kind == "LIN":
            layer.gamma.copy_(gamma[:1, :, None, None])
            layer.beta.copy_(beta[:1, :, None, None])
    found = layer(x, gamma, beta) if kind == "AdaLIN" else layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    own = (gamma, beta) if kind == "AdaLIN" else (layer.gamma, layer.beta)
    gradients = [g.reshape(-1, 3) if g.ndim == 4 and g.shape[2:] == (1, 1) else g
                 for g in torch.autograd.grad((found * weight).sum(), (x, layer.rho, *own))]  # fmt: skip
    wanted = [wanted[0], wanted[1][None], *(w if kind == "AdaLIN" else w.sum(0, keepdim=True) for w in wanted[2:])]
    for name, g, w in zip(("x", "rho", "gamma", "beta"), gradients, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_at_its_ends_it_is_instance_norm_and_layer_norm():
    x, one = numbers(2, 3, 4, 5), torch.ones(1, 3, 1, 1, dtype=DOUBLE)
    torch.testing.assert_close(layer_instance(x, one, one, 0 * one), F.instance_norm(x))
    torch.testing.assert_close(layer_instance(x, 0 * one, one, 0 * one), F.group_norm(x, 1))
    ada, lin = AdaLIN(3), LIN(3)
    assert ada.rho.eq(0.9).all() and lin.rho.eq(0).all() and lin.gamma.eq(1).all() and lin.beta.eq(0).all(), "first values"


def test_statistics_of_half_precision_are_float32():
    x, rho = numbers(2, 3, 16, 16).float() + 20, torch.full((1, 3, 1, 1), 0.5)
    one = torch.ones(1, 3, 1, 1)
    exact = layer_instance(x.bfloat16().double(), rho.double(), one.double(), 0 * one.double())
    found = layer_instance(x.bfloat16(), rho, one, 0 * one)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)


def published(net, x, full: bool):
    """The steps of the paper's table 4 with plain functions, features weighed and concatenated as it says: image, logits, heat map."""

    def conv(layer, x, pad, stride=1):
        return F.conv2d(F.pad(x, (pad,) * 4, mode="reflect"), layer.weight, layer.bias, stride)

    def ada(norm, x, gamma, beta):
        return by_parts(x, norm.rho, gamma[:, :, None, None], beta[:, :, None, None])

    convs = [m for m in net.encoder if isinstance(m, nn.Conv2d)]
    for layer, pad, stride in zip(convs, (3, 1, 1), (1, 2, 2), strict=True):
        x = F.instance_norm(conv(layer, x, pad, stride)).relu()
    for block in list(net.encoder)[9:]:
        first, second = (m for m in block.branch if isinstance(m, nn.Conv2d))
        x = x + F.instance_norm(conv(second, F.instance_norm(conv(first, x, 1)).relu(), 1))
    gap, gmp = net.cam.gap.weight[0], net.cam.gmp.weight[0]
    logits = torch.stack([F.adaptive_avg_pool2d(x, 1).flatten(1) @ gap, F.adaptive_max_pool2d(x, 1).flatten(1) @ gmp], 1)
    weighed = torch.cat([x * gap[:, None, None], x * gmp[:, None, None]], 1)
    x = F.conv2d(weighed, net.cam.mix.weight, net.cam.mix.bias).relu()
    heat = x.sum(1, keepdim=True)
    read = x.flatten(1) if full else F.adaptive_avg_pool2d(x, 1).flatten(1)
    for layer in (m for m in net.mlp if isinstance(m, nn.Linear)):
        read = (read @ layer.weight.T).relu()
    gamma, beta = read @ net.gamma.weight.T, read @ net.beta.weight.T
    for block in net.blocks:
        h = ada(block.norm0, conv(block.conv0, x, 1), gamma, beta).relu()
        x = x + ada(block.norm1, conv(block.conv1, h, 1), gamma, beta)
    *ups, last = (m for m in net.decoder if isinstance(m, nn.Conv2d))
    for layer, norm in zip(ups, (m for m in net.decoder if isinstance(m, LIN)), strict=True):
        x = conv(layer, x.repeat_interleave(2, 2).repeat_interleave(2, 3), 1)
        x = by_parts(x, norm.rho, norm.gamma, norm.beta).relu()
    return conv(last, x, 3).tanh(), logits, heat


def by_parts(x, rho, gamma, beta):
    return (rho * F.instance_norm(x) + (1 - rho) * F.group_norm(x, 1)) * gamma + beta


@pytest.mark.parametrize("light", [True, False])
def test_a_generator_takes_the_published_steps(light):
    made, x = pair(light=light, blocks=2), numbers(2, 3, 16, 16)
    found = made.generated(x, "b2a")
    for name, one, other in zip(found._fields, found, published(made.b2a, x, not light), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    assert found.image.std() > 0.05 and found.logits.std() > 0.01 and found.heat.std() > 0.01, "the check sees something"
    assert not torch.allclose(found.image, made.translate(x, "a2b"), atol=1e-3), "the two directions have weights of their own"


def test_taps_are_the_formulas():
    made, a, b = pair(), numbers(3, 3, 16, 24), numbers(3, 3, 16, 24, seed=1)
    taps = made.taps(a, b, rng_for(0, 0, 3))
    forth, back = lambda x: made.generated(x, "a2b"), lambda x: made.generated(x, "b2a")
    expected = {
        "real_a": a, "real_b": b,
        "fake_b": forth(a).image, "fake_a": back(b).image, "same_b": forth(b).image, "same_a": back(a).image,
        "cycle_a": back(forth(a).image).image, "cycle_b": forth(back(b).image).image,
        "cam_a2b_real": forth(a).logits, "cam_a2b_same": forth(b).logits, "cam_b2a_real": back(b).logits, "cam_b2a_same": back(a).logits,
        "heat_a2b": forth(a).heat, "heat_b2a": back(b).heat,
    }  # fmt: skip
    assert taps.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(taps[name], value, msg=lambda text, name=name: f"{name}: {text}")
    assert taps["heat_a2b"].shape == (3, 1, 4, 6) and not taps["heat_a2b"].requires_grad and not taps["heat_b2a"].requires_grad
    moved = {"a2b": made.a2b.decoder[-2].weight, "b2a": made.b2a.decoder[-2].weight}
    for name, both in (("cycle_a", True), ("cycle_b", True), ("same_a", False), ("fake_a", False)):
        g = torch.autograd.grad(taps[name].sum(), list(moved.values()), retain_graph=True, allow_unused=True)
        assert (g[0] is not None) == both and g[1] is not None, f"{name} moves {'both' if both else 'G_b2a alone'}"


def test_images_of_any_size_go_through_the_light_one():
    made = pair().float()
    with torch.no_grad():
        for height, width in ((16, 16), (32, 32), (64, 64), (72, 100)):
            x = torch.rand(1, 3, height, width) * 2 - 1
            image, logits, heat = made.generated(x, "a2b")
            assert image.shape == x.shape and logits.shape == (1, 2) and heat.shape == (1, 1, height // 4, width // 4)
            assert image.abs().max() <= 1


def test_sizes_that_do_not_fit_are_refused_with_advice():
    light, full = pair().float(), pair(sample_size=32, light=False).float()
    assert full.translate(torch.zeros(1, 3, 32, 32), "a2b").shape == (1, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r"48 x 32 px: this U-GAT-IT is full.*32 x 32 px alone; resize or tile.*or train the light one"
    ):
        full.translate(torch.zeros(1, 3, 32, 48), "a2b")
    with pytest.raises(ValueError, match="36 x 34 px: their sides are to be multiples of 4"):
        light.translate(torch.zeros(1, 3, 34, 36), "a2b")
    with pytest.raises(ValueError, match="at least 16 px"):
        light.translate(torch.zeros(1, 3, 12, 32), "a2b")
    with pytest.raises(ValueError, match="a multiple of 4 from 16 px; got 30"):
        UgatitPair(sample_size=30, light=False)
    with pytest.raises(ValueError, match="channels is to be at least 1, got 0"):
        UgatitPair(channels=0)


def test_parameters_are_as_many_as_published():
    """Chen et al. 2020 (NICE-GAN) count, in millions at 256 px, 21.2 for the two light generators, 112.8 for the critics; the full model has 670.8.

    Who trained the authors' code reports checkpoints of 1.5 and 7.5 GB (github.com/taki0112/UGATIT/issues/32): weights and two moments of Adam.
    """
    with torch.device("meta"):
        light, full = (sum(p.numel() for p in UgatitPair(light=light).parameters()) for light in (True, False))
        critics = 2 * sum(p.numel() for p in UgatitCritic(256).parameters())
    assert [round(n / 1e6, 1) for n in (light, critics, light + critics, full + critics)] == [21.2, 112.8, 134.0, 670.8]
    assert [round(12 * (n + critics) / 2**30, 1) for n in (light, full)] == [1.5, 7.5]
    assert full - light == 2 * 256 * 256 * (64 * 64 - 1), "the full one's layer over the map in place of one over its means"


def test_settling_clips_rho_and_moves_nothing_else():
    made = pair()
    ada, lin = made.a2b.blocks[0].norm1.rho, made.b2a.decoder[2].rho
    with torch.no_grad():
        ada[0, 0], ada[0, 1], lin[0, 2] = -0.25, 1.5, 7.0
    before = {name: p.detach().clone() for name, p in made.named_parameters()}
    made.settle()
    for name, p in made.named_parameters():
        expected = before[name].clamp(0, 1) if name.endswith("rho") else before[name]
        assert torch.equal(p, expected), name
    assert ada[0, 0] == 0 and ada[0, 1] == 1 and lin[0, 2] == 1
    assert sum(name.endswith("rho") for name in before) == 2 * (2 + 2)


def test_first_weights():
    torch.manual_seed(0)
    normal, plain = (UgatitPair(channels=16, std=std).requires_grad_(False) for std in (0.02, None))
    layer = normal.a2b.blocks[0].conv0.weight
    assert float(layer.std()) == pytest.approx(0.02, rel=0.02)
    assert float(normal.b2a.gamma.weight.std()) == pytest.approx(0.02, rel=0.05)
    bound = 1 / math.sqrt(layer[0].numel())
    assert 0.99 * bound < float(plain.a2b.blocks[0].conv0.weight.abs().max()) <= bound, "PyTorch's own"
    assert normal.a2b.cam.mix.bias.eq(0).all() and normal.a2b.blocks[0].norm0.rho.eq(0.9).all()


def test_nothing_is_remembered_of_images_that_were_seen():
    made, x = pair(), numbers(3, 3, 16, 16)
    assert not list(made.buffers())
    with torch.no_grad():
        trained = made.train().translate(x, "a2b")
        assert torch.equal(trained, made.eval().translate(x, "a2b", seed=5))
        for i in range(3):
            torch.testing.assert_close(made.translate(x[i : i + 1], "a2b"), trained[i : i + 1])


@pytest.mark.parametrize("light", [True, False])
def test_a_folder_is_read_back(light, tmp_path):
    made, x = pair(light=light).float(), torch.rand(1, 3, 16, 16)
    made.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again, UgatitPair) and again.config["light"] == light and again.config["std"] == 0.3
    with torch.no_grad():
        torch.testing.assert_close(again.translate(x, "b2a"), made.translate(x, "b2a"))
    own = made.state_dict()
    assert own.keys() == again.state_dict().keys() and all(torch.equal(p, own[name]) for name, p in again.state_dict().items())

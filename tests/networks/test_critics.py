"""Critics: how deep they are, what each logit sees, and a spectral norm that follows from weights alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from percepta.networks.critics import MultiscaleCritic, PatchCritic, Spectral, UgatitCritic, spectral

CRITICS = (UgatitCritic, PatchCritic, MultiscaleCritic)


def images(rows: int, height: int, width: int | None = None) -> torch.Tensor:
    return torch.randn(rows, 3, height, width or height, generator=torch.Generator().manual_seed(height))


def made(kind, *args, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*args, **options)


def sides(critic, size: int) -> list[int]:
    with torch.no_grad():
        return [x.shape[-1] for x in critic(images(1, size)) if x.ndim == 4]


@pytest.mark.parametrize("kind", CRITICS)
def test_every_map_has_patches_to_judge(kind):
    for size in (16, 20, 28, 32, 36, 60, 64, 100, 124, 128, 132):
        with torch.no_grad():
            logits = made(kind, size, channels=1)(images(2, size))
        assert min(x.shape[-1] for x in logits) >= 2, (size, [x.shape for x in logits])
        assert all(len(x) == 2 for x in logits)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (UgatitCritic, {16: [2, 6], 32: [2, 14], 64: [2, 14], 128: [2, 14], 256: [6, 30]}),
        (PatchCritic, {16: [2], 32: [2], 64: [6], 256: [30]}),
        (MultiscaleCritic, {16: [2, 2, 2], 32: [2, 2, 2], 64: [4, 2, 2], 128: [8, 4, 2], 256: [16, 8, 4]}),
    ],
)
def test_depth_follows_the_size_and_is_the_published_one_where_that_fits(kind, expected):
    assert {size: sides(made(kind, size, channels=1), size) for size in expected} == expected


def test_layers_and_parameters_as_published():
    """Seven and five layers (U-GAT-IT), 2.765 million parameters (what CycleGAN's code prints), three times four layers (UNIT)."""
    with torch.device("meta"):
        ugatit, patch, scales = UgatitCritic(256), PatchCritic(256), MultiscaleCritic(256)
    assert [len(part.convs) + 1 for part in (ugatit.wide, ugatit.local)] == [7, 5]
    assert sum(p.numel() for p in patch.parameters()) == 2_764_737
    assert [sum(isinstance(m, nn.Conv2d) and m.stride == (2, 2) for m in scale) for scale in scales.scales] == [4, 4, 4]
    widths = [[m.out_channels for m in part.convs] for part in (ugatit.wide, ugatit.local)]
    assert widths == [[64, 128, 256, 512, 1024, 2048], [64, 128, 256, 512]]
    assert [m.out_channels for m in patch.layers if isinstance(m, nn.Conv2d)] == [64, 128, 256, 512, 1]


def seen(logits_of, size: int) -> int:
    """The side of the square of pixels that the middle logit depends on."""
    x = images(1, size).double().requires_grad_()
    out = logits_of(x)
    (g,) = torch.autograd.grad(out[0, 0, out.shape[2] // 2, out.shape[3] // 2], x)
    rows = g.abs().sum((0, 1, 3)).nonzero()
    return int(rows.max() - rows.min()) + 1


def test_patches_are_of_the_published_size():
    critic = made(UgatitCritic, 256, channels=1).double()
    assert seen(lambda x: critic.local(x)[0], 256) == 70
    assert seen(lambda x: critic.wide(x)[0], 640) == 286
    bare = made(PatchCritic, 256, channels=1).double()
    layers = nn.Sequential(*(m for m in bare.layers if not isinstance(m, nn.InstanceNorm2d)))  # a norm sees the whole image
    assert seen(layers, 256) == 70


def test_images_smaller_than_a_critic_was_built_for_are_refused():
    for kind in CRITICS:
        critic = made(kind, 64, channels=2)
        assert critic(images(1, 72, 100))
        with pytest.raises(
            ValueError, match="64 x 32 px: this critic was built for sides of 64 px or more; build it for their shorter"
        ):
            critic(images(1, 32, 64))
        with pytest.raises(ValueError, match="16 px or more, got 12"):
            kind(12)
    with pytest.raises(ValueError, match="1 to 3 scales and 1 or more layers, got 4 and 4"):
        MultiscaleCritic(64, scales=4)


def plain_cam(part, x):
    """The published form: features weighed by w of either pooling, then concatenated."""
    gap, gmp = part.cam.gap.weight[0], part.cam.gmp.weight[0]
    logits = torch.stack([x.mean((2, 3)) @ gap, F.adaptive_max_pool2d(x, 1).flatten(1) @ gmp], 1)
    return part.cam.mix(torch.cat([x * gap[:, None, None], x * gmp[:, None, None]], 1)), logits


@torch.no_grad()
def test_what_a_cam_critic_says_is_what_the_paper_says():
    critic, x = made(UgatitCritic, 32, channels=4, std=0.3).double(), images(2, 32).double()
    found = critic(x)
    assert len(found) == 4
    for part, (patches, logits) in ((critic.wide, found[:2]), (critic.local, found[2:])):
        h = x
        for conv in part.convs:
            h = F.leaky_relu(F.conv2d(F.pad(h, (1,) * 4, mode="reflect"), conv.weight, conv.bias, conv.stride), 0.2)
        mixed, expected = plain_cam(part, h)
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-11)
        last = F.conv2d(F.pad(F.leaky_relu(mixed, 0.2), (1,) * 4, mode="reflect"), part.last.weight)
        torch.testing.assert_close(patches, last, rtol=1e-9, atol=1e-11)
        assert float(logits.std()) > 1e-3 and float(patches.std()) > 1e-3


def test_each_scale_sees_the_image_at_its_size():
    critic, x = made(MultiscaleCritic, 32, channels=2, std=0.3).double(), images(2, 32).double()
    half = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    quarter = F.avg_pool2d(half, 3, 2, 1, count_include_pad=False)
    for found, scale, shown in zip(critic(x), critic.scales, (x, half, quarter), strict=True):
        torch.testing.assert_close(found, scale(shown))
    flat = critic.scales[0](torch.full_like(x, 0.5))[0, 0, 0, 0]
    assert torch.allclose(critic(torch.full_like(x, 0.5))[0], flat), "no border of zeros: a flat image has one logit everywhere"


def test_spectral_norm_finds_the_largest_singular_value():
    torch.manual_seed(0)
    layer = spectral(nn.Conv2d(6, 8, 3).double())
    norm, weight = layer.parametrizations.weight[0], layer.parametrizations.weight.original
    assert isinstance(norm, Spectral)
    exact = torch.linalg.svdvals(weight.detach().flatten(1))[0]

    def sigma():
        return float((weight / layer.weight).detach().mean())

    assert 0.85 * exact < sigma() <= exact, "the first iterations come near, from below"
    for _ in range(300):
        norm.iterate(weight)
    assert sigma() == pytest.approx(float(exact), rel=1e-9)
    assert float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]) == pytest.approx(1)


def test_spectral_norm_and_its_gradient_are_those_of_torch():
    """Torch's own in eval mode, where it does not iterate, with the same two vectors."""
    torch.manual_seed(0)
    plain, x = nn.Conv2d(3, 5, 4, bias=False).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    ours, peer = spectral(copy.deepcopy(plain)), parametrizations.spectral_norm(plain).eval()
    norm, other = ours.parametrizations.weight[0], peer.parametrizations.weight[0]
    other._u.copy_(norm.u)
    other._v.copy_(norm.v)
    weight = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    for layer in (ours, peer):
        (layer(x) * weight).sum().backward()
    torch.testing.assert_close(ours(x), peer(x))
    torch.testing.assert_close(ours.parametrizations.weight.original.grad, peer.parametrizations.weight.original.grad)


def test_vectors_move_when_the_critic_settles_and_never_else():
    critic, x = made(UgatitCritic, 16, channels=2).train(), images(4, 16)
    kept = {name: b.clone() for name, b in critic.named_buffers()}
    weights = {name: p.detach().clone() for name, p in critic.named_parameters()}
    assert len(kept) == 2 * (4 + 3 + 2 * 2) and all(name.endswith((".u", ".v")) for name in kept), "and no running statistics"
    first = critic(x)
    first[0].sum().backward()
    assert all(torch.equal(b, kept[name]) for name, b in critic.named_buffers()), "not in a pass"
    for rows in (slice(0, 1), slice(1, 4)):
        for part, whole in zip(critic(x[rows]), first, strict=True):
            torch.testing.assert_close(part, whole[rows])
    with torch.no_grad():
        for p in critic.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    before = critic(x)
    critic.settle()
    moved = [name for name, b in critic.named_buffers() if not torch.equal(b, kept[name])]
    wide = [name for name in kept if "cam" not in name and "last" not in name]
    assert set(wide) <= set(moved), "all of more than one row"
    assert not torch.equal(critic(x)[0], before[0])
    assert all(not torch.equal(p, weights[name]) for name, p in critic.named_parameters())
    before[0].sum().backward()  # a graph from before the step is still whole


def test_a_step_settles_to_unit_weights():
    """Power iteration keeps up with an optimizer that moves little in each step."""
    critic, x = made(UgatitCritic, 16, channels=4), images(2, 16)
    moves = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in range(40):
        moves.zero_grad()
        sum((y - 1).square().mean() for y in critic(x)).backward()
        moves.step()
        critic.settle()
    for conv in (*critic.wide.convs, *critic.local.convs, critic.wide.last, critic.wide.cam.gap):
        assert float(torch.linalg.svdvals(conv.weight.detach().flatten(1))[0]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", CRITICS)
def test_a_state_dict_brings_all_back(kind):
    torch.manual_seed(0)
    one, other, x = kind(32, channels=2), kind(32, channels=2), images(2, 32)
    assert not torch.equal(one(x)[0], other(x)[0])
    other.load_state_dict(one.state_dict())
    for critic in (one, other):
        if kind is UgatitCritic:
            critic.settle()  # from the same vectors
    assert all(torch.equal(a, b) for a, b in zip(one(x), other(x), strict=True))
    assert kind is UgatitCritic or not list(one.buffers())
    copied = copy.deepcopy(one)
    assert all(torch.equal(a, b) for a, b in zip(one(x), copied(x), strict=True))


def test_sigma_is_not_rounded_by_autocast():
    critic = made(UgatitCritic, 16, channels=2)
    plain = critic.wide.convs[1].weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(critic.wide.convs[1].weight, plain) and plain.dtype == torch.float32
        assert critic(images(1, 16))[0].dtype == torch.bfloat16


@torch.no_grad()
def test_first_weights():
    torch.manual_seed(0)
    for critic in (PatchCritic(64, 32), MultiscaleCritic(64, 32)):
        for layer in critic.modules():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias.eq(0).all()
                if layer.weight.numel() > 4000:
                    assert float(layer.weight.std()) == pytest.approx(0.02, rel=0.05)
    ours = UgatitCritic(64, 32).wide
    assert float(ours.convs[1].parametrizations.weight.original.std()) == pytest.approx(0.02, rel=0.05)
    assert float(ours.cam.mix.weight.std()) == pytest.approx(0.02, rel=0.05)
    plain = UgatitCritic(64, 32, std=None).wide.convs[1].parametrizations.weight.original
    assert float(plain.std()) == pytest.approx((3 * 16 * 32) ** -0.5, rel=0.05), "PyTorch's own"

import pytest
import torch
from torch import nn

from percepta.networks.unit import UnitPair
from percepta.rng import rng_for


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(**options) -> UnitPair:
    torch.manual_seed(0)
    return UnitPair(channels=4, blocks=2, **options)


def reached(pair: UnitPair, value: torch.Tensor) -> set[str]:
    """The weights that a gradient of `value` reaches."""
    pair.zero_grad()
    (value * torch.randn_like(value)).sum().backward()
    return {name for name, p in pair.named_parameters() if p.grad is not None}


def test_the_size_follows_from_the_published_settings():
    """Layer by layer: 64 channels, two halvings, 4 residual blocks each way (the settings of the authors' later code, which shares no
    weights; a domain has 11,140,483). Sharing one block each way takes two blocks away."""

    def conv(c_in: int, c_out: int, kernel: int) -> int:
        return c_in * c_out * kernel**2 + c_out

    block = 2 * conv(256, 256, 3)
    encoder = conv(3, 64, 7) + conv(64, 128, 4) + conv(128, 256, 4) + 4 * block
    decoder = 4 * block + conv(256, 128, 5) + 2 * 128 + conv(128, 64, 5) + 2 * 64 + conv(64, 3, 7)
    assert encoder + decoder == 11_140_483
    with torch.device("meta"):
        assert count(UnitPair(shared=0)) == 2 * (encoder + decoder)
        assert count(UnitPair()) == 2 * (encoder + decoder) - 2 * block


def test_taps_are_the_formulas():
    pair, rng = small(), rng_for(5, 3, 2)
    a, b = torch.rand(2, 2, 3, 16, 20) * 2 - 1
    with torch.no_grad():
        taps = pair.taps(a, b, rng)
        eta = {name: rng.normal(name, (16, 4, 5)) for name in ("eta_a", "eta_b", "eta_cycle_a", "eta_cycle_b")}
        mu_a, mu_b = pair.join(pair.encode_a(a)), pair.join(pair.encode_b(b))

        def to_a(z: torch.Tensor) -> torch.Tensor:
            return pair.decode_a(pair.part(z))

        def to_b(z: torch.Tensor) -> torch.Tensor:
            return pair.decode_b(pair.part(z))

        fake_b, fake_a = to_b(mu_a + eta["eta_a"]), to_a(mu_b + eta["eta_b"])
        mu_cycle_a, mu_cycle_b = pair.join(pair.encode_b(fake_b)), pair.join(pair.encode_a(fake_a))
        expected = {
            "real_a": a,
            "real_b": b,
            "mu_a": mu_a,
            "mu_b": mu_b,
            "recon_a": to_a(mu_a + eta["eta_a"]),
            "recon_b": to_b(mu_b + eta["eta_b"]),
            "fake_a": fake_a,
            "fake_b": fake_b,
            "mu_cycle_a": mu_cycle_a,
            "mu_cycle_b": mu_cycle_b,
            "cycle_a": to_a(mu_cycle_a + eta["eta_cycle_a"]),
            "cycle_b": to_b(mu_cycle_b + eta["eta_cycle_b"]),
        }
        assert torch.equal(pair.translate(a, "a2b"), to_b(mu_a)), "translation reads the mean"
        assert torch.equal(pair.translate(b, "b2a"), to_a(mu_b))
    assert len({float(noise[0, 0, 0, 0]) for noise in eta.values()}) == 4, "each noise is drawn on its own"
    assert set(taps) == set(expected)
    for name, value in expected.items():
        assert torch.equal(taps[name], value), name


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_both_domains_train_what_they_share_and_nothing_else_of_each_other(shared):
    pair, rng = small(shared=shared), rng_for(0, 0, 2)
    a, b = torch.rand(2, 2, 3, 16, 16)
    by_a = reached(pair, pair.taps(a, b, rng)["recon_a"])
    by_b = reached(pair, pair.taps(a, b, rng)["recon_b"])
    assert by_a | by_b == {name for name, _ in pair.named_parameters()}
    assert {name.split(".")[0] for name in by_a & by_b} == ({"join", "part"} if shared else set())
    assert len(by_a & by_b) == 2 * 4 * shared, "two convolutions a block, each way"


def test_shared_weights_are_one_storage():
    """A step of one domain's autoencoder moves the other's translation too, by the shared blocks alone."""
    pair, x = small(), torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        before = pair.decode(pair.mean(x, "b"), "b")
    recon = pair.decode(pair.mean(x, "a"), "a")
    recon.square().sum().backward()
    with torch.no_grad():
        for p in pair.parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad
        moved = pair.decode(pair.mean(x, "b"), "b")
    assert not torch.equal(before, moved)
    weights = [p.data_ptr() for p in pair.state_dict().values()]
    assert len(set(weights)) == len(weights), "what is shared is saved once"


def test_more_shared_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match="of 2 residual blocks 0 to 2 can be shared, got shared=3"):
        small(shared=3)


def test_first_weights_are_kaiming_normal():
    torch.manual_seed(0)
    convolutions = [m for m in UnitPair(channels=16, blocks=1, shared=0).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2 * (3 + 2 + 2 + 3)
    for conv in convolutions:
        fan_in = conv.weight[0].numel()
        assert float(conv.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=4 / (2 * conv.weight.numel()) ** 0.5)
        assert not conv.bias.any()

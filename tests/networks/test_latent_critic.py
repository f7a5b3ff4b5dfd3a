"""The critic of noised latents: sizes, what it is told, its spectral norms, and a folder of its weights."""

import pytest
import torch
from torch.nn.utils import parametrize

from percepta.networks.latent_critic import LatentCritic, depth_for


@pytest.mark.parametrize(("size", "depth", "map_size"), [(4, 1, 2), (8, 2, 2), (16, 3, 2), (64, 3, 8), (2, 1, 1)])
def test_depth_follows_the_size(size, depth, map_size):
    assert depth_for(size) == depth
    (logits,) = LatentCritic(4, 8, depth)(torch.zeros(2, 4, size, size), torch.zeros(2))
    assert logits.shape == (2, 1, map_size, map_size)


def test_other_shapes_and_what_is_too_small():
    (logits,) = LatentCritic(4, 8, 2)(torch.zeros(1, 4, 18, 12), torch.zeros(1))
    assert logits.shape == (1, 1, 4, 3)
    with pytest.raises(ValueError, match="cannot be halved 3 times: give the latent critic a smaller depth"):
        LatentCritic(4, 8, 3)(torch.zeros(1, 4, 16, 4), torch.zeros(1))
    for wrong in ({"channels": 0}, {"width": 7}, {"depth": 0}):
        with pytest.raises(ValueError, match="an even width"):
            LatentCritic(**{"channels": 4, **wrong})


def test_it_reads_the_time_of_each_row_and_no_other_row():
    critic = LatentCritic(4, 8, 2)
    z, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 400.0, 999.0])
    (all_rows,) = critic(z, t)
    for row in range(3):
        (alone,) = critic(z[row : row + 1], t[row : row + 1])
        assert torch.allclose(alone, all_rows[row : row + 1], atol=1e-6)
    (other,) = critic(z, t.flip(0))
    assert torch.allclose(other[1], all_rows[1], atol=1e-6) and not torch.allclose(other[0], all_rows[0], atol=1e-4)


def test_every_convolution_has_norm_1_and_follows_its_weights():
    critic = LatentCritic(4, 8, 2)
    layers = [m for m in critic.modules() if parametrize.is_parametrized(m, "weight")]
    assert len(layers) == 2 + 2 * 2

    def norms():
        return torch.stack([torch.linalg.matrix_norm(layer.weight.flatten(1), 2) for layer in layers])

    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original.mul_(3).add_(0.1)
    off = (norms() - 1).abs().max()
    for _ in range(30):
        critic.settle()
    assert (norms() - 1).abs().max() < min(off, 1e-2)


def test_weights_follow_from_the_seed_and_come_back():
    one, two = LatentCritic(4, 8, 2, seed=1), LatentCritic(4, 8, 2, seed=1)
    one.settle()
    two.load_state_dict(one.state_dict())
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 5.0])
    assert torch.equal(one(z, t)[0], two(z, t)[0])
    assert not torch.equal(LatentCritic(4, 8, 2, seed=2)(z, t)[0], one(z, t)[0])
    assert torch.equal(LatentCritic(4, 8, 2, seed=1).enter.bias, LatentCritic(4, 8, 2, seed=1).enter.bias)

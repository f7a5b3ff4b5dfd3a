"""What a translation shows of its source inside a network: by hand, blind to what a style is, frozen, and with its gradient."""

import pytest
import torch
from torch.nn import functional as F

from percepta.estimate import Estimate
from percepta.objectives.translation import SOURCE, AlikeInside
from percepta.spaces.space import Space
from percepta.spaces.trunks import Trunk

RELU5_3 = 29


class Edges(Space):
    """Three channels of differences; the last layer is what counts."""

    def forward(self, x):
        return x[..., ::2, ::2], x[..., 1:] - x[..., :-1]


@pytest.fixture(scope="module")
def vgg():
    return Trunk("vgg16", taps=(RELU5_3,), weights="random")


def images(count=4, rows=2, side=32):
    rng = torch.Generator().manual_seed(0)
    return [torch.rand(rows, 3, side, side, generator=rng) * 2 - 1 for _ in range(count)]


def estimate(real_a, real_b, fake_a, fake_b):
    return Estimate(fake_b, real_b, paired=False, taps={"real_a": real_a, "real_b": real_b, "fake_a": fake_a, "fake_b": fake_b})


def test_by_hand():
    """A row has its own translation and its own source, in both directions; instance norm by its formula."""
    a, b, fake_a, fake_b = images(side=8)

    def normal(x):
        f = (x[..., 1:] - x[..., :-1]).double()
        mean, var = f.mean((2, 3), keepdim=True), f.var((2, 3), correction=0, keepdim=True)
        return (f - mean) / (var + 1e-5).sqrt()

    found = AlikeInside(Edges())(estimate(a, b, fake_a, fake_b))
    by_hand = sum(((normal(x) - normal(y)) ** 2).mean((1, 2, 3)) for x, y in ((fake_b, a), (fake_a, b)))
    assert found.shape == (2,) and torch.allclose(found.double(), by_hand, rtol=1e-5)
    one_way = AlikeInside(Edges(), SOURCE[:1])(estimate(a, b, fake_a, fake_b))
    assert torch.allclose(one_way.double(), ((normal(fake_b) - normal(a)) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_vgg_has_its_layer(vgg):
    """relu5_3: the last activation before the last pooling, 512 channels at a sixteenth of the side."""
    (feature,) = vgg(images(1, side=48)[0])
    assert feature.shape == (2, 512, 3, 3) and feature.min() == 0
    assert isinstance(vgg.layers[-1], torch.nn.ReLU) and isinstance(vgg.layers[-2], torch.nn.Conv2d)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in vgg.layers) == 13


def test_zero_for_the_source_itself_and_blind_to_the_scale_of_features(vgg):
    a, b, *_ = images()
    judge = AlikeInside(vgg)
    assert float(judge(estimate(a, b, b, a)).abs().max()) == 0
    assert float(judge(estimate(a, b, a, b)).min()) > 0.1
    edges = AlikeInside(Edges())  # contrast and brightness are of the style
    assert float(edges(estimate(a, b, 0.5 * b + 0.2, 0.5 * a + 0.2)).max()) < 1e-4


def test_the_network_is_frozen_and_passes_the_gradient_to_both_translations_alone(vgg):
    a, b, fake_a, fake_b = (x.requires_grad_() for x in images())
    AlikeInside(vgg)(estimate(a, b, fake_a, fake_b)).sum().backward()
    assert a.grad is None and b.grad is None
    assert all(float(x.grad.abs().sum()) > 0 for x in (fake_a, fake_b))
    assert all(p.grad is None and not p.requires_grad for p in vgg.parameters())


def test_rows_do_not_see_each_other(vgg):
    a, b, fake_a, fake_b = images()
    whole = AlikeInside(vgg)(estimate(a, b, fake_a, fake_b))
    for k in range(2):
        alone = AlikeInside(vgg)(estimate(*(x[k : k + 1] for x in (a, b, fake_a, fake_b))))
        assert torch.allclose(alone, whole[k : k + 1], rtol=1e-4)


def test_an_image_that_leaves_one_place_is_refused(vgg):
    with pytest.raises(ValueError, match="31 x 31 px one place"):
        AlikeInside(vgg)(estimate(*images(side=31)))
    assert F.instance_norm(vgg(images(1)[0])[0]).abs().max() > 0

"""What every space is, whichever network is behind it: frozen for good, on one device, open to gradients, the same twice."""

from dataclasses import replace

import pytest
import torch

from percepta.data import Shapes
from percepta.spaces import clip
from percepta.spaces.backbones import InceptionBlocks, Stages
from percepta.spaces.clip import KINDS, Clip
from percepta.spaces.dino import Dino
from percepta.spaces.dists import Dists
from percepta.spaces.domain import Domain, train_domain
from percepta.spaces.domain_fit import Recipe
from percepta.spaces.extractor import known_extractors, split_name, weights_behind
from percepta.spaces.inception import Inception
from percepta.spaces.latent_lpips import LatentLpips
from percepta.spaces.lpips import Lpips, Pooled
from percepta.spaces.space import Pixels, Resized, Space
from percepta.spaces.tokens import Tokens
from percepta.spaces.trunks import Trunk

torch.set_num_threads(1)
SPACES = {
    "clip": lambda _: Clip("clip", weights="random"),
    "clip-l": lambda _: Clip("clip-l", weights="random"),
    "convnext": lambda _: Stages("convnext", weights="random"),
    "dinov2-s": lambda _: Dino("dinov2-s", weights="random"),
    "dists": lambda _: Dists(weights="random"),
    "domain": lambda folder: Domain(train_domain(Shapes(size=16, length=20), folder, recipe=Recipe(steps=1, batch=8))),
    "inception": lambda _: Inception(("192", "768"), weights="random"),
    "inception-maps": lambda _: Resized(InceptionBlocks(("Mixed_5d", "Mixed_6e"), weights="random"), 96),
    "latent-lpips": lambda _: LatentLpips("random", channels=3, widths=(4, 8, 8, 8, 8)),
    "lpips": lambda _: Lpips("squeeze", weights="random"),
    "lpips-vgg16": lambda _: Lpips("vgg16", weights="random", pooling="average"),
    "pooled": lambda _: Pooled("alex", weights="random"),
    "resnet": lambda _: Stages("resnet", weights="random"),
    "swin": lambda _: Stages("swin", weights="random"),
    "tokens": lambda _: Tokens("clip", weights="random"),
    "trunk": lambda _: Trunk("squeeze", weights="random"),
    "pixels": lambda _: Pixels(),
}


@pytest.fixture(params=SPACES)
def space(request, tmp_path, monkeypatch) -> Space:
    for name, kind in KINDS.items():
        monkeypatch.setitem(clip.KINDS, name, replace(kind, width=32, layers=2, heads=2, dims=16))
    return SPACES[request.param](tmp_path)


def images(seed: int, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, 40, 36, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_frozen_for_good(space):
    x = images(0).requires_grad_()
    before = {name: value.clone() for name, value in space.state_dict().items()}
    assert not any(p.requires_grad for p in space.parameters())
    space.train()
    assert not any(module.training for module in space.modules())
    features = space.features(x, {})
    assert all(one.dtype == torch.float32 and one.isfinite().all() and len(one) == 2 for one in features)
    sum(one.sum() for one in features).backward()  # not of squares: some embeddings have length 1
    assert x.grad is not None and x.grad.isfinite().all()
    assert all((x.grad[k] != 0).any() for k in range(2))
    assert all(p.grad is None for p in space.parameters())
    assert all(torch.equal(value, before[name]) for name, value in space.state_dict().items()), "using it has changed it"


def test_a_gradient_points_down_hill(space):
    """Against finite differences along the gradient itself: the path to the pixels is whole, through resize and normalisation."""
    x = images(1, 1).double().float()
    target = [one.detach() for one in space(images(2, 1))]

    def loss(y):
        return sum((a.double() - b.double()).square().mean() for a, b in zip(space(y), target, strict=True))

    y = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(y), y)
    step = grad / grad.norm()
    with torch.no_grad():
        slope = float(loss(x + 2e-2 * step) - loss(x - 2e-2 * step)) / 4e-2
    assert slope == pytest.approx(float(grad.norm()), rel=0.15)


def test_everything_of_it_moves_to_a_device(space):
    """The device that holds no numbers: a tensor that stayed behind would meet another device in the forward pass."""
    moved = space.to("meta")
    assert all(one.device.type == "meta" for one in moved(images(0).to("meta")))
    assert all(value.device.type == "meta" for value in (*moved.parameters(), *moved.buffers()))


def test_a_row_does_not_depend_on_its_neighbours(space):
    x = images(3, 3)
    with torch.no_grad():
        whole, alone = space(x), space(x[1:2])
    for a, b in zip(whole, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, atol=1e-5 * max(1.0, float(b.abs().max())), rtol=1e-4)


def test_every_family_names_its_weights():
    for family in known_extractors():
        assert split_name(family) == (family, None)
        assert (weights_behind(family) == ()) == (family in ("domain", "pixels"))
    with pytest.raises(ValueError, match="unknown space 'vgg'"):
        weights_behind("vgg")

"""The domain space: it learns its data's classes, is found again, is the same at the same seed, and says what it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from percepta.data import Shapes
from percepta.evaluation.sets import open_side
from percepta.spaces.domain import FACTS, WEIGHTS, Domain, small, train_domain
from percepta.spaces.domain_fit import Encoder, Recipe, nt_xent, shifted, view
from percepta.spaces.extractor import open_extractor

torch.set_num_threads(1)
TINY = Recipe(steps=30, batch=32)
SHORT = Recipe(steps=2, batch=8)
DATA = Shapes(size=16, length=400, labels="colour", textures="plain")


def tensors(source, indices) -> torch.Tensor:
    return torch.stack([torch.from_numpy(item.image).permute(2, 0, 1) for item in source.read_many(indices)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both kinds, once."""
    folder = tmp_path_factory.mktemp("domain")
    return {
        "supervised": train_domain(DATA, folder, recipe=TINY),
        "contrastive": train_domain(replace(DATA, labels="none"), folder, recipe=TINY),
    }


@pytest.mark.parametrize(("method", "least"), [("supervised", 0.6), ("contrastive", 0.4)])
def test_features_tell_classes_apart(trained, method, least):
    """Nearest neighbours among 200 other images than those of training; 8 colours, so chance is 0.125."""
    other = replace(DATA, seed=1, length=300)
    labels = np.array([item.label for item in other.read_many(range(300))])
    rows = open_extractor("domain", domain=trained[method])(tensors(other, range(300)), ["embedding"])["embedding"]
    assert rows.shape == (300, 128)
    rows = torch.nn.functional.normalize(rows)
    similar = rows[200:] @ rows[:200].T
    votes = labels[:200][similar.topk(5, 1).indices.numpy()]
    guesses = np.array([np.bincount(vote).argmax() for vote in votes])
    assert (guesses == labels[200:]).mean() > least


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """In float64, from the eigenvalues of the product."""
    cov_a, cov_b = (np.cov(x.astype(np.float64).T) for x in (a, b))
    root = np.sqrt(np.clip(np.linalg.eigvals(cov_a @ cov_b).real, 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root)


@pytest.mark.parametrize("method", ["supervised", "contrastive"])
def test_a_frechet_distance_rises_with_corruption(trained, method):
    extractor = open_extractor("domain", domain=trained[method])
    reference = extractor(tensors(DATA, range(200)), ["embedding"])["embedding"].numpy()
    clean = tensors(replace(DATA, seed=1), range(200))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    values = []
    for strength in (0, 40, 100):
        noisy = (clean + strength * noise).clamp(0, 255).round().to(torch.uint8)
        values.append(frechet(extractor(noisy, ["embedding"])["embedding"].numpy(), reference))
    assert values[0] < values[1] < values[2]
    assert values[2] > 2 * values[0]


def test_the_same_seed_gives_the_same_weights(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    for source in (DATA, replace(DATA, labels="none")):
        torch.manual_seed(5)
        first, second = (Domain(train_domain(source, tmp_path / name, recipe=SHORT)) for name in ("a", "b"))
        assert torch.equal(torch.rand(3), expected), "training moved the global random numbers"
        assert first.weights == second.weights
        assert Domain(train_domain(source, tmp_path / "a", seed=1, recipe=SHORT)).weights != first.weights


def test_it_is_found_again(tmp_path):
    said: list[str] = []
    folder = train_domain(DATA, tmp_path, recipe=SHORT, note=said.append)
    before = (folder / WEIGHTS).stat().st_mtime_ns
    assert any("training on 400" in line for line in said)
    said.clear()
    assert train_domain(DATA, tmp_path, recipe=SHORT, note=said.append) == folder
    assert (folder / WEIGHTS).stat().st_mtime_ns == before and said == [f"domain encoder: found in {folder}"]
    others = [
        train_domain(DATA, tmp_path, recipe=replace(SHORT, steps=3)),
        train_domain(replace(DATA, labels="shape"), tmp_path, recipe=SHORT),
        train_domain(replace(DATA, length=100), tmp_path, recipe=SHORT),
    ]
    assert len({folder, *others}) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in {folder, *others})


def test_it_says_what_it_is(trained):
    about = Domain(trained["supervised"]).about
    for part in ("400 of 400 images", DATA.fingerprint[:12], "8 classes", "40 held-out", "30 steps", "seed 0"):
        assert part in about
    assert "contrastive" in Domain(trained["contrastive"]).about
    extractor = open_extractor("domain", domain=trained["supervised"])
    assert extractor.about == about and extractor.weights == Domain(trained["supervised"]).weights
    assert Domain(trained["supervised"]).name == f"domain:{extractor.weights[:12]}"
    assert extractor.identity != open_extractor("domain", domain=trained["contrastive"]).identity


def test_gradients_pass_and_nothing_of_it_learns(trained):
    space = Domain(trained["supervised"])
    x = torch.rand(2, 3, 50, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
    space.features(x, {})[0].square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad != 0).any()
    assert not any(p.requires_grad for p in space.parameters())
    assert not space.train().training


def test_a_side_of_an_evaluation_is_trained_on_with_its_labels(tmp_path):
    """An ImageSet: the same images as the source's, at its own size, with the classes that the source has."""
    side = open_side(DATA, num=64)
    facts = json.loads((train_domain(side, tmp_path, recipe=SHORT) / FACTS).read_text())
    assert (facts["method"], facts["classes"], facts["images"], facts["size"]) == ("supervised", 8, 64, 32)
    assert facts["fingerprint"] == side.fingerprint
    unlabelled = open_side(np.stack([item.image for item in DATA.read_many(range(20))]))
    assert json.loads((train_domain(unlabelled, tmp_path, recipe=SHORT) / FACTS).read_text())["method"] == "contrastive"


def test_larger_images_are_judged_at_64(tmp_path):
    source = Shapes(size=70, length=20, labels="none")
    folder = train_domain(source, tmp_path, recipe=SHORT)
    assert Domain(folder).size == 64
    assert sum(p.numel() for p in Encoder(64).parameters()) < 1_000_000


def test_the_parts_of_the_training():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 3, 32, 32, generator=generator)
    moved = shifted(x, generator)
    assert moved.shape == x.shape
    inside = [any(torch.equal(m[:, 8:24, 8:24], c[:, 8 + i : 24 + i, 8 + j : 24 + j]) for c in (o, o.flip(2))
              for i in range(-4, 5) for j in range(-4, 5)) for m, o in zip(moved, x, strict=True)]  # fmt: skip
    assert all(inside), "an image is moved by whole pixels, flipped or not"
    assert sum(torch.equal(m, o) for m, o in zip(moved, x, strict=True)) < 10
    assert view(x, generator).shape == x.shape and view(x, generator).isfinite().all()
    z = torch.nn.functional.one_hot(torch.arange(4)).float()
    expected = -np.log(np.exp(2) / (np.exp(2) + 6))  # its own view at similarity 1 / 0.5, six others at 0
    assert nt_xent(torch.cat([z, z]), 0.5).item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(small(x, 32), x)


def test_mistakes_are_explained(tmp_path, trained):
    with pytest.raises(ValueError, match="at least 16 images"):
        train_domain(replace(DATA, length=10), tmp_path)
    with pytest.raises(ValueError, match="holds no domain encoder"):
        Domain(tmp_path)
    with pytest.raises(ValueError, match="train_domain"):
        open_extractor("domain")
    folder = train_domain(DATA, tmp_path, recipe=SHORT)
    (folder / WEIGHTS).write_bytes((trained["supervised"] / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match="train it again"):
        Domain(folder)
    (folder / FACTS).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Domain(folder)

"""The domain space: it learns its data's classes, is found again, is the same at the same seed, and says what it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from percepta.data import Shapes
from percepta.evaluation.evaluate import Opener, make_dialect
from percepta.evaluation.passes import extract
from percepta.evaluation.sets import open_side
from percepta.spaces import domain
from percepta.spaces.domain import FACTS, WEIGHTS, Domain, read_facts, small, train_domain
from percepta.spaces.domain_fit import Encoder
from percepta.spaces.extractor import open_extractor
from percepta.spaces.pretext import Recipe, nt_xent, shifted, view

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
    assert rows.shape == (300, 352)
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


def test_it_sees_what_its_classes_do_not_ask_for(tmp_path):
    """Taught shapes, it must not call images good whose colours are all wrong."""
    data = replace(DATA, labels="shape")
    extractor = open_extractor("domain", domain=train_domain(data, tmp_path, recipe=TINY))
    reference = extractor(tensors(data, range(300)), ["embedding"])["embedding"].numpy()
    other = tensors(replace(data, seed=1), range(300))
    blue = other.clone()
    blue[:, :2] //= 4
    clean, wrong = (frechet(extractor(x, ["embedding"])["embedding"].numpy(), reference) for x in (other, blue))
    assert wrong > 3 * clean


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


def test_the_same_files_cut_or_labelled_in_another_way_are_another_encoder(tmp_path):
    """A side's fingerprint knows neither: the encoder of 64 px must not be found where 32 px are asked for."""
    pixels = np.stack([item.image for item in Shapes(size=70, length=40).read_many(range(40))])[:, :60]
    labels = np.arange(40) % 4
    sets = {}
    for name, given in (("a", labels), ("b", labels[::-1].copy())):
        np.savez(tmp_path / f"{name}.npz", arr_0=pixels, arr_1=given)
        sets[name] = tmp_path / f"{name}.npz"

    def trained_on(name, **how):
        cache = tmp_path / "cache" / "features"
        opener = Opener(make_dialect("torch-fidelity"), "fp32", "cpu", cache, open_side(sets[name], **how), 0, lambda text: None)
        return opener("domain", None)

    ways = [trained_on("a", size=32), trained_on("a"), trained_on("a", size=32, crop="stretch"), trained_on("b", size=32)]
    assert len({one.weights for one in ways}) == 4 and len(list((tmp_path / "cache" / "domain").iterdir())) == 4
    assert "32 x 32" in ways[0].resize and "64 x 64" in ways[1].resize
    assert trained_on("a", size=32).weights == ways[0].weights


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """What evaluation trains here takes 2 steps."""
    monkeypatch.setattr(domain, "Recipe", lambda: SHORT)


def test_whoever_comes_second_takes_what_is_there(tmp_path, monkeypatch):
    """Two processes train the same one at the same time: both end with one and the same, and nothing else is left."""
    real, made = domain.fit, []

    def overtaken(*given):
        if not made:
            made.append(None)
            made[0] = train_domain(DATA, tmp_path, recipe=SHORT)  # the other process, which is faster
            before.update({path.name: path.read_bytes() for path in made[0].iterdir()})
        return real(*given)

    before: dict[str, bytes] = {}
    monkeypatch.setattr(domain, "fit", overtaken)
    folder = train_domain(DATA, tmp_path, recipe=SHORT)
    assert folder == made[0] and {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_without_its_facts_is_made_anew(tmp_path):
    folder = train_domain(DATA, tmp_path, recipe=SHORT)
    expected = Domain(folder).weights
    (folder / FACTS).unlink()
    assert Domain(train_domain(DATA, tmp_path, recipe=SHORT)).weights == expected


def test_it_is_found_again_once_a_pass_has_counted_the_bad_files(tmp_path):
    """A run trains it before the first step, when no pass has read the images, and looks for it at every evaluation."""
    for k, item in enumerate(replace(DATA, length=20).read_many(range(20))):
        Image.fromarray(item.image).save(tmp_path / f"{k:02}.png")
    (tmp_path / "07.png").write_bytes(b"no image")
    side = open_side(tmp_path, on_bad="skip")
    folder = train_domain(side, tmp_path / "cache", recipe=SHORT, seen_as=side.seen_as)
    extract(side, {open_extractor("domain", domain=folder): ["embedding"]}, tmp_path / "rows")
    assert len(side) == 19
    assert train_domain(side, tmp_path / "cache", recipe=SHORT, seen_as=side.seen_as) == folder


def test_it_can_be_left_at_any_step_and_leaves_nothing(tmp_path):
    calls = []

    def check():
        calls.append(None)
        if len(calls) == 3:  # reading, step 1, step 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_domain(replace(DATA, length=40), tmp_path, recipe=replace(SHORT, steps=50), check=check)
    assert not list(tmp_path.iterdir())


def test_images_that_are_all_the_same_are_no_accident(tmp_path):
    """Every image the same: the loss stays finite, and the encoder says how little it tells apart."""
    flat = open_side(np.full((20, 8, 8, 3), 77, np.uint8))
    assert Domain(train_domain(flat, tmp_path, recipe=SHORT)).facts["reached"] > 1


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


def test_classes_of_a_few_images_each_teach_nothing(tmp_path):
    """63 images of 8 classes are too few to learn classes from, 64 are enough."""
    methods = [read_facts(train_domain(replace(DATA, length=n), tmp_path, recipe=SHORT))["method"] for n in (63, 64)]
    assert methods == ["contrastive", "supervised"]


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

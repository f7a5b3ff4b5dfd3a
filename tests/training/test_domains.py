"""The data of two domains in a run: each in an order of its own, the same from any start, for any number of processes and micro-batches."""

from dataclasses import replace
from itertools import pairwise
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from percepta.data import find_domains, open_source
from percepta.distributed import World
from percepta.estimate import Estimate
from percepta.objectives import AbstractPerSample, Term
from percepta.rng import Rng
from percepta.training.domains import open_domains
from percepta.training.evaluating import images_of
from percepta.training.method import Method
from percepta.training.product import Product
from percepta.training.settings import Settings
from percepta.training.state import make_state
from percepta.training.step import take_step

CPU = torch.device("cpu")
COUNTS = {"A": 5, "B": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images of sizes of their own, of which the darkest say the domain; B has classes, A is in an npz."""
    root = tmp_path_factory.mktemp("two")
    draw = np.random.default_rng(0)
    for k in range(COUNTS["B"]):
        folder = root / "B" / ("x" if k % 2 else "y")
        folder.mkdir(parents=True, exist_ok=True)
        image = draw.integers(128, 256, (9 + 3 * k, 30 - 2 * k, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{k}.png")
    np.savez(root / "A.npz", draw.integers(0, 120, (COUNTS["A"], 13, 21, 3), dtype=np.uint8), np.arange(COUNTS["A"]))
    return root


def settings(root, **changed):
    return replace(Settings(), **{"data": str(root / "B"), "size": 8, "batch": 6, "crop": "stretch", **changed})


def opened(root, rank=0, world=1, **changed):
    return open_domains(settings(root, **changed), str(root / "A.npz"), World(rank, world), CPU)


def rows(data, start, stop):
    return list(data.batches(start, stop))


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for (places, x), (other_places, y) in zip(ours, theirs, strict=True):
        assert places == other_places
        assert torch.equal(x.x0, y.x0)
        assert torch.equal(x.source, y.source)


def keys(images):
    return [x.numpy().tobytes() for x in images]


def test_each_domain_has_epochs_of_its_own(root):
    data = opened(root)
    taken = rows(data, 0, 40)
    assert all(batch.cond is None for _, batch in taken)
    assert (data.channels, data.size, data.num_classes, data.class_names, data.count) == (3, 8, None, None, 13)
    a, b = (torch.cat([getattr(batch, name) for _, batch in taken]) for name in ("source", "x0"))
    assert a.max() < 0 < b.mean()  # A is the source, B what is trained towards
    assert a.shape == b.shape == (240, 3, 8, 8)
    for images, count in ((a, COUNTS["A"]), (b, COUNTS["B"])):
        for epoch in range(240 // count):
            assert len(set(keys(images[epoch * count : (epoch + 1) * count]))) == count
    assert len(set(zip(keys(a), keys(b), strict=True))) == 40  # in time each meets each: nothing pairs them


def test_the_same_set_twice_is_two_orders(root):
    data = open_domains(settings(root), str(root / "B"), World(), CPU)
    taken = rows(data, 0, 8)
    assert sum(x == y for _, batch in taken for x, y in zip(keys(batch.x0), keys(batch.source), strict=True)) < 16


@pytest.mark.parametrize("crop", ["stretch", "jitter", "random-crop"])
def test_flips_and_crops_are_drawn_for_each_domain(root, crop):
    data = open_domains(settings(root, crop=crop, flip=True), str(root / "B"), World(), CPU)
    assert sum(len(set(keys(batch.x0)) & set(keys(batch.source))) for _, batch in rows(data, 0, 3)) < 18
    straight = rows(data, 0, 6)
    same(straight, rows(opened_alike(root, crop), 0, 6))
    same(straight[3:], rows(opened_alike(root, crop), 3, 6))  # a run that goes on
    same(straight, rows(opened_alike(root, crop, data_memory=0.0), 0, 6))


def opened_alike(root, crop, **changed):
    return open_domains(settings(root, crop=crop, flip=True, **changed), str(root / "B"), World(), CPU)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_rows_of_one(root, world):
    options = {"crop": "jitter", "flip": True}
    whole = rows(opened(root, **options), 2, 6)
    parts = [rows(opened(root, rank, world, **options), 2, 6) for rank in range(world)]
    for step, (places, batch) in enumerate(whole):
        mine = [part[step] for part in parts]
        assert places == sum((p for p, _ in mine), ())
        assert torch.equal(batch.x0, torch.cat([b.x0 for _, b in mine]))
        assert torch.equal(batch.source, torch.cat([b.source for _, b in mine]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.slow
def test_workers_read_the_same(root):
    same(
        rows(opened(root, crop="jitter", flip=True), 1, 5),
        rows(opened(root, crop="jitter", flip=True, workers=2, data_memory=0.0), 1, 5),
    )


def test_another_seed_is_another_order_and_other_images_another_set(root):
    assert not torch.equal(rows(opened(root), 0, 1)[0][1].source, rows(opened(root, seed=1), 0, 1)[0][1].source)
    prints = {opened(root).fingerprint, open_domains(settings(root), str(root / "B"), World(), CPU).fingerprint}
    prints.add(open_domains(settings(root, data=str(root / "A.npz")), str(root / "B"), World(), CPU).fingerprint)
    assert len(prints) == 3  # a to b is not b to a
    assert open_source(root / "B").fingerprint not in prints


def test_examples_of_both_are_the_same_everywhere(root):
    first, second = opened(root), opened(root, 1, 2, batch=2)
    assert torch.equal(first.examples(), second.examples())
    assert torch.equal(first.source_examples(), second.source_examples())
    assert (len(first.examples()), len(first.source_examples())) == (8, 5)
    assert first.source_examples().max() < 0


def test_shapes_never_meet_their_pairs():
    found = find_domains("shapes:length=24")
    data = open_domains(Settings(data=found.train_b, size=16, batch=24), found.train_a, World(), CPU)
    (_, batch), *_ = rows(data, 0, 1)
    a, b = (open_source(spec, 16) for spec in (found.train_a, found.train_b))
    images = {
        name: {((x + 1) * 127.5).round().byte().permute(1, 2, 0).numpy().tobytes() for x in getattr(batch, name)}
        for name in ("x0", "source")
    }
    assert images["source"] == {a.read(k).image.tobytes() for k in range(24)}
    assert images["x0"] == {b.read(k).image.tobytes() for k in range(24)}
    assert not images["x0"] & {a.hidden_pair(k).tobytes() for k in range(24)}


def test_judged_images_are_whole_where_training_cuts_at_random(root):
    stretched = images_of(settings(root), str(root / "B")).read(range(3))
    assert np.array_equal(images_of(settings(root, crop="jitter"), str(root / "B")).read(range(3)), stretched)
    assert images_of(settings(root, crop="random-crop"), str(root / "B")).transform.crop == "center-crop"


class Distance(AbstractPerSample):
    """Of an image of A, mapped, to the image of B beside it."""

    def __call__(self, est):
        return (est.x0_hat - est.x0).square().flatten(1).mean(1)


def mapped(root, starts=(0,), **changed):
    """A convolution after four steps, stopped and opened anew at each of `starts`."""
    chosen = settings(root, crop="jitter", flip=True, lr=0.01, ema="none", **changed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 3, 3, padding=1)

    def estimate(batch, rng):
        assert len(batch.source) == len(batch) == len(rng) <= (chosen.micro_batch or chosen.batch)
        return Estimate(model(batch.source), batch.x0)

    method = Method(model, estimate, [Term("distance", Distance())], Mock(spec=Product))
    state = make_state(method, chosen, CPU)
    for start, stop in pairwise((*starts, 4)):
        for places, batch in opened(root, crop="jitter", flip=True).batches(start, stop):
            take_step(method, state, chosen, batch, Rng(0, places, state.step))
            state.step += 1
    return model.weight.detach()


def test_micro_batches_and_resuming_give_the_same_weights(root):
    whole = mapped(root)
    assert torch.equal(mapped(root, starts=(0, 1, 3)), whole)
    for size in (1, 4):
        assert torch.allclose(mapped(root, micro_batch=size), whole, atol=1e-6)
    assert not torch.allclose(mapped(root, starts=(1,)), whole, atol=1e-4)


def test_wrong_settings_are_refused(root):
    for changed, words in (
        ({"vae": "somewhere"}, "--vae somewhere: a translation trains on images"),
        ({"conditional": "yes"}, "no condition"),
    ):
        with pytest.raises(ValueError, match=words):
            opened(root, **changed)
    with pytest.raises(ValueError, match="does not exist"):
        open_domains(settings(root), str(root / "C"), World(), CPU)

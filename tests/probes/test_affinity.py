"""Affinities of denoised images: what a perfect denoiser keeps, what one that forgets keeps, and what is refused."""

import pytest
import torch
from PIL import Image
from torch import nn

from percepta.data import open_source
from percepta.formulation import Denoiser, Formulation
from percepta.networks import build
from percepta.path import VarianceExploding
from percepta.probes import Denoised, affinities, labelled_groups
from percepta.probes.affinity import compared
from percepta.spaces.space import Pixels

SOURCE = open_source("shapes:length=200,labels=shape", 16)


class Known(nn.Module):
    """Puts out images that it was given, whatever it is shown."""

    def __init__(self, network, answer) -> None:
        super().__init__()
        self.network, self.answer, self.told = network, answer, []

    def forward(self, x, time, cond):
        self.told.append(cond)
        return self.answer(x)


@pytest.fixture
def look(tmp_path):
    def make(answer, **knobs):
        groups, labels = labelled_groups(SOURCE, 2, 4, 16)
        denoiser = Denoiser(
            build("unet-pocket", channels=3, size=16, num_classes=8, seed=0), Formulation(VarianceExploding(), "clean")
        )
        known = Known(denoiser.network, answer or (lambda x: known.queue.pop(0)))
        known.queue = [groups[0], groups[0], groups[1], groups[1]]
        denoiser.network.forward = known.forward
        return Denoised(denoiser, groups, labels, Pixels(), tmp_path / "figures", (0.5, 2.0), **knobs), known

    return make


def test_groups_have_two_images_of_each_class_and_none_twice():
    images, labels = labelled_groups(SOURCE, 6, 8, 16)
    assert images.shape == (6, 8, 3, 16, 16) and images.min() >= -1 and images.max() <= 1
    assert torch.equal(labels[:, ::2], labels[:, 1::2])
    assert all(len(set(row.tolist())) == 4 for row in labels)
    assert len({image.numpy().tobytes() for image in images.flatten(0, 1)}) == 48
    known = {SOURCE.read(k).image.tobytes(): SOURCE.read(k).label for k in range(200)}
    for image, label in zip(images.flatten(0, 1), labels.flatten(), strict=True):
        as_read = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
        assert known[as_read.tobytes()] == label


@pytest.mark.parametrize(("groups", "num"), [(1, 3), (1, 2), (0, 4), (60, 8)])
def test_groups_that_cannot_be_had_are_refused(groups, num):
    with pytest.raises(ValueError, match="group"):
        labelled_groups(SOURCE, groups, num, 16)


def test_images_without_labels_are_refused():
    with pytest.raises(ValueError, match="labels"):
        labelled_groups(open_source("shapes:length=30,labels=none", 16), 1, 4, 16)


def test_a_perfect_denoiser_keeps_the_clean_structure(look):
    made, known = look(None)
    found = affinities(made)
    for level in ("level-50", "level-200"):
        assert found.numbers[level]["clean_distance"] == pytest.approx(0, abs=1e-5)
        assert found.numbers[level]["clean_correlation"] == pytest.approx(1, abs=1e-4)
        assert found.numbers[level]["label_distance"] == pytest.approx(found.numbers["clean"]["label_distance"], abs=1e-5)
    assert all(torch.equal(torch.as_tensor(cond), torch.full((4,), 8)) for cond in known.told), "labels are not told"
    for figure in found.figures:
        with Image.open(figure) as picture:
            assert min(picture.size) > 100


def test_a_denoiser_that_forgets_says_that_all_are_one(look):
    found = affinities(look(lambda x: torch.full_like(x, 0.3))[0]).numbers["level-200"]
    assert found["label_distance"] == pytest.approx((8 / 12) ** 0.5, abs=1e-4)  # 8 of 12 pairs are of two classes: 1 against 0
    assert found["label_correlation"] == pytest.approx(0, abs=1e-5) and found["clean_correlation"] == pytest.approx(0, abs=1e-5)


def test_distances_by_hand():
    truth, found = torch.eye(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    assert compared(found, truth, found) == {
        "label_distance": 0.5,
        "label_correlation": 0,
        "clean_distance": 0,
        "clean_correlation": 0,
    }


@pytest.mark.parametrize("levels", [(0.0,), (1.0, 1.0), (float("inf"),)])
def test_levels_are_above_nothing_and_once(levels, look):
    made, _ = look(None)
    with pytest.raises(ValueError, match="noise levels"):
        Denoised(made.denoiser, made.groups, made.labels, made.space, made.figures, levels)

"""A planted patch is found where it was planted; a decoder without one has none."""

import pytest
import torch

from percepta.networks import build_autoencoder
from percepta.probes import Look
from percepta.probes import outliers as probe
from percepta.spaces.decoder import Decoder

module = __import__("percepta.probes.outliers", fromlist=["Decoder"])


class Planted(Decoder):
    """Normal numbers, and in the finest layer's channel 5 a far patch of 5 x 5 places."""

    def forward(self, z):
        clean = super().forward(z)
        made = [torch.randn(x.shape, generator=torch.Generator().manual_seed(k)) for k, x in enumerate(clean)]
        made[-1][:, 5, 20:25, 30:35] = 40.0
        return tuple(made)


@pytest.fixture
def look(tmp_path):
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Look(build_autoencoder().requires_grad_(False).eval(), images, tmp_path, batch=2)


def test_a_planted_patch_is_found_in_its_layer_and_channel(look, monkeypatch):
    monkeypatch.setattr(module, "Decoder", Planted)
    found = probe(look)
    assert list(found.numbers) == ["layer-0", "layer-1", "layer-2", "layer-3"]
    finest = found.numbers["layer-3"]
    channels = finest["channels"]
    assert finest["upscale"] == 4 and finest["pixels"] == 1 and finest["masked_by_lpl"]
    assert finest["dropped"] == pytest.approx(49 / 64**2 / channels) and finest["dropped_most"] == pytest.approx(49 / 64**2)
    assert finest["channels_hit"] == pytest.approx(1 / channels)
    first = finest["maps"][0]
    assert (first["channel"], first["peak"]) == (5, finest["peak_most"]) and first["dropped"] == pytest.approx(49 / 64**2)
    assert len({one["channel"] for one in finest["maps"]}) == 4, "a channel is shown once"
    assert finest["peak_most"] > 10 > finest["peak_median"] > 3
    assert (
        found.numbers["layer-2"]["dropped"] == found.numbers["layer-2"]["channels_hit"] == 0
    )  # at full resolution specks are left alone
    assert [found.numbers[f"layer-{k}"]["masked_by_lpl"] for k in range(4)] == [False, True, True, True]


def test_shares_are_means_over_all_images(look, monkeypatch):
    """Only one image of three has the patch."""

    class Once(Planted):
        def forward(self, z):
            made = super().forward(z)
            if len(z) == 2:  # the first batch
                made[-1][:, 5] = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(9))
            return made

    monkeypatch.setattr(module, "Decoder", Once)
    found = probe(look).numbers["layer-3"]
    assert found["dropped_most"] == pytest.approx(49 / 64**2 / 3) and found["maps"][0]["image"] == 2


def test_a_map_of_one_number_has_no_outliers(look, monkeypatch):
    class Closed(Planted):
        def forward(self, z):
            made = super().forward(z)
            made[-1][:, :4] = 0.0
            return made

    monkeypatch.setattr(module, "Decoder", Closed)
    found = probe(look).numbers
    assert found["layer-3"]["flat"] == pytest.approx(4 / found["layer-3"]["channels"]) and found["layer-0"]["flat"] == 0
    assert found["layer-3"]["channels_hit"] == pytest.approx(1 / found["layer-3"]["channels"])


def test_the_picture_has_a_row_per_layer(look):
    (path,) = probe(look).figures
    from PIL import Image

    with Image.open(path) as picture:
        assert picture.size == (8 * module.SIDE + 7 * 4, 4 * module.SIDE + 3 * 4)
    assert path.with_suffix(".json").is_file()

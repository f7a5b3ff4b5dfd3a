"""Where a generator looks, as a picture: the order of the colours, each picture by its own scale, and one pass for both."""

import pytest
import torch

from percepta.images import to_uint8
from percepta.networks.cyclegan import CycleganPair
from percepta.networks.ugatit import UgatitPair
from percepta.training.attention import COLOURS, LUMA, looked, overlaid
from percepta.training.settings import Settings
from percepta.training.translated import Translated

RAMP = torch.linspace(-3, 7, 64)[None, None, None].expand(1, 1, 64, 64)


def light(image: torch.Tensor) -> torch.Tensor:
    return (image * torch.tensor(LUMA)[:, None, None]).sum(-3)


def test_more_heat_is_lighter_all_the_way() -> None:
    shown = overlaid(torch.zeros(1, 3, 64, 64), RAMP)[0]
    steps = light(shown)[0].diff()
    assert (steps > 0).all() and shown.abs().max() <= 1
    least, most = (torch.tensor(COLOURS[k]) / 127.5 - 1 for k in (0, -1))
    grey = 1.2 * 0.5 - 1  # what is left of middle grey
    for place, colour in ((0, least), (-1, most)):
        torch.testing.assert_close(shown[:, 0, place], 0.62 * colour + 0.38 * grey)


def test_the_picture_is_seen_under_it() -> None:
    x = torch.zeros(1, 3, 8, 8)
    x[..., 2:4] = 1.0
    shown = light(overlaid(x, torch.ones(1, 1, 2, 2)))[0]
    assert (shown[:, 2:4] > shown[:, :1] + 0.2).all()


def test_each_picture_has_its_own_scale_and_a_flat_one_is_dark() -> None:
    heat = torch.stack([RAMP[0], 1000 * RAMP[0] + 5, torch.full_like(RAMP[0], 3.0)])
    one, scaled, flat = overlaid(torch.zeros(3, 3, 64, 64), heat)
    torch.testing.assert_close(one, scaled, atol=1e-4, rtol=0)
    assert torch.isfinite(flat).all() and torch.equal(flat, one[:, :1, :1].expand_as(flat))


def test_a_small_map_is_brought_to_the_size_of_its_picture() -> None:
    heat = torch.zeros(1, 1, 4, 6)
    heat[..., 0, 5] = 1.0
    shown = light(overlaid(torch.zeros(1, 3, 16, 24), heat))[0]
    assert shown.shape == (16, 24) and divmod(int(shown.argmax()), 24) in {(y, x) for y in range(3) for x in range(21, 24)}


@pytest.mark.parametrize("way", ["a2b", "b2a"])
def test_the_translation_is_the_translation(way) -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    attending, plain = UgatitPair(16, 4, blocks=1).eval(), CycleganPair(16, 4, blocks=1).eval()
    with torch.no_grad():
        there, attention = looked(attending, x, way)
        assert torch.equal(there, attending.translate(x, way)) and attention is not None
        torch.testing.assert_close(attention, overlaid(x, attending.generated(x, way).heat))
        there, attention = looked(plain, x, way)
        assert attention is None and torch.equal(there, plain.translate(x, way))


def test_a_preview_has_a_row_per_image(tmp_path) -> None:
    torch.manual_seed(0)
    pair = UgatitPair(16, 4, blocks=1)
    a, b = torch.rand(5, 3, 16, 16) * 2 - 1, torch.rand(1, 3, 16, 16) * 2 - 1
    shown, told = Translated(pair, a, b).preview(Settings(sample_num=18), torch.device("cpu"), lambda *_: None)
    assert told["columns"] == ["image", "attention", "translation", "back"] and told["rows"] == {"a2b": 3, "b2a": 1}
    rows = shown.unflatten(0, (4, 4))
    assert torch.equal(rows[:3, 0], a[:3]) and torch.equal(rows[3, 0], b[0]) and told["num"] == len(shown) == 16
    with torch.no_grad():
        pair.eval()
        there, attention = looked(pair, b, "b2a")
        assert attention is not None
        for k, want in ((1, attention), (2, there), (3, pair.translate(there, "a2b"))):
            torch.testing.assert_close(rows[3, k], want[0], atol=1e-5, rtol=0)
    assert to_uint8(shown).shape == (16, 16, 16, 3)

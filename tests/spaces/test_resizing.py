import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from percepta.spaces.resizing import DIALECTS, RESIZES, known_dialect, resize

ROUNDING = 2e-2  # of 255 on white noise, the worst case: positions near 300 are known to 3e-5 of a pixel in float32
SIZES = [(32, 32), (64, 64), (48, 80), (256, 256), (300, 300), (512, 512)]


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, height, width), generator=torch.Generator().manual_seed(height)).float()


def matrix(size: int, out: int, offset: float) -> np.ndarray:
    """The weights of bilinear interpolation along one side, in float64: output i reads the source at (i + offset) size / out - offset."""
    weights = np.zeros((out, size))
    for i in range(out):
        at = max((i + offset) * size / out - offset, 0.0)
        low = min(int(at), size - 1)
        weights[i, low] += 1 - (at - low)
        weights[i, min(low + 1, size - 1)] += at - low
    return weights


@pytest.mark.parametrize(("how", "offset"), [("tf1-bilinear", 0.0), ("bilinear", 0.5)])
@pytest.mark.parametrize(("height", "width"), [*SIZES, (1, 2)])
def test_bilinear_is_its_formula(how: str, offset: float, height: int, width: int) -> None:
    x = pixels(height, width)
    truth = matrix(height, 299, offset) @ x.double().numpy() @ matrix(width, 299, offset).T
    assert np.abs(resize(x.double(), 299, how).numpy() - truth).max() < 1e-9
    assert np.abs(resize(x, 299, how).numpy() - truth).max() < ROUNDING


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clean_bicubic_is_pillow_in_floating_point(height: int, width: int) -> None:
    x = pixels(height, width)
    channels = [Image.fromarray(c).resize((299, 299), Image.Resampling.BICUBIC) for c in x[0].numpy()]
    truth = np.stack([np.asarray(c) for c in channels]).clip(0, 255)
    assert np.abs(resize(x.double(), 299, "clean-bicubic")[0].numpy() - truth).max() < 1e-4
    assert np.abs(resize(x, 299, "clean-bicubic")[0].numpy() - truth).max() < ROUNDING


@pytest.mark.parametrize("how", RESIZES)
def test_laws(how: str) -> None:
    flat = torch.full((1, 3, 20, 30), 77.0)
    torch.testing.assert_close(resize(flat, 299, how), torch.full((1, 3, 299, 299), 77.0), atol=1e-4, rtol=0)
    x = pixels(299, 299)
    assert resize(x, 299, how) is x
    some, other = pixels(50, 40) / 4 + 60, pixels(50, 40).flip(3) / 4 + 60  # away from the clip
    halves = (resize(some, 33, how) + resize(other, 33, how)) / 2
    torch.testing.assert_close(resize((some + other) / 2, 33, how), halves, atol=1e-3, rtol=0)
    some.requires_grad_()
    resize(some, 61, how).sum().backward()
    assert some.grad is not None and some.grad.isfinite().all()
    assert some.grad.sum().item() == pytest.approx(3 * 61 * 61, rel=1e-4), "each output is an average of the source"


def test_clean_bicubic_clips() -> None:
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 255
    assert RESIZES["clean-bicubic"](edge, 40).aminmax() == (0.0, 255.0)
    inside = resize(edge / 2 + 64, 40, "clean-bicubic")
    assert inside.min() < 64 and inside.max() > 191.5, "bicubic overshoots"


def test_the_resizes_differ() -> None:
    made = [resize(pixels(32, 32), 299, how) for how in RESIZES]
    apart = [(a - b).abs().mean().item() for k, a in enumerate(made) for b in made[:k]]
    assert min(apart) > 1


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown resize 'lanczos'; known: tf1-bilinear"):
        resize(pixels(8, 8), 299, "lanczos")
    with pytest.raises(ValueError, match=r"unknown dialect 'keras'; known: torch-fidelity, pytorch-fid, adm, clean"):
        known_dialect("keras")
    assert {row.resize for row in DIALECTS.values()} <= set(RESIZES)


@pytest.mark.reference
@pytest.mark.parametrize("size", [32, 64, 256, 299, 300, 512])
def test_equal_to_the_peers(size: int) -> None:
    pytest.importorskip("torch_fidelity", reason="pip install torch-fidelity")
    pytest.importorskip("cleanfid", reason="pip install clean-fid")
    from cleanfid.resize import build_resizer
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = pixels(size, size)
    peer = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    assert (resize(x, 299, "tf1-bilinear") - peer).abs().max() < 1e-4
    peer = F.interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False) * 255  # as written in pytorch-fid
    assert (resize(x, 299, "bilinear") - peer).abs().max() < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clean = build_resizer("clean")(x[0].permute(1, 2, 0).byte().numpy())
    assert np.abs(resize(x, 299, "clean-bicubic")[0].permute(1, 2, 0).numpy() - clean).max() < ROUNDING

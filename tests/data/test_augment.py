"""EDM's augmentation: every transform against a reference of its own, labels that say what was done, and numbers that belong to the image."""

import math

import numpy as np
import pytest
import torch

from percepta.data.augment import LABEL, SYM6, Augment, Transforms, doubling, halving
from percepta.rng import Rng, rng_for

X_FLIP, Y_FLIP, SCALE, COS, SIN, STRETCH_COS, STRETCH_SIN, MOVE_X, MOVE_Y = range(LABEL)
QUARTER = math.pi / 2


def done(**given) -> Transforms:
    """What is named, to one image or more; nothing else."""
    values = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in given.items()}
    rows = len(next(iter(values.values())))
    nothing = {name: torch.zeros(rows, dtype=torch.float64) for name in ("x_flip", "y_flip", "scale", "angle", "stretch", "axis")}
    return Transforms(**{**nothing, "move": torch.zeros(rows, 2, dtype=torch.float64), **values})


def image(h=10, w=14, rows=1, dtype=torch.float64):
    return torch.rand(rows, 3, h, w, dtype=dtype, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- the reference: forward maps in homogeneous coordinates, and the published procedure step by step, one image at a time ------------------


def forward_map(h, w, scale=0.0, angle=0.0, stretch=0.0, axis=0.0, move=(0.0, 0.0)):
    """Where a place of the old image goes: scaled, then turned, then stretched, then moved. x right, y down, from the centre."""

    def turn(a):  # counterclockwise, as seen
        return np.array([[math.cos(a), math.sin(a), 0], [-math.sin(a), math.cos(a), 0], [0, 0, 1]])

    by = 2 ** (0.2 * scale)
    longer = 2 ** (0.2 * stretch)
    stretched = turn(axis) @ np.diag([longer, 1 / longer, 1]) @ turn(-axis)
    moved = np.array([[1, 0, move[0] * w / 8], [0, 1, move[1] * h / 8], [0, 0, 1]])
    return moved @ stretched @ turn(angle) @ np.diag([by, by, 1])


def bilinear(fine, y, x):
    y0, x0 = math.floor(y), math.floor(x)
    b, a = y - y0, x - x0
    return (1 - b) * ((1 - a) * fine[y0, x0] + a * fine[y0, x0 + 1]) + b * ((1 - a) * fine[y0 + 1, x0] + a * fine[y0 + 1, x0 + 1])


def reference(plane, there):
    """One channel [h, w]: mirrored, doubled, read where `there` came from, halved."""
    h, w = plane.shape
    wide = np.pad(plane, ((3 * h, 3 * h), (3 * w, 3 * w)), mode="reflect")
    zeros = np.zeros((2 * wide.shape[0], 2 * wide.shape[1]))
    zeros[::2, ::2] = wide
    taps = np.array(SYM6)
    for axis in (0, 1):
        zeros = np.apply_along_axis(lambda line: np.convolve(line, taps, mode="full")[5 : 5 + len(line)], axis, zeros)
    back = np.linalg.inv(there)
    read = np.zeros((2 * h + 10, 2 * w + 10))
    for j in range(-5, 2 * h + 5):
        for i in range(-5, 2 * w + 5):
            x, y, _ = back @ [i / 2 - (w - 1) / 2, j / 2 - (h - 1) / 2, 1]
            read[j + 5, i + 5] = bilinear(zeros, 2 * (y + (h - 1) / 2 + 3 * h), 2 * (x + (w - 1) / 2 + 3 * w))
    out = np.zeros((h, w))
    for k in range(h):
        for n in range(w):
            out[k, n] = taps @ read[2 * k : 2 * k + 12, 2 * n : 2 * n + 12] @ taps
    return out


@pytest.mark.parametrize(
    "what",
    [
        {"scale": 1.7},
        {"scale": -2.0},
        {"angle": 0.4},
        {"angle": -2.5},
        {"angle": QUARTER},
        {"stretch": 1.5},
        {"stretch": -1.5, "axis": 0.9},
        {"move": (0.7, -1.3)},
        {"scale": -0.8, "angle": 1.1, "stretch": 0.9, "axis": -0.6, "move": (-1.1, 0.6)},
    ],
)
def test_a_transform_is_the_published_procedure(what):
    x = image()
    expected = np.stack([reference(plane.numpy(), forward_map(10, 14, **what)) for plane in x[0]])
    got = done(**{name: [value] for name, value in what.items()})(x)
    np.testing.assert_allclose(got[0].numpy(), expected, atol=1e-10)
    assert (got - x).abs().max() > 0.1


def test_a_quarter_turn_goes_counterclockwise():
    """Exact where the image is read (above); the wavelet leans a little to one side, so that pixels change by a percent of the contrast."""
    t = torch.linspace(0, 1, 32, dtype=torch.float64)
    smooth = ((5 * t).sin()[:, None] * (3 * t).cos() + t**2)[None, None]
    for turns in (1, 2, 3):
        got = done(angle=[turns * QUARTER])(smooth)
        assert (got - smooth.rot90(turns, (2, 3))).abs().max() < 0.01 * (smooth.max() - smooth.min())


def test_flips_are_exact_and_moves_by_whole_pixels_too():
    x = image(16, 16)
    assert torch.equal(done(x_flip=[1.0])(x), x.flip(3))
    assert torch.equal(done(y_flip=[1.0])(x), x.flip(2))
    assert torch.equal(done(x_flip=[1.0], y_flip=[1.0])(x), x.rot90(2, (2, 3)))
    right_and_down = done(move=[[3 / 2, 1 / 2]])(x)  # eighths of 16 pixels: 3 right, 1 down
    torch.testing.assert_close(right_and_down[:, :, 1:, 3:], x[:, :, :-1, :-3], rtol=0, atol=1e-10)
    torch.testing.assert_close(right_and_down[:, :, 1:, :3], x[:, :, :-1, 1:4].flip(3), rtol=0, atol=1e-10)
    round_the_mirror = done(move=[[30 / 2, 0.0]])(x)  # the period of an image mirrored for ever is 2 (16 - 1)
    torch.testing.assert_close(round_the_mirror, x, rtol=0, atol=1e-10)


def test_doubling_and_halving_give_the_image_back():
    for n in (2, 3, 8):
        up, down = doubling(n, torch.float64, torch.device("cpu")), halving(n, torch.float64, torch.device("cpu"))
        read = up[torch.arange(-5, 2 * n + 5) % (4 * n - 4)]
        torch.testing.assert_close(down @ read, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-10)
        assert torch.equal(up[0], up[-1])


def test_probability_zero_leaves_every_bit_and_says_so():
    x = image(8, 8, 20, torch.float32)
    got, label = Augment(0.0)(x, rng_for(0, 0, 20))
    assert torch.equal(got, x)
    assert label.shape == (20, LABEL)
    assert label.dtype == torch.float32
    assert not label.any()


def test_an_image_of_which_the_label_is_zero_keeps_its_bits_and_others_do_not():
    x = image(8, 8, 64, torch.float32)
    got, label = Augment(0.12)(x, rng_for(0, 0, 64))
    same = (got == x).flatten(1).all(1)
    assert torch.equal(same, ~label.any(1))
    assert 8 < int(same.sum()) < 32  # 0.5 * 0.94 * 0.88^4 = 0.28 of them


def test_the_label_says_what_was_done():
    label = done(
        x_flip=[1, 0],
        y_flip=[0, 1],
        scale=[0.5, 0],
        angle=[QUARTER, 0],
        stretch=[2, 0],
        axis=[QUARTER / 3, 1],
        move=[[1, -1], [0, 0]],
    ).label()
    assert label[1].tolist() == [0, 1, *[0] * 7], "an axis without a stretch is nothing"
    expected = [1, 0, 0.5, -1, 1, 2 * math.cos(math.pi / 6), 1, 1, -1]
    torch.testing.assert_close(label[0], torch.tensor(expected, dtype=torch.float64))


def test_how_often_and_how_much():
    n, p = 40_000, 0.3
    drawn = Augment(p).draw(rng_for(0, 0, n))
    label = drawn.label()

    def near(value, expected, deviation):
        assert abs(float(value) - expected) < 4 * deviation / math.sqrt(n)

    near(label[:, X_FLIP].mean(), 0.5, 0.5)
    near(label[:, Y_FLIP].mean(), p / 2, 0.36)
    for column in (SCALE, STRETCH_COS, STRETCH_SIN, MOVE_X, MOVE_Y, SIN):
        near(label[:, column].mean(), 0.0, math.sqrt(p))
    near(label[:, COS].mean(), -p, 1.0)  # a turn by any angle: cos - 1 is -1 on average
    for column in (SCALE, MOVE_X, MOVE_Y):
        near(label[:, column].ne(0).double().mean(), p, 0.46)
        near(label[:, column].square().mean(), p, 1.0)
    near(drawn.stretch.square().mean(), p, 1.0)
    near(drawn.axis.ne(0).double().mean(), 0.5, 0.5)
    assert torch.equal(drawn.move[:, 0] != 0, drawn.move[:, 1] != 0)
    assert drawn.angle.abs().max() < math.pi < drawn.angle.abs().max() + 0.01
    chosen = torch.stack([drawn.y_flip, drawn.scale, drawn.angle, drawn.stretch, drawn.move[:, 0]]).ne(0).double()
    assert (torch.corrcoef(chosen) - torch.eye(5)).abs().max() < 0.03, "each by a coin of its own"


def test_the_numbers_belong_to_the_image():
    """Whoever has it, in whatever company, at whatever step."""
    x, whole = image(8, 8, 24, torch.float32), rng_for(3, 100, 24)
    images, labels = Augment(0.5)(x, whole)
    for rows in (slice(0, 5), slice(5, 6), slice(6, 24)):
        some, told = Augment(0.5)(x[rows], Rng(3, whole.ordinals[rows], step=9))
        assert torch.equal(told, labels[rows])
        torch.testing.assert_close(some, images[rows], rtol=0, atol=1e-6)
    assert not torch.equal(Augment(0.5)(x, rng_for(4, 100, 24))[1], labels)
    noise = whole.normal("scale", (), torch.float64)
    assert not torch.equal(noise, Augment(1.0).draw(whole).scale), "a stream of its own"


def test_the_precision_of_a_step_does_not_touch_it():
    x = image(8, 8, 8, torch.float32)
    plain = Augment(1.0)(x, rng_for(0, 0, 8))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Augment(1.0)(x, rng_for(0, 0, 8))[0], plain)
    exact = Augment(1.0)(x.double(), rng_for(0, 0, 8))[0]
    torch.testing.assert_close(plain.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("p", [-0.1, 1.2, float("nan")])
def test_a_probability_is_a_probability(p):
    with pytest.raises(ValueError, match="--augment is a probability between 0 and 1, got"):
        Augment(p)

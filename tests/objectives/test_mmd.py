"""Real features that are kept: each image once, and no bit depends on what was known."""

import torch
from torch import nn

from percepta.estimate import Estimate
from percepta.objectives import Mmd
from percepta.objectives.rows import PART, Known, fingerprints
from percepta.spaces import Space


class Small(Space):
    """A frozen convolution, averaged."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 16, 3)
        self.calls: list[int] = []
        self.freeze()

    def forward(self, x):
        self.calls.append(len(x))
        return (self.layer(x).mean((2, 3)),)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_every_image_is_computed_once():
    space = Small()
    known = Known(lambda x: space(x)[0], 4, 2**20)
    x = images(6)
    first = known(x[[0, 1, 1, 2]])
    assert space.calls == [4]  # three, filled up to a chunk
    again = known(x[[2, 3, 0, 4, 5, 1]])
    assert space.calls == [4, 4]
    assert known.computed == 6
    assert torch.equal(again[[2, 5, 5, 0]], first)
    torch.testing.assert_close(again, space(x[[2, 3, 0, 4, 5, 1]])[0])


def test_a_row_has_the_same_bits_whatever_was_known_before():
    space = Small()
    x = images(8)
    fresh = Known(lambda x: space(x)[0], 4, 2**20)(x)
    warm = Known(lambda x: space(x)[0], 4, 2**20)
    warm(x[[5, 2, 7]])
    assert torch.equal(warm(x), fresh)


def test_an_image_is_known_by_every_bit_of_it_wherever_it_lies_in_a_batch():
    x = images(6)
    keys = fingerprints(x)
    assert len(set(keys)) == 6 and all(len(key) == 16 for key in keys)
    assert fingerprints(x[[3, 0]]) == [keys[3], keys[0]] and fingerprints(x.clone().to(memory_format=torch.channels_last)) == keys
    least = torch.nextafter(x[0, 1, 2, 3], torch.tensor(2.0))
    moved, mirrored, swapped = x[:1].clone(), x[:1].flip(3), x[:1].clone()
    moved[0, 1, 2, 3] = least
    swapped[0, :, 0, 0], swapped[0, :, 0, 1] = x[0, :, 0, 1], x[0, :, 0, 0]
    assert len({*keys, *fingerprints(torch.cat([moved, mirrored, swapped, -x[:1]]))}) == 10
    large = torch.rand(3, 1, 1, PART)  # one part each
    assert fingerprints(large[1:]) == fingerprints(large)[1:]


def test_what_is_computed_anew_is_what_would_be_known():
    space = Small()
    x, known = images(7), Known(lambda x: space(x)[0], 4, 2**20)
    rows = known.anew(x)
    assert not known.kept and space.calls == [4, 4]
    assert torch.equal(known(x), rows) and len(known.kept) == 7


def test_memory_is_bounded():
    space = Small()
    known = Known(lambda x: space(x)[0], 4, 3 * 16 * 4)
    known(images(4))
    assert len(known.kept) == 3
    assert known.bytes == 3 * 16 * 4


def test_the_loss_is_the_same_with_and_without():
    space = Small()
    losses = []
    for memory in (0, 2**20):
        objective = Mmd(space, chunk=4, memory=memory)
        for _ in range(2):
            x = images(8, 1).requires_grad_()
            loss = objective(Estimate(x, images(8), paired=False))
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1])
    calls = len(space.calls)
    objective(Estimate(images(8, 2), images(8), paired=False))
    assert len(space.calls) - calls == 2  # the generated side alone

"""Every number is a function of (seed, stream, name, ordinal): however rows are batched, split over ranks, or resumed."""

import random

import pytest
import torch

from percepta.rng import BLOCK, Rng, mix, rng_for

WHOLE = rng_for(7, 0, 40)


def test_rows_do_not_depend_on_batching():
    expected = WHOLE.normal("eps", (2, 3))
    for size in (1, 3, 7, 8, 9, 40):
        parts = [rng_for(7, first, min(size, 40 - first)).normal("eps", (2, 3)) for first in range(0, 40, size)]
        assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("first", [0, 1, 7, 8, 13])
def test_a_batch_may_begin_anywhere_in_a_block(first):
    assert torch.equal(rng_for(7, first, 11).normal("eps", (3,)), WHOLE.normal("eps", (3,))[first : first + 11])


def test_two_ranks_draw_what_one_process_draws():
    for world in (2, 3):
        ranks = [WHOLE.select(range(rank, 40, world)) for rank in range(world)]
        joined = torch.empty(40, 3)
        for rank, rng in enumerate(ranks):
            joined[rank::world] = rng.normal("eps", (3,))
        assert torch.equal(joined, WHOLE.normal("eps", (3,)))


def test_rows_in_any_order_and_twice():
    order = [*range(40), 5, 5, 6]
    random.Random(0).shuffle(order)
    assert torch.equal(WHOLE.select(order).uniform("t"), WHOLE.uniform("t")[order])


def test_select_takes_slices_and_rows():
    assert WHOLE.select(slice(3, 6)).ordinals == (3, 4, 5) == WHOLE.select([3, 4, 5]).ordinals
    assert rng_for(0, 10, 4).select([0, -1]).ordinals == (10, 13)


def test_names_streams_seeds_and_rows_are_independent():
    draws = [
        WHOLE.normal("eps", (200,)), WHOLE.normal("other", (200,)), WHOLE.fork("critic").normal("eps", (200,)),
        rng_for(8, 0, 40).normal("eps", (200,)), rng_for(7, 40, 40).normal("eps", (200,)), rng_for(7, 0, 40, stream="sample").normal("eps", (200,)),
    ]  # fmt: skip
    table = torch.corrcoef(torch.stack([d.flatten() for d in draws]))
    assert (table - torch.eye(len(draws))).abs().max() < 0.06
    rows = torch.corrcoef(draws[0])
    assert (rows - torch.eye(40)).abs().max() < 0.35


def test_drawing_one_name_does_not_move_another():
    fresh = rng_for(7, 0, 4).normal("b", (2,))
    rng = rng_for(7, 0, 4)
    rng.normal("a", (5,))
    rng.uniform("a")
    assert torch.equal(rng.normal("b", (2,)), fresh)
    assert torch.equal(rng.normal("b", (2,)), fresh)


def test_the_step_moves_what_is_drawn_once_and_nothing_else():
    a, b = rng_for(7, 0, 4, step=1), rng_for(7, 0, 4, step=2)
    assert torch.equal(a.normal("eps", (2,)), b.normal("eps", (2,)))
    draws = [torch.rand(3, generator=r.once("flip")) for r in (a, b, rng_for(7, 4, 4, step=1))]
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_a_resumed_run_draws_what_the_straight_run_drew():
    straight = [rng_for(7, step * 6, 6, step).normal("eps", (4,)) for step in range(5)]
    resumed = [rng_for(7, step * 6, 6, step).normal("eps", (4,)) for step in range(3, 5)]
    assert all(torch.equal(a, b) for a, b in zip(straight[3:], resumed, strict=True))
    assert not torch.equal(straight[0], straight[1])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.manual_seed(0)
    one = WHOLE.normal("eps", (2,))
    torch.manual_seed(1)
    assert torch.equal(one, WHOLE.normal("eps", (2,)))
    state = torch.get_rng_state()
    WHOLE.uniform("t")
    assert torch.equal(state, torch.get_rng_state())
    torch.set_rng_state(before)


def test_distributions_and_types():
    z = rng_for(0, 0, 4096).normal("z", (16,), torch.float64)
    assert z.dtype == torch.float64
    assert abs(z.mean().item()) < 0.02
    assert z.std().item() == pytest.approx(1, abs=0.02)
    u = rng_for(0, 0, 4096).uniform("u")
    assert (u.dtype, u.shape, u.device.type) == (torch.float64, (4096,), "cpu")
    assert 0 <= u.min() < 0.01 < 0.99 < u.max() < 1
    assert rng_for(0, 0, 4).normal("z", (2, 3)).shape == (4, 2, 3)
    assert rng_for(0, 0, 0).normal("z", (2,)).shape == (0, 2)
    assert len(Rng(0, (3, 4))) == 2


def test_mix_is_stable_and_separates():
    assert mix(0, "train", "eps", 0) == mix(0, "train", "eps", 0)
    assert len({mix(seed, name, k) for seed in range(10) for name in "abc" for k in range(100)}) == 3000
    assert 0 <= mix("x") < 2**63


def test_a_block_is_part_of_the_definition():
    """Another block size gives other numbers to every existing run: this value is frozen."""
    assert BLOCK == 8
    assert mix(1, "train", "eps", 0) == 845323283238113441
    assert torch.allclose(rng_for(1, 9, 1).uniform("t"), torch.tensor([0.6808004312593084], dtype=torch.float64))
